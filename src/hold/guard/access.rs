//! An access of somebody's that waits for an answer: a value that cannot be dropped unanswered.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::table::{Slot, Table};
use crate::sys::fanotify::Group;

/// The access. Dropping it lets it go on.
pub struct Access {
    file: OwnedFd,
    group: Arc<Group>,
    entry: Option<(Arc<Table>, Slot)>,
}

impl Access {
    /// The access behind an event of this group, which has waited since then, entered in the table at once; without an entry where that is
    /// full.
    pub fn new(file: OwnedFd, since: Duration, group: &Arc<Group>, table: &Arc<Table>) -> Self {
        let entry = table.enter(file.as_raw_fd(), since).map(|slot| (Arc::clone(table), slot));
        Self { file, group: Arc::clone(group), entry }
    }

    /// Whether the supervisor knows of it; else it must not wait.
    pub fn is_entered(&self) -> bool {
        self.entry.is_some()
    }
}

impl AsFd for Access {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        // ENOENT where the supervisor was faster. Struck out only after the answer, and closed last: the number is the
        // access's name.
        let _ = self.group.allow(self.file.as_raw_fd());
        if let Some((table, slot)) = &self.entry {
            table.strike(slot);
        }
    }
}
