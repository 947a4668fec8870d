//! Telling a process, named for good by its pid and start, to stop.

use std::io;
use std::os::fd::AsFd;

use nix::sys::signal::Signal;

use crate::sys::process;

/// Sends the signal, if the process is still the one that started at `start` (clock ticks since boot). False where it has
/// ended: its pid may be somebody else's by now.
///
/// # Errors
/// EPERM where it belongs to somebody else.
pub fn terminate(pid: u32, start: u64, signal: Signal) -> io::Result<bool> {
    let gone = |e: &io::Error| e.raw_os_error() == Some(libc::ESRCH) || e.kind() == io::ErrorKind::NotFound;
    let process = match process::open(pid) {
        Ok(process) => process,
        Err(e) if gone(&e) => return Ok(false),
        Err(e) => return Err(e),
    };
    // The descriptor stands for one process: its start is looked at after it was opened, so that it is that one's.
    match process::start_ticks(pid) {
        Ok(now) if now == start => {}
        Ok(_) => return Ok(false),
        Err(e) if gone(&e) => return Ok(false),
        Err(e) => return Err(e),
    }
    match process::signal(process.as_fd(), Some(signal)) {
        Ok(()) => Ok(true),
        Err(e) if gone(&e) => Ok(false),
        Err(e) => Err(e),
    }
}
