//! The thread that answers: it never waits for anything but events.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::stat::fstat;

use super::access::Access;
use super::pulse::Pulse;
use super::table::{self, Table};
use crate::cbw::Accesses;
use crate::range::ByteRange;
use crate::sys::fanotify::{Event, Group};

/// The longest that the answering thread sleeps: its sign of life for the supervisor.
const BEAT: Duration = Duration::from_millis(50);

/// The supervisor has this part of the deadline for a sign of life, which it gives twenty times in one.
const STANDS_BY: u32 = 2;

/// The most processes whose accesses before T0 are kept in mind.
pub const USERS: usize = 1024;

/// An image under watch, as events name it.
#[derive(Clone, Copy)]
pub struct Watched {
    dev: u64,
    ino: u64,
    size: u64,
}

/// What the answering thread and the cloning one have in common.
pub struct Shared {
    pub(super) group: Arc<Group>,
    pub(super) table: Arc<Table>,
    pub(super) machine: Mutex<Accesses<Access>>,
    /// Somebody waits, or the snapshot is broken.
    pub(super) news: Condvar,
    pub(super) images: Vec<Watched>,
    /// Accesses of this process, which are probes.
    pub(super) probes: AtomicU64,
    /// Who has used an image before T0.
    pub(super) users: Mutex<BTreeSet<u32>>,
    pub(super) stop: AtomicBool,
    pub(super) wake: EventFd,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Accesses<Access>> {
        // A panic elsewhere must not keep anybody waiting.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn users(&self) -> BTreeSet<u32> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn answer_ready(&self) {
        let ready = self.lock().ready(table::now());
        drop(ready);
    }

    pub(super) fn break_off(&self, why: &str) {
        self.lock().break_off(why);
        let _ = self.group.unmark_all();
        self.answer_ready();
        self.news.notify_all();
    }

    /// The answering thread.
    pub(super) fn answer(&self, supervisor: &UnixStream) {
        let _broken_by_a_panic = BreaksInAPanic(self);
        let mut supervised = true;
        let mut pulse = Pulse::new(BEAT, table::now());
        loop {
            self.table.beat();
            if self.read_all(&mut pulse).is_err() {
                return; // Told by `break_off`; the supervisor takes over from a thread that gives no sign of life.
            }
            // What was cloned in the background lets accesses go on as well, whatever the cloning thread does after it.
            self.answer_ready();
            self.expire();
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let due = self.lock().due().map(|due| due.saturating_sub(table::now()));
            let timeout = PollTimeout::try_from(due.unwrap_or(BEAT).min(BEAT)).unwrap_or(PollTimeout::ZERO);
            let mut fds = [
                PollFd::new(self.group.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
                PollFd::new(supervisor.as_fd(), PollFlags::POLLIN),
            ];
            // A socket whose other end is gone is always ready: this thread would never sleep again.
            let _ = poll(if supervised { &mut fds } else { &mut fds[..2] }, timeout);
            pulse.beat(table::now());
            let gone = supervised && fds[2].revents().is_some_and(|events| !events.is_empty());
            if gone && !self.stop.load(Ordering::Acquire) {
                supervised = false;
                self.break_off("its supervisor has died, and without one nobody would answer for a worker that hangs");
            }
            let silent = table::now().saturating_sub(self.table.last_stood_by().max(pulse.resumed()));
            if supervised && silent > self.table.deadline() / STANDS_BY {
                supervised = false;
                self.break_off(&format!(
                    "its supervisor has given no sign of life for {silent:.1?}, and without one nobody would answer for a worker that hangs"
                ));
            }
        }
    }

    fn read_all(&self, pulse: &mut Pulse) -> std::result::Result<(), ()> {
        // What was read already has waited in the table, and what comes now in the queue.
        let mut waited = pulse.stopped().is_some() && self.lock().waiting() > 0;
        loop {
            let asked = table::now();
            match self.group.read() {
                Ok(Some(event)) => {
                    waited = true;
                    self.take(event, pulse.since());
                }
                Ok(None) => {
                    if let Some(stopped) = pulse.stopped().filter(|_| waited) {
                        self.was_stopped(stopped);
                    }
                    pulse.emptied(asked);
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.break_off(&format!("the kernel's events cannot be read: {e}"));
                    return Err(());
                }
            }
            self.table.beat();
            pulse.beat(table::now());
        }
    }

    /// Somebody waits, or has, and nobody was there: what was promised was not kept if that took as long.
    fn was_stopped(&self, time: Duration) {
        if time > self.table.deadline() {
            self.break_off(&format!("the program was stopped for {time:.1?}, and the guest may have waited as long"));
        }
    }

    fn take(&self, event: Event, since: Option<Duration>) {
        let Event { file, pid, range, .. } = event;
        let access = Access::new(file, since.unwrap_or_else(table::now), &self.group, &self.table);
        let pid = u32::try_from(pid).unwrap_or(0);
        if pid == std::process::id() {
            self.probes.fetch_add(1, Ordering::AcqRel);
            return;
        }
        let Ok(now) = watched(&access) else {
            return self.break_off("an event's file cannot be looked at");
        };
        let Some(image) = self.images.iter().position(|i| (i.dev, i.ino) == (now.dev, now.ino)) else { return };
        let was = self.images[image];
        let mut machine = self.lock();
        if machine.is_passing() {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            if users.len() < USERS {
                users.insert(pid);
            }
        }
        if machine.is_watching() && now.size != was.size {
            drop(machine);
            return self.break_off(&resized(was.size, now.size));
        }
        let Some(range) = bytes(range, now.size) else { return };
        if !access.is_entered() {
            machine.break_off("more accesses to the image waited at once than can be looked after");
        }
        let passes = machine.arrive(access, image, range, since.unwrap_or_else(table::now));
        let waits = passes.is_none();
        if let Some(since) = since.filter(|_| !waits) {
            machine.went_on(since, table::now());
        }
        let broken = machine.broken().is_some();
        drop(machine);
        drop(passes);
        if broken {
            let _ = self.group.unmark_all();
            self.answer_ready();
        }
        if waits || broken {
            self.news.notify_all();
        }
    }

    fn expire(&self) {
        let mut machine = self.lock();
        machine.expire(table::now());
        let broken = machine.broken().is_some() && machine.waiting() > 0;
        drop(machine);
        if broken {
            let _ = self.group.unmark_all();
            self.answer_ready();
            self.news.notify_all();
        }
    }
}

/// A panic on the answering path lets go on whatever that held, cloned or not.
struct BreaksInAPanic<'a>(&'a Shared);

impl Drop for BreaksInAPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.break_off(ANSWERS_NO_MORE);
        }
    }
}

/// What to say where the answering thread has ended by itself.
pub const ANSWERS_NO_MORE: &str = "the thread that answers for accesses has ended, which is an error of this program";

/// What to say of an image that has another size than at T0: collapse and insert tell less than they change, and all that
/// gives them away is the size (KERNEL.md).
pub fn resized(was: u64, now: u64) -> String {
    format!("the image was resized during the job, from {was} to {now} bytes")
}

/// The bytes that an access may change, of an image of this size. No count is to the end, and so is no range.
fn bytes(range: Option<(u64, u64)>, size: u64) -> Option<ByteRange> {
    let (offset, count) = range.unwrap_or((0, 0));
    let end = if count == 0 { size } else { offset.saturating_add(count).min(size) };
    ByteRange::new(offset, end)
}

pub(super) fn watched(file: &impl AsFd) -> io::Result<Watched> {
    let stat = fstat(file)?;
    Ok(Watched { dev: stat.st_dev, ino: stat.st_ino, size: u64::try_from(stat.st_size).unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use nix::sys::eventfd::EfdFlags;

    use super::*;
    use crate::cbw::{Clusters, Limits};
    use crate::range::PowerOfTwo;

    /// A panic comes while an access waits, and another is in hand.
    #[test]
    fn a_panic_of_the_answering_thread_breaks_the_snapshot() {
        let _alone = table::alone();
        let null = || File::open("/dev/null").expect("a file").into();
        let limits = Limits { waiting: 9, deadline: Duration::from_secs(9) };
        let shared = Shared {
            group: Arc::new(Group::received(null())),
            table: Arc::new(Table::create(limits.deadline, 100).expect("shared memory")),
            machine: Mutex::new(Accesses::new(limits)),
            news: Condvar::new(),
            images: vec![],
            probes: AtomicU64::new(0),
            users: Mutex::default(),
            stop: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd"),
        };
        let access = || Access::new(null(), table::now(), &shared.group, &shared.table);
        let clusters = Arc::new(Clusters::new(4096, PowerOfTwo::new(4096).expect("a power of two")));
        shared.lock().gather();
        shared.lock().watch(vec![clusters], vec![]);
        let all = ByteRange::new(0, 4096).expect("not empty");
        assert!(shared.lock().arrive(access(), 0, all, table::now()).is_none());
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let _guard = BreaksInAPanic(&shared);
            let _in_hand = access();
            let _locked = shared.lock();
            panic!("as the test says");
        }));
        assert!(ended.is_err());
        let mut machine = shared.lock();
        assert_eq!((machine.broken(), machine.waiting()), (Some(ANSWERS_NO_MORE), 0));
        assert!(!machine.end() && shared.table.held().count() == 0);
        drop(machine);
        drop(BreaksInAPanic(&shared));
    }

    #[test]
    fn no_count_is_to_the_end_and_what_is_past_that_is_nothing() {
        let all = |start, end| ByteRange::new(start, end);
        assert_eq!((bytes(None, 100), bytes(Some((0, 0)), 100)), (all(0, 100), all(0, 100)));
        assert_eq!((bytes(Some((40, 0)), 100), bytes(Some((40, 8)), 100)), (all(40, 100), all(40, 48)));
        assert_eq!((bytes(Some((96, 4096)), 100), bytes(Some((100, 0)), 100)), (all(96, 100), None));
        let nowhere = i64::MAX as u64 & !0xFFFF;
        assert_eq!((bytes(Some((nowhere, 0)), 100), bytes(Some((nowhere, u64::MAX)), 100)), (None, None));
    }
}
