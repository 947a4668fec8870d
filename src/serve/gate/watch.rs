//! The job's hand on the gate.

use std::sync::Arc;
use std::time::Duration;

use super::{Fate, Gate, Job, OnError, State, Tell};
use crate::cbw::{Clusters, Tally};
use crate::range::{ByteRange, PowerOfTwo};
use crate::threads::MutexGuard;

/// How long a clone call waits for the writes on their way to the disk: those that take longer wait for the image's lock beside it.
const DRAIN: Duration = Duration::from_millis(20);

/// The most writes that are told of at once: as many as many clients have on the way.
const WANTED: usize = 256;

/// A point in time, for those who read it.
#[derive(Clone)]
pub struct Point {
    /// What is kept of it: what is not done is still in the image, unless the point is lost.
    pub clusters: Arc<Clusters>,
    /// Whether it is lost.
    pub fate: Arc<Fate>,
}

/// A job's hand on the gate. Dropped, all writes go on, and what was not at its end is broken.
pub struct Watch {
    gate: Arc<Gate>,
    id: u64,
}

impl Watch {
    pub(super) fn new(gate: Arc<Gate>, id: u64) -> Self {
        Self { gate, id }
    }

    /// Writes wait from now on, and those that went on before are waited for. The image has so many bytes, and is cloned by this unit.
    ///
    /// # Errors
    /// Why not, in words: a write is on its way for longer than one may wait. None waits then.
    pub fn gather(&self, size: u64, cluster: PowerOfTwo) -> Result<(), String> {
        let mut state = self.gate.lock();
        let job = self.job(&mut state);
        job.clusters = Some(Arc::new(Clusters::new(size, cluster)));
        job.machine.gather();
        let limit = job.limits.deadline;
        let (mut state, drained) = self.gate.drain(state, limit);
        if !drained {
            self.job(&mut state).machine.break_off(
                "a write of the guest took longer than --guest-deadline to reach the disk, and T0 could not be set",
            );
        }
        self.whole(state)
    }

    /// This was T0.
    ///
    /// # Errors
    /// Why it was not, in words.
    pub fn watch(&self) -> Result<(), String> {
        let mut state = self.gate.lock();
        let job = self.job(&mut state);
        let Some(clusters) = job.clusters.clone() else { return Err("nothing was gathered".into()) };
        job.machine.watch(vec![clusters], Vec::new());
        self.whole(state)
    }

    /// From now on the job is told like this: it has come back.
    pub fn retell(&self, tell: Tell) {
        let mut state = self.gate.lock();
        let job = self.job(&mut state);
        (job.tell, job.asked) = (tell, false);
    }

    /// What readers need to know of it, from [`Watch::gather`] on.
    pub fn point(&self) -> Option<Point> {
        let mut state = self.gate.lock();
        let job = self.job(&mut state);
        Some(Point { clusters: Arc::clone(job.clusters.as_ref()?), fate: Arc::clone(&job.fate) })
    }

    /// A clone call is about to be made: writes wait for it, and it for those on their way, for a while.
    pub fn calling(&self) {
        let mut state = self.gate.lock();
        let job = self.job(&mut state);
        (job.calling, job.overlong) = (true, false);
        drop(self.gate.drain(state, DRAIN));
    }

    /// It has returned.
    pub fn called(&self) {
        self.job(&mut self.gate.lock()).calling = false;
        self.gate.changed.notify_all();
    }

    /// These bytes are in the snapshot.
    pub fn done(&self, range: ByteRange) {
        let mut state = self.gate.lock();
        if let Some(clusters) = &self.job(&mut state).clusters {
            clusters.finish(range);
        }
        self.gate.settle(&mut state, self.id);
    }

    /// What was wanted is done, or a part of it.
    pub fn promoted(&self) {
        let mut state = self.gate.lock();
        self.job(&mut state).asked = false;
        self.gate.settle(&mut state, self.id);
    }

    /// What writes wait for, of many of them.
    pub fn waiting(&self) -> Vec<ByteRange> {
        let mut state = self.gate.lock();
        self.job(&mut state).machine.all_wanted(WANTED).into_iter().map(|(_, range)| range).collect()
    }

    /// The snapshot is lost, for this reason, and all writes go on.
    pub fn break_off(&self, why: &str) {
        let mut state = self.gate.lock();
        self.job(&mut state).machine.break_off(why);
        self.gate.settle(&mut state, self.id);
    }

    /// These bytes cannot be kept: the snapshot is lost, or the writes that wait for them fail with this error.
    pub fn cannot_keep(&self, range: ByteRange, why: &str, errno: i32) {
        let mut state = self.gate.lock();
        let job = self.job(&mut state);
        match job.on_error {
            OnError::BreakSnapshot => job.machine.break_off(why),
            OnError::BreakGuestWrite => {
                let writes = job.machine.withdraw(0, range);
                state.fail(writes, errno);
                self.gate.changed.notify_all();
            }
        }
        self.gate.settle(&mut state, self.id);
    }

    /// All is done, and writes go on for good: why the snapshot is lost, if it is, and how they fared.
    pub fn end(self) -> (Option<String>, Tally) {
        let mut state = self.gate.lock();
        let job = self.job(&mut state);
        if !job.clusters.as_ref().is_some_and(|clusters| clusters.all_done()) {
            job.machine.break_off("the job has ended before everything was cloned");
        }
        job.machine.end();
        (job.machine.broken().map(str::to_owned), job.machine.tally())
    }

    /// How writes fared so far.
    pub fn tally(&self) -> Tally {
        self.job(&mut self.gate.lock()).machine.tally()
    }

    /// Lets those go who may; why the snapshot is lost, if it is.
    fn whole(&self, mut state: MutexGuard<'_, State>) -> Result<(), String> {
        self.gate.settle(&mut state, self.id);
        self.job(&mut state).machine.broken().map_or(Ok(()), |why| Err(why.to_owned()))
    }

    fn job<'a>(&self, state: &'a mut State) -> &'a mut Job {
        state.jobs.get_mut(&self.id).expect("a watch has a job until it is dropped")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        if let Some(mut job) = state.jobs.remove(&self.id) {
            job.machine.break_off("the job has ended");
            // Before anybody goes on.
            job.tell();
            let ready = job.machine.ready(self.gate.now());
            state.answered.extend(ready.into_iter().map(|number| (number, Ok(()))));
        }
        self.gate.changed.notify_all();
    }
}
