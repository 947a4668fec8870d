//! Who has come after T0, may have written unseen, and has gone again before anybody looked.
//!
//! Whoever opens an image under watch can be watched, but for a mapping that is made to grow and for the kernel's own users,
//! such as a loop device (KERNEL.md). Who of them is there at the end is found by a look. Who is not has closed the image, and
//! the kernel tells of that: once for each opening, when the last descriptor, mapping or device of it is gone, and whether it
//! was for writing. Nobody waits for that to be read. Openings for reading are harmless. So are, as far as can be told, those
//! of processes that had the image open before T0: they were looked at, and a VM may be shut down.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;

use crate::hold::choose::Image;
use crate::hold::holders;
use crate::sys::fanotify::{Event, Group, Mark};

/// The kernel's word of what is closed.
pub struct Closings {
    group: Group,
    /// Who had each image open for writing before T0.
    known: Vec<BTreeSet<u32>>,
}

impl Closings {
    /// From here on what is closed is told. `known` is who had each image open for writing before.
    ///
    /// # Errors
    /// What the kernel says of the group and its marks.
    pub fn of(images: &[Image], known: &[BTreeSet<u32>]) -> io::Result<Self> {
        let group = Group::notification()?;
        images.iter().try_for_each(|(image, _)| group.mark(image.as_fd(), Mark::CloseWrite))?;
        Ok(Self { group, known: known.to_vec() })
    }

    /// Why the snapshot is lost, if it is, by what was closed since the last call.
    pub fn lost(&self, images: &[Image]) -> Option<String> {
        loop {
            match self.group.read() {
                Ok(None) => return None,
                Ok(Some(event)) => {
                    if let Some(why) = self.stranger(&event, images) {
                        return Some(why);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A queue that overflowed, among others.
                Err(e) => return Some(format!("the kernel's word of who has closed an image cannot be read: {e}")),
            }
        }
    }

    fn stranger(&self, event: &Event, images: &[Image]) -> Option<String> {
        let name = |file: &dyn AsFd| fstat(file.as_fd()).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        let closed = name(&event.file);
        let image = images.iter().position(|(image, _)| name(&**image) == closed);
        let pid = u32::try_from(event.pid).unwrap_or(0);
        if image.and_then(|image| self.known.get(image)).is_some_and(|known| known.contains(&pid)) {
            return None;
        }
        let path = image.map_or_else(|| "an image".into(), |image| format!("'{}'", images[image].1.display()));
        let who = match holders::comm(pid) {
            comm if comm.is_empty() => format!("pid {pid}"),
            comm => format!("pid {pid} ({})", comm.escape_debug()),
        };
        Some(format!(
            "somebody may have written to {path} unseen: {who} has closed what was opened for writing after the point in time; if that comes again, keep it from the image meanwhile"
        ))
    }
}
