//! What a process on whose answers guests wait needs of the kernel: to be run, to have memory and descriptors.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::{Error, Kind, Result};
use crate::sys::sched;

/// Descriptors that a worker wants at least: as many as the table has slots, and what it needs itself.
const DESCRIPTORS: u64 = super::table::SLOTS as u64 + 1024;

/// The most that is asked for: more would only make the supervisor try more numbers.
const MOST_DESCRIPTORS: u64 = 65_536;

/// The nice value of the thread that clones: a call holds the image's lock for as long as it is not run (KERNEL.md: 1.6 s
/// and 5.2 s under `nice` with two busy processes).
const CLONES: i32 = -20;

/// The slice of both: it is the shortest that the kernel gives, so that none of them waits for somebody else's to end.
const SLICE: Duration = Duration::from_micros(100);

/// Makes this process fit to be waited for: memory locked, never chosen by the OOM killer, no core dump that would keep
/// its descriptors open, enough descriptors. Gives the bound of its descriptor numbers.
///
/// # Errors
/// Refused, where the kernel refuses what a guest's safety hangs on.
pub fn process() -> Result<u64> {
    let hint = "run as root, outside of a container that takes CAP_IPC_LOCK and CAP_SYS_RESOURCE away";
    let refused = |what: &str, e: io::Error| Error::io(Kind::Refused, what.to_owned(), hint, e);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)
        .map_err(|e| refused("cannot lock the memory of a process that guests wait for", e.into()))?;
    // Neither is vital: without the first the supervisor answers for a worker that was chosen, without the second it does
    // so while the core is written.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let descriptors = |e: nix::Error| refused("cannot have enough open files", e.into());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(descriptors)?;
    let wanted = hard.clamp(DESCRIPTORS, MOST_DESCRIPTORS).max(soft);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).map_err(descriptors)?;
    Ok(wanted)
}

/// Makes the calling thread one that answers: it runs as soon as it is woken, or nearly so.
///
/// # Errors
/// Refused without the right to leave what `nice` and `chrt` have set.
pub fn answering_thread() -> Result<()> {
    sched::at_once().or_else(|_| sched::ordinary(CLONES, SLICE)).and_then(|()| sched::ordinary_io()).map_err(refused)
}

/// Makes the calling thread one that clones.
///
/// # Errors
/// As [`answering_thread`].
pub fn cloning_thread() -> Result<()> {
    sched::ordinary(CLONES, SLICE).and_then(|()| sched::ordinary_io()).map_err(refused)
}

fn refused(error: io::Error) -> Error {
    let what = "the hold guard needs root: the process that the guest waits for cannot be given a high priority";
    Error::io(Kind::Refused, what, "run as root (CAP_SYS_ADMIN for the watch, CAP_SYS_NICE for the priority)", error)
}
