//! Writing dirty pages back without making anything durable (sync_file_range(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Starts writeback of a range and waits for it and for what was under way; a `length` of 0 is to the end of the file. Takes
/// no lock of the inode.
///
/// # Errors
/// EIO, ENOSPC: dirty data could not be written.
pub fn range(file: BorrowedFd<'_>, start: u64, length: u64) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let start = libc::off64_t::try_from(start).map_err(invalid)?;
    let length = libc::off64_t::try_from(length).map_err(invalid)?;
    // SAFETY: sync_file_range takes integers; the descriptor is borrowed, so it stays open for the call.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
