//! Replies, in the form that was agreed on, and one at a time.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno as Kernel;

use super::Stream;
use crate::serve::codec::{Chunk, Errno, Request, chunk_header, error_chunk, simple_reply};

/// Where the replies go.
pub struct Answers<'a, S> {
    /// The connection.
    pub stream: &'a S,
    /// Whether reads are answered by structured replies.
    pub structured: bool,
    /// Held by who sends: nothing comes between the pieces of what is sent together.
    turn: Mutex<()>,
}

/// The right to send.
pub struct Turn<'a, S> {
    stream: &'a S,
    _turn: MutexGuard<'a, ()>,
}

impl<S: Stream> Turn<'_, S> {
    /// Sends a part of a reply.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.stream.send(bytes)
    }
}

impl<'a, S: Stream> Answers<'a, S> {
    /// Of a connection.
    pub fn new(stream: &'a S, structured: bool) -> Self {
        Self { stream, structured, turn: Mutex::new(()) }
    }

    /// Keeps everybody else from sending until it is dropped.
    pub fn turn(&self) -> Turn<'_, S> {
        Turn { stream: self.stream, _turn: self.turn.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Sends whole replies.
    pub fn send(&self, replies: &[u8]) -> io::Result<()> {
        self.turn().send(replies)
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
        self.begin_data(&mut head, request, offset, length, last, false);
        head
    }

    /// Appends the answer of a read, but for its data, and gives the room for that.
    pub fn begin_read<'r>(&self, replies: &'r mut Vec<u8>, request: &Request, length: usize) -> &'r mut [u8] {
        self.begin_data(replies, request, request.offset, length, true, true)
    }

    fn begin_data<'r>(
        &self,
        replies: &'r mut Vec<u8>,
        request: &Request,
        offset: u64,
        length: usize,
        last: bool,
        room: bool,
    ) -> &'r mut [u8] {
        if !self.structured {
            replies.extend_from_slice(&simple_reply(request.cookie, None));
        } else if length == 0 {
            // A piece of data has at least one byte.
            replies.extend_from_slice(&chunk_header(request.cookie, Chunk::None, true, 0));
        } else {
            replies.extend_from_slice(&chunk_header(request.cookie, Chunk::Data, last, 8 + length));
            replies.extend_from_slice(&offset.to_be_bytes());
        }
        let data = replies.len();
        replies.resize(data + if room { length } else { 0 }, 0);
        &mut replies[data..]
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
