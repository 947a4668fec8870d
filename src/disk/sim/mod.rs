//! A disk in memory that fails, answers awkwardly and crashes, from a seed; for tests.
//!
//! # The faults that a job must survive
//! - **Power cut** at any step: of what was not synced any subset is kept, in any order; writes are torn at any byte; the
//!   size is there without the data or the data without the size; names are lost, or renames, one by one; file times
//!   may be old. fsync of a new file does not make its name durable.
//! - **SIGKILL** at any step: what the kernel was told stays, locks and leases are gone.
//! - Calls that fail: ENOSPC, EIO, EINTR, and a clone that says EINVAL and means ENOSPC. A failed clone or write has done
//!   its first part. After a clone's EIO the source reads as zeros and later calls succeed; after a sync's EIO later
//!   syncs succeed and the data is lost. Some blocks refuse to be shared for good.
//! - Maps that split extents, begin before the range, end past the file, and show the old block until a flush.
//! - Overwrites at the same address, or at another, as on XFS or on Btrfs.
//!
//! # What it does not model, and why
//! - Time that passes for other reasons than calls, and threads: the engine under test is a state machine, run inline.
//! - Reuse of addresses: an address identifies a content at a moment, which is all that a comparison relies on; here it
//!   is never given out twice, so a stale address is found out and not by luck right.
//! - Permissions, symbolic links, hard links, and space that runs out by itself: the kernel's tests cover them.
//! - Waiting: opening a file under a write lease is EAGAIN, as with O_NONBLOCK.
//!
//! A power cut here is crueller than a journalling file system, which keeps metadata in order: what survives this
//! relies on syncs alone. In one point the clone is stricter than the kernel: a range with an unaligned end needs a
//! target of exactly that size, where the kernel would extend a shorter one.
//!
//! # Steps
//! Every call of the traits that changes or syncs something is a step, from 1. [`SimDisk::stop_after`] makes one the last:
//! it is done, not done or done in part, and it and all later calls fail with [`SimCrash`]. A test runs once for
//! [`SimDisk::steps`], then once for each, and goes on with what [`SimDisk::crash_power`] or [`SimDisk::crash_kill`] gives. What
//! the guest and the test do (the inherent methods of [`SimDisk`]) is no step, never fails, and goes on after the stop.

mod crash;
mod data;
mod dir;
mod faults;
mod file;
mod guest;
mod inode;
mod map;
mod rng;
mod store;
mod world;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::rc::Rc;

use jiff::Timestamp;

pub use self::faults::Faults;
pub use self::file::SimFile;
pub use self::world::SimCrash;
use self::world::World;
use super::FsKind;

/// The name of the image that [`SimDisk::add_image`] makes.
pub const IMAGE: &str = "image";

/// What a simulated disk starts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// All chance comes from here.
    pub seed: u64,
    /// The file system's block: a power of two, 16 or more.
    pub block: u64,
    /// What the file system says that it is; XFS tells extent counts, Btrfs has subvolumes and +C.
    pub kind: FsKind,
    /// How often what goes wrong.
    pub faults: Faults,
}

impl Setup {
    /// XFS with blocks of 512 bytes on which nothing goes wrong.
    pub fn new(seed: u64) -> Self {
        Self { seed, block: 512, kind: FsKind::Xfs, faults: Faults::default() }
    }

    /// The same, with these faults.
    #[must_use]
    pub fn with(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }
}

/// A machine with one directory. A clone of it is another handle on the same machine.
#[derive(Clone)]
pub struct SimDisk {
    world: Rc<RefCell<World>>,
}

impl SimDisk {
    /// An empty directory.
    pub fn new(setup: Setup) -> Self {
        Self::of(World::new(setup))
    }

    fn of(world: World) -> Self {
        world.assert_sound();
        Self { world: Rc::new(RefCell::new(world)) }
    }

    fn ino(&self, name: &OsStr) -> io::Result<u64> {
        let found = self.world.borrow().names.get(name).copied();
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }

    /// The number of steps made.
    pub fn steps(&self) -> u64 {
        self.world.borrow().steps
    }

    /// Makes the step with this number the last; it must be still to come.
    pub fn stop_after(&self, step: u64) {
        let mut world = self.world.borrow_mut();
        assert!(step > world.steps, "step {step} has been made");
        world.stop_at = Some(step);
    }

    /// Whether the stop was reached.
    pub fn stopped(&self) -> bool {
        self.world.borrow().stopped
    }

    /// Changes what goes wrong from here on.
    pub fn set_faults(&self, faults: Faults) {
        self.world.borrow_mut().faults = faults;
    }

    /// Sets the wall clock, forwards or backwards; the file times have their own.
    pub fn set_host_now(&self, now: Timestamp) {
        self.world.borrow_mut().now_ns = now.as_nanosecond();
    }

    /// Says whether another job has the file system's turn.
    pub fn others_have_the_turn(&self, have: bool) {
        self.world.borrow_mut().others_turn = Some(have);
    }

    /// The last operations, at most `last`, a line each: for the message of a test that failed.
    pub fn trace(&self, last: usize) -> String {
        let world = self.world.borrow();
        let skipped = world.trace.len().saturating_sub(last);
        world.trace.iter().skip(skipped).flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}
