//! Reading and writing what is in memory, and nothing else (preadv2(2) and pwritev2(2) with RWF_NOWAIT).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Reads from `offset` what can be read without waiting for the disk or for a lock, and gives how many bytes that were.
///
/// # Errors
/// EAGAIN where nothing can; EOPNOTSUPP where the file system cannot tell.
pub fn read(file: BorrowedFd<'_>, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let offset = position(offset)?;
    // SAFETY: preadv2 writes at most `iov_len` bytes to `iov_base`, which are those of a slice that nobody else has; the
    // descriptor is borrowed, so it stays open for the call.
    let got = unsafe { libc::preadv2(file.as_raw_fd(), &raw const piece, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Writes to `offset` what can be written without waiting, and gives how many bytes that were.
///
/// # Errors
/// As [`read`].
pub fn write(file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let offset = position(offset)?;
    // SAFETY: pwritev2 reads at most `iov_len` bytes from `iov_base`, and writes none of them; the descriptor is borrowed, so it
    // stays open for the call.
    let put = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const piece, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(put).map_err(|_| io::Error::last_os_error())
}

fn position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}
