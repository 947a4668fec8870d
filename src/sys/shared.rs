//! Words of memory that several processes share: a sealed memfd, mapped by each.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Shared words. Those who map them may be killed at any instruction; what they mean must bear that.
pub struct Words {
    fd: OwnedFd,
    start: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping is not of a thread, stays until the value is dropped, and is reached through atomics only.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// `count` new words of 0, whose size nobody can change.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2) and mmap(2) say.
    pub fn create(name: &std::ffi::CStr, count: usize) -> io::Result<Self> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(bytes(count)? as u64)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL))?;
        Self::map(OwnedFd::from(file), count)
    }

    /// Words that another process has created. Without the seal against shrinking, whoever shrinks them could kill us.
    ///
    /// # Errors
    /// `InvalidData` where they are fewer or not sealed; what fcntl(2), fstat(2) and mmap(2) say.
    pub fn map(fd: OwnedFd, count: usize) -> io::Result<Self> {
        Self::mapped(fd, count, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    fn mapped(fd: OwnedFd, count: usize, protection: ProtFlags) -> io::Result<Self> {
        let length = bytes(count)?;
        let sealed = SealFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GET_SEALS)?).contains(SealFlag::F_SEAL_SHRINK);
        let size = File::from(fd.try_clone()?).metadata()?.len();
        if !sealed || size < length as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a table of that size"));
        }
        let length = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice, over `length` bytes of a file that cannot shrink.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &fd, 0) }?;
        Ok(Self { fd, start: start.cast(), count })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: `count` words are mapped, aligned to a page, for as long as `self` lives; every bit pattern is a valid
        // atomic, and others reach them through atomics as well.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

/// Words of another process that are only looked at: what it has mapped cannot be changed through them.
pub struct View(Words);

impl View {
    /// From a descriptor that need not be open for writing.
    ///
    /// # Errors
    /// As [`Words::map`].
    pub fn map(fd: OwnedFd, count: usize) -> io::Result<Self> {
        Words::mapped(fd, count, ProtFlags::PROT_READ).map(Self)
    }

    /// A word as it is now. Only loads are offered: a store would be to memory that cannot be written.
    pub fn load(&self, index: usize) -> u64 {
        self.0.words()[index].load(Ordering::Acquire)
    }
}

impl AsFd for Words {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the whole of the mapping that `map` made; no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start.cast(), self.count * size_of::<AtomicU64>()) };
    }
}

fn bytes(count: usize) -> io::Result<usize> {
    count.checked_mul(size_of::<AtomicU64>()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering::Relaxed;

    use super::{View, Words};

    #[test]
    fn two_mappings_are_of_the_same_words_and_nobody_can_shrink_them() {
        let ours = Words::create(c"test", 600).expect("memfd");
        let theirs = Words::map(ours.as_fd().try_clone_to_owned().expect("dup"), 600).expect("map");
        ours.words()[599].store(7, Relaxed);
        assert_eq!(theirs.words()[599].load(Relaxed), 7);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&ours.as_fd()));
        let view = View::map(File::open(path).expect("for reading").into(), 600).expect("map");
        assert_eq!(view.load(599), 7);
        let file = File::from(ours.as_fd().try_clone_to_owned().expect("dup"));
        file.set_len(0).expect_err("sealed");
        assert!(Words::map(ours.as_fd().try_clone_to_owned().expect("dup"), 601).is_err());
        let open = tempfile::tempfile().expect("a file");
        open.set_len(8192).expect("grow");
        assert!(Words::map(open.into(), 1).is_err(), "not sealed");
    }
}
