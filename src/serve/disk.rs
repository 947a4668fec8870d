//! The image itself as a [`Device`].

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice, fallocate, fcntl, posix_fadvise};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};

use super::buffers;
use super::device::{Device, Extents};
use crate::disk::nowait;

/// `NBD_STATE_HOLE` and `NBD_STATE_ZERO` of `base:allocation`.
const HOLE: u32 = 1 | 1 << 1;

/// Zeroes for a file system that cannot make any itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Who is told that what clients wrote is lost.
pub type Alarm = Box<dyn Fn(&io::Error) + Send + Sync>;

/// An image in the page cache.
pub struct Disk {
    file: File,
    size: u64,
    /// Btrfs refuses what may not wait to every file that it copies on write, before it looks whether there is anything to wait for
    /// (`btrfs_write_check`).
    refuses_now: bool,
    /// Why a flush has failed once. The kernel tells of data that it has lost once for each open file, which all clients have in common; so
    /// every flush from then on fails, as QEMU's own server has it.
    failed: Mutex<Option<i32>>,
    alarm: Alarm,
}

/// Has reads of this file set no access time: that would be a transaction after each write of the guest (relatime), for which the kernel locks
/// the inode, and on XFS waits for room in the log, which clone calls fill. Only its owner and root may ask for it; without it nothing is wrong.
pub fn leave_no_trace(file: &impl AsFd) {
    if let Ok(flags) = fcntl(file, FcntlArg::F_GETFL) {
        let _ = fcntl(file, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags) | OFlag::O_NOATIME));
    }
}

impl Disk {
    /// An image that is open.
    ///
    /// # Errors
    /// stat(2)'s and statfs(2)'s.
    pub fn new(file: File) -> io::Result<Self> {
        Self::with(file, Box::new(|_| ()))
    }

    /// The same, with somebody who is told once when a flush fails.
    ///
    /// # Errors
    /// stat(2)'s and statfs(2)'s.
    pub fn with(file: File, alarm: Alarm) -> io::Result<Self> {
        let size = file.metadata()?.len();
        leave_no_trace(&file);
        let refuses_now = fstatfs(&file)?.filesystem_type() == BTRFS_SUPER_MAGIC;
        Ok(Self { file, size, refuses_now, failed: Mutex::default(), alarm })
    }

    /// Changes which blocks a range has. False where the file system cannot.
    fn allocation(&self, mode: FallocateFlags, offset: u64, length: u64) -> io::Result<bool> {
        let (offset, length) = (position(offset)?, position(length)?);
        loop {
            match fallocate(&self.file, mode, offset, length) {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Where the next data, or hole, is from `offset` on.
    fn seek(&self, offset: u64, whence: Whence) -> io::Result<u64> {
        match lseek(&self.file, position(offset)?, whence) {
            Ok(at) => Ok(at.cast_unsigned().min(self.size)),
            // None is left; but what was cut off is no hole.
            Err(Errno::ENXIO) if self.file.metadata()?.len() < self.size => Err(Errno::EIO.into()),
            Err(Errno::ENXIO) => Ok(self.size),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Disk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn position(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| ErrorKind::InvalidInput.into())
}

impl Device for Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_now(&self, bytes: &mut [u8], offset: u64) -> bool {
        let all = bytes.len();
        nowait::read(self.file.as_fd(), bytes, offset).is_ok_and(|got| got == all)
    }

    fn write_now(&self, bytes: &[u8], offset: u64) -> bool {
        if !self.refuses_now {
            return nowait::write(self.file.as_fd(), bytes, offset).is_ok_and(|put| put == bytes.len());
        }
        // Whole blocks need nothing from the disk, and go to memory as quickly as elsewhere, but for a flush that holds the file. Whoever is
        // kept waiting all the same notices, and does not try for a while.
        let is_whole = [bytes.len() as u64, offset].iter().all(|it| it.is_multiple_of(buffers::BLOCK as u64));
        is_whole && self.failed.try_lock().is_ok() && self.write(bytes, offset).is_ok()
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        // Held meanwhile: of two that are under way the kernel would tell one alone.
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(errno) = *failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.file.sync_data().inspect_err(|e| {
            *failed = Some(e.raw_os_error().unwrap_or(libc::EIO));
            (self.alarm)(e);
        })
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        if length > 0 {
            self.allocation(
                FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                offset,
                length,
            )?;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, allocate: bool, fast: bool) -> io::Result<()> {
        use FallocateFlags as F;
        if length == 0 {
            return Ok(());
        }
        let way = if allocate { F::FALLOC_FL_ZERO_RANGE } else { F::FALLOC_FL_PUNCH_HOLE };
        if self.allocation(way | F::FALLOC_FL_KEEP_SIZE, offset, length)? {
            return Ok(());
        }
        if fast {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let mut at = offset;
        while at < offset + length {
            let piece = (offset + length - at).min(ZEROES.len() as u64);
            self.write(&ZEROES[..piece as usize], at)?;
            at += piece;
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        Ok(posix_fadvise(&self.file, position(offset)?, position(length)?, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?)
    }

    fn extents(&self, _context: u32, offset: u64, length: u32, most: usize) -> io::Result<Extents> {
        let end = offset + u64::from(length);
        let (mut at, mut extents) = (offset, Extents::new());
        while at < end && extents.len() < most {
            let data = self.seek(at, Whence::SeekData)?;
            let (to, flags) = if data > at { (data, HOLE) } else { (self.seek(at, Whence::SeekHole)?, 0) };
            // A writer may have come between the two looks: what is not known is data.
            let to = to.max(at + 1).min(end);
            // Within a length of 32 bits.
            extents.push(((to - at) as u32, flags));
            at = to;
        }
        Ok(extents)
    }
}
