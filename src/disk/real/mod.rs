//! The kernel's disk: a directory by its descriptor, so that nothing that happens to its path matters.

mod file;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, open, openat, renameat2};
use nix::sys::stat::{Mode, fchmod, fstatat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};
use uuid::Uuid;

use super::{Access, Disk, HostFacts, Space, Stat};
use crate::sys::process;

pub use file::RealFile;

/// Every file is made for its owner alone; what others may do with a snapshot is decided when it is complete.
const NEW_FILE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// A directory.
pub struct RealDisk {
    dir: OwnedFd,
}

impl RealDisk {
    /// Opens a directory; links in its path are followed.
    ///
    /// # Errors
    /// What open(2) says; ENOTDIR where it is none.
    pub fn open_dir(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { dir: open(path, flags, Mode::empty())? })
    }

    fn open_with(&self, name: &OsStr, flags: OFlag) -> io::Result<RealFile> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        Ok(RealFile::from(openat(&self.dir, single(name)?, flags, NEW_FILE)?))
    }

    /// A finished snapshot is made without write permission, which stops its owner (but not root). The permission is
    /// given to it and stays; whoever asked knows the mode that it had.
    fn open_read_only_for_writing(&self, name: &OsStr) -> io::Result<RealFile> {
        let readable = self.open_with(name, OFlag::O_RDONLY)?;
        let mode = super::DiskFile::stat(&readable)?.mode;
        fchmod(readable.as_fd(), Mode::from_bits_truncate(mode) | Mode::S_IWUSR)?;
        self.open_with(name, OFlag::O_RDWR)
    }
}

/// Names are single components: what comes in is a file name, never a path.
fn single(name: &OsStr) -> io::Result<&OsStr> {
    let bytes = name.as_bytes();
    let plain = !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.contains(&b'/');
    if plain { Ok(name) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn create_new(&self, name: &OsStr) -> io::Result<RealFile> {
        self.open_with(name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)
    }

    fn open(&self, name: &OsStr, access: Access) -> io::Result<RealFile> {
        match access {
            Access::Read => self.open_with(name, OFlag::O_RDONLY),
            Access::Write => match self.open_with(name, OFlag::O_RDWR) {
                Err(e) if e.raw_os_error() == Some(libc::EACCES) => self.open_read_only_for_writing(name),
                other => other,
            },
        }
    }

    fn stat(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match fstatat(&self.dir, single(name)?, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(file::plain_stat(&stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn rename(&self, from: &OsStr, to: &OsStr, replace: bool) -> io::Result<()> {
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
        Ok(renameat2(&self.dir, single(from)?, &self.dir, single(to)?, flags)?)
    }

    fn unlink(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.dir, single(name)?, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(fsync(&self.dir)?)
    }

    fn space(&self) -> io::Result<Space> {
        let stat = fstatvfs(&self.dir)?;
        let unit = stat.fragment_size();
        Ok(Space { total: stat.blocks() * unit, free: stat.blocks_available() * unit })
    }

    fn host(&self) -> HostFacts {
        let pid = std::process::id();
        HostFacts {
            // A boot that cannot be told is no boot: no T0 is ever kept across it, for it equals no other.
            boot_id: process::boot_id().unwrap_or_else(|_| self.fresh_id()),
            now: Timestamp::now(),
            pid,
            pid_start: process::start_ticks(pid).unwrap_or(0),
        }
    }

    fn fresh_id(&self) -> [u8; 16] {
        Uuid::new_v4().into_bytes()
    }

    fn create_unnamed(&self) -> io::Result<RealFile> {
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        Ok(RealFile::from(openat(&self.dir, ".", flags, NEW_FILE)?))
    }

    fn wait(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
