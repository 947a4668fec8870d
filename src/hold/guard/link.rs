//! The socket between a worker and its supervisor: descriptors one way, one byte the other, and the silence of the dead.

use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::sys::{passing, process};

/// The supervisor has what it needs.
const READY: u8 = b'R';

/// Hands the supervisor the group and the table, and waits until it has taken them up.
///
/// # Errors
/// What the socket says; `UnexpectedEof` where the supervisor is gone.
pub fn hand_over(socket: &mut UnixStream, group: BorrowedFd<'_>, table: BorrowedFd<'_>) -> io::Result<()> {
    passing::send(socket, &std::process::id().to_ne_bytes(), &[group, table])?;
    let mut answer = [0];
    socket.read_exact(&mut answer)?;
    if answer == [READY] { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "not the supervisor")) }
}

/// What a worker hands over.
pub struct Charge {
    /// Stands for the worker (pidfd).
    pub worker: OwnedFd,
    /// The group whose events the worker answers.
    pub group: OwnedFd,
    /// The table's memory.
    pub table: OwnedFd,
}

/// Takes what the worker hands over; `None` where it has ended before.
///
/// # Errors
/// What the socket says; `InvalidData` where it is something else.
pub fn take_charge(socket: &UnixStream) -> io::Result<Option<Charge>> {
    let mut pid = [0; size_of::<u32>()];
    let (bytes, fds) = passing::receive(socket, &mut pid)?;
    let mut fds = fds.into_iter();
    match (bytes, fds.next(), fds.next()) {
        (0, ..) => Ok(None),
        (4, Some(group), Some(table)) => {
            let worker = process::open(u32::from_ne_bytes(pid))?;
            Ok(Some(Charge { worker, group, table }))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a worker's message")),
    }
}

/// Tells the worker that it is looked after.
///
/// # Errors
/// What the socket says.
pub fn ready(socket: &mut UnixStream) -> io::Result<()> {
    socket.write_all(&[READY])
}
