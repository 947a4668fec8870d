//! The job's hand on the gate.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Gate, Job, State};
use crate::cbw::{Clusters, Tally};
use crate::range::{ByteRange, PowerOfTwo};

/// How long a clone call waits for the writes on their way to the disk: those that take longer wait for the image's lock beside it.
const DRAIN: Duration = Duration::from_millis(20);

/// A job's hand on the gate. Dropped, all writes go on, and what was not at its end is broken.
pub struct Watch {
    gate: Arc<Gate>,
    number: u64,
}

impl Watch {
    pub(super) fn new(gate: Arc<Gate>, number: u64) -> Self {
        Self { gate, number }
    }

    /// Writes wait from now on, and those that went on before are waited for. The image has so many bytes, and is cloned by this unit.
    ///
    /// # Errors
    /// Why not, in words: a write is on its way for longer than one may wait. None waits then.
    pub fn gather(&self, size: u64, cluster: PowerOfTwo) -> Result<(), String> {
        let mut state = self.gate.lock();
        let Some(job) = self.job(&mut state) else { return Err("the job has ended".into()) };
        job.clusters = Some(Arc::new(Clusters::new(size, cluster)));
        job.machine.gather();
        let limit = job.deadline;
        let (mut state, drained) = self.gate.drain(state, limit);
        if let Some(job) = self.job(&mut state)
            && !drained
        {
            job.machine.break_off(
                "a write of the guest took longer than --guest-deadline to reach the disk, and T0 could not be set",
            );
        }
        self.gate.settle(&mut state);
        let broken = self.job(&mut state).and_then(|job| job.machine.broken().map(str::to_owned));
        broken.map_or(Ok(()), Err)
    }

    /// This was T0.
    ///
    /// # Errors
    /// Why it was not, in words.
    pub fn watch(&self) -> Result<(), String> {
        let mut state = self.gate.lock();
        let Some(job) = self.job(&mut state) else { return Err("the job has ended".into()) };
        let Some(clusters) = job.clusters.clone() else { return Err("nothing was gathered".into()) };
        job.machine.watch(vec![clusters], Vec::new());
        let broken = job.machine.broken().map(str::to_owned);
        self.gate.settle(&mut state);
        broken.map_or(Ok(()), Err)
    }

    /// A clone call is about to be made: writes wait for it, and it for those on their way, for a while.
    pub fn calling(&self) {
        let mut state = self.gate.lock();
        let Some(job) = self.job(&mut state) else { return };
        job.calling = true;
        self.gate.calling.store(true, Ordering::Release);
        drop(self.gate.drain(state, DRAIN));
    }

    /// It has returned.
    pub fn called(&self) {
        let mut state = self.gate.lock();
        self.gate.calling.store(false, Ordering::Release);
        if let Some(job) = self.job(&mut state) {
            job.calling = false;
        }
        self.gate.changed.notify_all();
    }

    /// These bytes are in the snapshot.
    pub fn done(&self, range: ByteRange) {
        let mut state = self.gate.lock();
        if let Some(clusters) = self.job(&mut state).and_then(|job| job.clusters.as_ref()) {
            clusters.finish(range);
        }
        self.gate.settle(&mut state);
    }

    /// What was wanted is done, or a part of it.
    pub fn promoted(&self) {
        let mut state = self.gate.lock();
        if let Some(job) = self.job(&mut state) {
            job.asked = false;
        }
        self.gate.settle(&mut state);
    }

    /// All is done, and writes go on for good: why the snapshot is lost, if it is, and how they fared.
    pub fn end(self) -> (Option<String>, Tally) {
        let mut state = self.gate.lock();
        let Some(job) = self.job(&mut state) else { return (Some("the job has ended".into()), Tally::default()) };
        let whole = job.clusters.as_ref().is_some_and(|clusters| clusters.all_done());
        if !whole {
            job.machine.break_off("the job has ended before everything was cloned");
        }
        job.machine.end();
        (job.machine.broken().map(str::to_owned), job.machine.tally())
    }

    fn job<'s>(&self, state: &'s mut State) -> Option<&'s mut Job> {
        state.job.as_mut().filter(|job| job.number == self.number)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        if self.job(&mut state).is_none() {
            return;
        }
        if let Some(mut job) = state.job.take() {
            job.machine.break_off("the job has ended");
            let ready = job.machine.ready(self.gate.now());
            state.answered.extend(ready);
        }
        self.gate.calling.store(false, Ordering::Release);
        self.gate.changed.notify_all();
    }
}
