//! An open file of the kernel's.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt, fchown};
use std::path::Path;
use std::time::Instant;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use xattr::FileExt as _;

use crate::disk::{CallCost, DiskFile, FsFacts, FsKind, Stat};
use crate::extent::Extent;
use crate::range::{ByteRange, CloneRange};
use crate::record::ATTRIBUTE;
use crate::sys::lease::{self, Lease};
use crate::sys::ofd::{self, Lock};
use crate::sys::{clone, cpu, fiemap, fs, inode};

/// A file.
pub struct RealFile {
    file: File,
}

impl From<OwnedFd> for RealFile {
    fn from(fd: OwnedFd) -> Self {
        Self { file: File::from(fd) }
    }
}

impl AsFd for RealFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl RealFile {
    /// Opens an image for reading; links are followed, and a FIFO or a lease does not block.
    ///
    /// # Errors
    /// What open(2) says; EAGAIN where somebody has a write lease on it.
    pub fn open_image(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        Ok(Self::from(open(path, flags, Mode::empty())?))
    }

    /// Takes the image's job lock (flock(2)) for as long as the file is open; false where somebody else has it.
    ///
    /// # Errors
    /// What flock(2) says.
    pub fn try_flock(&self) -> io::Result<bool> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

/// What stat(2) alone tells.
pub(super) fn plain_stat(stat: &FileStat) -> Stat {
    let ns = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Stat {
        dev: stat.st_dev,
        ino: stat.st_ino,
        generation: 0,
        subvolume: 0,
        size: stat.st_size.cast_unsigned(),
        ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
        mtime_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: stat.st_nlink,
        regular: SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG,
    }
}

/// The lock is on the first byte, which every descriptor of the file has in common.
fn first_byte() -> ByteRange {
    ByteRange::at(0, 1).expect("one byte is not empty")
}

impl DiskFile for RealFile {
    fn stat(&self) -> io::Result<Stat> {
        let stat = plain_stat(&fstat(self)?);
        let generation = inode::generation(self.as_fd())?.unwrap_or(0);
        let subvolume = inode::subvolume(self.as_fd()).unwrap_or(0); // ENOTTY: not Btrfs.
        Ok(Stat { generation, subvolume, ..stat })
    }

    fn fs(&self) -> io::Result<FsFacts> {
        fs::facts(self.as_fd())
    }

    fn map(&self, range: ByteRange, max: usize, flush: bool, into: &mut Vec<Extent>) -> io::Result<()> {
        fiemap::walk(self.as_fd(), range, max, flush, into)
    }

    fn extent_count(&self) -> Option<u64> {
        let xfs = self.fs().is_ok_and(|f| f.kind == FsKind::Xfs);
        xfs.then(|| inode::extent_count(self.as_fd()).ok().map(u64::from)).flatten()
    }

    fn clone_range(&self, source: &Self, range: CloneRange) -> io::Result<CallCost> {
        let (wall, before) = (Instant::now(), cpu::thread_time()?);
        clone::clone_range(source.as_fd(), self.as_fd(), range)?;
        let cpu = cpu::thread_time()?.saturating_sub(before);
        Ok(CallCost { cpu, wall: wall.elapsed() })
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut got = 0;
        while got < into.len() {
            match self.file.read_at(&mut into[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(got)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn set_len(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn record(&self) -> io::Result<Option<Vec<u8>>> {
        match self.file.get_xattr(ATTRIBUTE) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            other => other,
        }
    }

    fn set_record(&self, record: Option<&[u8]>) -> io::Result<()> {
        match record {
            Some(value) => self.file.set_xattr(ATTRIBUTE, value),
            None => match self.file.remove_xattr(ATTRIBUTE) {
                Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(()),
                other => other,
            },
        }
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        fchown(&self.file, Some(uid), Some(gid))
    }

    fn no_cow(&self) -> io::Result<bool> {
        inode::no_cow(self.as_fd())
    }

    fn set_no_cow(&self, on: bool) -> io::Result<()> {
        inode::set_no_cow(self.as_fd(), on)
    }

    fn try_lock(&self) -> io::Result<bool> {
        ofd::try_lock(self.as_fd(), first_byte(), Lock::Write)
    }

    fn is_locked(&self) -> io::Result<bool> {
        Ok(ofd::conflict(self.as_fd(), first_byte(), Lock::Write)?.is_some())
    }

    fn try_own(&self) -> io::Result<bool> {
        match lease::take(self.as_fd(), Lease::Write) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn disown(&self) -> io::Result<()> {
        lease::release(self.as_fd())
    }
}
