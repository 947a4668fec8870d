//! Descriptors that another program has left open for this one.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};

/// A duplicate of the descriptor of this number, where that is a Unix stream socket that listens.
///
/// # Errors
/// EBADF, ENOTSOCK, and EINVAL for every other socket.
pub fn listener(number: RawFd) -> io::Result<UnixListener> {
    // SAFETY: no memory is involved; a number that is no descriptor is EBADF.
    let copy = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows its number.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    let address: SockaddrStorage = getsockname(std::os::fd::AsRawFd::as_raw_fd(&copy))?;
    let unix = address.family() == Some(AddressFamily::Unix);
    let listens = getsockopt(&copy, sockopt::AcceptConn)?;
    let stream = getsockopt(&copy, sockopt::SockType)? == nix::sys::socket::SockType::Stream;
    if unix && listens && stream { Ok(copy.into()) } else { Err(Errno::EINVAL.into()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_a_unix_socket_that_listens_is_taken() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("s");
        let made = UnixListener::bind(&path).expect("a socket");
        let copy = listener(made.as_raw_fd()).expect("it listens");
        drop(made);
        let _client = UnixStream::connect(&path).expect("still there");
        copy.accept().expect("a client");
        let (one, _other) = UnixStream::pair().expect("two sockets");
        assert_eq!(listener(one.as_raw_fd()).expect_err("no listener").raw_os_error(), Some(libc::EINVAL));
        let file = std::fs::File::open("/dev/null").expect("a file");
        assert_eq!(listener(file.as_raw_fd()).expect_err("no socket").raw_os_error(), Some(libc::ENOTSOCK));
        assert_eq!(listener(-1).expect_err("nothing").raw_os_error(), Some(libc::EBADF));
    }
}
