//! Telling a process, named for good by its pid and start, to stop; and whether it is there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

pub use crate::sys::closing::let_go_of_all;
use crate::sys::process;

/// Sends the signal, if the process is still the one that started at `start` (clock ticks since boot). False where it has
/// ended: its pid may be somebody else's by now.
///
/// # Errors
/// EPERM where it belongs to somebody else.
pub fn terminate(pid: u32, start: u64, signal: Signal) -> io::Result<bool> {
    let Some(process) = find(pid, start)? else { return Ok(false) };
    match process::signal(process.as_fd(), Some(signal)) {
        Ok(()) => Ok(true),
        Err(e) if gone(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether the process that started at `start` is still there, and not all but gone.
///
/// # Errors
/// What pidfd_open(2) says of one that is there.
pub fn is_alive(pid: u32, start: u64) -> io::Result<bool> {
    Ok(find(pid, start)?.is_some_and(|process| !has_ended(&process)))
}

/// Whether all threads of a process have ended, by its descriptor.
pub fn has_ended(process: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The process that started at `start`.
fn find(pid: u32, start: u64) -> io::Result<Option<OwnedFd>> {
    let process = match process::open(pid) {
        Ok(process) => process,
        Err(e) if gone(&e) => return Ok(None),
        Err(e) => return Err(e),
    };
    // The descriptor stands for one process: its start is looked at after it was opened, so that it is that one's.
    match process::start_ticks(pid) {
        Ok(now) => Ok((now == start).then_some(process)),
        Err(e) if gone(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

fn gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESRCH) || error.kind() == io::ErrorKind::NotFound
}
