//! How urgently the kernel runs a thread, and does its disk accesses.

use std::io;
use std::time::Duration;

/// `IOPRIO_WHO_PROCESS` and `IOPRIO_CLASS_SHIFT` of `linux/ioprio.h`.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_SHIFT: u32 = 13;
/// `IOPRIO_CLASS_BE`: what everybody has who asked for nothing.
const IOPRIO_CLASS_BE: libc::c_int = 2;

/// `struct sched_attr` of `linux/sched/types.h`, its first version.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Makes the calling thread one of the ordinary class (SCHED_OTHER) with this nice value and slice, whatever it inherited.
///
/// A thread that is woken does not wait for the slice of one that runs to end if its own is the shorter (Linux 6.12; before
/// that slices are not told apart, and a longer or shorter one than 0.1 to 100 ms is taken for the nearest).
///
/// # Errors
/// EPERM and EACCES without CAP_SYS_NICE.
pub fn ordinary(nice: i32, slice: Duration) -> io::Result<()> {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: slice.as_nanos() as u64,
        deadline: 0,
        period: 0,
    };
    // SAFETY: sched_setattr reads one structure of the size that is in it; 0 is the calling thread, and there are no flags.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes the calling thread one that runs as soon as it is woken (SCHED_FIFO, the least priority of it); its children do
/// not inherit that.
///
/// # Errors
/// EPERM without CAP_SYS_NICE; where the control group has no real-time budget as well.
pub fn at_once() -> io::Result<()> {
    set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1)
}

fn set(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: sched_setscheduler reads one `struct sched_param`; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives the calling thread's disk accesses the ordinary class, with the highest priority in it.
///
/// # Errors
/// EPERM.
pub fn ordinary_io() -> io::Result<()> {
    let priority = IOPRIO_CLASS_BE << IOPRIO_CLASS_SHIFT;
    // SAFETY: ioprio_set takes three integers; 0 is the calling thread.
    if unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
