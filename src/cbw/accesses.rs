//! The accesses of guests to images that are being cloned: who may go on, who waits, and for what.
//!
//! | phase | an access that arrives | what waits |
//! |---|---|---|
//! | passing (before T0) | goes on | nothing |
//! | gathering (some images are watched, not all) | waits | until T0 is set |
//! | watching | goes on if its clusters are done, else waits | until they are, at most the deadline |
//! | over, or broken | goes on | nothing, for ever |
//!
//! Broken is sticky: at the deadline it is the snapshot that breaks, never the guest (`break-snapshot`). A filter that is in the I/O path
//! itself may have it the other way round and take accesses back ([`Accesses::overdue`], [`Accesses::withdraw`]). Accesses are answered in any order; each of them is given back exactly once, by
//! value, to be answered.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::clusters::{Clusters, Word};
use crate::range::ByteRange;

/// What bounds the waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// How many accesses may wait at once; with one more the snapshot breaks.
    pub waiting: usize,
    /// How long one may wait; then the snapshot breaks.
    pub deadline: Duration,
}

impl Limits {
    /// Of a job whose user lets an access wait for at most `deadline`: a fifth of it is for what comes after the job's own look at the time.
    pub fn within(deadline: Duration, waiting: usize) -> Self {
        Self { waiting, deadline: deadline * 4 / 5 }
    }
}

/// What was seen so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Accesses that arrived since T0.
    pub seen: u64,
    /// Those that had to wait.
    pub waited: u64,
    /// The longest that one of them waited.
    pub longest: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    Passing,
    Gathering,
    Watching,
    Over,
    Broken(String),
}

struct Waiting<A> {
    access: A,
    image: usize,
    range: ByteRange,
    since: Duration,
}

/// The machine. Times are of any clock that does not go back, the same for all calls.
pub struct Accesses<A, W = std::sync::atomic::AtomicU64> {
    phase: Phase,
    images: Vec<Arc<Clusters<W>>>,
    /// What is cloned before any access goes on.
    first: Vec<(usize, ByteRange)>,
    waiting: VecDeque<Waiting<A>>,
    limits: Limits,
    tally: Tally,
    /// Whose turn it is: that of the access that waits longest, or of the smallest.
    longest_next: bool,
}

impl<A, W: Word> Accesses<A, W> {
    /// Before T0: every access goes on.
    pub fn new(limits: Limits) -> Self {
        let (images, first, waiting) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { phase: Phase::Passing, images, first, waiting, limits, tally: Tally::default(), longest_next: true }
    }

    /// From now on accesses wait: images are about to be watched, one after the other.
    pub fn gather(&mut self) {
        if self.phase == Phase::Passing {
            self.phase = Phase::Gathering;
        }
    }

    /// All images are watched, which is T0; these are the states of their clusters. The waiting ones are looked at anew.
    /// Nobody goes on before the ranges `first` are done: where an access may tell another range than it changes.
    pub fn watch(&mut self, images: Vec<Arc<Clusters<W>>>, first: Vec<(usize, ByteRange)>) {
        if self.phase == Phase::Gathering {
            self.images = images;
            self.first = first;
            self.phase = Phase::Watching;
        }
    }

    /// An access arrives; it is given back if it may go on now. `image` counts from 0 in the order of [`Accesses::watch`].
    pub fn arrive(&mut self, access: A, image: usize, range: ByteRange, now: Duration) -> Option<A> {
        match self.phase {
            Phase::Passing | Phase::Over | Phase::Broken(_) => return Some(access),
            Phase::Watching => {
                self.tally.seen += 1;
                if self.is_done(image, range) {
                    return Some(access);
                }
            }
            Phase::Gathering => self.tally.seen += 1,
        }
        if self.waiting.len() >= self.limits.waiting {
            self.break_off(&format!("more than {} accesses to the image waited at once", self.limits.waiting));
            return Some(access);
        }
        self.tally.waited += 1;
        self.waiting.push_back(Waiting { access, image, range, since: now });
        None
    }

    /// Whether an access of this range would go on at once; it does not arrive by this.
    pub fn lets_on(&self, image: usize, range: ByteRange) -> bool {
        match self.phase {
            Phase::Passing | Phase::Over | Phase::Broken(_) => true,
            Phase::Watching => self.is_done(image, range),
            Phase::Gathering => false,
        }
    }

    /// An access that arrives went on at once, and may have waited since this time before anybody was there.
    pub fn went_on(&mut self, since: Duration, now: Duration) {
        if !matches!(self.phase, Phase::Passing | Phase::Over) {
            self.tally.longest = self.tally.longest.max(now.saturating_sub(since));
        }
    }

    /// Whether anything has to be cloned because somebody waits for it.
    pub fn is_wanted(&self) -> bool {
        self.phase == Phase::Watching
            && (self.first.iter().any(|(image, range)| self.open(*image, *range).is_some())
                || self.waiting.iter().any(|w| self.open(w.image, w.range).is_some()))
    }

    /// What has to be cloned first: the image, and the range of the access that waits longest for clusters that are not done;
    /// every other time that of the smallest one. A discard of gigabytes must not keep a read of one sector waiting, nor the
    /// reads of others the discard.
    pub fn wanted(&mut self) -> Option<(usize, ByteRange)> {
        if self.phase != Phase::Watching {
            return None;
        }
        if let Some(first) = self.first.iter().find_map(|(image, range)| self.open(*image, *range)) {
            return Some(first);
        }
        let mut waiting = self.waiting.iter().filter_map(|w| Some((w.range.len(), self.open(w.image, w.range)?)));
        let chosen = if self.longest_next { waiting.next() } else { waiting.min_by_key(|(len, _)| *len) };
        self.longest_next = !self.longest_next;
        chosen.map(|(_, open)| open)
    }

    /// What is not done of the ranges that accesses wait for, of at most so many of them.
    pub fn all_wanted(&self, most: usize) -> Vec<(usize, ByteRange)> {
        let waiting = self.waiting.iter().filter(|_| self.phase == Phase::Watching);
        let wanted = waiting.filter_map(|w| {
            let (image, open) = self.open(w.image, w.range)?;
            Some((image, ByteRange::new(open.start(), w.range.end())?))
        });
        wanted.take(most).collect()
    }

    /// The first part of a range that is not done.
    fn open(&self, image: usize, range: ByteRange) -> Option<(usize, ByteRange)> {
        Some((image, self.images.get(image)?.open_part(range)?))
    }

    /// Takes out the accesses that may go on, in the order in which they arrived; the caller answers them.
    pub fn ready(&mut self, now: Duration) -> Vec<A> {
        if self.phase == Phase::Gathering || self.waiting.is_empty() {
            return Vec::new();
        }
        let (mut ready, mut rest) = (Vec::new(), VecDeque::new());
        for waiting in std::mem::take(&mut self.waiting) {
            if self.phase != Phase::Watching || self.is_done(waiting.image, waiting.range) {
                self.tally.longest = self.tally.longest.max(now.saturating_sub(waiting.since));
                ready.push(waiting.access);
            } else {
                rest.push_back(waiting);
            }
        }
        self.waiting = rest;
        ready
    }

    /// When the access that waits longest must go on; `None` where nobody waits. One that may go on already counts as well: it
    /// has yet to be taken out.
    pub fn due(&self) -> Option<Duration> {
        self.waiting.iter().map(|w| w.since).min().map(|since| since + self.limits.deadline)
    }

    /// Takes out the accesses that have waited for the deadline, for what is not done: they are not to be made, and the snapshot stays
    /// whole. Before T0 it is the snapshot that breaks.
    pub fn overdue(&mut self, now: Duration) -> Vec<A> {
        if self.phase != Phase::Watching {
            self.expire(now);
            return Vec::new();
        }
        let deadline = self.limits.deadline;
        self.take_out(|it| it.since + deadline <= now)
    }

    /// Takes out the accesses that wait for a part of this range, which cannot be cloned: they are not to be made.
    pub fn withdraw(&mut self, image: usize, range: ByteRange) -> Vec<A> {
        self.take_out(|it| it.image == image && it.range.intersect(range).is_some())
    }

    /// Nobody waits any more for an answer to these accesses.
    pub fn forget(&mut self, which: impl Fn(&A) -> bool) {
        self.waiting.retain(|it| !which(&it.access));
    }

    /// Takes out those of whom this is true and whose clusters are not done.
    fn take_out(&mut self, which: impl Fn(&Waiting<A>) -> bool) -> Vec<A> {
        let (out, rest): (VecDeque<_>, _) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|it| which(it) && !self.is_done(it.image, it.range));
        self.waiting = rest;
        out.into_iter().map(|it| it.access).collect()
    }

    /// Breaks the snapshot if somebody has waited for the deadline, for what is not done. [`Accesses::ready`] then gives
    /// everybody back.
    pub fn expire(&mut self, now: Duration) {
        let open = |w: &Waiting<A>| self.phase != Phase::Watching || !self.is_done(w.image, w.range);
        let overdue = |w: &Waiting<A>| w.since + self.limits.deadline <= now && open(w);
        if self.waiting.iter().any(overdue) {
            let deadline = self.limits.deadline;
            // Four fifths of what the user asked for: the rest is the supervisor's, to act in.
            self.break_off(&format!(
                "an access of the guest was about to wait for longer than --guest-deadline allows ({deadline:?} of it are the \
                 job's own), and was let go; if that happens often, raise it or choose a quieter hour"
            ));
        }
    }

    /// The snapshot is lost, for this reason; the first one counts. Nobody waits any more.
    pub fn break_off(&mut self, why: &str) {
        if !matches!(self.phase, Phase::Broken(_) | Phase::Over) {
            self.phase = Phase::Broken(why.to_owned());
        }
    }

    /// The watching has ended well; everybody goes on. False where it had been broken off before.
    pub fn end(&mut self) -> bool {
        let whole = !matches!(self.phase, Phase::Broken(_));
        if whole {
            self.phase = Phase::Over;
        }
        whole
    }

    /// Whether this is before T0, with nobody waiting for it yet.
    pub fn is_passing(&self) -> bool {
        self.phase == Phase::Passing
    }

    /// Whether T0 is set and nothing has ended it.
    pub fn is_watching(&self) -> bool {
        self.phase == Phase::Watching
    }

    /// Why the snapshot is lost, if it is.
    pub fn broken(&self) -> Option<&str> {
        match &self.phase {
            Phase::Broken(why) => Some(why),
            _ => None,
        }
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What was seen so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    fn is_done(&self, image: usize, range: ByteRange) -> bool {
        let done = |image: usize, range| self.open(image, range).is_none();
        done(image, range) && self.first.iter().all(|(image, range)| done(*image, *range))
    }
}
