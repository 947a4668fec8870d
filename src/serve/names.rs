//! The names by which clients read points in time that are being made. One is taken before T0 and held for as long as it takes, so that two
//! connections that ask for the same name get the same point in time. What is there already its keepers know.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a name is taken for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Made {
    /// A fleece that is about to begin.
    Fleece,
    /// A snapshot, by a job. Another job may have the name as well: that of one that was killed a moment ago is still taken.
    Snapshot,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fleece => "a fleece",
            Self::Snapshot => "a snapshot that is being made",
        })
    }
}

/// Those that are taken.
#[derive(Default)]
pub struct Names(Mutex<Vec<(String, Made)>>);

/// One that is taken; dropped, it is free again.
pub struct Taken {
    names: Arc<Names>,
    it: (String, Made),
}

impl Names {
    /// Takes a name.
    ///
    /// # Errors
    /// What has it.
    pub fn take(self: &Arc<Self>, name: &str, made: Made) -> Result<Taken, Made> {
        let mut all = self.lock();
        let mut others = all.iter().filter(|it| it.0 == name).map(|it| it.1);
        if let Some(other) = others.find(|other| (*other, made) != (Made::Snapshot, Made::Snapshot)) {
            return Err(other);
        }
        let it = (name.to_owned(), made);
        all.push(it.clone());
        Ok(Taken { names: Arc::clone(self), it })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, Made)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut all = self.names.lock();
        let at = all.iter().position(|it| *it == self.it);
        at.into_iter().for_each(|at| drop(all.swap_remove(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_is_nobody_elses_until_it_is_given_back() {
        let names = Arc::new(Names::default());
        let take = |name, made| names.take(name, made);
        let fleece = take("a", Made::Fleece).expect("the first");
        assert_eq!(take("a", Made::Fleece).err(), Some(Made::Fleece));
        assert_eq!(take("a", Made::Snapshot).err(), Some(Made::Fleece));
        assert!(take("b", Made::Snapshot).is_ok());
        drop(fleece);
        let snapshots = [take("a", Made::Snapshot), take("a", Made::Snapshot)].map(|it| it.expect("of two jobs"));
        for snapshot in snapshots {
            assert_eq!(take("a", Made::Fleece).err(), Some(Made::Snapshot));
            drop(snapshot);
        }
        assert!(take("a", Made::Fleece).is_ok() && names.lock().is_empty());
    }
}
