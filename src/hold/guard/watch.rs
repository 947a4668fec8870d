//! Images under watch: the group, its supervisor, and the thread that answers.
//!
//! The answering thread never waits for anything but events: accesses to clusters that are done go on at once, whatever the
//! cloning thread is at. What has to be cloned first is asked for by [`Watch::wanted`] and answered by the cloning thread
//! itself, as soon as it is done. The lock is held for moments only, and never around a system call that can block.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::access::Access;
use super::answer::{ANSWERS_NO_MORE, Shared, USERS, watched};
use super::table::{self, Figures, SLOTS, Table};
use super::{link, preflight, raise};
use crate::cbw::{Accesses, Clusters, Limits};
use crate::children;
use crate::disk::real::RealFile;
use crate::error::{Error, Kind, Result};
use crate::range::ByteRange;
use crate::sys::fanotify::{Group, Mark};

/// The verb, not for users, that makes this program a supervisor.
pub const SUPERVISOR: &str = "__supervisor";

/// Stack of the answering thread: its memory is locked.
const STACK: usize = 256 << 10;

/// How long the supervisor's end is waited for.
const SUPERVISOR_ENDS: Duration = Duration::from_secs(2);

/// Images under watch.
pub struct Watch {
    shared: Arc<Shared>,
    files: Vec<Arc<RealFile>>,
    thread: Option<JoinHandle<()>>,
    supervisor: Child,
}

impl Watch {
    /// A watch over images. From here on their accesses are seen, and go on at once; what is opened can be watched, whoever
    /// arms it. The descriptors must be exempt from events.
    ///
    /// # Errors
    /// Refused where the kernel or the rights do not suffice, and where there can be no supervisor.
    pub fn open(files: &[Arc<RealFile>], deadline: Duration) -> Result<Self> {
        let numbers = raise::process()?;
        let group = Group::pre_content().map_err(no_events)?;
        let own = |e| Error::io(Kind::Refused, "cannot prepare the watch over the image", "check the limits", e);
        let table = Table::create(deadline, numbers).map_err(own)?;
        let (supervisor, socket) = supervised(&group, &table)?;
        let images: io::Result<Vec<_>> = files.iter().map(|f| watched(&**f)).collect();
        let limits = Limits::within(deadline, SLOTS - 1);
        let shared = Arc::new(Shared {
            group: Arc::new(group),
            table: Arc::new(table),
            machine: Mutex::new(Accesses::new(limits)),
            news: Condvar::new(),
            images: images.map_err(own)?,
            probes: AtomicU64::new(0),
            users: Mutex::default(),
            stop: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|e| own(e.into()))?,
        });
        let mut watch = Self { shared: Arc::clone(&shared), files: files.to_vec(), thread: None, supervisor };
        let (raised, result) = std::sync::mpsc::channel();
        let answer = move || {
            let fit = raise::answering_thread();
            let go_on = fit.is_ok();
            let _ = raised.send(fit);
            if go_on {
                shared.answer(&socket);
            }
        };
        let thread = thread::Builder::new().name("answers".into()).stack_size(STACK).spawn(answer);
        watch.thread = Some(thread.map_err(own)?);
        result.recv().unwrap_or_else(|_| Err(own(io::Error::other("the answering thread ended"))))?;
        watch.mark()?;
        Ok(watch)
    }

    /// Whether accesses by a descriptor of an image, received from another process, can be watched.
    pub fn probe(&self, descriptor: &OwnedFd) -> bool {
        let before = self.shared.probes.load(Ordering::Acquire);
        touch(descriptor);
        self.shared.probes.load(Ordering::Acquire) != before
    }

    /// Sets T0: accesses to all images wait from here on, until what they may change is cloned.
    ///
    /// # Errors
    /// Refused where an image cannot be marked, failed where somebody has mapped one since the watch began; nobody waits
    /// then.
    pub fn begin(&self, images: &[Arc<Clusters>], blocks: &[u64]) -> Result<()> {
        self.shared.lock().gather();
        // One that was broken off while guests were being frozen marks nothing again: nobody would look after that.
        let whole = || match self.broken() {
            None => Ok(()),
            Some(why) => {
                let hint = "run the same command again: it takes a new point in time";
                Err(Error::new(Kind::Broken, format!("no point in time can be set: {why}"), hint))
            }
        };
        if let Err(error) = whole().and_then(|()| self.mark()).and_then(|()| self.nobody_has_mapped()) {
            self.end();
            return Err(error);
        }
        // An append is told with a wrong offset (KERNEL.md): it changes the image's last block where that is not full, so
        // that one is cloned before anything goes on.
        let tails = images.iter().zip(blocks).enumerate().filter_map(|(image, (clusters, block))| {
            let size = clusters.size();
            let tail = ByteRange::new(size - size % block, size)?;
            Some((image, tail))
        });
        let tails = tails.collect();
        self.shared.lock().watch(images.to_vec(), tails);
        self.answer_ready();
        whole().inspect_err(|_| {
            self.end();
        })
    }

    /// What has to be cloned next because somebody waits for it.
    pub fn wanted(&self) -> Option<(usize, ByteRange)> {
        self.shared.lock().wanted()
    }

    /// Why the snapshot is lost, if it is.
    pub fn broken(&self) -> Option<String> {
        let broken = self.shared.lock().broken().map(str::to_owned);
        // It is told to end by nobody but `drop`.
        let ended = || self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        broken.or_else(|| ended().then(|| ANSWERS_NO_MORE.to_owned()))
    }

    /// The snapshot is lost, for this reason: nobody waits any more.
    pub fn break_off(&self, why: &str) {
        self.shared.break_off(why);
    }

    /// Lets those go on whose clusters are done.
    pub fn answer_ready(&self) {
        self.shared.answer_ready();
    }

    /// Waits for this time, or until somebody waits for a clone, or the snapshot breaks.
    pub fn idle(&self, time: Duration) {
        self.answer_ready();
        let machine = self.shared.lock();
        let quiet = |machine: &mut Accesses<Access>| !machine.is_wanted() && machine.broken().is_none();
        drop(self.shared.news.wait_timeout_while(machine, time, quiet));
    }

    /// Tells the table how the job stands.
    pub fn tell(&self, figures: Figures) {
        let (tally, waiting) = self.tally();
        self.shared.table.tell(&Figures {
            seen: tally.seen,
            waited: tally.waited,
            longest: tally.longest,
            waiting: waiting as u64,
            ..figures
        });
    }

    /// What was seen since T0, and how many wait now.
    pub fn tally(&self) -> (crate::cbw::Tally, usize) {
        let machine = self.shared.lock();
        (machine.tally(), machine.waiting())
    }

    /// Ends the watching: everybody goes on. False where it had been broken off.
    pub fn end(&self) -> bool {
        self.unmark();
        let whole = self.shared.lock().end();
        self.answer_ready();
        whole && !self.shared.table.was_taken_over()
    }

    fn mark(&self) -> Result<()> {
        if !self.shared.table.watch() {
            return Err(Error::new(Kind::Broken, "the supervisor has taken over", "run the same command again"));
        }
        for file in &self.files {
            if let Err(e) = self.shared.group.mark(file.as_fd(), Mark::PreAccess) {
                self.unmark();
                return Err(no_events(e));
            }
        }
        Ok(())
    }

    /// A mapping that was made after the first look had been at its process is found by its owner's access. What is mapped
    /// from here on waits, as everything does.
    pub(super) fn nobody_has_mapped(&self) -> Result<()> {
        let users = self.shared.users();
        if users.len() >= USERS {
            let what = format!("{USERS} processes or more use the image");
            return Err(Error::new(Kind::Failed, what, "end those that need not, and run the same command again"));
        }
        preflight::nobody_has_mapped(&self.files, users)
    }

    fn unmark(&self) {
        let _ = self.shared.group.unmark_all();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.shared.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Nobody can be waiting: the marks are gone, and the thread has answered what was queued.
        self.shared.table.rest();
        // It ends because the thread has closed the socket; one that is stopped does not.
        let until = table::now() + SUPERVISOR_ENDS;
        while matches!(self.supervisor.try_wait(), Ok(None)) && table::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        let _ = self.supervisor.kill();
    }
}

/// Past the end of any file, on a block of any size: to another job no bytes there mean none, and at 0 they would mean all.
const NOWHERE: i64 = i64::MAX & !0xFFFF;

/// An access of no bytes: it changes nothing, and the kernel tells of it like of any other, before it looks at limits.
fn touch(fd: &OwnedFd) {
    if nix::sys::uio::pread(fd, &mut [], NOWHERE).is_err() {
        let _ = nix::sys::uio::pwrite(fd, &[], NOWHERE);
    }
}

/// Starts the supervisor and hands it what it looks after.
fn supervised(group: &Group, table: &Table) -> Result<(Child, UnixStream)> {
    let cannot = |e| {
        let hint = "check the limit of processes, and whether the program's file can still be run";
        Error::io(Kind::Refused, "cannot have a supervisor, without which no guest is made to wait", hint, e)
    };
    let (mut ours, theirs) = UnixStream::pair().map_err(cannot)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(SUPERVISOR).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
    let child = children::spawn(&mut command).map_err(cannot)?;
    drop(command);
    link::hand_over(&mut ours, group.as_fd(), table.as_fd()).map_err(cannot)?;
    Ok((child, ours))
}

fn no_events(error: io::Error) -> Error {
    let (what, hint) = match error.raw_os_error() {
        Some(libc::EPERM) => ("the program may not watch accesses", "run as root (CAP_SYS_ADMIN), not in a container"),
        Some(libc::EINVAL | libc::ENOSYS) => (
            "this kernel has no pre-content events",
            "Linux 6.14 or later has them, built with CONFIG_FANOTIFY_ACCESS_PERMISSIONS",
        ),
        Some(libc::EOPNOTSUPP) => ("the image's file system sends no pre-content events", "XFS and Btrfs do"),
        _ => ("accesses to the image cannot be watched", "check the limits (fs.fanotify) and the kernel's log"),
    };
    Error::io(Kind::Refused, what, hint, error)
}

#[cfg(test)]
mod tests {
    use super::{Kind, io, no_events};

    #[test]
    fn what_keeps_a_watch_from_being_had_is_told_with_the_way_out() {
        let check = |errno: i32, what: &str, hint: &str| {
            let error = no_events(io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind, Kind::Refused);
            assert!(error.what.contains(what) && error.hint.contains(hint), "{errno}: {error}; {}", error.hint);
        };
        check(libc::EPERM, "may not watch", "CAP_SYS_ADMIN");
        check(libc::EINVAL, "this kernel has no", "6.14");
        check(libc::ENOSYS, "this kernel has no", "6.14");
        check(libc::EOPNOTSUPP, "file system sends no", "XFS and Btrfs");
        check(libc::EMFILE, "cannot be watched", "limits");
    }
}
