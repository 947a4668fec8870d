//! System calls that std and nix do not wrap: the only module with `unsafe`.
//!
//! One file per topic. Each C struct has its size asserted at compile time, each `unsafe` block names the kernel's contract
//! that it relies on.

pub mod aio;
pub mod mapping;
pub mod uring;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Reads without waiting for a lock or the device (RWF_NOWAIT, Linux 4.14); gives the bytes read.
///
/// # Errors
/// EAGAIN where it would have had to wait, and what preadv2(2) says.
pub fn read_at_once(file: &File, bytes: &mut [u8], offset: i64) -> io::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: preadv2 writes to the one part, which is borrowed for the call, and keeps no pointer.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
