//! The gate that the guest's writes go through: open, unless somebody keeps a point in time: a job that makes a snapshot, or a fleece.
//!
//! | the job | a write that comes |
//! |---|---|
//! | there is none, or it is before T0 | goes on |
//! | gathers: T0 is about to be set, writes that went on before are waited for | waits for T0 |
//! | watches, and its clone call runs | waits for the call to return, for as long as a write may wait |
//! | watches, and the write's clusters are not done | waits for them; the job is told ([`News::Wanted`]) |
//! | watches, and they are done | goes on |
//! | is broken, or gone | goes on |
//!
//! Of several jobs a write has to wait for each, and does so for all of them at once. One that waits looks at the time itself: at the deadline the snapshot breaks, whatever the job
//! is at, or the write fails ([`OnError`]); where its clusters are done, nothing is lost if it goes on beside the call, and waits in the kernel.
//! Reads do not come here. What is decided, [`crate::cbw::Accesses`] decides; this is the lock
//! around it, and those who sleep.

mod entrance;
mod job;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use crate::cbw::Limits;
use crate::range::ByteRange;
use crate::threads::{Condvar, Instant, Mutex, MutexGuard, PoisonError};

use entrance::{Answer, Entrance};
use job::Job;
pub use job::{Fate, OnError};
pub use watch::{Point, Watch};

/// The most writes that wait at once: more than all clients together can have on the way.
const WAITING: usize = 1 << 16;

/// The most jobs at a time.
const JOBS: usize = 16;

/// How long before the gate was there one can have begun to wait: longer than anybody may.
const BEFORE: Duration = Duration::from_secs(3600);

/// What a job is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// A write waits for these bytes; not told again before [`Watch::promoted`].
    Wanted(ByteRange),
    /// The snapshot is lost, for this reason. Told before a write goes on that may have cost it.
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
    /// The number of the last write, or job, that came.
    last: u64,
    /// Of the writes that wait, those that need not any more: they go on, or fail with this error.
    answered: BTreeMap<u64, Result<(), i32>>,
    jobs: BTreeMap<u64, Job>,
    /// No write goes on any more.
    closed: bool,
}

impl State {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn fail(&mut self, writes: Vec<u64>, errno: i32) {
        self.answered.extend(writes.into_iter().map(|number| (number, Err(errno))));
    }
}

/// A write on its way to the disk. Dropped when the disk has it.
pub struct Passing<'a>(&'a Gate);

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.writing -= 1;
        if state.writing == 0 && (state.closed || !state.jobs.is_empty()) {
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
    ///
    /// # Errors
    /// Where it may not be made at all ([`OnError::BreakGuestWrite`]): ETIMEDOUT, or why what it would overwrite cannot be kept.
    pub fn enter(&self, range: ByteRange) -> io::Result<Passing<'_>> {
        self.enter_with(range, &mut Duration::default())
    }

    /// The same for a part of a write whose parts have waited here for this long: together they wait no longer than one write may.
    ///
    /// # Errors
    /// As [`Gate::enter`].
    pub fn enter_with(&self, range: ByteRange, waited_before: &mut Duration) -> io::Result<Passing<'_>> {
        let entered = self.enter_after(range, waited_before, false)?;
        Ok(entered.expect("who does not give up goes on, or fails"))
    }

    /// The same for what need not be done: where it would have to wait for longer there is `None`, and nothing breaks by that.
    ///
    /// # Errors
    /// As [`Gate::enter`], but for the deadline.
    pub fn enter_in_time(&self, range: ByteRange, waited_before: &mut Duration) -> io::Result<Option<Passing<'_>>> {
        self.enter_after(range, waited_before, true)
    }

    fn enter_after(&self, range: ByteRange, waited: &mut Duration, gives_up: bool) -> io::Result<Option<Passing<'_>>> {
        let came = self.now();
        let entered = self.enter_as(Entrance::new(range, came.saturating_sub(*waited), gives_up));
        *waited += self.now().saturating_sub(came);
        entered
    }

    fn enter_as(&self, mut write: Entrance) -> io::Result<Option<Passing<'_>>> {
        let mut state = self.lock();
        let mut on = true;
        while on && !state.closed && write.is_stopped(self, &mut state) {
            let answer;
            (state, answer) = self.until_answered(state, &mut write);
            // From the beginning: another job may have come, and nothing may come between the last look and what follows.
            match answer {
                Answer::Look => {}
                Answer::Refused(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Answer::TooLate => on = false,
            }
        }
        write.went_on(&mut state, self.now());
        if on && state.closed {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        }
        Ok(on.then(|| self.pass(&mut state)))
    }

    /// The same where it takes no waiting.
    pub fn try_enter(&self, range: ByteRange) -> Option<Passing<'_>> {
        let mut state = self.lock();
        if state.closed || !state.jobs.values().all(|job| job.lets_on(range)) {
            return None;
        }
        Some(self.pass(&mut state))
    }

    /// No write goes on from now on, and none waits; whether none is on its way to the disk any more, in time. Without that somebody else who
    /// writes to the image may be overwritten by what this process was told before.
    pub fn close(&self, limit: Duration) -> bool {
        let mut state = self.lock();
        state.closed = true;
        self.changed.notify_all();
        self.drain(state, limit).1
    }

    /// A write goes on.
    fn pass(&self, state: &mut State) -> Passing<'_> {
        if !state.jobs.is_empty() {
            // Who reads what it writes is to find its clusters done, without a lock (`super::view`, tests/cbw_loom.rs).
            fence(Ordering::SeqCst);
        }
        state.writing += 1;
        Passing(self)
    }

    /// Whether a clone call has the image's lock, or is about to.
    pub fn is_calling(&self) -> bool {
        self.lock().jobs.values().any(|job| job.calling)
    }

    /// A job is to be: writes go on until [`Watch::gather`]. One waits for at most `deadline`.
    ///
    /// # Errors
    /// Why not, in words: there are too many.
    pub fn watch(self: &Arc<Self>, deadline: Duration, on_error: OnError, tell: Tell) -> Result<Watch, String> {
        let mut state = self.lock();
        // One that is lost costs nobody anything, and is there for as long as somebody reads it.
        if state.jobs.values().filter(|job| job.fate.lost().is_none()).count() >= JOBS {
            return Err(format!("{JOBS} points in time of this image are kept already"));
        }
        let id = state.next();
        state.jobs.insert(id, Job::new(Limits::within(deadline, WAITING), on_error, tell));
        Ok(Watch::new(Arc::clone(self), id))
    }

    fn until_answered<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        write: &mut Entrance,
    ) -> (MutexGuard<'a, State>, Answer) {
        loop {
            if state.closed {
                write.withdraw(&mut state);
                return (state, Answer::Refused(libc::ESHUTDOWN));
            }
            let (now, held) = (self.now(), write.is_held());
            let answer = write.answer(&mut state, now);
            if held && !write.is_held() {
                // A next call may wait for it to go first: it does with this lock, or waits for another job.
                self.changed.notify_all();
            }
            if let Some(answer) = answer {
                return (state, answer);
            }
            let (due, id) = write.due(&state).expect("a job that goes answers everybody");
            if due <= now {
                write.expire(self, &mut state, id);
            } else {
                let until = due.min(write.limit(&state));
                state = self.sleep(state, until - now);
            }
        }
    }

    /// Lets those go who may, as far as a job is concerned, and tells it what it should know.
    fn settle(&self, state: &mut State, id: u64) {
        let Some(job) = state.jobs.get_mut(&id) else { return };
        // First of all: who goes on may overwrite what was not kept.
        let lost = job.tell();
        let ready = job.machine.ready(self.now());
        if lost || !ready.is_empty() {
            state.answered.extend(ready.into_iter().map(|number| (number, Ok(()))));
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
        BEFORE + self.born.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not keep anybody waiting.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
