//! A write that has not gone on, and the jobs that it waits for: all that stop it at once, so that they keep what it overwrites beside
//! one another and not one after the other.

use std::time::Duration;

use super::job::{OnError, Stop};
use super::{Gate, State};
use crate::range::ByteRange;

/// Later than all deadlines.
const NEVER: Duration = Duration::from_secs(1 << 40);

/// A write at the gate.
pub(super) struct Entrance {
    range: ByteRange,
    /// Since when it waits, whichever job it is that it waits for.
    since: Duration,
    /// Jobs that are to answer it, and by which number each knows it.
    asked: Vec<(u64, u64)>,
    /// Jobs whose clone calls it waits for.
    calls: Vec<u64>,
    /// All jobs that it has waited for.
    waited: Vec<u64>,
    /// At a deadline it is not made, and nothing breaks.
    gives_up: bool,
}

/// What becomes of a write that has waited.
pub(super) enum Answer {
    /// Nobody stops it any more who did.
    Look,
    /// It is not to be made, with this error.
    Refused(i32),
    /// It has given up.
    TooLate,
}

impl Entrance {
    pub(super) fn new(range: ByteRange, since: Duration, gives_up: bool) -> Self {
        Self { range, since, asked: Vec::new(), calls: Vec::new(), waited: Vec::new(), gives_up }
    }

    /// Looks at all jobs; whether one stops it. Each that does is told. Nothing is left of an earlier look.
    pub(super) fn is_stopped(&mut self, gate: &Gate, state: &mut State) -> bool {
        // One that gives up by itself is never overdue, whoever looks.
        let since = if self.gives_up { NEVER } else { self.since };
        let State { jobs, last, .. } = state;
        let mut broken = Vec::new();
        for (id, job) in jobs {
            *last += 1;
            match job.stops(*last, self.range, since) {
                Some(Stop::Clusters) => self.asked.push((*id, *last)),
                Some(Stop::Call) => {
                    job.held += 1;
                    self.calls.push(*id);
                }
                None => {
                    // It may have been one too many.
                    broken.extend((job.machine.broken().is_some() && job.fate.lost().is_none()).then_some(*id));
                    continue;
                }
            }
            job.tell();
            if !self.waited.contains(id) {
                self.waited.push(*id);
            }
        }
        broken.into_iter().for_each(|id| gate.settle(state, id));
        !(self.asked.is_empty() && self.calls.is_empty())
    }

    /// Whether it waits for a clone call.
    pub(super) fn is_held(&self) -> bool {
        !self.calls.is_empty()
    }

    /// What was answered, when all have, or one has refused it, or it gives up: then the others need not answer any more.
    pub(super) fn answer(&mut self, state: &mut State, now: Duration) -> Option<Answer> {
        let mut refused = None;
        self.asked.retain(|(_, number)| match state.answered.remove(number) {
            None => true,
            Some(answer) => {
                refused = refused.or(answer.err());
                false
            }
        });
        if let Some(errno) = refused {
            self.withdraw(state);
            return Some(Answer::Refused(errno));
        }
        self.calls.retain(|id| {
            let Some(job) = state.jobs.get_mut(id) else { return false };
            let holds = job.holds();
            job.held -= usize::from(!holds);
            holds
        });
        if self.asked.is_empty() && self.calls.is_empty() {
            return Some(Answer::Look);
        }
        if self.gives_up && self.limit(state) <= now {
            self.withdraw(state);
            return Some(Answer::TooLate);
        }
        None
    }

    /// Until when it may wait for those that stop it.
    pub(super) fn limit(&self, state: &State) -> Duration {
        let ids = self.asked.iter().map(|(id, _)| id).chain(&self.calls);
        ids.filter_map(|id| Some(self.since + state.jobs.get(id)?.limits.deadline)).min().unwrap_or(NEVER)
    }

    /// It waits for nobody any more.
    pub(super) fn withdraw(&mut self, state: &mut State) {
        for (id, number) in self.asked.drain(..) {
            state.jobs.get_mut(&id).into_iter().for_each(|job| job.machine.forget(|it| *it == number));
        }
        for id in self.calls.drain(..) {
            state.jobs.get_mut(&id).into_iter().for_each(|job| job.held -= 1);
        }
    }

    /// When the time is up of somebody who waits for the same jobs as this one, and of which of them. At the same time first of one by
    /// which the write fails: then the others lose nothing.
    pub(super) fn due(&self, state: &State) -> Option<(Duration, u64)> {
        let job = |id: &u64| Some((*id, state.jobs.get(id)?));
        let asked = self.asked.iter().filter_map(|(id, _)| job(id));
        let asked =
            asked.filter_map(|(id, job)| Some((job.machine.due()?, job.on_error == OnError::BreakSnapshot, id)));
        let calls = self.calls.iter().filter_map(job).map(|(id, job)| (self.since + job.limits.deadline, false, id));
        asked.chain(calls).min().map(|(due, _, id)| (due, id))
    }

    /// The time of such a one is up: he goes on, or fails.
    pub(super) fn expire(&self, gate: &Gate, state: &mut State, id: u64) {
        let now = gate.now();
        let Some(job) = state.jobs.get_mut(&id) else { return };
        job.overlong |= self.calls.contains(&id) && self.since + job.limits.deadline <= now;
        let late = job.expire(now);
        state.fail(late, libc::ETIMEDOUT);
        gate.settle(state, id);
        gate.changed.notify_all();
    }

    /// It goes on, or has given up: so long it has waited.
    pub(super) fn went_on(&self, state: &mut State, now: Duration) {
        for id in &self.waited {
            state.jobs.get_mut(id).into_iter().for_each(|job| job.machine.went_on(self.since, now));
        }
    }
}
