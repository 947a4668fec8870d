//! Lines for a person on standard error, or with `--json` one object a line on standard output.
//!
//! Nobody who does not read can hold a service up: what is not taken within a moment is lost.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use crate::cli::args::Output;
use crate::cli::json;

/// How long somebody who does not read is waited for, in milliseconds; the next time not at all.
const PATIENCE: u16 = 2000;

/// What a pipe that has room takes without a wait (PIPE_BUF).
const PIECE: usize = 4096;

/// Where a service's lines go.
pub struct Log {
    output: Output,
    patience: u16,
}

impl Log {
    /// As the user has asked for.
    pub fn new(output: Output) -> Self {
        Self { output, patience: PATIENCE }
    }

    /// An object for a program, where one listens.
    pub fn event(&mut self, mut object: Value) {
        if self.output.json {
            object["v"] = json::VERSION.into();
            self.write(&mut io::stdout(), &format!("{object}\n"));
        }
    }

    /// A line for a person, where one listens.
    pub fn notice(&mut self, text: &str) {
        if !self.output.json && !self.output.quiet {
            self.error(&format!("{text}\n"));
        }
    }

    /// Lines for everybody.
    pub fn error(&mut self, text: &str) {
        self.write(&mut io::stderr(), text);
    }

    fn write(&mut self, to: &mut (impl Write + AsFd), text: &str) {
        for piece in text.as_bytes().chunks(PIECE) {
            let taken = self.room(to) && to.write_all(piece).and_then(|()| to.flush()).is_ok();
            if !taken {
                // A closed end is no reason to stop either: others rely on the service.
                return;
            }
        }
    }

    /// Whether a piece can be written without a wait, or is found to fail at once.
    fn room(&mut self, to: &impl AsFd) -> bool {
        let ready = loop {
            match poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(self.patience)) {
                Err(Errno::EINTR) => {}
                other => break other.is_ok_and(|ready| ready > 0),
            }
        };
        self.patience = if ready { PATIENCE } else { 0 };
        ready
    }
}

/// Names a path in an object: as text, and in hexadecimal where the text is not all of it.
pub fn with_path(mut object: Value, key: &str, path: &Path) -> Value {
    let (text, bytes) = json::path(path);
    object[key] = text.into();
    if let Some(bytes) = bytes {
        object[format!("{key}_bytes")] = bytes.into();
    }
    object
}
