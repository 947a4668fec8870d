//! What a client has sent and nobody has looked at yet.

use std::io::{self, ErrorKind};

use super::Stream;

/// Bytes that are read at once: as many requests as a client has on the way, or a few writes.
const AT_ONCE: usize = 128 << 10;

/// The bytes, in one piece.
pub struct Input<'a, S> {
    stream: &'a S,
    bytes: Vec<u8>,
    /// Where those begin that were not taken, and where they end.
    have: std::ops::Range<usize>,
}

impl<'a, S: Stream> Input<'a, S> {
    /// Nothing yet.
    pub fn new(stream: &'a S) -> Self {
        Self { stream, bytes: Vec::new(), have: 0..0 }
    }

    /// Whether so many bytes can be taken.
    pub fn has(&self, bytes: usize) -> bool {
        self.have.len() >= bytes
    }

    /// Waits until so many bytes can be taken; false where the client has gone between two messages.
    ///
    /// # Errors
    /// UnexpectedEof where it has gone within one; the transport's.
    pub fn fill(&mut self, bytes: usize) -> io::Result<bool> {
        while !self.has(bytes) {
            self.make_room(bytes);
            match self.stream.receive(&mut self.bytes[self.have.end..]) {
                Ok(0) if self.have.is_empty() => return Ok(false),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(got) => self.have.end += got,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Takes bytes that are there.
    pub fn take(&mut self, bytes: usize) -> &[u8] {
        let from = self.have.start;
        self.have.start += bytes;
        &self.bytes[from..self.have.start]
    }

    /// Makes room behind what is there: for `bytes` from its beginning, and for at least one more.
    fn make_room(&mut self, bytes: usize) {
        let wanted = bytes.max(AT_ONCE);
        if self.have.start + wanted > self.bytes.len() {
            self.bytes.copy_within(self.have.clone(), 0);
            self.have = 0..self.have.len();
        }
        if wanted > self.bytes.len() {
            self.bytes.resize(wanted, 0);
        }
    }
}
