//! FICLONERANGE: share a range of blocks between two files (ioctl_ficlonerange(2)).

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::range::CloneRange;

/// `struct file_clone_range` of `linux/fs.h`.
#[repr(C)]
struct FileCloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

const _: () = assert!(size_of::<FileCloneRange>() == 32);
const _: () = assert!(offset_of!(FileCloneRange, src_offset) == 8);
const _: () = assert!(offset_of!(FileCloneRange, src_length) == 16);
const _: () = assert!(offset_of!(FileCloneRange, dest_offset) == 24);

mod raw {
    nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, super::FileCloneRange);
}

/// Makes `to` share the blocks of `range` of `from`, at the same offset.
///
/// A length of 0 would mean "to the end of the file" to the kernel; a [`CloneRange`] cannot have one.
///
/// # Errors
/// What ioctl_ficlonerange(2) says: EXDEV, EINVAL, EOPNOTSUPP, ENOSPC and others. **The first part of the range may have
/// been cloned all the same.**
pub fn clone_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, range: CloneRange) -> io::Result<()> {
    let bytes = range.bytes();
    let request = FileCloneRange {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: bytes.start(),
        src_length: bytes.len(),
        dest_offset: bytes.start(),
    };
    // SAFETY: FICLONERANGE reads one `struct file_clone_range` and keeps no pointer; both descriptors are borrowed, so
    // they stay open for the call.
    unsafe { raw::ficlonerange(to.as_raw_fd(), &raw const request) }?;
    Ok(())
}
