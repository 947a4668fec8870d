//! What an inode has beyond stat(2): generation, flags, extent count, subvolume.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::FromZeros;

/// Exempt from copy-on-write and, on Btrfs, from checksums: `chattr +C` (`FS_NOCOW_FL`).
const NO_COW: libc::c_int = 0x0080_0000;

/// `FS_XFLAG_REALTIME` of `linux/fs.h`.
const REALTIME: u32 = 0x1;

/// The object id that stands for "the subvolume itself" (`BTRFS_FIRST_FREE_OBJECTID`).
const SUBVOLUME_ROOT: u64 = 256;

/// `struct fsxattr` of `linux/fs.h`.
#[derive(FromZeros)]
#[repr(C)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

const _: () = assert!(size_of::<FsXattr>() == 28);
const _: () = assert!(offset_of!(FsXattr, nextents) == 8);

/// `struct btrfs_ioctl_ino_lookup_args` of `linux/btrfs.h`.
#[derive(FromZeros)]
#[repr(C)]
struct InoLookup {
    treeid: u64,
    objectid: u64,
    name: [u8; 4080],
}

const _: () = assert!(size_of::<InoLookup>() == 4096);
const _: () = assert!(offset_of!(InoLookup, name) == 16);

mod raw {
    // These three are declared with `long` and answered with `int`: a trap of old, kept for compatibility.
    nix::ioctl_read_bad!(getversion, nix::request_code_read!(b'v', 1, size_of::<libc::c_long>()), libc::c_int);
    nix::ioctl_read_bad!(getflags, nix::request_code_read!(b'f', 1, size_of::<libc::c_long>()), libc::c_int);
    nix::ioctl_write_ptr_bad!(setflags, nix::request_code_write!(b'f', 2, size_of::<libc::c_long>()), libc::c_int);
    nix::ioctl_read!(fsgetxattr, b'X', 31, super::FsXattr);
    nix::ioctl_readwrite!(ino_lookup, 0x94, 18, super::InoLookup);
}

/// The inode's generation (FS_IOC_GETVERSION), `None` where the file system tells none. An inode number that is used
/// again has another.
///
/// # Errors
/// What the kernel says, ENOTTY and its like excepted.
pub fn generation(fd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let mut version = 0;
    // SAFETY: FS_IOC_GETVERSION writes one int (put_user of `i_generation`) and keeps no pointer.
    let answer = unsafe { raw::getversion(fd.as_raw_fd(), &raw mut version) };
    where_known(answer.map_err(io::Error::from)).map(|known| known.map(|_| version.cast_unsigned()))
}

/// Whether the inode is `chattr +C`; false where there are no such flags.
///
/// # Errors
/// What FS_IOC_GETFLAGS says.
pub fn no_cow(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(flags(fd)?.is_some_and(|flags| flags & NO_COW != 0))
}

/// Sets or clears `chattr +C`. The file must be empty: of one that is not Btrfs says that it did and does not.
///
/// # Errors
/// What FS_IOC_SETFLAGS says; EOPNOTSUPP where there is no such flag to set, EINVAL where it did not stick.
pub fn set_no_cow(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let Some(old) = flags(fd)? else {
        return if on { Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)) } else { Ok(()) };
    };
    let new = if on { old | NO_COW } else { old & !NO_COW };
    if new == old {
        return Ok(());
    }
    // SAFETY: FS_IOC_SETFLAGS reads one int and keeps no pointer.
    unsafe { raw::setflags(fd.as_raw_fd(), &raw const new) }?;
    if no_cow(fd)? == on { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

/// How many extents the data of a file on XFS has, known without a walk (FS_IOC_FSGETXATTR). Other file systems say 0.
/// Blocks that are not allocated yet do not count; nor do the pieces that sharing cuts an extent into, which FIEMAP shows.
///
/// # Errors
/// What FS_IOC_FSGETXATTR says.
pub fn extent_count(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut attributes = FsXattr::new_zeroed();
    // SAFETY: FS_IOC_FSGETXATTR writes one `struct fsxattr` and keeps no pointer.
    unsafe { raw::fsgetxattr(fd.as_raw_fd(), &raw mut attributes) }?;
    Ok(attributes.nextents)
}

/// XFS's hint of how much a write to shared blocks takes (`fsx_cowextsize`), in bytes; 0 where there is none.
///
/// # Errors
/// What FS_IOC_FSGETXATTR says.
pub fn cow_extent_size(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut attributes = FsXattr::new_zeroed();
    // SAFETY: FS_IOC_FSGETXATTR writes one `struct fsxattr` and keeps no pointer.
    let answer = unsafe { raw::fsgetxattr(fd.as_raw_fd(), &raw mut attributes) };
    Ok(where_known(answer.map_err(io::Error::from))?.map_or(0, |_| attributes.cowextsize))
}

/// Whether the file's data is on XFS's realtime device (`FS_XFLAG_REALTIME`), whose addresses FIEMAP counts from 0 as it does
/// those of the data device; false where there is no such thing.
///
/// # Errors
/// What FS_IOC_FSGETXATTR says.
pub fn realtime(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut attributes = FsXattr::new_zeroed();
    // SAFETY: FS_IOC_FSGETXATTR writes one `struct fsxattr` and keeps no pointer.
    let answer = unsafe { raw::fsgetxattr(fd.as_raw_fd(), &raw mut attributes) };
    let known = where_known(answer.map_err(io::Error::from))?;
    Ok(known.is_some() && attributes.xflags & REALTIME != 0)
}

/// The id of the Btrfs subvolume that the inode is in; needs no privilege.
///
/// # Errors
/// ENOTTY on another file system.
pub fn subvolume(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut lookup = InoLookup::new_zeroed();
    lookup.objectid = SUBVOLUME_ROOT;
    // SAFETY: BTRFS_IOC_INO_LOOKUP reads and writes one 4096-byte struct and keeps no pointer.
    unsafe { raw::ino_lookup(fd.as_raw_fd(), &raw mut lookup) }?;
    Ok(lookup.treeid)
}

fn flags(fd: BorrowedFd<'_>) -> io::Result<Option<libc::c_int>> {
    let mut flags = 0;
    // SAFETY: FS_IOC_GETFLAGS writes one int and keeps no pointer.
    let answer = unsafe { raw::getflags(fd.as_raw_fd(), &raw mut flags) };
    where_known(answer.map_err(io::Error::from)).map(|known| known.map(|_| flags))
}

/// `None` where the file system does not know the call.
fn where_known<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(e) => match e.raw_os_error() {
            Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS) => Ok(None),
            _ => Err(e),
        },
    }
}
