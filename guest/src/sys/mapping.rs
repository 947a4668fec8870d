//! A file mapped into memory, shared with whoever else maps or reads it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, null_mut};
use std::slice;
use std::sync::atomic::AtomicU64;

/// The first bytes of a file as words that any thread may load and store.
///
/// What is stored outlives the process, for it is in the page cache at once. Where the file system has no room for a page,
/// or somebody cuts the file, an access ends the process with SIGBUS.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the words are atomic, and the mapping belongs to the whole process, not to the thread that made it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of a file that is at least as long and open for reading and writing.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn shared(file: &File, bytes: u64) -> io::Result<Self> {
        let length = usize::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses overlaps none of ours.
        let start = unsafe { libc::mmap(null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { start, words: length / 8 })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, so long, and stays until drop; other processes may change it at any time, which
        // atomics allow.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it any more. A length that is not of whole pages ends at
        // the page's end, as it did in mmap.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * 8) };
    }
}
