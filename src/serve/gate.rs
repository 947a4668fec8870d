//! The gate that the guest's writes go through: open, unless a job makes a snapshot.
//!
//! | the job | a write that comes |
//! |---|---|
//! | there is none, or it is before T0 | goes on |
//! | gathers: T0 is about to be set, writes that went on before are waited for | waits for T0 |
//! | watches, and its clone call runs | waits for the call to return |
//! | watches, and the write's clusters are not done | waits for them; the job is told ([`News::Wanted`]) |
//! | watches, and they are done | goes on |
//! | is broken, or gone | goes on |
//!
//! A write that waits looks at the time itself: at the deadline the snapshot breaks, whatever the job is at. Reads do not come here. What
//! is decided, [`crate::cbw::Accesses`] decides; this is the lock around it, and those who sleep.

#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cbw::{Accesses, Clusters, Limits};
use crate::range::ByteRange;

pub use watch::Watch;

/// The most writes that wait at once: more than all clients together can have on the way.
const WAITING: usize = 1 << 16;

/// The shortest sleep of a write at its deadline.
const MOMENT: Duration = Duration::from_millis(1);

/// What a job is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// A write waits for these bytes; not told again before [`Watch::promoted`].
    Wanted(ByteRange),
    /// The snapshot is lost, for this reason.
    Broken(String),
}

/// How a job is told: at once, by the thread of a write, so it must not wait.
pub type Tell = Box<dyn Fn(News) + Send>;

/// The gate of an image.
pub struct Gate {
    state: Mutex<State>,
    /// Told whenever somebody who waits may go on.
    changed: Condvar,
    born: Instant,
}

#[derive(Default)]
struct State {
    /// Writes on their way to the disk.
    writing: usize,
    /// The number of the last write that came.
    last: u64,
    /// Of those who wait, who may go on.
    answered: BTreeSet<u64>,
    job: Option<Job>,
}

struct Job {
    machine: Accesses<u64>,
    clusters: Option<Arc<Clusters>>,
    deadline: Duration,
    calling: bool,
    /// Something was wanted, and no answer has come.
    asked: bool,
    told_broken: bool,
    tell: Tell,
}

impl Job {
    /// Whether writes wait for a clone call.
    fn holds(&self) -> bool {
        self.calling && self.machine.is_watching()
    }

    /// Tells what the job does not know yet.
    fn tell(&mut self) {
        if let Some(why) = self.machine.broken().filter(|_| !self.told_broken) {
            let why = why.to_owned();
            self.told_broken = true;
            (self.tell)(News::Broken(why));
        } else if !self.asked
            && let Some((_, range)) = self.machine.wanted()
        {
            self.asked = true;
            (self.tell)(News::Wanted(range));
        }
    }
}

/// A write on its way to the disk. Dropped when the disk has it.
pub struct Passing<'a>(&'a Gate);

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.writing -= 1;
        if state.writing == 0 && state.job.is_some() {
            self.0.changed.notify_all();
        }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), born: Instant::now() }
    }
}

impl Gate {
    /// Lets a write of these bytes on as soon as it may.
    pub fn enter(&self, range: ByteRange) -> Passing<'_> {
        let (since, mut waited) = (self.now(), false);
        let mut state = self.lock();
        loop {
            state.last += 1;
            let number = state.last;
            let Some(job) = &mut state.job else { break };
            if job.machine.arrive(number, 0, range, self.now()).is_none() {
                waited = true;
                job.tell();
                state = self.until_answered(state, number);
            } else if job.holds() {
                waited = true;
                state = self.while_calling(state, since);
            } else {
                if waited {
                    job.machine.went_on(since, self.now());
                }
                if job.machine.broken().is_some() {
                    // It may have been one too many.
                    self.settle(&mut state);
                }
                break;
            }
            // From the beginning: by now it may be another job's turn, and nothing may come between the last look and what follows.
        }
        state.writing += 1;
        Passing(self)
    }

    /// The same where it takes no waiting.
    pub fn try_enter(&self, range: ByteRange) -> Option<Passing<'_>> {
        let mut state = self.lock();
        if let Some(job) = &mut state.job
            && (job.holds() || !job.machine.lets_on(0, range))
        {
            return None;
        }
        state.writing += 1;
        Some(Passing(self))
    }

    /// Whether a clone call has the image's lock, or is about to.
    pub fn is_calling(&self) -> bool {
        self.lock().job.as_ref().is_some_and(|job| job.calling)
    }

    /// A job is to be: writes go on until [`Watch::gather`]. One waits for at most `deadline`.
    ///
    /// # Errors
    /// Why not, in words: there is one already.
    pub fn watch(self: &Arc<Self>, deadline: Duration, tell: Tell) -> Result<Watch, String> {
        let mut state = self.lock();
        if state.job.is_some() {
            return Err("another job makes a snapshot of this image".into());
        }
        let limits = Limits::within(deadline, WAITING);
        let machine = Accesses::new(limits);
        state.job = Some(Job {
            machine,
            clusters: None,
            deadline: limits.deadline,
            calling: false,
            asked: false,
            told_broken: false,
            tell,
        });
        Ok(Watch::new(Arc::clone(self)))
    }

    fn until_answered<'a>(&'a self, mut state: MutexGuard<'a, State>, number: u64) -> MutexGuard<'a, State> {
        loop {
            if state.answered.remove(&number) {
                return state;
            }
            let due = state.job.as_ref().and_then(|job| job.machine.due()).unwrap_or_default();
            match due.saturating_sub(self.now()) {
                Duration::ZERO => {
                    if let Some(job) = &mut state.job {
                        job.machine.expire(self.now());
                    }
                    self.settle(&mut state);
                    if !state.answered.contains(&number) {
                        // Somebody else's time is up, and he is about to see it.
                        state = self.sleep(state, MOMENT);
                    }
                }
                left => state = self.sleep(state, left),
            }
        }
    }

    fn while_calling<'a>(&'a self, mut state: MutexGuard<'a, State>, since: Duration) -> MutexGuard<'a, State> {
        loop {
            let Some(job) = state.job.as_mut().filter(|job| job.holds()) else { return state };
            match (since + job.deadline).saturating_sub(self.now()) {
                Duration::ZERO => {
                    let deadline = job.deadline;
                    job.machine.break_off(&format!(
                        "a clone call has kept a write of the guest waiting for longer than --guest-deadline allows ({deadline:?} of it \
                         are the job's own)"
                    ));
                    self.settle(&mut state);
                }
                left => state = self.sleep(state, left),
            }
        }
    }

    /// Lets those go who may, and tells the job what it should know.
    fn settle(&self, state: &mut State) {
        let Some(job) = &mut state.job else { return };
        let ready = job.machine.ready(self.now());
        job.tell();
        if !ready.is_empty() || job.told_broken {
            state.answered.extend(ready);
            self.changed.notify_all();
        }
    }

    /// Waits until no write is on its way to the disk; whether that came to be in time.
    fn drain<'a>(&'a self, mut state: MutexGuard<'a, State>, limit: Duration) -> (MutexGuard<'a, State>, bool) {
        let until = self.now() + limit;
        while state.writing > 0 {
            match until.saturating_sub(self.now()) {
                Duration::ZERO => return (state, false),
                left => state = self.sleep(state, left),
            }
        }
        (state, true)
    }

    fn sleep<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    fn now(&self) -> Duration {
        self.born.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not keep anybody waiting.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
