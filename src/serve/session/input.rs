//! What a client has sent and nobody has looked at yet.

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::Stream;
use crate::threads::Instant;

/// Bytes that are read at once: as many requests as a client has on the way, or a few writes.
const AT_ONCE: usize = 128 << 10;

/// The bytes, in one piece.
pub struct Input<'a, S> {
    stream: &'a S,
    bytes: Vec<u8>,
    /// Where those begin that were not taken, and where they end.
    have: std::ops::Range<usize>,
    /// When the client's time is up.
    until: Option<Instant>,
}

impl<'a, S: Stream> Input<'a, S> {
    /// Nothing yet.
    pub fn new(stream: &'a S) -> Self {
        Self { stream, bytes: Vec::new(), have: 0..0, until: None }
    }

    /// From now on the client has this much time for all that it sends; for ever with `None`.
    ///
    /// # Errors
    /// The transport's.
    pub fn limit(&mut self, time: Option<Duration>) -> io::Result<()> {
        self.until = time.map(|time| Instant::now() + time);
        self.stream.patience(time)
    }

    /// Whether so many bytes can be taken.
    pub fn has(&self, bytes: usize) -> bool {
        self.have.len() >= bytes
    }

    /// Waits until so many bytes can be taken; false where the client has gone between two messages.
    ///
    /// # Errors
    /// UnexpectedEof where it has gone within one; TimedOut or WouldBlock where its time is up; the transport's.
    pub fn fill(&mut self, bytes: usize) -> io::Result<bool> {
        while !self.has(bytes) {
            self.make_room(bytes);
            if let Some(until) = self.until {
                // One that sends a byte now and then has no more time than one that sends nothing.
                match until.saturating_duration_since(Instant::now()) {
                    Duration::ZERO => return Err(ErrorKind::TimedOut.into()),
                    left => self.stream.patience(Some(left))?,
                }
            }
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

    /// Takes what is there, at most as much as this has room for; how much.
    pub fn take_some(&mut self, into: &mut [u8]) -> usize {
        let length = into.len().min(self.have.len());
        into[..length].copy_from_slice(self.take(length));
        length
    }

    /// Waits for bytes that come after all that was taken, and fills this with them.
    ///
    /// # Errors
    /// UnexpectedEof where the client has gone; the transport's.
    pub fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut have = 0;
        while have < into.len() {
            match self.stream.receive(&mut into[have..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(got) => have += got,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
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
