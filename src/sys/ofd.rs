//! Open file description locks on byte ranges (fcntl(2), F_OFD_SETLK).
//!
//! They belong to the open file, not to the process: two descriptors of one process conflict, a duplicate shares them, the
//! last close gives them back. Advisory. They also conflict with the older POSIX locks. Used for the one job's lock, and to
//! take part in QEMU's image locking ([`crate::hold::holders`]).

use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::range::ByteRange;

/// How a range is locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lock {
    /// Together with other readers; the descriptor must be open for reading.
    Read,
    /// Alone; the descriptor must be open for writing, else EBADF.
    Write,
}

/// A lock that is in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// Which lock somebody has.
    pub lock: Lock,
    /// Whose: known only for POSIX locks, whose owner is a process that this one can see.
    pub pid: Option<u32>,
}

/// Takes the lock without waiting; false where somebody's lock is in the way.
///
/// # Errors
/// EBADF where the descriptor's access mode does not fit the lock, EINVAL beyond the largest file offset, ENOLCK.
pub fn try_lock(fd: BorrowedFd<'_>, range: ByteRange, lock: Lock) -> io::Result<bool> {
    match fcntl(fd, FcntlArg::F_OFD_SETLK(&flock(range, number(lock))?)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Gives the range back.
///
/// # Errors
/// As for [`try_lock`].
pub fn unlock(fd: BorrowedFd<'_>, range: ByteRange) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_OFD_SETLK(&flock(range, libc::F_UNLCK)?))?;
    Ok(())
}

/// Somebody else's lock that would keep `lock` from being taken on the range, if any; takes nothing, and needs no
/// particular access mode.
///
/// # Errors
/// As for [`try_lock`], EBADF excepted.
pub fn conflict(fd: BorrowedFd<'_>, range: ByteRange, lock: Lock) -> io::Result<Option<Conflict>> {
    let mut answer = flock(range, number(lock))?;
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut answer))?;
    let lock = match libc::c_int::from(answer.l_type) {
        libc::F_RDLCK => Lock::Read,
        libc::F_WRLCK => Lock::Write,
        _ => return Ok(None),
    };
    // -1 for an OFD lock, 0 for a process outside our PID namespace.
    Ok(Some(Conflict { lock, pid: u32::try_from(answer.l_pid).ok().filter(|pid| *pid != 0) }))
}

fn number(lock: Lock) -> libc::c_int {
    match lock {
        Lock::Read => libc::F_RDLCK,
        Lock::Write => libc::F_WRLCK,
    }
}

fn flock(range: ByteRange, kind: libc::c_int) -> io::Result<libc::flock> {
    let offset = |bytes: u64| libc::off_t::try_from(bytes).map_err(|_| io::Error::from(Errno::EINVAL));
    Ok(libc::flock {
        l_type: kind as libc::c_short, // 0, 1 or 2.
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset(range.start())?,
        l_len: offset(range.len())?,
        l_pid: 0, // The kernel refuses an OFD lock with any other.
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::{Conflict, Lock, conflict, try_lock, unlock};
    use crate::range::ByteRange;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let one = tempfile::NamedTempFile::new().expect("a temporary file");
        let two = one.reopen().expect("the same file again");
        let (a, b) = (one.as_file().as_fd(), two.as_fd());
        let byte = ByteRange::at(101, 1).expect("not empty");
        assert!(try_lock(a, byte, Lock::Read).expect("lock"));
        assert!(try_lock(b, byte, Lock::Read).expect("lock"));
        assert!(!try_lock(b, byte, Lock::Write).expect("lock"));
        assert_eq!(conflict(b, byte, Lock::Write).expect("ask"), Some(Conflict { lock: Lock::Read, pid: None }));
        unlock(a, byte).expect("unlock");
        assert_eq!(conflict(b, byte, Lock::Write).expect("ask"), None);
        assert!(try_lock(b, byte, Lock::Write).expect("lock"));
    }
}
