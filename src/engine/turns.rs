//! Jobs on one file system take turns in the background work: two walks at once, or a walk beside a clone, take several times
//! as long as one after the other (KERNEL.md, FIEMAP).
//!
//! Good manners, not a safeguard: what is promoted waits for no turn, a job that somebody waits for takes none, and one that
//! gets none for a minute goes on without.

use std::time::{Duration, Instant};

use crate::disk::Disk;

/// How long a turn lasts while others wait.
const SLICE: Duration = Duration::from_secs(1);

/// How long to wait for a turn: far more than a queue of jobs takes, less than anybody waits for a cron job.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a job that waits for its turn looks at what else is asked of it.
pub const POLL: Duration = Duration::from_millis(10);

/// What is said of a turn that did not come.
pub const GIVEN_UP: &str =
    "another job on this file system has had the turn for a minute: going on beside it, more slowly";

/// A job's turns.
#[derive(Default)]
pub struct Turns {
    since: Option<Instant>,
    waiting_since: Option<Instant>,
    gave_up: bool,
}

/// Whether a job may work in the background now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// It may.
    Ours,
    /// Somebody else does.
    Theirs,
    /// Somebody else did for so long that this job goes on beside it, from now on.
    GivenUp,
}

impl Turns {
    /// Whether this job may go on, at `now`.
    pub fn ask(&mut self, disk: &impl Disk, now: Instant) -> Turn {
        if self.gave_up {
            return Turn::Ours;
        }
        match self.since {
            Some(since) if now.saturating_duration_since(since) < SLICE => return Turn::Ours,
            Some(_) => self.end(disk),
            None => {}
        }
        if disk.take_turn() {
            (self.since, self.waiting_since) = (Some(now), None);
            return Turn::Ours;
        }
        let waited = now.saturating_duration_since(*self.waiting_since.get_or_insert(now));
        if waited < PATIENCE {
            return Turn::Theirs;
        }
        self.end(disk);
        self.gave_up = true;
        Turn::GivenUp
    }

    /// Lets others work.
    pub fn end(&mut self, disk: &impl Disk) {
        disk.end_turn();
        (self.since, self.waiting_since) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::{Setup, SimDisk};

    #[test]
    fn a_turn_lasts_a_slice_and_nobody_waits_for_ever() {
        let disk = SimDisk::new(Setup::new(1));
        let (mut turns, start) = (Turns::default(), Instant::now());
        let mut at = |ms: u64, others: bool| {
            disk.others_have_the_turn(others);
            turns.ask(&disk, start + Duration::from_millis(ms))
        };
        assert_eq!(at(0, false), Turn::Ours);
        assert_eq!(at(999, true), Turn::Ours, "within the slice nobody asks");
        assert_eq!(at(1_000, true), Turn::Theirs);
        assert_eq!(at(30_000, true), Turn::Theirs);
        assert_eq!(at(30_020, false), Turn::Ours);
        assert_eq!(at(31_100, true), Turn::Theirs);
        assert_eq!(at(91_000, true), Turn::Theirs, "the patience is anew");
        assert_eq!(at(91_100, true), Turn::GivenUp);
        assert_eq!(at(91_101, true), Turn::Ours);
    }
}
