//! What a file system is: kind, UUID, clone unit, and which mount of it this is.

use std::fs;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
}

/// What the kernel's numbers of sectors count, whatever the device's own are (`SECTOR_SIZE` in include/linux/blk_types.h).
const SECTOR: u64 = 512;

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
    Ok(FsFacts { kind, uuid, block, mount_instance })
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
/// more. What no chunk has taken yet counts as well, for as many copies as metadata has; the reserve that only Btrfs itself may
/// use does not, and what is freed by the next commit counts as free.
///
/// # Errors
/// What fstatfs(2) says.
pub fn metadata_space(fd: BorrowedFd<'_>) -> io::Result<Option<(u64, u64)>> {
    if fstatfs(fd)?.filesystem_type() != BTRFS_SUPER_MAGIC {
        return Ok(None);
    }
    let (_, uuid) = btrfs(fd)?;
    Ok(instance_directory(fd, FsKind::Btrfs, uuid).and_then(|directory| btrfs_metadata(&directory)))
}

/// The same, of the directory that a mounted Btrfs has in sysfs.
fn btrfs_metadata(directory: &Path) -> Option<(u64, u64)> {
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let allocation = directory.join("allocation");
    let of_metadata = |name: &str| number(allocation.join("metadata").join(name));
    let total = of_metadata("total_bytes").filter(|total| *total > 0)?;
    let taken = ["bytes_used", "bytes_reserved", "bytes_readonly", "bytes_zone_unusable"];
    // Kernels know fewer of them the older they are.
    let taken: u64 = taken.iter().filter_map(|name| of_metadata(name)).sum();
    let reserve = number(allocation.join("global_rsv_size"))?;
    let sectors =
        fs::read_dir(directory.join("devices")).ok()?.flatten().map(|device| number(device.path().join("size")));
    let devices = sectors.sum::<Option<u64>>()? * SECTOR;
    let chunks =
        ["data", "metadata", "system"].map(|kind| number(allocation.join(kind).join("disk_total")).unwrap_or(0));
    let unallocated = devices.saturating_sub(chunks.iter().sum());
    let copies = (chunks[1] / total).max(1);
    let room = unallocated / copies;
    Some((total + room, (total + room).saturating_sub(taken + reserve)))
}

fn xfs(fd: BorrowedFd<'_>) -> io::Result<(u64, [u8; 16])> {
    let mut geometry = XfsGeometry::new_zeroed();
    // SAFETY: XFS_IOC_FSGEOMETRY_V1 writes one 112-byte struct and keeps no pointer.
    unsafe { raw::xfs_geometry_v1(fd.as_raw_fd(), &raw mut geometry) }?;
    Ok((u64::from(geometry.blocksize), geometry.uuid))
}

fn btrfs(fd: BorrowedFd<'_>) -> io::Result<(u64, [u8; 16])> {
    let mut info = BtrfsInfo::new_zeroed();
    // SAFETY: BTRFS_IOC_FS_INFO reads and writes one 1024-byte struct and keeps no pointer.
    unsafe { raw::btrfs_fs_info(fd.as_raw_fd(), &raw mut info) }?;
    Ok((u64::from(info.clone_alignment), info.fsid))
}

/// FS_IOC_GETFSUUID (Linux 6.9+); zeros where there is no answer.
fn generic_uuid(fd: BorrowedFd<'_>) -> [u8; 16] {
    let mut answer = FsUuid::new_zeroed();
    // SAFETY: FS_IOC_GETFSUUID writes one 17-byte struct and keeps no pointer.
    let told = unsafe { raw::getfsuuid(fd.as_raw_fd(), &raw mut answer) };
    if told.is_ok() && answer.len == 16 { answer.uuid } else { [0; 16] }
}

/// The directory that the file system has in sysfs for as long as it is mounted. Its inode number names this mount: sysfs
/// gives numbers out in sequence and not again before the 32-bit counter has gone round, so an unmount and a mount give
/// another, as measured on both. Mounting a second time beside the first (a bind mount) is the same instance, rightly.
fn instance_directory(fd: BorrowedFd<'_>, kind: FsKind, uuid: [u8; 16]) -> Option<PathBuf> {
    match kind {
        FsKind::Btrfs => Some(PathBuf::from(format!("/sys/fs/btrfs/{}", Uuid::from_bytes(uuid)))),
        FsKind::Xfs => {
            let dev = fstat(fd).ok()?.st_dev;
            let device = fs::read_link(format!("/sys/dev/block/{}:{}", major(dev), minor(dev))).ok()?;
            Some(PathBuf::from("/sys/fs/xfs").join(device.file_name()?))
        }
        FsKind::Other => None,
    }
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

    use super::{FsKind, facts};

    #[test]
    fn a_file_system_without_clones_is_other_and_has_no_instance() {
        let proc = File::open("/proc").expect("Linux has it");
        let facts = facts(proc.as_fd()).expect("facts");
        assert_eq!((facts.kind, facts.mount_instance), (FsKind::Other, 0));
    }
}
