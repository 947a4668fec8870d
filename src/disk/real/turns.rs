//! The turn: of all jobs on a file system one works in the background at a time.
//!
//! Two flock(2) locks on directories that the file system has in sysfs while it is mounted: no file is made, no privilege
//! is needed, a process that dies gives its locks back, and the name is the file system's whatever it is mounted on. Whoever wants
//! the turn takes `next` first and keeps it until the turn is free: so the one who had it last cannot take it again before one
//! who waits.

use std::fs::File;
use std::os::fd::BorrowedFd;

use super::file::try_flock;
use crate::sys::fs;

/// The two locks of a file system, and which are ours.
#[derive(Debug)]
pub struct Turns {
    turn: File,
    next: File,
    has_turn: bool,
    is_next: bool,
}

impl Turns {
    /// The locks of the file system that `fd` is on; `None` where it has none.
    pub fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        let [turn, next] = fs::turn_directories(fd)?;
        let (turn, next) = (File::open(turn).ok()?, File::open(next).ok()?);
        Some(Self { turn, next, has_turn: false, is_next: false })
    }

    /// Whether the turn is ours now. Waits for nothing; a lock that cannot be had at all (ENOLCK) keeps nobody from working.
    pub fn take(&mut self) -> bool {
        if !self.has_turn {
            self.is_next = self.is_next || try_flock(&self.next).unwrap_or(true);
            self.has_turn = self.is_next && try_flock(&self.turn).unwrap_or(true);
            if self.has_turn {
                let _ = self.next.unlock();
                self.is_next = false;
            }
        }
        self.has_turn
    }

    /// Gives the turn, and the place in the queue, to others.
    pub fn end(&mut self) {
        // An unlock of what is locked does not fail.
        let _ = self.turn.unlock();
        let _ = self.next.unlock();
        (self.has_turn, self.is_next) = (false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_comes_before_who_had_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let other = tempfile::tempdir().expect("a temporary directory");
        let open = || Turns {
            turn: File::open(dir.path()).expect("there"),
            next: File::open(other.path()).expect("there"),
            has_turn: false,
            is_next: false,
        };
        let (mut a, mut b, mut c) = (open(), open(), open());
        assert!(a.take() && a.take());
        assert!(!b.take() && !c.take());
        a.end();
        assert!(!a.take(), "b is next");
        assert!(b.take() && !a.take() && !c.take(), "a is next now, and has not got it");
        b.end();
        assert!(!c.take() && a.take() && !b.take());
        drop(a);
        assert!(b.take(), "who dies gives it back");
        b.end();
        assert!(c.take());
    }
}
