//! The kernel's files: [`RealDisk`] is a directory, [`RealFile`] an open file in it or an image from anywhere.
//!
//! Every name is resolved relative to the directory that was opened, never through a symbolic link, so that the directory
//! may be renamed while a job runs and nobody can put a link in its way. All descriptors are close-on-exec.

#[cfg(debug_assertions)]
mod fault;
mod file;
mod new;
mod seek;
mod turns;

use std::cell::{OnceCell, RefCell};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};
use uuid::Uuid;

pub use file::{RealFile, open_itself, share_a_device};
pub use new::{Kept, NewFile};
use turns::Turns;

use super::{Access, Disk, HostFacts, Space, Stat};
use crate::sys::process;

/// What every open here has. O_NONBLOCK: the name may turn out to be a pipe, or under somebody's lease, and waiting for
/// either helps nobody; regular files do not mind it afterwards.
const ALWAYS: OFlag = OFlag::O_CLOEXEC.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// The directory of a path's last component.
pub fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A directory on a mounted file system.
#[derive(Debug)]
pub struct RealDisk {
    dir: OwnedFd,
    /// Opened by the first who wants a turn: most commands want none.
    turns: OnceCell<Option<RefCell<Turns>>>,
}

impl RealDisk {
    /// Opens a directory, following symbolic links. It must be readable, for its names could not be synced otherwise.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, EACCES, and what open(2) says.
    pub fn open_dir(path: &Path) -> io::Result<Self> {
        let dir = nix::fcntl::open(path, ALWAYS | OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        Ok(Self { dir, turns: OnceCell::new() })
    }

    fn open_flags(&self, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
        openat(&self.dir, component(name)?, ALWAYS | OFlag::O_NOFOLLOW | flags, Mode::from_bits_truncate(0o600))
    }

    /// Opens for writing a file whose mode keeps its own owner from that, as a finished snapshot's does: gives the owner
    /// the permission first, through a descriptor of the same inode, so that no other file can come between.
    fn open_protected(&self, name: &OsStr) -> nix::Result<OwnedFd> {
        let reader = self.open_flags(name, OFlag::O_RDONLY)?;
        let mode = Mode::from_bits_truncate(fstat(&reader)?.st_mode);
        if mode.contains(Mode::S_IWUSR) {
            return Err(Errno::EACCES); // Something other than the mode forbids it.
        }
        fchmod(&reader, mode | Mode::S_IWUSR).map_err(|_| Errno::EACCES)?;
        let again = format!("/proc/self/fd/{}", reader.as_raw_fd());
        nix::fcntl::open(again.as_str(), ALWAYS | OFlag::O_RDWR, Mode::empty()).inspect_err(|_| {
            // Best effort: the open's own error is the one to tell.
            let _ = fchmod(&reader, mode);
        })
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn create_new(&self, name: &OsStr) -> io::Result<RealFile> {
        let fd = self.open_flags(name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)?;
        // The umask may have taken from the mode that the journal promises.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(RealFile::from(File::from(fd)))
    }

    /// As the trait says. [`Access::Write`] on a file of this user's without write permission gives the owner the
    /// permission **and leaves it so**; the caller, which knows what the mode should be in the end, sets it back.
    fn open(&self, name: &OsStr, access: Access) -> io::Result<RealFile> {
        let fd = match access {
            Access::Read => self.open_flags(name, OFlag::O_RDONLY)?,
            Access::Write => match self.open_flags(name, OFlag::O_RDWR) {
                Err(Errno::EACCES) => self.open_protected(name)?,
                other => other?,
            },
        };
        Ok(RealFile::from(File::from(fd)))
    }

    /// As the trait says. `generation` and `subvolume` are 0: they need the file open, and opening a file can break
    /// somebody's lease on it.
    fn stat(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match fstatat(&self.dir, component(name)?, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(convert(&stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn rename(&self, from: &OsStr, to: &OsStr, replace: bool) -> io::Result<()> {
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
        Ok(renameat2(&self.dir, component(from)?, &self.dir, component(to)?, flags)?)
    }

    fn unlink(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.dir, component(name)?, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(fsync(self.dir.as_fd())?)
    }

    fn space(&self) -> io::Result<Space> {
        let stat = fstatvfs(&self.dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        let metadata = crate::sys::fs::metadata_space(self.dir.as_fd())?;
        Ok(Space { total: bytes(stat.blocks()), free: bytes(stat.blocks_available()), metadata })
    }

    fn fs_uuid(&self) -> io::Result<[u8; 16]> {
        Ok(crate::sys::fs::facts(self.dir.as_fd())?.uuid)
    }

    fn elsewhere(&self, dir: &Path) -> io::Result<Self> {
        Self::open_dir(dir)
    }

    /// As the trait says. A boot that /proc does not tell gets an id that no other boot has: no T0 is kept across it.
    fn host(&self) -> HostFacts {
        let pid = std::process::id();
        HostFacts {
            boot_id: process::boot_id().unwrap_or_else(|_| self.fresh_id()),
            now: Timestamp::now(),
            uid: nix::unistd::geteuid().as_raw(),
            pid,
            pid_start: process::start_ticks(pid).unwrap_or_default(),
        }
    }

    fn fresh_id(&self) -> [u8; 16] {
        Uuid::new_v4().into_bytes()
    }

    fn create_unnamed(&self) -> io::Result<RealFile> {
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        let fd = openat(&self.dir, ".", flags, Mode::from_bits_truncate(0o600))?;
        Ok(RealFile::from(File::from(fd)))
    }

    fn wait(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn clock(&self) -> Duration {
        static BEGAN: OnceLock<Instant> = OnceLock::new();
        BEGAN.get_or_init(Instant::now).elapsed()
    }

    fn take_turn(&self) -> bool {
        let turns = self.turns.get_or_init(|| Turns::of(self.dir.as_fd()).map(RefCell::new));
        turns.as_ref().is_none_or(|turns| turns.borrow_mut().take())
    }

    fn end_turn(&self) {
        if let Some(Some(turns)) = self.turns.get() {
            turns.borrow_mut().end();
        }
    }
}

/// The name, if it is a single component and so cannot lead out of the directory.
fn component(name: &OsStr) -> nix::Result<&OsStr> {
    let bytes = name.as_encoded_bytes();
    let leads_elsewhere = bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/');
    if leads_elsewhere { Err(Errno::EINVAL) } else { Ok(name) }
}

/// stat(2)'s answer, without what only ioctls tell.
fn convert(stat: &FileStat) -> Stat {
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Stat {
        dev: stat.st_dev,
        ino: stat.st_ino,
        generation: 0,
        subvolume: 0,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: stat.st_nlink,
        regular: stat.st_mode & libc::S_IFMT == libc::S_IFREG,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::RealDisk;
    use crate::disk::{Access, Disk, DiskFile};

    fn disk() -> (tempfile::TempDir, RealDisk) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = RealDisk::open_dir(dir.path()).expect("just made");
        (dir, disk)
    }

    #[test]
    fn rename_does_not_replace_unless_told() {
        let (_dir, disk) = disk();
        let (a, b) = (OsStr::new("a"), OsStr::new("b"));
        disk.create_new(a).expect("a").write_at(0, b"a").expect("write");
        disk.create_new(b).expect("b");
        assert_eq!(disk.rename(a, b, false).expect_err("b is there").raw_os_error(), Some(libc::EEXIST));
        disk.rename(a, b, true).expect("told so");
        assert_eq!(disk.stat(a).expect("stat"), None);
        assert_eq!(disk.stat(b).expect("stat").expect("there").size, 1);
        assert_eq!(disk.create_new(b).expect_err("b is there").raw_os_error(), Some(libc::EEXIST));
        disk.unlink(b).expect("unlink");
        disk.unlink(b).expect("gone already is no error");
        disk.sync_names().expect("fsync");
    }

    #[test]
    fn symbolic_links_and_paths_are_not_names() {
        let (dir, disk) = disk();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link")).expect("symlink");
        let link = OsStr::new("link");
        assert_eq!(disk.open(link, Access::Read).expect_err("a link").raw_os_error(), Some(libc::ELOOP));
        assert!(!disk.stat(link).expect("stat").expect("there").regular);
        for name in ["", ".", "..", "a/b", "/etc/hostname"] {
            assert_eq!(disk.stat(OsStr::new(name)).expect_err("leads out").raw_os_error(), Some(libc::EINVAL));
        }
    }

    #[test]
    fn new_files_are_private_and_ids_are_new() {
        let (_dir, disk) = disk();
        assert_eq!(disk.create_new(OsStr::new("a")).expect("a").stat().expect("stat").mode, 0o600);
        assert_ne!(disk.fresh_id(), disk.fresh_id());
        assert_eq!(disk.host().pid, std::process::id());
        assert!(disk.space().expect("statvfs").total > 0);
    }
}
