//! The job's hand on the gate.

use std::sync::Arc;
use std::time::Duration;

use super::{Fate, Gate, Job, OnError, State, Tell};
use crate::cbw::{Clusters, Tally};
use crate::range::{ByteRange, PowerOfTwo};
use crate::threads::MutexGuard;

/// How long a clone call waits for the writes on their way to the disk: those that take longer wait for the image's lock beside it.
pub(super) const DRAIN: Duration = Duration::from_millis(20);

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
        // As much memory as is written here takes its time, too.
        let clusters = Arc::new(Clusters::new(size, cluster));
        let mut state = self.gate.lock();
        let job = self.job(&mut state);
        job.clusters = Some(clusters);
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
        let until = self.gate.now() + DRAIN;
        // Those that the call before has held go first, whoever is faster to the lock.
        while self.job(&mut state).held > 0 {
            match until.saturating_sub(self.gate.now()) {
                Duration::ZERO => break,
                left => state = self.gate.sleep(state, left),
            }
        }
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
        let clusters = self.job(&mut self.gate.lock()).clusters.clone();
        // Without the lock: there may be terabytes of them, and who comes to it meanwhile would not be let go at his deadline. Whoever finds one
        // that is not marked yet waits, and is let go below.
        clusters.iter().for_each(|clusters| clusters.finish(range));
        self.gate.settle(&mut self.gate.lock(), self.id);
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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A job that has come back says at once what it has done of terabytes: a guest's deadline comes meanwhile as well.
    #[test]
    fn nobody_waits_at_the_gate_for_as_long_as_many_clusters_are_marked() {
        const CLUSTER: u64 = 4096;
        let cluster = |index: u64| ByteRange::at(index * CLUSTER, CLUSTER).expect("not empty");
        let unit = PowerOfTwo::new(CLUSTER).expect("a power of two");
        let size = 512 << 30;
        let in_between = || {
            let gate = Arc::new(Gate::default());
            let watch =
                gate.watch(Duration::from_secs(600), OnError::BreakSnapshot, Box::new(|_| ())).expect("the only job");
            watch.gather(size, unit).expect("nobody writes");
            let clusters = watch.point().expect("gathered").clusters;
            thread::scope(|scope| {
                scope.spawn(|| watch.done(ByteRange::new(0, size).expect("all")));
                while clusters.run(cluster(0)) != (cluster(0), true) {
                    std::hint::spin_loop();
                }
                gate.is_calling();
                !clusters.run(cluster(size / CLUSTER - 1)).1
            })
        };
        // The other thread may be the only one that has a processor for a while.
        assert!((0..20).any(|_| in_between()));
    }

    /// Whoever is faster to the lock: the one who clones is on the processor, and the write has to be woken.
    #[test]
    fn what_a_clone_call_has_held_goes_before_the_next_one() {
        let gate = Arc::new(Gate::default());
        let long = Duration::from_secs(600);
        let watch = gate.watch(long, OnError::BreakSnapshot, Box::new(|_| ())).expect("the only job");
        let all = ByteRange::new(0, 4096).expect("not empty");
        watch.gather(4096, PowerOfTwo::new(4096).expect("a power of two")).expect("nobody writes");
        watch.watch().expect("T0");
        watch.done(all);
        let first = |_: &i32| {
            watch.calling();
            thread::scope(|scope| {
                scope.spawn(|| drop(gate.enter(all)));
                while gate.lock().jobs.values().all(|job| job.held == 0) {
                    thread::yield_now();
                }
                watch.called();
                watch.calling();
                let went_first = gate.lock().jobs.values().all(|job| job.held == 0);
                watch.called();
                went_first
            })
        };
        // One that gets no processor for longer than a call waits for is not waited for.
        assert!((0..100).filter(first).count() > 50);
    }
}
