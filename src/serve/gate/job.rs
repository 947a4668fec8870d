//! What a gate knows of one job.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::{News, Tell};
use crate::cbw::{Accesses, Clusters, Limits};
use crate::range::ByteRange;

/// What happens where what a guest is about to overwrite cannot be kept, or not in time (QEMU's `on-cbw-error`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnError {
    /// The write goes on, and the snapshot is lost.
    #[default]
    BreakSnapshot,
    /// The write fails, and the snapshot stays whole.
    BreakGuestWrite,
}

/// Whether a point in time is lost. It is said here before any write goes on that may overwrite what is not kept: who has read from the image
/// and looks at this afterwards knows whether what he has read is of T0.
#[derive(Debug, Default)]
pub struct Fate(OnceLock<String>);

impl Fate {
    /// Why it is lost, if it is.
    pub fn lost(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    /// It is lost; the first reason counts. Whether this was the first.
    pub fn lose(&self, why: &str) -> bool {
        self.0.set(why.to_owned()).is_ok()
    }
}

/// Why a write does not go on.
pub(super) enum Stop {
    /// Its clusters are not done, or T0 is not set.
    Clusters,
    /// A clone call runs.
    Call,
}

pub(super) struct Job {
    pub(super) machine: Accesses<u64>,
    pub(super) clusters: Option<Arc<Clusters>>,
    pub(super) limits: Limits,
    pub(super) on_error: OnError,
    pub(super) calling: bool,
    /// Writes that a clone call has stopped and that have not gone on since.
    pub(super) held: usize,
    /// A write has waited for this call for as long as it may: nobody waits for it any more, in whatever state its job is.
    pub(super) overlong: bool,
    /// Something was wanted, and no answer has come.
    pub(super) asked: bool,
    pub(super) fate: Arc<Fate>,
    pub(super) tell: Tell,
}

impl Job {
    pub(super) fn new(limits: Limits, on_error: OnError, tell: Tell) -> Self {
        let machine = Accesses::new(limits);
        let (calling, held, overlong, asked, fate) = (false, 0, false, false, Arc::default());
        Self { machine, clusters: None, limits, on_error, calling, held, overlong, asked, fate, tell }
    }

    /// Whether a write of these bytes has to wait, and for what.
    pub(super) fn stops(&mut self, number: u64, range: ByteRange, now: Duration) -> Option<Stop> {
        if self.machine.arrive(number, 0, range, now).is_none() {
            Some(Stop::Clusters)
        } else {
            self.holds().then_some(Stop::Call)
        }
    }

    /// Whether a write of these bytes would go on at once.
    pub(super) fn lets_on(&self, range: ByteRange) -> bool {
        !self.holds() && self.machine.lets_on(0, range)
    }

    /// Whether writes wait for a clone call.
    pub(super) fn holds(&self) -> bool {
        self.calling && !self.overlong && self.machine.is_watching()
    }

    /// The time of one that waits is up: those whose writes fail by it.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<u64> {
        match self.on_error {
            OnError::BreakSnapshot => self.machine.expire(now),
            OnError::BreakGuestWrite => return self.machine.overdue(now),
        }
        Vec::new()
    }

    /// Whether it is known to be lost; tells what the job does not know yet.
    pub(super) fn tell(&mut self) -> bool {
        if let Some(why) = self.machine.broken() {
            if self.fate.lose(why) {
                (self.tell)(News::Broken(why.to_owned()));
            }
            return true;
        }
        if !self.asked
            && let Some((_, range)) = self.machine.wanted()
        {
            self.asked = true;
            (self.tell)(News::Wanted(range));
        }
        false
    }
}
