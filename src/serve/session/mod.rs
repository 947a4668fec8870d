//! One client, from its first byte to its last.
//!
//! The thread that has the connection does itself what is small and takes no waiting (data that is in memory), and sends the replies
//! of a few requests that came together with one call, so that the client has something to do meanwhile; what is large, or has to wait
//! for the disk, is done by a pool of threads, which has none until they are needed, and which send their own replies.
//!
//! | who | holds | while |
//! |---|---|---|
//! | the connection's thread | nothing | it waits for a request: its replies were sent before |
//! | whoever sends | the turn to send | one reply, or all that were collected, is on its way |
//! | a thread of the pool | at most 1 MiB | it reads or writes |
//!
//! A client that does not read its replies stops its own session and nobody else's.

mod answers;
mod input;
mod pool;
mod quick;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use super::buffers::{self, Buffers};
use super::codec::{Broken, Command, OptionHeader, REQUEST, Request, hello, parse_hello, transmission};
use super::device::Device;
use super::negotiation::{Agreed, Exports, Negotiation, Next, Offer};
use crate::threads::scope;
use answers::Answers;
use input::Input;
use pool::{Job, Pool, Worker};
use quick::Quick;

/// How long a client may take to choose an export: it has one of a bounded number of places. A VM that has its disk
/// may be silent for as long as it likes.
const PATIENCE: Duration = Duration::from_secs(10);

/// How it looks where a client is gone.
const HANGS_UP: [ErrorKind; 3] = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof];

/// The most bytes that are in memory for one request; longer ones are done piece by piece.
const PIECE: usize = buffers::LARGE;

/// The most bytes of a request that the connection's thread does itself: with more, copying them takes longer than handing them on.
const INLINE: usize = buffers::SMALL;

/// The most replies that are sent together: with 32 requests on the way 4 were better than 2 and 8 on either side, reading and writing, and a
/// third better than all (BENCHMARKS.md): the client reads them while the next ones are done.
const TOGETHER: usize = 4;

/// Replies are sent at the latest when so many bytes were collected.
const COLLECTED: usize = 128 << 10;

/// A connection: `&S` is read by one thread, and written by one at a time.
pub trait Stream: Send + Sync {
    /// Reads some bytes; none at the end.
    ///
    /// # Errors
    /// The transport's.
    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize>;

    /// Writes all of these.
    ///
    /// # Errors
    /// The transport's.
    fn send(&self, bytes: &[u8]) -> io::Result<()>;

    /// How long [`Stream::receive`] and [`Stream::send`] may wait; for ever with `None`.
    ///
    /// # Errors
    /// The transport's.
    fn patience(&self, limit: Option<Duration>) -> io::Result<()>;

    /// Ends both directions, also for who waits in one.
    fn close(&self);
}

impl Stream for std::os::unix::net::UnixStream {
    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut stream = self;
        stream.read(bytes)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stream = self;
        stream.write_all(bytes)
    }

    fn patience(&self, limit: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(limit)?;
        self.set_write_timeout(limit)
    }

    fn close(&self) {
        // One that is closed already.
        let _ = self.shutdown(std::net::Shutdown::Both);
    }
}

/// Exports with the disks behind them.
pub trait Shelf: Exports {
    /// The disk of an export that was offered; `None` where it is gone since.
    ///
    /// # Errors
    /// What the kernel says of it.
    fn open(&self, offer: &Offer) -> io::Result<Option<Arc<dyn Device>>>;
}

/// Serves a client until it goes.
///
/// # Errors
/// Where it does not speak NBD, or the connection fails: for a log, for nobody else is concerned.
pub fn serve(stream: &impl Stream, shelf: &impl Shelf, buffers: &Buffers) -> io::Result<()> {
    let ended = match negotiate(stream, shelf) {
        Ok(Some((agreed, input))) => {
            let device = shelf.open(&agreed.offer);
            device
                .and_then(|device| device.map_or(Ok(()), |device| transmit(stream, input, &agreed, &*device, buffers)))
        }
        Ok(None) => Ok(()),
        // Somebody who only looks whether a server is there.
        Err(e) if HANGS_UP.contains(&e.kind()) => Ok(()),
        Err(e) => Err(e),
    };
    stream.close();
    ended
}

fn negotiate<'a, S: Stream>(stream: &'a S, shelf: &impl Exports) -> io::Result<Option<(Agreed, Input<'a, S>)>> {
    let mut input = Input::new(stream);
    input.limit(Some(PATIENCE))?;
    stream.send(&hello())?;
    if !input.fill(4)? {
        return Ok(None);
    }
    let zeroes = parse_hello(input.take(4).try_into().expect("four bytes")).map_err(broken)?;
    let mut negotiation = Negotiation::new(zeroes);
    while input.fill(OptionHeader::BYTES)? {
        let header = input.take(OptionHeader::BYTES).try_into().expect("the bytes of a header");
        let header = OptionHeader::parse(header).map_err(broken)?;
        if !input.fill(header.length as usize)? {
            break;
        }
        let data = input.take(header.length as usize);
        let (answer, next) = negotiation.step(header.option, data, shelf);
        stream.send(&answer)?;
        match next {
            Next::Option => {}
            Next::Transmission(agreed) => {
                input.limit(None)?;
                return Ok(Some((*agreed, input)));
            }
            Next::End => break,
        }
    }
    Ok(None)
}

fn broken(why: Broken) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn transmit<S: Stream>(
    stream: &S,
    input: Input<'_, S>,
    agreed: &Agreed,
    device: &dyn Device,
    buffers: &Buffers,
) -> io::Result<()> {
    let answers = Answers::new(stream, agreed.structured);
    let worker = Worker::new(device, &answers, &agreed.contexts, buffers);
    scope(|scope| {
        let pool = Pool::new(scope, &worker);
        let replies = Replies { bytes: Vec::new(), count: 0 };
        let ended = Session { input, agreed, worker: &worker, pool, replies, quick: Quick::default() }.run();
        // Nor shall the pool wait for a client that is not listened to any more; but one that says no more may still listen, as at the
        // server's end.
        if ended.as_ref().is_err_and(|e| e.kind() != ErrorKind::UnexpectedEof) {
            stream.close();
        }
        ended
    })
}

struct Replies {
    bytes: Vec<u8>,
    count: usize,
}

struct Session<'s, 'e, S> {
    input: Input<'s, S>,
    agreed: &'e Agreed,
    worker: &'e Worker<'e, S>,
    pool: Pool<'s, 'e, S>,
    /// Replies that nobody has sent yet.
    replies: Replies,
    /// What takes no waiting.
    quick: Quick,
}

impl<S: Stream> Session<'_, '_, S> {
    fn run(mut self) -> io::Result<()> {
        while self.have(REQUEST)? {
            let header = self.input.take(REQUEST).try_into().expect("the bytes of a request");
            let request = Request::parse(header).map_err(broken)?;
            let checked = request.check(self.agreed.offer.size, self.agreed.offer.flags & transmission::READ_ONLY != 0);
            match checked {
                Ok(Command::Disconnect) => break,
                Ok(Command::Write) => self.write(&request)?,
                Err(error) => {
                    self.skip(request.payload)?;
                    self.worker.answers.failed(&mut self.replies.bytes, request, error, "");
                }
                Ok(Command::Read) if self.read_now(&request) => {}
                Ok(command) => self.pass_on(Job { request, command, data: None })?,
            }
            self.replies.count += 1;
            if self.replies.count >= TOGETHER || self.replies.bytes.len() >= COLLECTED {
                self.send()?;
            }
        }
        self.send()
    }

    /// Whether so many bytes are there; none come any more where not. Nobody waits for this with unsent replies.
    fn have(&mut self, bytes: usize) -> io::Result<bool> {
        if !self.input.has(bytes) {
            self.send()?;
        }
        self.input.fill(bytes)
    }

    fn have_payload(&mut self, bytes: usize) -> io::Result<()> {
        if self.have(bytes)? { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    fn send(&mut self) -> io::Result<()> {
        self.replies.count = 0;
        if !self.replies.bytes.is_empty() {
            self.worker.answers.send(&self.replies.bytes)?;
            self.replies.bytes.clear();
        }
        Ok(())
    }

    fn pass_on(&mut self, job: Job) -> io::Result<()> {
        self.reserve(job.bytes())?;
        self.pool.give(job);
        Ok(())
    }

    /// Makes room in the pool for a job of so many bytes.
    fn reserve(&mut self, bytes: usize) -> io::Result<()> {
        if !self.pool.try_reserve(bytes) {
            self.send()?;
            self.pool.reserve(bytes);
        }
        Ok(())
    }

    /// Fills memory with what comes next.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
        let there = self.input.take_some(into);
        if there < into.len() {
            self.send()?;
            self.input.receive(&mut into[there..])?;
        }
        Ok(())
    }

    /// Takes the payload of a request that has failed off the wire.
    fn skip(&mut self, payload: u32) -> io::Result<()> {
        let mut left = payload as usize;
        while left > 0 {
            let piece = left.min(INLINE);
            self.have_payload(piece)?;
            self.input.take(piece);
            left -= piece;
        }
        Ok(())
    }

    fn write(&mut self, request: &Request) -> io::Result<()> {
        if request.payload as usize > PIECE {
            return self.write_in_pieces(request);
        }
        if request.payload as usize > INLINE {
            return self.write_from_buffer(request);
        }
        self.have_payload(request.payload as usize)?;
        let data = self.input.take(request.payload as usize);
        let device = self.worker.device;
        if !request.flags.fua() && self.quick.attempt(|| device.write_now(data, request.offset)) {
            self.worker.answers.done(&mut self.replies.bytes, request);
            return Ok(());
        }
        let mut buffer = self.worker.buffers.take(data.len());
        buffer.data(data.len()).copy_from_slice(data);
        self.pass_on(Job { request: *request, command: Command::Write, data: Some(buffer) })
    }

    /// What is large comes to where it is written from, and the next request is heard meanwhile.
    fn write_from_buffer(&mut self, request: &Request) -> io::Result<()> {
        let length = request.payload as usize;
        self.reserve(length)?;
        let mut buffer = self.worker.buffers.take(length);
        self.receive(buffer.data(length))?;
        self.pool.give(Job { request: *request, command: Command::Write, data: Some(buffer) });
        Ok(())
    }

    /// What does not fit into memory is written as it comes.
    fn write_in_pieces(&mut self, request: &Request) -> io::Result<()> {
        let (mut offset, mut done, mut waited) = (request.offset, Ok(()), Duration::ZERO);
        let mut buffer = self.worker.buffers.take(PIECE);
        for piece in pieces(request.payload) {
            self.receive(buffer.data(piece))?;
            done = done.and_then(|()| self.worker.device.write_part(buffer.filled(piece), offset, &mut waited));
            offset += piece as u64;
        }
        self.worker.buffers.give(buffer);
        if request.flags.fua() {
            done = done.and_then(|()| self.worker.device.flush());
        }
        self.worker.answers.ended(&mut self.replies.bytes, *request, done);
        Ok(())
    }

    /// Answers a read from memory; false where that cannot be.
    fn read_now(&mut self, request: &Request) -> bool {
        let length = request.length as usize;
        let device = self.worker.device;
        if length > INLINE || !device.has_memory() || !self.quick.is_tried() {
            return false;
        }
        let before = self.replies.bytes.len();
        let data = self.worker.answers.begin_read(&mut self.replies.bytes, request, length);
        let read = length == 0 || self.quick.attempt(|| device.read_now(data, request.offset));
        if !read {
            self.replies.bytes.truncate(before);
        }
        read
    }
}

/// The lengths of the pieces of so many bytes.
fn pieces(bytes: u32) -> impl Iterator<Item = usize> {
    let bytes = bytes as usize;
    (0..bytes).step_by(PIECE).map(move |from| (bytes - from).min(PIECE))
}
