//! The table that a job's worker shares with its supervisor: which accesses the worker holds, and that it is alive.
//!
//! The worker may stop at any instruction. It enters an access before it does anything else with it, and strikes it out
//! after the kernel was told to let it go on; the supervisor only reads, but for the one word that says that it has taken
//! over. Whoever may open the worker's descriptors can read the table as well: `status` does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::sys::shared::Words;

/// The memfd's name, by which `status` finds it among a worker's descriptors.
pub const NAME: &std::ffi::CStr = c"reflink-img-job";

/// How many accesses a worker holds at most.
pub const SLOTS: usize = 4096;

/// "rflkimg" and the version of the layout.
const MAGIC: u64 = u64::from_be_bytes(*b"rflkimg\x01");

// The words of the table, by number.
const MAGIC_AT: usize = 0;
const STATE: usize = 1;
const HEARTBEAT: usize = 2;
const DEADLINE: usize = 3;
const NUMBERS: usize = 4;
const HIGHEST: usize = 5;
const FIGURES: usize = 8;
/// Two words a slot: since when (0 is free), and the descriptor's number.
const FIRST_SLOT: usize = 32;
const COUNT: usize = FIRST_SLOT + 2 * SLOTS;

/// Nothing is marked: no access can be waiting.
const IDLE: u64 = 0;
/// Accesses may be waiting for the worker.
const WATCHING: u64 = 1;
/// The supervisor has let everything go on.
const RELEASED: u64 = 2;

/// What a live job tells about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes of all images.
    pub bytes: u64,
    /// Clusters cloned out of turn.
    pub promoted: u64,
    /// Accesses seen since T0.
    pub seen: u64,
    /// Those that waited.
    pub waited: u64,
    /// Those that wait now.
    pub waiting: u64,
    /// The longest wait.
    pub longest: Duration,
    /// Time since T0.
    pub since_t0: Duration,
}

/// The table.
pub struct Table(Words);

impl Table {
    /// A new one. `numbers` bounds the worker's descriptor numbers (RLIMIT_NOFILE).
    ///
    /// # Errors
    /// What making shared memory says.
    pub fn create(deadline: Duration, numbers: u64) -> io::Result<Self> {
        let table = Self(Words::create(NAME, COUNT)?);
        table.word(DEADLINE).store(nanos(deadline), Relaxed);
        table.word(NUMBERS).store(numbers, Relaxed);
        table.word(MAGIC_AT).store(MAGIC, Release);
        Ok(table)
    }

    /// Another process's.
    ///
    /// # Errors
    /// `InvalidData` where it is none.
    pub fn map(fd: OwnedFd) -> io::Result<Self> {
        let table = Self(Words::map(fd, COUNT)?);
        if table.word(MAGIC_AT).load(Acquire) != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a job's table"));
        }
        Ok(table)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.0.words()[index]
    }

    /// How long an access may wait.
    pub fn deadline(&self) -> Duration {
        Duration::from_nanos(self.word(DEADLINE).load(Relaxed))
    }

    /// The bound of the worker's descriptor numbers.
    pub fn numbers(&self) -> u64 {
        self.word(NUMBERS).load(Relaxed)
    }

    /// From here on accesses may wait. False where the supervisor has taken over.
    pub fn watch(&self) -> bool {
        self.word(STATE).compare_exchange(IDLE, WATCHING, AcqRel, Acquire).is_ok() || self.is_watching()
    }

    /// No access can be waiting any more.
    pub fn rest(&self) {
        let _ = self.word(STATE).compare_exchange(WATCHING, IDLE, AcqRel, Acquire);
    }

    /// Whether accesses may be waiting.
    pub fn is_watching(&self) -> bool {
        self.word(STATE).load(Acquire) == WATCHING
    }

    /// The supervisor takes over, for good.
    pub fn take_over(&self) {
        self.word(STATE).store(RELEASED, Release);
    }

    /// Whether the supervisor has taken over.
    pub fn was_taken_over(&self) -> bool {
        self.word(STATE).load(Acquire) == RELEASED
    }

    /// The answering thread is alive.
    pub fn beat(&self) {
        self.word(HEARTBEAT).store(nanos(now()), Release);
    }

    /// When it was last known to be.
    pub fn last_beat(&self) -> Duration {
        Duration::from_nanos(self.word(HEARTBEAT).load(Acquire))
    }

    /// Enters an access, by the number of its event's descriptor; `None` where the table is full. One thread enters.
    pub fn enter(&self, number: i32) -> Option<Slot> {
        let slot = (0..SLOTS).find(|slot| self.word(FIRST_SLOT + 2 * slot).load(Acquire) == 0)?;
        self.word(FIRST_SLOT + 2 * slot + 1).store(number as u64, Relaxed);
        self.word(FIRST_SLOT + 2 * slot).store(nanos(now()).max(1), Release);
        self.word(HIGHEST).fetch_max(slot as u64 + 1, AcqRel);
        Some(Slot(slot))
    }

    /// Strikes out an access that was let go on.
    pub fn strike(&self, slot: &Slot) {
        self.word(FIRST_SLOT + 2 * slot.0).store(0, Release);
    }

    /// The accesses that are held: since when, and the number.
    pub fn held(&self) -> impl Iterator<Item = (Duration, i32)> + '_ {
        let used = (self.word(HIGHEST).load(Acquire) as usize).min(SLOTS);
        (0..used).filter_map(|slot| {
            let since = self.word(FIRST_SLOT + 2 * slot).load(Acquire);
            let number = self.word(FIRST_SLOT + 2 * slot + 1).load(Relaxed);
            (since != 0).then_some((Duration::from_nanos(since), number as i32))
        })
    }

    /// Tells how the job stands.
    pub fn tell(&self, figures: &Figures) {
        let Figures { done_bytes, bytes, promoted, seen, waited, waiting, longest, since_t0 } = *figures;
        let all = [done_bytes, bytes, promoted, seen, waited, waiting, nanos(longest), nanos(since_t0)];
        for (index, value) in all.into_iter().enumerate() {
            self.word(FIGURES + index).store(value, Relaxed);
        }
    }

    /// How the job stands; the figures are not of one instant.
    pub fn figures(&self) -> Figures {
        let value = |index| self.word(FIGURES + index).load(Relaxed);
        Figures {
            done_bytes: value(0),
            bytes: value(1),
            promoted: value(2),
            seen: value(3),
            waited: value(4),
            waiting: value(5),
            longest: Duration::from_nanos(value(6)),
            since_t0: Duration::from_nanos(value(7)),
        }
    }
}

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An access's place in the table.
#[derive(Debug)]
pub struct Slot(usize);

/// The clock that worker and supervisor have in common (CLOCK_MONOTONIC).
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{AsFd, Figures, SLOTS, Table};

    #[test]
    fn what_one_process_enters_another_sees_until_it_is_struck_out() {
        let ours = Table::create(Duration::from_secs(1), 100).expect("shared memory");
        let theirs = Table::map(ours.as_fd().try_clone_to_owned().expect("dup")).expect("a table");
        let (first, second) = (ours.enter(7).expect("room"), ours.enter(9).expect("room"));
        assert_eq!(theirs.held().map(|(_, number)| number).collect::<Vec<_>>(), [7, 9]);
        ours.strike(&first);
        assert_eq!(theirs.held().map(|(_, number)| number).collect::<Vec<_>>(), [9]);
        ours.strike(&second);
        assert_eq!((theirs.held().count(), theirs.deadline(), theirs.numbers()), (0, Duration::from_secs(1), 100));
        let all: Vec<_> = (0..SLOTS).map(|n| ours.enter(n as i32).expect("room")).collect();
        assert!(ours.enter(0).is_none(), "full");
        assert_eq!(theirs.held().count(), all.len());
    }

    #[test]
    fn once_the_supervisor_has_taken_over_nothing_is_watched_again() {
        let table = Table::create(Duration::from_secs(1), 100).expect("shared memory");
        assert!(table.watch() && table.is_watching());
        table.rest();
        assert!(table.watch());
        table.take_over();
        table.rest();
        assert!(table.was_taken_over() && !table.watch());
    }

    #[test]
    fn figures_come_back_as_they_were_told() {
        let table = Table::create(Duration::from_secs(1), 100).expect("shared memory");
        let figures = Figures {
            done_bytes: 1,
            bytes: 2,
            promoted: 3,
            seen: 4,
            waited: 5,
            waiting: 6,
            longest: Duration::from_nanos(7),
            since_t0: Duration::from_nanos(8),
        };
        table.tell(&figures);
        assert_eq!(table.figures(), figures);
    }
}
