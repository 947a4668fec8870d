//! File leases (fcntl(2), F_SETLEASE): being told before somebody opens a file.
//!
//! A read lease is granted only while nobody has the file open for writing, a write lease only while nobody else has it
//! open at all (descriptors opened with O_PATH do not count). An opener that conflicts waits until the lease is given back or
//! for `/proc/sys/fs/lease-break-time`, after which the kernel takes it away; with O_NONBLOCK it gets EAGAIN and breaks
//! the lease all the same.
//!
//! The kernel tells the holder by a signal, SIGIO unless told otherwise, **whose default action ends the process**. Every
//! lease taken here is told to use SIGURG instead, which is ignored by default; whoever holds one looks with [`held`].

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `asm-generic/fcntl.h`; the libc crate has it for Android alone.
const F_SETSIG: libc::c_int = 10;

/// A lease, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lease {
    /// None, or one that is being broken by a writer.
    None,
    /// A read lease: nobody has the file open for writing.
    Read,
    /// A write lease: nobody else has it open.
    Write,
}

/// Takes a lease, or changes the one that this descriptor has. For [`Lease::Read`] the descriptor must be open for reading
/// only. [`Lease::None`] is [`release`].
///
/// # Errors
/// EAGAIN where somebody has the file open in a way that conflicts, also through another descriptor of this process; EACCES
/// on somebody else's file without CAP_LEASE; EINVAL where the file system has no leases.
pub fn take(fd: BorrowedFd<'_>, lease: Lease) -> io::Result<()> {
    let kind = match lease {
        Lease::None => return release(fd),
        Lease::Read => libc::F_RDLCK,
        Lease::Write => libc::F_WRLCK,
    };
    // Before the lease, so that there is no moment at which a break would send SIGIO.
    fcntl(fd, F_SETSIG, libc::SIGURG)?;
    fcntl(fd, libc::F_SETLEASE, kind)?;
    Ok(())
}

/// The lease that this descriptor still has. While one is being broken this is what would be left of it.
///
/// # Errors
/// What fcntl(2) says of F_GETLEASE.
pub fn held(fd: BorrowedFd<'_>) -> io::Result<Lease> {
    Ok(match fcntl(fd, libc::F_GETLEASE, 0)? {
        libc::F_RDLCK => Lease::Read,
        libc::F_WRLCK => Lease::Write,
        _ => Lease::None,
    })
}

/// Gives the lease back; one that is not there is no error.
///
/// # Errors
/// What fcntl(2) says of F_SETLEASE.
pub fn release(fd: BorrowedFd<'_>) -> io::Result<()> {
    match fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) {
        // The kernel's words for "this descriptor has none".
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
        other => other.map(drop),
    }
}

fn fcntl(fd: BorrowedFd<'_>, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the three commands used here take an int or nothing, and touch no memory of ours.
    let answer = unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
