//! Loop devices: which file one is backed by (LOOP_GET_STATUS64, loop(4)).

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::FromZeros;

/// Set where the device cannot be written (`LO_FLAGS_READ_ONLY`).
const READ_ONLY: u32 = 1;

/// `struct loop_info64` of `linux/loop.h`.
#[derive(FromZeros)]
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [u8; 160],
    init: [u64; 2],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(offset_of!(LoopInfo, inode) == 8);
const _: () = assert!(offset_of!(LoopInfo, flags) == 52);
const _: () = assert!(offset_of!(LoopInfo, init) == 216);

mod raw {
    nix::ioctl_read_bad!(loop_get_status64, 0x4c05, super::LoopInfo);
}

/// What a loop device is backed by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backing {
    /// The file's `st_dev`. The kernel gives it in the encoding of stat(2) on 64-bit machines (`huge_encode_dev`); measured
    /// to agree also for minor numbers above 255 and for Btrfs subvolumes.
    pub dev: u64,
    /// The file's `st_ino`.
    pub ino: u64,
    /// Whether the device is read-only.
    pub read_only: bool,
}

/// What the loop device is backed by, `None` where it is not set up.
///
/// # Errors
/// What LOOP_GET_STATUS64 says, ENXIO excepted; ENOTTY where the descriptor is no loop device.
pub fn backing(fd: BorrowedFd<'_>) -> io::Result<Option<Backing>> {
    let mut info = LoopInfo::new_zeroed();
    // SAFETY: LOOP_GET_STATUS64 writes one 232-byte struct and keeps no pointer.
    match unsafe { raw::loop_get_status64(fd.as_raw_fd(), &raw mut info) } {
        Ok(_) => {}
        Err(nix::errno::Errno::ENXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    Ok(Some(Backing { dev: info.device, ino: info.inode, read_only: info.flags & READ_ONLY != 0 }))
}
