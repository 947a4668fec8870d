//! Those who wait for the disk, so that the requests of others need not.

use std::io;
use std::time::Duration;

use super::answers::{Answers, told};
use super::{PIECE, Stream, pieces};
use crate::serve::buffers::{Buffer, Buffers};
use crate::serve::codec::{Chunk, Command, Request, chunk_header, error_chunk, simple_reply, status_chunk};
use crate::serve::device::Device;
use crate::threads::{Builder, Condvar, Instant, Mutex, MutexGuard, PoisonError, Receiver, Scope, Sender, bounded};

/// The most requests of one connection that wait for the disk, or for a job's clone, at the same time: as many as a QEMU has on the way
/// (`MAX_NBD_REQUESTS` of its block/nbd.c), so that all of them wait beside one another, and the deadline of each begins when it comes.
pub(super) const THREADS: usize = 16;

/// The bytes of one connection's requests that are in memory because the disk is waited for, whatever others have there. More of them are where
/// these take long, as long as all have little ([`Buffers::lend`]).
const BYTES: usize = 2 * PIECE;

/// What is longer than a disk takes that is not waited for: four long writes at a time on XFS take longer than two, since one of them has the file.
const LONG: Duration = Duration::from_millis(5);

/// The most extents of a context in one reply.
const EXTENTS: usize = 2048;

/// A request that may wait.
pub struct Job {
    /// What it asks for.
    pub request: Request,
    /// The same, checked.
    pub command: Command,
    /// A write's.
    pub data: Option<Buffer>,
}

impl Job {
    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        match self.command {
            Command::Read => (self.request.length as usize).min(PIECE),
            Command::Write => self.request.payload as usize,
            _ => 0,
        }
    }
}

/// The threads of a connection that may wait. They end with it, when they have done what they were given.
pub struct Pool<'s, 'e, S> {
    scope: &'s Scope<'s, 'e>,
    worker: &'e Worker<'e, S>,
    /// Nothing lies in it: a job is given to somebody who waits for one.
    queue: Sender<Job>,
    jobs: Receiver<Job>,
    started: usize,
}

impl<'s, 'e, S: Stream> Pool<'s, 'e, S> {
    /// None yet.
    pub fn new(scope: &'s Scope<'s, 'e>, worker: &'e Worker<'e, S>) -> Self {
        let (queue, jobs) = bounded(THREADS);
        Self { scope, worker, queue, jobs, started: 0 }
    }

    /// Makes room for a job of so many bytes, which is to be given next, if that takes no waiting for another one's end; whether it did.
    pub fn try_reserve(&mut self, bytes: usize) -> bool {
        self.worker.load().take(bytes, None)
    }

    /// The same, and waits; for more than what is its own where the others take long.
    pub fn reserve(&mut self, bytes: usize) {
        let until = Instant::now() + LONG;
        let mut load = self.worker.load();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if load.take(bytes, left.is_zero().then_some(self.worker.buffers)) {
                return;
            }
            load = if left.is_zero() {
                self.worker.done.wait(load).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.worker.done.wait_timeout(load, left).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    /// Gives a job to one of them, for which there is room.
    pub fn give(&mut self, job: Job) {
        // This one is in the load already.
        let waiting = self.started - (self.worker.load().jobs - 1);
        if waiting == 0 {
            let (worker, jobs) = (self.worker, self.jobs.clone());
            let thread = Builder::new().name("disk".into());
            if thread.spawn_scoped(self.scope, move || jobs.iter().for_each(|job| worker.work(job))).is_err() {
                // Slower, and no less right.
                return self.worker.work(job);
            }
            self.started += 1;
        }
        // Somebody waits for it, or is about to.
        let _ = self.queue.send(job);
    }
}

/// What a connection's requests that wait take, together.
#[derive(Debug, Default)]
pub struct Load {
    jobs: usize,
    bytes: usize,
    /// Those of them that are not its own.
    lent: usize,
}

impl Load {
    /// Takes room for a job, if there is any: always, where there is nothing, since no job has more than [`PIECE`] bytes. `lender`: whoever may
    /// have more than what is its own.
    fn take(&mut self, bytes: usize, lender: Option<&Buffers>) -> bool {
        let more = (self.bytes + bytes).saturating_sub(BYTES).saturating_sub(self.lent);
        if self.jobs >= THREADS || (more > 0 && !lender.is_some_and(|buffers| buffers.lend(more))) {
            return false;
        }
        self.jobs += 1;
        self.bytes += bytes;
        self.lent += more;
        true
    }

    fn give_back(&mut self, bytes: usize, buffers: &Buffers) {
        self.jobs -= 1;
        self.bytes -= bytes;
        let lent = self.lent.min(self.bytes.saturating_sub(BYTES));
        if lent < self.lent {
            buffers.take_back(self.lent - lent);
            self.lent = lent;
        }
    }
}

impl<S> Drop for Worker<'_, S> {
    /// What the client has gone in the middle of was never given to anybody.
    fn drop(&mut self) {
        let left = self.load.get_mut().unwrap_or_else(PoisonError::into_inner).lent;
        self.buffers.take_back(left);
    }
}

/// How a request that may wait is done and answered.
pub struct Worker<'a, S> {
    /// The disk.
    pub device: &'a dyn Device,
    /// Where the replies go.
    pub answers: &'a Answers<'a, S>,
    /// The contexts that the client asks for.
    pub contexts: &'a [u32],
    /// Memory.
    pub buffers: &'a Buffers,
    load: Mutex<Load>,
    /// Told whenever a job is done.
    done: Condvar,
}

impl<'a, S: Stream> Worker<'a, S> {
    /// With nothing to do.
    pub fn new(device: &'a dyn Device, answers: &'a Answers<'a, S>, contexts: &'a [u32], buffers: &'a Buffers) -> Self {
        Self { device, answers, contexts, buffers, load: Mutex::default(), done: Condvar::new() }
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, mut job: Job) {
        if self.answer(&job).is_err() {
            // The connection's own thread learns of it.
            self.answers.stream.close();
        }
        job.data.take().into_iter().for_each(|buffer| self.buffers.give(buffer));
        self.load().give_back(job.bytes(), self.buffers);
        self.done.notify_one();
    }

    fn answer(&self, job: &Job) -> io::Result<()> {
        let request = &job.request;
        let (offset, length) = (request.offset, u64::from(request.length));
        let flags = request.flags;
        let mut done = match job.command {
            Command::Read => return self.read(request),
            Command::BlockStatus => return self.status(request),
            Command::Write => {
                let data = job.data.as_ref().map_or(&[][..], |buffer| buffer.filled(request.payload as usize));
                self.device.write(data, offset)
            }
            Command::Trim => self.device.trim(offset, length),
            Command::WriteZeroes => self.device.zero(offset, length, flags.no_hole(), flags.fast_zero()),
            Command::Cache => self.device.cache(offset, length),
            Command::Flush => self.device.flush(),
            Command::Disconnect => Ok(()),
        };
        if flags.fua() && job.command.writes() {
            done = done.and_then(|()| self.device.flush());
        }
        let mut reply = Vec::new();
        self.answers.ended(&mut reply, *request, done);
        self.answers.send(&reply)
    }

    fn read(&self, request: &Request) -> io::Result<()> {
        match (self.answers.structured, request.flags.df()) {
            (true, false) => self.read_in_chunks(request),
            _ if request.length as usize <= PIECE => self.read_in_chunks(request),
            (structured, _) => self.read_in_one(request, structured),
        }
    }

    /// A chunk for each piece. What comes in one piece needs no structured replies.
    fn read_in_chunks(&self, request: &Request) -> io::Result<()> {
        let (mut offset, end) = (request.offset, request.offset + u64::from(request.length));
        if request.length == 0 {
            return self.answers.send(&self.answers.head(request, offset, 0, true));
        }
        let mut buffer = self.buffers.take((request.length as usize).min(PIECE));
        for piece in pieces(request.length) {
            let last = offset + piece as u64 == end;
            if let Err(error) = self.device.read(buffer.data(piece), offset) {
                let mut reply = Vec::new();
                self.answers.failed(&mut reply, *request, told(&error), &error.to_string());
                self.answers.send(&reply)?;
                break;
            }
            let head = self.answers.head(request, offset, piece, last);
            self.answers.send(buffer.behind(&head, piece))?;
            offset += piece as u64;
        }
        self.buffers.give(buffer);
        Ok(())
    }

    /// One reply that is longer than what may be in memory, with nothing between its pieces. The success is told before the first
    /// one is read: an error in the middle is an error behind zeroes, or for a simple reply, which knows no such thing, the end.
    fn read_in_one(&self, request: &Request, structured: bool) -> io::Result<()> {
        let turn = self.answers.turn();
        let mut offset = request.offset;
        let mut failed = None;
        if structured {
            let length = 8 + request.length as usize;
            turn.send(&chunk_header(request.cookie, Chunk::Data, false, length))?;
            turn.send(&offset.to_be_bytes())?;
        } else {
            turn.send(&simple_reply(request.cookie, None))?;
        }
        let mut buffer = self.buffers.take(PIECE);
        for piece in pieces(request.length) {
            let data = buffer.data(piece);
            if failed.is_none() {
                failed = self.device.read(data, offset).err();
            }
            match &failed {
                Some(_) if structured => data.fill(0),
                Some(error) => return Err(io::Error::new(error.kind(), error.to_string())),
                None => {}
            }
            turn.send(data)?;
            offset += piece as u64;
        }
        self.buffers.give(buffer);
        match failed {
            _ if !structured => Ok(()),
            Some(error) => turn.send(&error_chunk(request.cookie, told(&error), &error.to_string())),
            None => turn.send(&chunk_header(request.cookie, Chunk::None, true, 0)),
        }
    }

    fn status(&self, request: &Request) -> io::Result<()> {
        let most = if request.flags.req_one() { 1 } else { EXTENTS };
        let mut reply = Vec::new();
        for (nth, context) in self.contexts.iter().enumerate() {
            let last = nth + 1 == self.contexts.len();
            match self.device.extents(*context, request.offset, request.length, most) {
                Ok(extents) => reply.extend(status_chunk(request.cookie, last, *context, &extents)),
                Err(error) => {
                    reply.clear();
                    self.answers.failed(&mut reply, *request, told(&error), &error.to_string());
                    break;
                }
            }
        }
        if reply.is_empty() {
            // Nothing was selected that could be asked for.
            self.answers.failed(
                &mut reply,
                *request,
                crate::serve::codec::Errno::Inval,
                "no metadata context was selected",
            );
        }
        self.answers.send(&reply)
    }
}
