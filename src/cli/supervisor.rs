//! The supervisor's process; see [`crate::hold::guard::supervisor`].

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::last_words;
use crate::error::Kind;
use crate::hold::guard::supervisor::{self, Ended};

/// Runs the supervisor of the worker at the other end of standard input, which is a socket. The exit code.
pub fn run() -> u8 {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    match socket.and_then(supervisor::supervise) {
        Ok(Ended::WithTheWorker) => 0,
        Ok(Ended::Released(why)) => {
            last_words(format!("rclone-img: {why}; they were let go on, and the snapshot is broken\n"));
            Kind::Broken.exit_code()
        }
        Err(error) => {
            last_words(format!("rclone-img: no supervisor: {error}\n"));
            Kind::Failed.exit_code()
        }
    }
}
