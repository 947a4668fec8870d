//! Replies, in the form that was agreed on, and one at a time.

use std::io;

use nix::errno::Errno as Kernel;

use super::Stream;
use crate::serve::codec::{Chunk, Errno, Request, chunk_header, error_chunk, simple_reply};
use crate::threads::{Condvar, Mutex, MutexGuard, PoisonError};

/// Replies of at most this many bytes are left to whoever sends at the moment.
const SHORT: usize = 16 << 10;

/// The most bytes that are left to him; who has more waits.
const LEFT: usize = 128 << 10;

/// Where the replies go.
pub struct Answers<'a, S> {
    /// The connection.
    pub stream: &'a S,
    /// Whether reads are answered by structured replies.
    pub structured: bool,
    out: Mutex<Out>,
    /// Told whenever nobody sends, or there is room for what is left to who does.
    changed: Condvar,
}

/// What goes out. Nothing comes between the pieces of what is sent together.
#[derive(Default)]
struct Out {
    /// Somebody has the turn to send.
    sending: bool,
    /// Whole replies, for him to send.
    left: Vec<u8>,
    failed: bool,
}

/// The right to send. Dropped, what was left to its owner is sent.
pub struct Turn<'a, 'b, S: Stream>(&'b Answers<'a, S>);

impl<S: Stream> Turn<'_, '_, S> {
    /// Sends a part of a reply.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.stream.send(bytes).inspect_err(|_| self.0.out().failed = true)
    }

    /// Sends what was left meanwhile.
    fn send_left(&self) -> io::Result<()> {
        let mut batch = Vec::new();
        loop {
            {
                let mut out = self.0.out();
                batch.clear();
                std::mem::swap(&mut batch, &mut out.left);
                if batch.is_empty() || out.failed {
                    out.sending = false;
                    // For the next one who leaves something.
                    out.left = batch;
                    drop(out);
                    self.0.changed.notify_all();
                    return Ok(());
                }
            }
            self.0.changed.notify_all();
            self.send(&batch)?;
        }
    }
}

impl<S: Stream> Drop for Turn<'_, '_, S> {
    fn drop(&mut self) {
        // Where that fails the connection's own thread learns of it, and there is nothing more to send.
        if self.send_left().is_err() {
            self.0.stream.close();
            let _ = self.send_left();
        }
    }
}

impl<'a, S: Stream> Answers<'a, S> {
    /// Of a connection.
    pub fn new(stream: &'a S, structured: bool) -> Self {
        Self { stream, structured, out: Mutex::default(), changed: Condvar::new() }
    }

    /// Keeps everybody else from sending until it is dropped.
    pub fn turn(&self) -> Turn<'_, '_, S> {
        let mut out = self.out();
        while out.sending {
            out = self.changed.wait(out).unwrap_or_else(PoisonError::into_inner);
        }
        out.sending = true;
        Turn(self)
    }

    /// Sends whole replies, or leaves short ones to whoever sends already: many threads that have one each make one call.
    pub fn send(&self, replies: &[u8]) -> io::Result<()> {
        if replies.len() <= SHORT {
            let mut out = self.out();
            while out.sending && !out.failed && out.left.len() + replies.len() > LEFT {
                out = self.changed.wait(out).unwrap_or_else(PoisonError::into_inner);
            }
            if out.failed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if out.sending {
                out.left.extend_from_slice(replies);
                return Ok(());
            }
        }
        self.turn().send(replies)
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends that a request which is not answered with data was done.
    pub fn done(&self, replies: &mut Vec<u8>, request: &Request) {
        replies.extend_from_slice(&simple_reply(request.cookie, None));
    }

    /// Appends that a request failed, with words for a person where they can be sent.
    pub fn failed(&self, replies: &mut Vec<u8>, request: Request, error: Errno, text: &str) {
        if self.structured {
            replies.extend(error_chunk(request.cookie, error, text));
        } else {
            replies.extend_from_slice(&simple_reply(request.cookie, Some(error)));
        }
    }

    /// Appends how a request ended that is not answered with data.
    pub fn ended(&self, replies: &mut Vec<u8>, request: Request, done: io::Result<()>) {
        match done {
            Ok(()) => self.done(replies, &request),
            Err(error) => self.failed(replies, request, told(&error), &error.to_string()),
        }
    }

    /// What is before the data in the answer of a read, or a piece of it. `last` with the last piece.
    pub fn head(&self, request: &Request, offset: u64, length: usize, last: bool) -> Vec<u8> {
        let mut head = Vec::with_capacity(28);
        self.begin(&mut head, request, offset, length, last);
        head
    }

    /// Appends the answer of a read, but for its data, and gives the room for that.
    pub fn begin_read<'r>(&self, replies: &'r mut Vec<u8>, request: &Request, length: usize) -> &'r mut [u8] {
        self.begin(replies, request, request.offset, length, true);
        let data = replies.len();
        replies.resize(data + length, 0);
        &mut replies[data..]
    }

    fn begin(&self, replies: &mut Vec<u8>, request: &Request, offset: u64, length: usize, last: bool) {
        if !self.structured {
            replies.extend_from_slice(&simple_reply(request.cookie, None));
        } else if length == 0 {
            // A piece of data has at least one byte.
            replies.extend_from_slice(&chunk_header(request.cookie, Chunk::None, true, 0));
        } else {
            replies.extend_from_slice(&chunk_header(request.cookie, Chunk::Data, last, 8 + length));
            replies.extend_from_slice(&offset.to_be_bytes());
        }
    }
}

/// What a client is told of the kernel's error.
pub fn told(error: &io::Error) -> Errno {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Errno::Perm;
    }
    match error.raw_os_error().map(Kernel::from_raw) {
        Some(Kernel::EROFS) => Errno::Perm,
        Some(Kernel::ENOSPC | Kernel::EDQUOT | Kernel::EFBIG) => Errno::NoSpc,
        Some(Kernel::EOPNOTSUPP) => Errno::NotSup,
        _ => Errno::Io,
    }
}
