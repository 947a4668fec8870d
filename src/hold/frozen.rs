//! `frozen`: nobody has the image open for writing, and nobody can open it so while the job runs.
//!
//! A read lease (F_SETLEASE) succeeds only where no descriptor is open for writing, and makes a later opener wait while
//! the holder is told. QEMU's image-lock bytes are taken as well, for a QEMU that gets at the image past the lease; one that
//! opens it for writing waits for the lease, and finds the bytes free. The lease proves T0 to the last clone: as long as F_GETLEASE says F_RDLCK nobody has written, and
//! when it no longer does, openers wait for `/proc/sys/fs/lease-break-time` seconds before the kernel lets them in.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::unistd::geteuid;

use super::holders::{self, Holders, NAMED};
use super::image_lock::{self, byte};
use super::{Demand, Hold, HoldKind, T0};
use crate::cbw::Clusters;
use crate::disk::DiskFile;
use crate::disk::real::RealFile;
use crate::error::{Error, Kind, Result};
use crate::range::ByteRange;
use crate::sys::{lease, ofd};

/// How long a writer is made to wait at most while the job finishes: it is let in within a second of its opening.
const FINISH_WITHIN: Duration = Duration::from_millis(500);

/// How long the kernel lets an opener wait for a lease, in seconds; 0 is for ever.
const BREAK_TIME: &str = "/proc/sys/fs/lease-break-time";

/// A file's change time is only as fine as the kernel's tick (4 or 10 ms before Linux 6.13). Writes in the same tick as T0
/// could not be told from it, so T0 waits until the last change is older than this.
const TICK: Duration = Duration::from_millis(20);

/// The hold.
pub struct Frozen {
    image: Arc<RealFile>,
    path: PathBuf,
    held: bool,
    sure_at: Instant,
    break_time: Option<Duration>,
}

impl Frozen {
    /// A hold that has taken nothing yet. `path` is where the image is expected to be when the job ends.
    pub fn new(image: Arc<RealFile>, path: PathBuf) -> Self {
        Self { image, path, held: false, sure_at: Instant::now(), break_time: None }
    }

    fn flush(&self) -> Result<()> {
        self.image.sync_data().map_err(|e| {
            let what = format!("dirty data of '{}' cannot be written", self.path.display());
            Error::io(Kind::Failed, what, "check the kernel's log: the device may have lost data", e)
        })
    }

    /// Whether all is well; otherwise how long somebody may have been waiting.
    fn waiting(&mut self) -> std::result::Result<(), Duration> {
        let now = Instant::now();
        match lease::held(self.image.as_fd()) {
            Ok(lease::Lease::Read) => {
                self.sure_at = now;
                Ok(())
            }
            _ => Err(now.duration_since(self.sure_at)),
        }
    }

    /// For how long at most somebody who opens it for writing has been waiting; none where nobody does.
    pub fn waited(&mut self) -> Option<Duration> {
        self.waiting().err()
    }

    /// Whether an opener may have been let in by the kernel: the lease was last known to stand so long ago.
    fn may_be_broken(&self, waited: Duration) -> bool {
        // Nine tenths: the kernel counts from the opening, in its own ticks.
        self.break_time.is_some_and(|limit| waited > limit * 9 / 10)
    }

    fn in_use(&self) -> Error {
        let name = self.path.display();
        let who = match holders::holders(self.image.as_fd()) {
            Ok(holders) => describe(&holders.insist()),
            Err(e) => format!("who has it cannot be found out: {e}"),
        };
        let hint = "shut the VM down (or end what has the image open); --consistency none makes a copy that is not of one \
                    instant";
        Error::new(Kind::Refused, format!("the image '{name}' is in use: {who}"), hint)
    }
}

fn describe(holders: &Holders) -> String {
    let mut words = vec![holders::named(&holders.found)];
    let hidden = holders::that_count(&holders.hidden);
    if !hidden.is_empty() {
        let mut named: Vec<String> = hidden.iter().take(NAMED).map(|pid| format!("pid {pid}")).collect();
        if hidden.len() > NAMED {
            named.push(format!("{} more", hidden.len() - NAMED));
        }
        let root = if geteuid().is_root() { "" } else { " (root can)" };
        words.push(format!("not looked into{root}: {}", named.join(", ")));
    }
    words.join("; ")
}

fn break_time() -> Option<Duration> {
    let text = std::fs::read_to_string(BREAK_TIME).ok();
    // Where it cannot be read the shortest is believed.
    let seconds = text.map_or(Some(1), |t| t.trim().parse().ok()).unwrap_or(1);
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn lost(why: &str) -> Error {
    Error::new(Kind::Broken, why.to_owned(), "run the same command again: it takes a new point in time")
}

impl Hold for Frozen {
    fn kind(&self) -> HoldKind {
        HoldKind::Frozen
    }

    fn prepare(&mut self) -> Result<()> {
        // Who has it open for writing is not to wait for its dirty data to reach the disk, with the inode's lock held.
        self.settle()?;
        // Before the lease: a writer that opens after it waits, and should not wait for old writes either.
        self.flush()?;
        self.lease()?;
        self.held = true;
        self.sure_at = Instant::now();
        self.break_time = break_time();
        let fd = self.image.as_fd();
        let qemu_writes = ofd::conflict(fd, byte(image_lock::WRITES), ofd::Lock::Write).map(|c| c.is_some());
        let locked = ofd::try_lock(fd, byte(image_lock::WRITES_NOT_SHARED), ofd::Lock::Read);
        match (qemu_writes, locked) {
            (Ok(false), Ok(true)) => Ok(()),
            (Err(error), _) | (_, Err(error)) => {
                self.release();
                let what = format!("cannot lock '{}' as QEMU does", self.path.display());
                Err(Error::io(Kind::Refused, what, "the file system must support locks", error))
            }
            _ => {
                self.release();
                Err(self.in_use())
            }
        }
    }

    /// Whether nobody has it open for writing, as long as the lease is not had: whatever is done before that makes no writer wait.
    fn settle(&mut self) -> Result<()> {
        if !self.held {
            self.lease()?;
            let _ = lease::release(self.image.as_fd());
        }
        Ok(())
    }

    fn begin(&mut self, images: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        let cannot = |e| Error::io(Kind::Failed, "cannot look at the image", "check the kernel's log", e);
        // What was written between the first flush and the lease: on disk first, so that no clone call has to wait for it.
        self.flush()?;
        let mut image = self.image.stat().map_err(cannot)?;
        let age = Timestamp::now().as_nanosecond() - image.ctime_ns;
        if (0..TICK.as_nanos() as i128).contains(&age) {
            std::thread::sleep(TICK);
            image = self.image.stat().map_err(cannot)?;
        }
        if images.iter().any(|i| i.size() != image.size) {
            return Err(super::resized_before_t0());
        }
        Ok(vec![T0 { at: Timestamp::now(), image }])
    }

    fn demand(&mut self) -> Demand {
        match self.waiting() {
            Ok(()) => Demand::Nothing,
            Err(waited) if self.may_be_broken(waited) => Demand::Broken(
                "a writer may have been let in: the job stood still for longer than the lease lasts".into(),
            ),
            Err(_) => Demand::Leave(FINISH_WITHIN),
        }
    }

    fn promoted(&mut self, _: usize, _: ByteRange) {}

    fn end(&mut self) -> Result<()> {
        let ended = match self.waiting() {
            Err(waited) if self.may_be_broken(waited) => {
                Err(lost("a writer may have been let in: the job stood still for longer than the lease lasts"))
            }
            _ => self.still_the_image(),
        };
        self.release();
        ended
    }

    fn release(&mut self) {
        if !self.held {
            return;
        }
        self.held = false;
        // The lock byte first: a QEMU that the lease lets in looks at the bytes at once (KERNEL.md, measured).
        let _ = ofd::unlock(self.image.as_fd(), byte(image_lock::WRITES_NOT_SHARED));
        let _ = lease::release(self.image.as_fd());
    }
}

impl Frozen {
    fn lease(&self) -> Result<()> {
        lease::take(self.image.as_fd(), lease::Lease::Read).map_err(|error| match error.raw_os_error() {
            Some(libc::EAGAIN) => self.in_use(),
            Some(libc::EACCES) => {
                let what = format!("no lease on '{}': it belongs to another user", self.path.display());
                Error::io(Kind::Refused, what, "run as its owner, as root, or with CAP_LEASE", error)
            }
            _ => {
                let what = format!("no lease on '{}'", self.path.display());
                Error::io(Kind::Refused, what, "the file system must support leases", error)
            }
        })
    }

    /// Whether the path still names the file that was cloned.
    fn still_the_image(&self) -> Result<()> {
        super::still_at(&self.image, &self.path)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.release();
    }
}
