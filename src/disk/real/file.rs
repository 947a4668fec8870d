//! [`RealFile`]: an open file of the kernel's.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use xattr::FileExt as _;

use super::{ALWAYS, convert, seek};
use crate::disk::{CallCost, DiskFile, FsFacts, FsKind, Stat};
use crate::extent::Extent;
use crate::range::{ByteRange, CloneRange, PowerOfTwo};
use crate::record::ATTRIBUTE;
use crate::sys::lease::{self, Lease};
use crate::sys::ofd::{self, Lock};
use crate::sys::{btrfs, clone, cpu, fiemap, fs, inode, writeback};

/// Opens the file itself that has a name, to read it or also to write to it: no link is followed, and nobody is waited for, no pipe's other end
/// and no lease.
///
/// # Errors
/// ELOOP, EAGAIN, and what open(2) says.
pub fn open_itself(path: &Path, writes: bool) -> io::Result<File> {
    File::options().read(true).write(writes).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Whether two files may share blocks: one file system, and one device of it. What that proves nothing of is whether their maps' addresses mean
/// the same blocks: that is [`crate::disk::blocks::same_addresses`].
///
/// # Errors
/// What fstatfs(2) and the ioctls say.
pub fn share_a_device(a: &RealFile, b: &RealFile) -> io::Result<bool> {
    let (here, there) = (a.fs()?, b.fs()?);
    let same_fs = match (here.kind, there.kind) {
        (FsKind::Btrfs, FsKind::Btrfs) => here.uuid == there.uuid,
        _ => fstat(a)?.st_dev == fstat(b)?.st_dev,
    };
    Ok(same_fs && a.realtime()? == b.realtime()?)
}

/// An open file.
#[derive(Debug)]
pub struct RealFile {
    file: File,
    kind: OnceLock<FsKind>,
    tree: OnceLock<Option<Tree>>,
    /// Whether the file system was found to have no block maps.
    seeks: OnceLock<seek::Holes>,
}

/// Where the items of a file are in its subvolume's tree.
#[derive(Clone, Copy, Debug)]
struct Tree {
    inode: u64,
    block: PowerOfTwo,
}

impl RealFile {
    /// Opens an image for reading, following symbolic links; it never waits, not for a pipe's other end and not for
    /// somebody's write lease (EAGAIN). Whether it is a regular file is for the caller to look at.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open_image(path: &Path) -> io::Result<Self> {
        Ok(Self::from(File::from(open(path, ALWAYS | OFlag::O_RDONLY, Mode::empty())?)))
    }

    /// Takes the image's job lock (flock(2), which needs no write permission) for as long as the file is open; false where
    /// somebody else has it.
    ///
    /// # Errors
    /// What flock(2) says.
    pub fn try_flock(&self) -> io::Result<bool> {
        try_flock(&self.file)
    }

    /// An extended attribute; none where the file system has none.
    ///
    /// # Errors
    /// What fgetxattr(2) says.
    pub fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match self.file.get_xattr(name) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTSUP) => Ok(None),
            other => other,
        }
    }

    /// Sets or removes one; not durable before [`DiskFile::sync_all`].
    ///
    /// # Errors
    /// What fsetxattr(2) and fremovexattr(2) say; that there is none to be removed is no error.
    pub fn set_attribute(&self, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        let Some(value) = value else {
            return match self.file.remove_xattr(name) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::ENOTSUP)) => Ok(()),
                other => other,
            };
        };
        self.file.set_xattr(name, value)
    }

    /// Writes what is dirty, so that the map tells all. Where the file system has no maps ([`DiskFile::map`] and [`DiskFile::addresses`] would
    /// fail) they are made from now on of what lseek(2) says where that is true, else all is data: for a file that nobody writes to.
    ///
    /// # Errors
    /// What FS_IOC_FIEMAP says, but that it is not there.
    pub fn flush_for_map(&self) -> io::Result<()> {
        let Some(first) = ByteRange::at(0, 1) else { return Ok(()) };
        match self.map(first, 1, true, &mut Vec::new()) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => {
                self.seeks.get_or_init(|| seek::Holes::of(&self.file));
                Ok(())
            }
            other => other,
        }
    }

    /// How many bytes a write to shared blocks may take at once; 0 where the file says nothing of it.
    ///
    /// # Errors
    /// What FS_IOC_FSGETXATTR says.
    pub fn cow_extent_size(&self) -> io::Result<u32> {
        inode::cow_extent_size(self.as_fd())
    }

    fn kind(&self) -> FsKind {
        *self.kind.get_or_init(|| self.fs().map_or(FsKind::Other, |facts| facts.kind))
    }

    /// Where to ask for the file's items; `None` where only FIEMAP answers.
    fn tree(&self) -> Option<Tree> {
        *self.tree.get_or_init(|| {
            let facts = self.fs().ok().filter(|f| f.kind == FsKind::Btrfs)?;
            let tree = Tree { inode: fstat(&self.file).ok()?.st_ino, block: facts.block };
            let first = ByteRange::at(0, 1)?;
            let told = btrfs::extents_starting_in(self.as_fd(), tree.inode, tree.block, first, 1, &mut Vec::new());
            told.is_ok().then_some(tree)
        })
    }
}

impl From<File> for RealFile {
    fn from(file: File) -> Self {
        Self { file, kind: OnceLock::new(), tree: OnceLock::new(), seeks: OnceLock::new() }
    }
}

impl AsFd for RealFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl DiskFile for RealFile {
    fn stat(&self) -> io::Result<Stat> {
        let mut stat = convert(&fstat(&self.file)?);
        // A device would take the ioctl for one of its own.
        if stat.regular {
            stat.generation = inode::generation(self.as_fd())?.unwrap_or(0);
            stat.subvolume = match inode::subvolume(self.as_fd()) {
                Ok(id) => id,
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL)) => 0,
                Err(e) => return Err(e),
            };
        }
        Ok(stat)
    }

    fn fs(&self) -> io::Result<FsFacts> {
        fs::facts(self.as_fd())
    }

    fn map(&self, range: ByteRange, max: usize, flush: bool, into: &mut Vec<Extent>) -> io::Result<()> {
        match self.seeks.get() {
            Some(holes) => holes.walk(&self.file, range, max, into),
            None => fiemap::walk(self.as_fd(), range, max, flush, into),
        }
    }

    /// As the trait says. The tree's search finds the items that begin in a range: what reaches into it from before is
    /// FIEMAP's to tell, one extent a call.
    fn addresses(&self, range: ByteRange, max: usize, into: &mut Vec<Extent>) -> io::Result<()> {
        let from = into.len();
        match self.tree() {
            None => self.map(range, max, false, into)?,
            Some(Tree { inode, block }) => {
                self.map(range, 1, false, into)?;
                let reached = into[from..].last().map(|e| e.logical.end());
                let rest = reached.and_then(|end| ByteRange::new(end, range.end())).filter(|_| max > 1);
                if let Some(rest) = rest {
                    btrfs::extents_starting_in(self.as_fd(), inode, block, rest, max - 1, into)?;
                }
            }
        }
        into[from..].iter_mut().for_each(|e| e.flags = e.flags.of_place());
        Ok(())
    }

    fn relocating(&self) -> io::Result<bool> {
        fs::relocating(self.as_fd())
    }

    fn write_back(&self, range: ByteRange) -> io::Result<()> {
        // On Btrfs the call flushes the whole inode whatever its range (KERNEL.md); a length of 0 means to the end.
        let whole = self.kind() == FsKind::Btrfs;
        let (start, length) = if whole { (0, 0) } else { (range.start(), range.len()) };
        writeback::range(self.as_fd(), start, length)
    }

    fn count(&self, range: ByteRange) -> io::Result<u64> {
        fiemap::count(self.as_fd(), range)
    }

    fn extent_count(&self) -> Option<u64> {
        let xfs = self.fs().ok()?.kind == FsKind::Xfs;
        xfs.then(|| inode::extent_count(self.as_fd()).ok().map(u64::from)).flatten()
    }

    fn clone_range(&self, source: &Self, range: CloneRange) -> io::Result<CallCost> {
        #[cfg(debug_assertions)]
        super::fault::now()?;
        let (cpu, wall) = (cpu::thread_time()?, Instant::now());
        clone::clone_range(source.as_fd(), self.as_fd(), range)?;
        let wall = wall.elapsed();
        Ok(CallCost { cpu: cpu::thread_time()?.saturating_sub(cpu), wall })
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
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
        self.attribute(ATTRIBUTE)
    }

    /// As the trait says; not durable before [`DiskFile::sync_all`].
    fn set_record(&self, record: Option<&[u8]>) -> io::Result<()> {
        self.set_attribute(ATTRIBUTE, record)
    }

    fn has_acl(&self) -> bool {
        self.file.get_xattr("system.posix_acl_access").is_ok_and(|acl| acl.is_some())
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

    fn realtime(&self) -> io::Result<bool> {
        inode::realtime(self.as_fd())
    }

    fn set_no_cow(&self, on: bool) -> io::Result<()> {
        inode::set_no_cow(self.as_fd(), on)
    }

    /// As the trait says, by an OFD write lock on byte 0: the file must be open for writing, else EBADF.
    fn try_lock(&self) -> io::Result<bool> {
        ofd::try_lock(self.as_fd(), job_byte()?, Lock::Write)
    }

    fn is_locked(&self) -> io::Result<bool> {
        Ok(ofd::conflict(self.as_fd(), job_byte()?, Lock::Write)?.is_some())
    }

    fn mark_for_abort(&self) -> io::Result<()> {
        // Several aborts may wait for one job.
        ofd::try_lock(self.as_fd(), abort_byte()?, Lock::Read).map(drop)
    }

    fn is_marked_for_abort(&self) -> io::Result<bool> {
        Ok(ofd::conflict(self.as_fd(), abort_byte()?, Lock::Write)?.is_some())
    }

    /// As the trait says. A second descriptor of this process counts as somebody.
    fn try_own(&self) -> io::Result<bool> {
        match lease::take(self.as_fd(), Lease::Write) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn owns(&self) -> io::Result<bool> {
        Ok(lease::held(self.as_fd())? == Lease::Write)
    }

    fn disown(&self) -> io::Result<()> {
        lease::release(self.as_fd())
    }
}

/// Takes the file's flock(2) lock; false where somebody else has it.
pub(super) fn try_flock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The byte that stands for the job.
fn job_byte() -> io::Result<ByteRange> {
    ByteRange::at(0, 1).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The byte that stands for an abort that waits for the job's end.
fn abort_byte() -> io::Result<ByteRange> {
    ByteRange::at(1, 1).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::RealFile;
    use crate::disk::DiskFile;

    fn file() -> (tempfile::NamedTempFile, RealFile) {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let real = RealFile::from(file.reopen().expect("the same file again"));
        (file, real)
    }

    #[test]
    fn reads_stop_at_the_end_of_the_file() {
        let (_name, file) = file();
        file.write_at(3, b"abc").expect("write");
        let mut into = [1; 8];
        assert_eq!(file.read_at(0, &mut into).expect("read"), 6);
        assert_eq!(&into[..6], b"\0\0\0abc");
        assert_eq!(file.read_at(6, &mut into).expect("read"), 0);
    }

    #[test]
    fn the_lock_is_seen_by_others_and_goes_with_the_file() {
        let (name, one) = file();
        let two = RealFile::from(name.reopen().expect("the same file again"));
        assert!(!two.is_locked().expect("ask"));
        assert!(one.try_lock().expect("lock"));
        assert!(!one.is_locked().expect("one's own lock is not somebody else's"));
        assert!(two.is_locked().expect("ask"));
        assert!(!two.try_lock().expect("lock"));
        drop(one);
        assert!(two.try_lock().expect("lock"));
    }

    #[test]
    fn opening_an_image_does_not_wait_for_a_pipe() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let pipe = RealFile::open_image(&pipe).expect("opens at once");
        assert!(!pipe.stat().expect("stat").regular);
        assert!(RealFile::open_image(Path::new("/no/such/image")).is_err());
    }
}
