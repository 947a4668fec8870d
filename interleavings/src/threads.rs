//! What `crate::threads` is in the program, as the scheduler has it; and a clock that stands still but for [`pass`], so that whoever is
//! not woken, and should have been, waits for ever and is found.

use std::cell::RefCell;
use std::io;
use std::ops::Add;
use std::sync::{Arc, LockResult};
use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
pub use shuttle::sync::{Mutex, MutexGuard};
pub use shuttle::thread::{Scope, scope};
use shuttle::thread::{ScopedJoinHandle, yield_now};
pub use std::sync::PoisonError;

/// One in so many threads cannot be started.
const NO_THREAD: u32 = 8;

std::thread_local! {
    // All threads of a run are one of the kernel's.
    static CLOCK: RefCell<Clock> = RefCell::default();
}

#[derive(Default)]
struct Clock {
    now: Duration,
    last: u64,
    /// Those who wait for a time, until when, and what wakes them.
    sleepers: Vec<(u64, Duration, Arc<shuttle::sync::Condvar>)>,
}

fn clock<R>(look: impl FnOnce(&mut Clock) -> R) -> R {
    CLOCK.with(|clock| look(&mut clock.borrow_mut()))
}

/// A new run, at the beginning of time.
pub fn begin() {
    clock(|clock| *clock = Clock::default());
}

/// So much time goes by, and those have noticed whose time it was.
pub fn pass(time: Duration) {
    let now = clock(|clock| {
        clock.now += time;
        clock.now
    });
    loop {
        let due = clock(|clock| {
            let due = clock.sleepers.iter().filter(|(_, until, _)| *until <= now);
            due.map(|(.., changed)| Arc::clone(changed)).collect::<Vec<_>>()
        });
        if due.is_empty() {
            return;
        }
        due.iter().for_each(|changed| changed.notify_all());
        yield_now();
    }
}

/// A moment of that clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Instant(Duration);

impl Instant {
    /// This one.
    pub fn now() -> Self {
        Self(clock(|clock| clock.now))
    }

    /// How long ago it was.
    pub fn elapsed(&self) -> Duration {
        Self::now().0 - self.0
    }

    /// How long after that one it is.
    pub fn saturating_duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0 + time)
    }
}

/// A condition variable on that clock.
#[derive(Default)]
pub struct Condvar(Arc<shuttle::sync::Condvar>);

impl Condvar {
    /// Nobody waits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until it is told.
    ///
    /// # Errors
    /// As the standard library's.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.0.wait(guard)
    }

    /// Waits until it is told, or so much time has gone by.
    ///
    /// # Errors
    /// As the standard library's.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, ())> {
        let me = clock(|clock| {
            clock.last += 1;
            clock.sleepers.push((clock.last, clock.now + limit, Arc::clone(&self.0)));
            clock.last
        });
        let guard = self.0.wait(guard).unwrap_or_else(PoisonError::into_inner);
        clock(|clock| clock.sleepers.retain(|(it, ..)| *it != me));
        Ok((guard, ()))
    }

    /// Wakes one.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// How a thread is started.
#[derive(Default)]
pub struct Builder;

impl Builder {
    /// One like any other.
    pub fn new() -> Self {
        Self
    }

    /// Its name is nobody's business here.
    #[must_use]
    pub fn name(self, _: String) -> Self {
        self
    }

    /// Starts one.
    ///
    /// # Errors
    /// `WouldBlock`, now and then.
    pub fn spawn_scoped<'scope, T: Send + 'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        body: impl FnOnce() -> T + Send + 'scope,
    ) -> io::Result<ScopedJoinHandle<'scope, T>> {
        if thread_rng().gen_ratio(1, NO_THREAD) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(scope.spawn(body))
    }
}

/// Gives.
#[derive(Clone)]
pub struct Sender<T>(shuttle::sync::mpsc::SyncSender<T>);

impl<T> Sender<T> {
    /// Gives this to somebody who takes.
    ///
    /// # Errors
    /// Nobody does any more.
    pub fn send(&self, it: T) -> Result<(), std::sync::mpsc::SendError<T>> {
        self.0.send(it)
    }
}

/// Takes.
pub struct Receiver<T>(Arc<Mutex<shuttle::sync::mpsc::Receiver<T>>>);

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Receiver<T> {
    /// All that comes, until nobody gives any more.
    pub fn iter(&self) -> impl Iterator<Item = T> {
        std::iter::from_fn(|| self.0.lock().unwrap_or_else(PoisonError::into_inner).recv().ok())
    }
}

/// A channel with so many places.
pub fn bounded<T>(places: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = shuttle::sync::mpsc::sync_channel(places);
    (Sender(sender), Receiver(Arc::new(Mutex::new(receiver))))
}
