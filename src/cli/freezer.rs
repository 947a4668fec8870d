//! The freezer's process; see [`crate::quiesce::freezer`].

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::{error_lines, last_words};
use crate::quiesce::freezer::serve;

/// Runs the freezer of the job at the other end of standard input, which is a socket. The exit code.
pub fn run() -> u8 {
    let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) else { return 1 };
    match serve(socket) {
        Ok(()) => 0,
        // The job says so too, if it still can.
        Err(error) => {
            last_words(error_lines(&error));
            error.kind.exit_code()
        }
    }
}
