//! Locks on ranges of an image, for accesses that must not meet: who takes one alone waits for all others that overlap, and who takes one
//! together waits for those alone.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The ranges that are locked.
#[derive(Debug, Default)]
pub struct Blocks {
    held: Mutex<Vec<Lock>>,
    freed: Condvar,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Lock {
    range: Range<u64>,
    alone: bool,
}

impl Lock {
    fn conflicts(&self, other: &Self) -> bool {
        (self.alone || other.alone) && self.range.start < other.range.end && other.range.start < self.range.end
    }
}

/// Locks that are given back when this is dropped.
pub struct Held<'a>(&'a Blocks, Vec<Lock>);

impl Blocks {
    /// Takes these ranges, all at once, which no two callers can do in each other's way.
    pub fn take(&self, ranges: impl IntoIterator<Item = Range<u64>>, alone: bool) -> Held<'_> {
        let locks: Vec<_> = ranges.into_iter().map(|range| Lock { range, alone }).collect();
        let mut held = self.held();
        while held.iter().any(|other| locks.iter().any(|lock| lock.conflicts(other))) {
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.extend_from_slice(&locks);
        Held(self, locks)
    }

    fn held(&self) -> MutexGuard<'_, Vec<Lock>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.0.held();
        for lock in &self.1 {
            if let Some(at) = held.iter().position(|other| other == lock) {
                held.swap_remove(at);
            }
        }
        drop(held);
        if !self.1.is_empty() {
            self.0.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_those_who_overlap_and_one_of_whom_is_alone_wait() {
        let lock = |range: Range<u64>, alone| Lock { range, alone };
        let check = |a: Lock, b: Lock, conflict| assert_eq!((a.conflicts(&b), b.conflicts(&a)), (conflict, conflict));
        check(lock(0..8, false), lock(4..9, false), false);
        check(lock(0..8, true), lock(4..9, false), true);
        check(lock(0..8, true), lock(7..8, true), true);
        check(lock(0..8, true), lock(8..9, true), false);
    }

    #[test]
    fn who_waits_goes_on_when_the_last_one_in_his_way_is_gone() {
        let blocks = Arc::new(Blocks::default());
        let [one, two] = [0..4, 2..6].map(|range| blocks.take(Some(range), false));
        let (told, wait) = channel::<()>();
        let waiting = thread::spawn({
            let blocks = Arc::clone(&blocks);
            move || {
                let _held = blocks.take([0..1, 5..6], true);
                drop(told);
            }
        });
        drop(blocks.take(Some(8..9), true));
        drop(one);
        assert_eq!(wait.recv_timeout(Duration::from_millis(1)), Err(RecvTimeoutError::Timeout));
        drop(two);
        assert_eq!(wait.recv_timeout(Duration::from_secs(600)), Err(RecvTimeoutError::Disconnected));
        waiting.join().expect("no panic");
        assert!(blocks.held().is_empty());
    }
}
