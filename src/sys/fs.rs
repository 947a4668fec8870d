//! What a file system is: kind, UUID, clone unit, and which mount of it this is.

use std::fs;
use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{fstat, major, minor};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};
use uuid::Uuid;
use zerocopy::FromZeros;

use crate::range::PowerOfTwo;

/// What a file system is, as far as cloning is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FsFacts {
    /// Which file system.
    pub kind: FsKind,
    /// Its UUID; zeros where it has none.
    pub uuid: [u8; 16],
    /// Its block, the unit of a clone.
    pub block: PowerOfTwo,
    /// A number that another mount of the same file system does not have; 0 where unknown. An unmounted file system may
    /// have lost what was not synced, so a T0 is never kept across mounts.
    pub mount_instance: u64,
    /// Where that is unknown, the number of the mount itself, which no other one of this boot has (STATX_MNT_ID_UNIQUE, Linux 6.8+): also
    /// where the file system stays, and only the namespace is another. 0 where unknown.
    pub mount_id: u64,
}

impl FsFacts {
    /// What another mount of the file system does not have, as text; none where that is unknown.
    pub fn mount(&self) -> Option<String> {
        match (self.mount_instance, self.mount_id) {
            (0, 0) => None,
            (0, mount) => Some(format!("mount-{mount}")),
            (instance, _) => Some(instance.to_string()),
        }
    }
}

/// File systems with known costs (KERNEL.md, FICLONERANGE).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsKind {
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// Any other; whether it can clone shows at the first call.
    Other,
}

/// `struct xfs_fsop_geom_v1` of `xfs_fs.h`.
#[derive(FromZeros)]
#[repr(C)]
struct XfsGeometry {
    blocksize: u32,
    counts: [u32; 7],
    sizes: [u64; 4],
    uuid: [u8; 16],
    rest: [u32; 7],
    pad: u32, // The C struct is padded to its u64 members.
}

const _: () = assert!(size_of::<XfsGeometry>() == 112);
const _: () = assert!(offset_of!(XfsGeometry, uuid) == 64);

/// `struct btrfs_ioctl_fs_info_args` of `linux/btrfs.h`.
#[derive(FromZeros)]
#[repr(C)]
struct BtrfsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    nodesize: u32,
    sectorsize: u32,
    clone_alignment: u32,
    rest: [u32; 245],
}

const _: () = assert!(size_of::<BtrfsInfo>() == 1024);
const _: () = assert!(offset_of!(BtrfsInfo, fsid) == 16);
const _: () = assert!(offset_of!(BtrfsInfo, clone_alignment) == 40);

/// `struct btrfs_ioctl_dev_info_args` of `linux/btrfs.h`.
#[derive(FromZeros)]
#[repr(C)]
struct BtrfsDevice {
    devid: u64,
    uuid: [u8; 16],
    bytes_used: u64,
    total_bytes: u64,
    rest: [u64; 507],
}

const _: () = assert!(size_of::<BtrfsDevice>() == 4096);
const _: () = assert!(offset_of!(BtrfsDevice, total_bytes) == 32);

/// `struct fsuuid2` of `linux/fs.h`.
#[derive(FromZeros)]
#[repr(C)]
struct FsUuid {
    len: u8,
    uuid: [u8; 16],
}

const _: () = assert!(size_of::<FsUuid>() == 17);

mod raw {
    nix::ioctl_read!(xfs_geometry_v1, b'X', 100, super::XfsGeometry);
    nix::ioctl_read!(btrfs_fs_info, 0x94, 31, super::BtrfsInfo);
    nix::ioctl_readwrite!(btrfs_dev_info, 0x94, 30, super::BtrfsDevice);
    nix::ioctl_read!(getfsuuid, 0x15, 0, super::FsUuid);
}

/// The facts of the file system that an open file or directory is on; needs no privilege.
///
/// # Errors
/// What fstatfs(2), fstat(2) and the file system's own ioctl say; `InvalidData` for a block that is no power of two.
pub fn facts(fd: BorrowedFd<'_>) -> io::Result<FsFacts> {
    let stat = fstatfs(fd)?;
    let (kind, block, uuid) = match stat.filesystem_type() {
        XFS_SUPER_MAGIC => {
            let (block, uuid) = xfs(fd)?;
            (FsKind::Xfs, block, uuid)
        }
        BTRFS_SUPER_MAGIC => {
            let (block, uuid) = btrfs(fd)?;
            (FsKind::Btrfs, block, uuid)
        }
        _ => (FsKind::Other, u64::try_from(stat.block_size()).unwrap_or(0), generic_uuid(fd)),
    };
    let block = PowerOfTwo::new(block)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("a file system block of {block} bytes")))?;
    let mount_instance = instance_directory(fd, kind, uuid).and_then(|d| fs::metadata(d).ok()).map_or(0, |m| m.ino());
    let mount_id = if mount_instance == 0 { mount_id(fd) } else { 0 };
    Ok(FsFacts { kind, uuid, block, mount_instance, mount_id })
}

/// What Btrfs does exclusively that leaves logical addresses alone (`btrfs_exclop_sprintf` in fs/btrfs/sysfs.c names all).
const MOVES_NOTHING: [&str; 5] = ["none", "balance paused", "device add", "device replace", "swap activate"];

/// Whether the file system may be moving extents of files that nobody writes: Btrfs during a balance, a shrink, the
/// removal of a device (`/sys/fs/btrfs/UUID/exclusive_operation`, Linux 5.10+). XFS has no such thing.
///
/// # Errors
/// What fstatfs(2) says; a Btrfs that does not tell is taken to be.
pub fn relocating(fd: BorrowedFd<'_>) -> io::Result<bool> {
    if fstatfs(fd)?.filesystem_type() != BTRFS_SUPER_MAGIC {
        return Ok(false);
    }
    let (_, uuid) = btrfs(fd)?;
    let directory = instance_directory(fd, FsKind::Btrfs, uuid);
    let operation = directory.and_then(|d| fs::read_to_string(d.join("exclusive_operation")).ok());
    Ok(operation.is_none_or(|operation| !MOVES_NOTHING.contains(&operation.trim())))
}

/// What Btrfs has for metadata in bytes, all of it and what is free; `None` on other file systems, and where sysfs does not
/// tell. statvfs(3) is silent about it until 4 MiB are left (`btrfs_statfs` in fs/btrfs/super.c), and then nobody can write any
/// more. What no chunk has taken yet counts as well, as far as it does for all copies that metadata has; the reserve that only Btrfs itself may
/// use does not, and what is freed by the next commit counts as free.
///
/// # Errors
/// What fstatfs(2) says.
pub fn metadata_space(fd: BorrowedFd<'_>) -> io::Result<Option<(u64, u64)>> {
    if fstatfs(fd)?.filesystem_type() != BTRFS_SUPER_MAGIC {
        return Ok(None);
    }
    let info = btrfs_info(fd)?;
    let Some(directory) = instance_directory(fd, FsKind::Btrfs, info.fsid) else { return Ok(None) };
    let unallocated = unallocated(fd, info.max_id)?;
    Ok(btrfs_metadata(&directory, unallocated))
}

/// The same, of the directory that a mounted Btrfs has in sysfs, and of what no chunk has taken, device by device.
fn btrfs_metadata(directory: &Path, unallocated: Vec<u64>) -> Option<(u64, u64)> {
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let allocation = directory.join("allocation");
    let of_metadata = |name: &str| number(allocation.join("metadata").join(name));
    let total = of_metadata("total_bytes").filter(|total| *total > 0)?;
    let taken = ["bytes_used", "bytes_reserved", "bytes_readonly", "bytes_zone_unusable"];
    // Kernels know fewer of them the older they are.
    let taken: u64 = taken.iter().filter_map(|name| of_metadata(name)).sum();
    let reserve = number(allocation.join("global_rsv_size"))?;
    let copies = usize::try_from(of_metadata("disk_total")? / total).unwrap_or(1).max(1);
    let room = room(unallocated, copies, allocation.join("metadata/dup").is_dir());
    Some((total + room, (total + room).saturating_sub(taken + reserve)))
}

/// What no chunk has taken, of each device; none has a greater number than `max_id`.
fn unallocated(fd: BorrowedFd<'_>, max_id: u64) -> io::Result<Vec<u64>> {
    let mut free = Vec::new();
    for devid in 1..=max_id {
        let mut device = BtrfsDevice { devid, ..BtrfsDevice::new_zeroed() };
        // SAFETY: BTRFS_IOC_DEV_INFO reads and writes one 4096-byte struct and keeps no pointer.
        match unsafe { raw::btrfs_dev_info(fd.as_raw_fd(), &raw mut device) } {
            Ok(_) => free.push(device.total_bytes.saturating_sub(device.bytes_used)),
            Err(Errno::ENODEV) => {} // It was removed: its number is not given to another.
            Err(e) => return Err(e.into()),
        }
    }
    Ok(free)
}

/// How much can be stored in so many copies, each on another device unless `together`.
fn room(mut free: Vec<u64>, copies: usize, together: bool) -> u64 {
    free.sort_unstable_by(|a, b| b.cmp(a));
    let apart = if together { 1 } else { copies };
    // Of the larger devices only as much is of use as fits on the others.
    let bounds = (0..apart).map(|k| free.iter().skip(k).sum::<u64>() / (copies - k) as u64);
    bounds.min().unwrap_or(0)
}

fn xfs(fd: BorrowedFd<'_>) -> io::Result<(u64, [u8; 16])> {
    let mut geometry = XfsGeometry::new_zeroed();
    // SAFETY: XFS_IOC_FSGEOMETRY_V1 writes one 112-byte struct and keeps no pointer.
    unsafe { raw::xfs_geometry_v1(fd.as_raw_fd(), &raw mut geometry) }?;
    Ok((u64::from(geometry.blocksize), geometry.uuid))
}

fn btrfs(fd: BorrowedFd<'_>) -> io::Result<(u64, [u8; 16])> {
    let info = btrfs_info(fd)?;
    Ok((u64::from(info.clone_alignment), info.fsid))
}

fn btrfs_info(fd: BorrowedFd<'_>) -> io::Result<BtrfsInfo> {
    let mut info = BtrfsInfo::new_zeroed();
    // SAFETY: BTRFS_IOC_FS_INFO reads and writes one 1024-byte struct and keeps no pointer.
    unsafe { raw::btrfs_fs_info(fd.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

/// FS_IOC_GETFSUUID (Linux 6.9+); zeros where there is no answer.
fn generic_uuid(fd: BorrowedFd<'_>) -> [u8; 16] {
    let mut answer = FsUuid::new_zeroed();
    // SAFETY: FS_IOC_GETFSUUID writes one 17-byte struct and keeps no pointer.
    let told = unsafe { raw::getfsuuid(fd.as_raw_fd(), &raw mut answer) };
    if told.is_ok() && answer.len == 16 { answer.uuid } else { [0; 16] }
}

/// The mount that a descriptor was opened in; 0 where the kernel does not tell.
fn mount_id(fd: BorrowedFd<'_>) -> u64 {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: statx with AT_EMPTY_PATH reads the empty string, writes one struct, and keeps no pointer; zeros are a valid one.
    let answer = unsafe {
        let told = libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_MNT_ID_UNIQUE,
            answer.as_mut_ptr(),
        );
        if told == 0 { answer.assume_init() } else { return 0 }
    };
    if answer.stx_mask & libc::STATX_MNT_ID_UNIQUE == 0 { 0 } else { answer.stx_mnt_id }
}

/// The directory that the file system has in sysfs for as long as it is mounted. Its inode number names this mount: sysfs
/// gives numbers out in sequence and not again before the 32-bit counter has gone round, so an unmount and a mount give
/// another, as measured on both. Mounting a second time beside the first (a bind mount) is the same instance, rightly.
fn instance_directory(fd: BorrowedFd<'_>, kind: FsKind, uuid: [u8; 16]) -> Option<PathBuf> {
    match kind {
        FsKind::Btrfs => Some(PathBuf::from(format!("/sys/fs/btrfs/{}", Uuid::from_bytes(uuid)))),
        FsKind::Xfs => of_device(fd, "/sys/fs/xfs"),
        // Those that have such a directory.
        FsKind::Other => {
            ["/sys/fs/ext4", "/sys/fs/f2fs"].iter().find_map(|all| of_device(fd, all).filter(|it| it.is_dir()))
        }
    }
}

/// What is called there as the file system's device is.
fn of_device(fd: BorrowedFd<'_>, all: &str) -> Option<PathBuf> {
    let dev = fstat(fd).ok()?.st_dev;
    let device = fs::read_link(format!("/sys/dev/block/{}:{}", major(dev), minor(dev))).ok()?;
    Some(Path::new(all).join(device.file_name()?))
}

/// Two directories that stand for the file system while it is mounted, to be locked by whoever takes turns there; `None`
/// where there are none.
pub fn turn_directories(fd: BorrowedFd<'_>) -> Option<[PathBuf; 2]> {
    let facts = facts(fd).ok()?;
    let second = match facts.kind {
        FsKind::Xfs => "log",
        FsKind::Btrfs => "allocation",
        FsKind::Other => return None,
    };
    let first = instance_directory(fd, facts.kind, facts.uuid)?;
    let second = first.join(second);
    Some([first, second])
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::{FsKind, facts, room};

    #[test]
    fn copies_need_room_on_as_many_devices() {
        assert_eq!(room(vec![10], 1, false), 10);
        assert_eq!(room(vec![10], 2, true), 5);
        assert_eq!((room(vec![10], 2, false), room(vec![], 2, false)), (0, 0));
        assert_eq!((room(vec![4, 10], 2, false), room(vec![4, 4, 10], 2, false)), (4, 8));
        assert_eq!((room(vec![4, 4, 4], 2, false), room(vec![9, 9, 2], 3, false)), (6, 2));
    }

    #[test]
    fn a_file_system_without_clones_is_other_and_has_no_instance() {
        let proc = File::open("/proc").expect("Linux has it");
        let facts = facts(proc.as_fd()).expect("facts");
        assert_eq!((facts.kind, facts.mount_instance), (FsKind::Other, 0));
        // Linux 6.8 and newer tell the mount.
        assert!(facts.mount().is_none_or(|it| it == format!("mount-{}", facts.mount_id)));
    }
}
