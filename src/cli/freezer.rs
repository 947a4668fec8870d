//! The freezer's process; see [`crate::quiesce::freezer`].

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::getppid;

use super::{error_lines, last_words};
use crate::hold::guard::raise;
use crate::quiesce::freezer::serve;

/// How long the job may take to read its last answer, in milliseconds.
const READ: u16 = 10_000;

/// Runs the freezer of the job at the other end of standard input, which is a socket. The exit code.
pub fn run() -> u8 {
    // The user's commands inherit it. Should the kernel kill this process for its memory, the supervisor thaws.
    raise::as_any();
    let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) else { return 1 };
    let job = socket.try_clone().ok();
    match serve(socket) {
        Ok(()) => 0,
        Err(error) => {
            if !job.is_some_and(|job| has_read(&job)) {
                last_words(error_lines(&error));
            }
            error.kind.exit_code()
        }
    }
}

/// Whether the job has taken the answer, and will tell it: it closes its end then, and waits for this process to end. One
/// that is gone is not this process's parent any more.
fn has_read(job: &UnixStream) -> bool {
    // That the other end is closed is always told.
    let closed = poll(&mut [PollFd::new(job.as_fd(), PollFlags::empty())], PollTimeout::from(READ));
    let parent = getsockopt(job, PeerCredentials).map(|peer| peer.pid());
    closed.is_ok_and(|closed| closed > 0) && parent.is_ok_and(|parent| parent == getppid().as_raw())
}
