//! What the engine asks of files and of the directory that the snapshot is made in.
//!
//! [`Disk`] and [`DiskFile`] have two implementations: [`real`], which is the kernel, and [`sim`], which is a disk in memory
//! that fails, answers short and crashes from a seed. The engine knows neither. Errors are `io::Error` with the kernel's
//! errno on both, because the errno is what the engine decides by.

pub mod blocks;
pub mod process;
pub mod real;
pub mod shrink;
pub mod sim;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::extent::Extent;
use crate::range::{ByteRange, CloneRange};
use crate::record::ImageId;

pub use crate::sys::fs::{FsFacts, FsKind};
pub use crate::sys::{inherited, nowait};

/// What tells one file, at one moment, from another, and from itself after a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stat {
    /// Device number (`st_dev`); changes between boots and mounts.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Inode generation (FS_IOC_GETVERSION), 0 where the file system tells none: a reused inode number has another.
    pub generation: u32,
    /// Btrfs subvolume id, 0 elsewhere.
    pub subvolume: u64,
    /// Size in bytes.
    pub size: u64,
    /// Change time in nanoseconds since 1970.
    pub ctime_ns: i128,
    /// Modification time in nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub nlink: u64,
    /// Whether it is a regular file.
    pub regular: bool,
}

impl Stat {
    /// Which file it is, whatever its name and its mount.
    pub fn id(&self) -> ImageId {
        ImageId { ino: self.ino, generation: self.generation, subvolume: self.subvolume }
    }
}

/// Space of a file system, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What an unprivileged user may still allocate.
    pub free: u64,
    /// The same of what is kept for metadata, where the file system tells that apart: all of it, and what is free. Guests'
    /// writes need it as much as the clones do.
    pub metadata: Option<(u64, u64)>,
}

impl FsKind {
    /// What cloning one extent usually costs (KERNEL.md, FICLONERANGE: 11 us on XFS, 4 to 5 on Btrfs).
    pub fn clone_cost_per_extent(self) -> Duration {
        match self {
            Self::Xfs | Self::Other => Duration::from_micros(11),
            Self::Btrfs => Duration::from_micros(5),
        }
    }

    /// The name that people know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xfs => "XFS",
            Self::Btrfs => "Btrfs",
            Self::Other => "this file system",
        }
    }
}

/// What the host is, as far as a job is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostFacts {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: [u8; 16],
    /// The wall clock.
    pub now: Timestamp,
    /// The effective user.
    pub uid: u32,
    /// This process.
    pub pid: u32,
    /// When this process started, in clock ticks since boot: with the pid it names a process for good.
    pub pid_start: u64,
}

/// What a clone call cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CallCost {
    /// CPU time of the calling thread.
    pub cpu: Duration,
    /// Time on the wall.
    pub wall: Duration,
}

/// How a file in the directory is opened. Symbolic links are never followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// For reading.
    Read,
    /// For reading and writing.
    Write,
}

/// The directory that the snapshot, its partial file and its journal are in. Names are single components.
pub trait Disk {
    /// Its files.
    type File: DiskFile + 'static;

    /// Creates a file of mode 0600 that must not exist.
    ///
    /// # Errors
    /// EEXIST, and what open(2) says.
    fn create_new(&self, name: &OsStr) -> io::Result<Self::File>;

    /// Opens a file; a symbolic link is ELOOP.
    ///
    /// # Errors
    /// ENOENT, ELOOP, and what open(2) says.
    fn open(&self, name: &OsStr, access: Access) -> io::Result<Self::File>;

    /// What a name is, without following it; `None` where there is nothing.
    ///
    /// # Errors
    /// What fstatat(2) says, ENOENT excepted.
    fn stat(&self, name: &OsStr) -> io::Result<Option<Stat>>;

    /// Renames within the directory; with `replace` unset an existing `to` is EEXIST (RENAME_NOREPLACE).
    ///
    /// # Errors
    /// What renameat2(2) says.
    fn rename(&self, from: &OsStr, to: &OsStr, replace: bool) -> io::Result<()>;

    /// Removes a name; one that is not there is no error.
    ///
    /// # Errors
    /// What unlinkat(2) says, ENOENT excepted.
    fn unlink(&self, name: &OsStr) -> io::Result<()>;

    /// Makes the directory's names durable.
    ///
    /// # Errors
    /// What fsync(2) says.
    fn sync_names(&self) -> io::Result<()>;

    /// The file system's space.
    ///
    /// # Errors
    /// What statvfs(3) says.
    fn space(&self) -> io::Result<Space>;

    /// UUID of the file system, zeros where it has none.
    ///
    /// # Errors
    /// What fstatfs(2) says.
    fn fs_uuid(&self) -> io::Result<[u8; 16]>;

    /// Another directory.
    ///
    /// # Errors
    /// What open(2) says.
    fn elsewhere(&self, dir: &Path) -> io::Result<Self>
    where
        Self: Sized;

    /// The host and the time.
    fn host(&self) -> HostFacts;

    /// 16 bytes nobody else has: a new job's id.
    fn fresh_id(&self) -> [u8; 16];

    /// Creates a file without a name in the directory, gone when it is closed: for trying things out (O_TMPFILE).
    ///
    /// # Errors
    /// EOPNOTSUPP where the file system has no such thing, and what open(2) says.
    fn create_unnamed(&self) -> io::Result<Self::File>;

    /// Waits.
    fn wait(&self, time: Duration);

    /// The time by a clock that does not go back: what a job does by it is the same whenever it is simulated again.
    fn clock(&self) -> Duration;

    /// Takes the file system's turn, which one job has at a time; false where another has it, and then this one is in the
    /// queue. Does not wait. True where there is nothing to take turns by.
    fn take_turn(&self) -> bool;

    /// Gives the turn to others, and the place in the queue.
    fn end_turn(&self);
}

/// A file as the engine and the journal use it. All methods take `&self`: a descriptor may be used from several threads.
pub trait DiskFile {
    /// What it is now.
    ///
    /// # Errors
    /// What fstat(2) says.
    fn stat(&self) -> io::Result<Stat>;

    /// The file system that it is on.
    ///
    /// # Errors
    /// What fstatfs(2) says.
    fn fs(&self) -> io::Result<FsFacts>;

    /// Appends to `into` the extents that touch `range`, in order, at most `max` of them; the first may begin before the
    /// range and the last end after it. Fewer than `max` means that there are no more in the range. `flush` writes dirty
    /// data first (FIEMAP_FLAG_SYNC).
    ///
    /// # Errors
    /// What FS_IOC_FIEMAP says.
    fn map(&self, range: ByteRange, max: usize, flush: bool, into: &mut Vec<Extent>) -> io::Result<()>;

    /// As [`DiskFile::map`] without a flush, and without the flags that tell of sharing, of merging and of the last extent:
    /// addresses to compare, which on Btrfs root gets at a fraction of the cost. All answers about one file, and about two
    /// files of one file system, come from one source.
    ///
    /// # Errors
    /// What FS_IOC_FIEMAP or BTRFS_IOC_TREE_SEARCH_V2 say.
    fn addresses(&self, range: ByteRange, max: usize, into: &mut Vec<Extent>) -> io::Result<()>;

    /// Whether the file system may be moving extents (a balance): addresses read at different moments then prove nothing.
    ///
    /// # Errors
    /// Where that cannot be found out.
    fn relocating(&self) -> io::Result<bool>;

    /// Writes dirty data back, at least that of `range`, without the file's lock and without making anything durable: so that
    /// the next clone call need not do it with the lock held.
    ///
    /// # Errors
    /// What sync_file_range(2) says. EIO means that data was lost.
    fn write_back(&self, range: ByteRange) -> io::Result<()>;

    /// How many extents touch `range`. Cheaper than [`DiskFile::map`] where the kernel need not say which are shared.
    ///
    /// # Errors
    /// What FS_IOC_FIEMAP says.
    fn count(&self, range: ByteRange) -> io::Result<u64>;

    /// How many extents the whole file has, where the file system tells at once (XFS).
    fn extent_count(&self) -> Option<u64>;

    /// Makes this file share `range` of `source`, at the same offset. One FICLONERANGE call.
    ///
    /// # Errors
    /// What ioctl_ficlonerange(2) says. **A failed call may have cloned its first part.**
    fn clone_range(&self, source: &Self, range: CloneRange) -> io::Result<CallCost>;

    /// Reads at `offset` until `into` is full or the file ends; the bytes read.
    ///
    /// # Errors
    /// What pread(2) says.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// What pwrite(2) says; part of it may be written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Sets the size; new bytes read as zeros.
    ///
    /// # Errors
    /// What ftruncate(2) says.
    fn set_len(&self, size: u64) -> io::Result<()>;

    /// Data, size and map durable (fdatasync).
    ///
    /// # Errors
    /// What fdatasync(2) says. EIO means that data was lost, whatever later calls say.
    fn sync_data(&self) -> io::Result<()>;

    /// Data and attributes durable (fsync).
    ///
    /// # Errors
    /// As for [`DiskFile::sync_data`].
    fn sync_all(&self) -> io::Result<()>;

    /// The value of the record attribute, `None` where there is none.
    ///
    /// # Errors
    /// What fgetxattr(2) says, ENODATA and ENOTSUP excepted.
    fn record(&self) -> io::Result<Option<Vec<u8>>>;

    /// Sets the record attribute, or removes it.
    ///
    /// # Errors
    /// What fsetxattr(2) says.
    fn set_record(&self, record: Option<&[u8]>) -> io::Result<()>;

    /// Whether an access control list says more than the permission bits do.
    fn has_acl(&self) -> bool;

    /// Sets the permission bits.
    ///
    /// # Errors
    /// What fchmod(2) says.
    fn set_mode(&self, mode: u32) -> io::Result<()>;

    /// Gives the file to somebody.
    ///
    /// # Errors
    /// EPERM without CAP_CHOWN.
    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()>;

    /// Whether the file is exempt from copy-on-write and checksums (`chattr +C`); false where there is no such thing.
    ///
    /// # Errors
    /// What FS_IOC_GETFLAGS says.
    fn no_cow(&self) -> io::Result<bool>;

    /// Whether the data is on a device of its own whose addresses are not those of other files (XFS realtime).
    ///
    /// # Errors
    /// What FS_IOC_FSGETXATTR says.
    fn realtime(&self) -> io::Result<bool>;

    /// Sets or clears +C; the file must be empty.
    ///
    /// # Errors
    /// What FS_IOC_SETFLAGS says.
    fn set_no_cow(&self, on: bool) -> io::Result<()>;

    /// Takes the one job's lock on this file, for as long as it is open; false where somebody else has it.
    ///
    /// # Errors
    /// What fcntl(2) says.
    fn try_lock(&self) -> io::Result<bool>;

    /// Whether somebody else has the lock; takes nothing.
    ///
    /// # Errors
    /// What fcntl(2) says.
    fn is_locked(&self) -> io::Result<bool>;

    /// Tells whoever has the job's lock that the job is to be aborted, for as long as this file is open.
    ///
    /// # Errors
    /// What fcntl(2) says.
    fn mark_for_abort(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether somebody has [`DiskFile::mark_for_abort`].
    ///
    /// # Errors
    /// What fcntl(2) says.
    fn is_marked_for_abort(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Takes a write lease: nobody else has the file open in any way. False where somebody has.
    ///
    /// # Errors
    /// EACCES without CAP_LEASE on somebody else's file.
    fn try_own(&self) -> io::Result<bool>;

    /// Whether the write lease is held, and nobody waits for it to be given back.
    ///
    /// # Errors
    /// What fcntl(2) says.
    fn owns(&self) -> io::Result<bool>;

    /// Gives the write lease back.
    ///
    /// # Errors
    /// What fcntl(2) says.
    fn disown(&self) -> io::Result<()>;
}

impl<F: DiskFile> crate::extent::walk::Maps for F {
    fn extents(&self, range: ByteRange, max: usize, into: &mut Vec<Extent>) -> io::Result<()> {
        self.addresses(range, max, into)
    }
}
