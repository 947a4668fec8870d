//! The table that a job's worker shares with its supervisor: which accesses the worker holds, and that both are alive.
//!
//! The worker may stop at any instruction. It enters an access before it does anything else with it, and strikes it out
//! after the kernel was told to let it go on; the supervisor only reads, but for the words that say that it is alive and that it
//! has taken over. Whoever may open the worker's descriptors can read the table as well: `status` does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::cbw::Clusters;
use crate::sys::shared::{View, Words};

/// The memfd's name, by which `status` finds it among a worker's descriptors.
pub const NAME: &std::ffi::CStr = c"reflink-img-job";

/// How many accesses a worker holds at most.
pub const SLOTS: usize = 4096;

/// "rflkimg" and the version of the layout.
const MAGIC: u64 = u64::from_be_bytes(*b"rflkimg\x03");

// The words of the table, by number.
const MAGIC_AT: usize = 0;
const STATE: usize = 1;
const HEARTBEAT: usize = 2;
const DEADLINE: usize = 3;
const NUMBERS: usize = 4;
const HIGHEST: usize = 5;
const STANDS_BY: usize = 6;
const FIGURES: usize = 8;
const FIGURES_COUNT: usize = 10;
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
    /// Clusters done.
    pub done: u64,
    /// Clusters of all images.
    pub clusters: u64,
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

    /// The supervisor is alive.
    pub fn stand_by(&self) {
        self.word(STANDS_BY).store(nanos(now()), Release);
    }

    /// When it was last known to be.
    pub fn last_stood_by(&self) -> Duration {
        Duration::from_nanos(self.word(STANDS_BY).load(Acquire))
    }

    /// Enters an access that has waited since then, by the number of its event's descriptor; `None` where the table is full. One thread
    /// enters.
    pub fn enter(&self, number: i32, since: Duration) -> Option<Slot> {
        let slot = (0..SLOTS).find(|slot| self.word(FIRST_SLOT + 2 * slot).load(Acquire) == 0)?;
        self.word(FIRST_SLOT + 2 * slot + 1).store(number as u64, Relaxed);
        self.word(FIRST_SLOT + 2 * slot).store(nanos(since).max(1), Release);
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
        for (index, value) in figures.to_words().into_iter().enumerate() {
            self.word(FIGURES + index).store(value, Relaxed);
        }
    }

    /// How the job stands; the figures are not of one instant.
    pub fn figures(&self) -> Figures {
        Figures::from_words(|index| self.word(FIGURES + index).load(Relaxed))
    }
}

impl Figures {
    /// Of a job, as far as the states of its images' clusters tell; `began` is its T0, by [`now`]. How its guests fare is not in them.
    pub fn of(clusters: &[Arc<Clusters>], promoted: u64, began: Duration) -> Self {
        let sum = |of: fn(&Clusters) -> u64| clusters.iter().map(|c| of(c)).sum();
        Self {
            done_bytes: sum(Clusters::done_bytes),
            bytes: sum(Clusters::size),
            done: sum(Clusters::done),
            clusters: sum(Clusters::count),
            promoted,
            since_t0: now().saturating_sub(began),
            ..Self::default()
        }
    }

    fn to_words(self) -> [u64; FIGURES_COUNT] {
        let Self { done_bytes, bytes, done, clusters, promoted, seen, waited, waiting, longest, since_t0 } = self;
        [done_bytes, bytes, done, clusters, promoted, seen, waited, waiting, nanos(longest), nanos(since_t0)]
    }

    fn from_words(word: impl Fn(usize) -> u64) -> Self {
        Self {
            done_bytes: word(0),
            bytes: word(1),
            done: word(2),
            clusters: word(3),
            promoted: word(4),
            seen: word(5),
            waited: word(6),
            waiting: word(7),
            longest: Duration::from_nanos(word(8)),
            since_t0: Duration::from_nanos(word(9)),
        }
    }
}

/// What a job shows of itself to whoever may look at its descriptors. Nothing is changed by looking, and nothing of it is to
/// be relied on: it is another process's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// How it stands, by what it told last; accesses that wait are those of now.
    pub figures: Figures,
    /// Accesses may be waiting: T0 is set, or about to be.
    pub watching: bool,
    /// Its supervisor has let everybody go on: the snapshot is lost.
    pub taken_over: bool,
}

/// The table as somebody else sees it.
pub struct Glance(View);

impl Glance {
    /// Of a descriptor that need not be open for writing.
    ///
    /// # Errors
    /// `InvalidData` where it is none.
    pub fn of(fd: OwnedFd) -> io::Result<Self> {
        let view = View::map(fd, COUNT)?;
        if view.load(MAGIC_AT) == MAGIC { Ok(Self(view)) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// What it shows now.
    pub fn look(&self) -> Shown {
        let word = |index| self.0.load(index);
        let told = Figures::from_words(|index| word(FIGURES + index));
        let used = usize::try_from(word(HIGHEST)).unwrap_or(SLOTS).min(SLOTS);
        let held = (0..used).map(|slot| word(FIRST_SLOT + 2 * slot)).filter(|since| *since != 0);
        let (waiting, first) = held.fold((0, u64::MAX), |(count, first), since| (count + 1, first.min(since)));
        let waits_for = if waiting > 0 { now().saturating_sub(Duration::from_nanos(first)) } else { Duration::ZERO };
        let figures = Figures {
            done_bytes: told.done_bytes.min(told.bytes),
            done: told.done.min(told.clusters),
            waiting,
            longest: told.longest.max(waits_for),
            ..told
        };
        Shown { figures, watching: word(STATE) == WATCHING, taken_over: word(STATE) == RELEASED }
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

/// One test at a time has tables: who looks for a process's finds any of them.
#[cfg(test)]
pub(super) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{AsFd, Figures, Glance, SLOTS, Table, alone, now};

    #[test]
    fn what_one_process_enters_another_sees_until_it_is_struck_out() {
        let _alone = alone();
        let ours = Table::create(Duration::from_secs(1), 100).expect("shared memory");
        let theirs = Table::map(ours.as_fd().try_clone_to_owned().expect("dup")).expect("a table");
        let (first, second) =
            (ours.enter(7, Duration::from_secs(5)).expect("room"), ours.enter(9, now()).expect("room"));
        assert_eq!(theirs.held().map(|(_, number)| number).collect::<Vec<_>>(), [7, 9]);
        // By the time at which somebody began to wait, not that at which he was read.
        assert_eq!(theirs.held().next().map(|(since, _)| since), Some(Duration::from_secs(5)));
        ours.strike(&first);
        assert_eq!(theirs.held().map(|(_, number)| number).collect::<Vec<_>>(), [9]);
        ours.strike(&second);
        assert_eq!((theirs.held().count(), theirs.deadline(), theirs.numbers()), (0, Duration::from_secs(1), 100));
        let all: Vec<_> = (0..SLOTS).map(|n| ours.enter(n as i32, now()).expect("room")).collect();
        assert!(ours.enter(0, now()).is_none(), "full");
        assert_eq!(theirs.held().count(), all.len());
    }

    #[test]
    fn once_the_supervisor_has_taken_over_nothing_is_watched_again() {
        let _alone = alone();
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
        let _alone = alone();
        let table = Table::create(Duration::from_secs(1), 100).expect("shared memory");
        let figures = Figures {
            done_bytes: 1,
            bytes: 2,
            done: 3,
            clusters: 4,
            promoted: 5,
            seen: 6,
            waited: 7,
            waiting: 8,
            longest: Duration::from_nanos(9),
            since_t0: Duration::from_nanos(10),
        };
        table.tell(&figures);
        assert_eq!(table.figures(), figures);
    }

    #[test]
    fn whoever_looks_sees_who_waits_now_and_nothing_that_cannot_be() {
        let _alone = alone();
        let table = Table::create(Duration::from_secs(1), 100).expect("shared memory");
        table.tell(&Figures { done_bytes: 9, bytes: 8, done: 7, clusters: 6, waiting: 5, ..Figures::default() });
        let glance = Glance::of(table.as_fd().try_clone_to_owned().expect("dup")).expect("a table");
        let shown = glance.look();
        let (done, of) = ((shown.figures.done_bytes, shown.figures.done), shown.figures.waiting);
        assert_eq!((done, of, shown.figures.longest), ((8, 6), 0, Duration::ZERO));
        assert!(!shown.watching && !shown.taken_over);
        let slot = table.enter(7, now()).expect("room");
        assert!(table.watch());
        let shown = glance.look();
        assert!(shown.watching && shown.figures.waiting == 1 && shown.figures.longest > Duration::ZERO);
        table.strike(&slot);
        table.take_over();
        assert!(glance.look().taken_over && glance.look().figures.waiting == 0);
    }
}
