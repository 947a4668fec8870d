//! What is done, made durable and then claimed in the journal: fdatasync of the partial file first, the claim after.
//!
//! A claim that lags is harmless, because cloning twice gives the same while the hold stands. The work is another thread's
//! business ([`Threaded`]); the simulation does it in line ([`Inline`]) to have the same order on every run.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::disk::DiskFile;
use crate::journal::file::Journal;
use crate::range::ByteRange;

/// The least time between two syncs. Lost work at a kill is at most this and [`SYNC_SHARE`] of the run.
const INTERVAL: Duration = Duration::from_secs(1);

/// Syncs may take one part in this many of the run: on Btrfs each writes all that was cloned since the transaction began.
const SYNC_SHARE: u32 = 20;

/// Ranges on their way to the journal's thread; a full queue makes the engine wait for a sync that is under way.
const QUEUE: usize = 4096;

/// Journal and partial file, with what is done and not yet claimed.
pub struct Recorder<F> {
    journal: Journal<F>,
    partial: Arc<F>,
    pending: Vec<ByteRange>,
}

impl<F: DiskFile> Recorder<F> {
    /// A recorder with nothing pending.
    pub fn new(journal: Journal<F>, partial: Arc<F>) -> Self {
        Self { journal, partial, pending: Vec::new() }
    }

    /// The range is cloned.
    pub fn note(&mut self, range: ByteRange) {
        if let Some(last) = self.pending.last_mut()
            && last.end() == range.start()
        {
            *last = ByteRange::new(last.start(), range.end()).expect("two ranges that meet make one");
            return;
        }
        self.pending.push(range);
    }

    /// Makes what is pending durable, then claims it.
    ///
    /// # Errors
    /// What syncing the partial file said. That the journal could not be written is no error: a claim less.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.partial.sync_data()?;
        match self.journal.append(&self.pending) {
            Ok(()) => self.pending.clear(),
            // On a full disk the claims wait for the next time, joined where they meet.
            Err(_) if self.pending.len() < QUEUE => {}
            Err(_) => self.pending.clear(),
        }
        Ok(())
    }
}

/// Where the engine sends what is done.
pub trait Claims<F> {
    /// The range is cloned. May wait for a sync that is under way, never for longer.
    fn done(&mut self, range: ByteRange);

    /// Whether syncing has failed: the job cannot be completed.
    fn failed(&self) -> bool;

    /// Ends the recording, with a last sync where `checkpoint` is set, and gives the journal back.
    ///
    /// # Errors
    /// Beside the journal: what syncing the partial file said at any time.
    fn finish(self: Box<Self>, checkpoint: bool) -> (Journal<F>, io::Result<()>);
}

/// How the engine gets its [`Claims`].
pub type MakeClaims<'a, F> = &'a dyn Fn(Recorder<F>) -> Box<dyn Claims<F>>;

/// Claims nothing and syncs nothing: where a point in time does not outlive the run, nothing could go on from a claim.
pub struct Unclaimed<F>(pub Journal<F>);

impl<F: DiskFile> Claims<F> for Unclaimed<F> {
    fn done(&mut self, _: ByteRange) {}

    fn failed(&self) -> bool {
        false
    }

    fn finish(self: Box<Self>, _: bool) -> (Journal<F>, io::Result<()>) {
        (self.0, Ok(()))
    }
}

/// Syncs in line, after every so many ranges.
pub struct Inline<F> {
    recorder: Recorder<F>,
    every: u32,
    since: u32,
    result: io::Result<()>,
}

impl<F: DiskFile> Inline<F> {
    /// Syncs after `every` ranges.
    pub fn new(recorder: Recorder<F>, every: u32) -> Self {
        Self { recorder, every, since: 0, result: Ok(()) }
    }
}

impl<F: DiskFile> Claims<F> for Inline<F> {
    fn done(&mut self, range: ByteRange) {
        self.recorder.note(range);
        self.since += 1;
        if self.since >= self.every && self.result.is_ok() {
            self.since = 0;
            self.result = self.recorder.sync();
        }
    }

    fn failed(&self) -> bool {
        self.result.is_err()
    }

    fn finish(mut self: Box<Self>, checkpoint: bool) -> (Journal<F>, io::Result<()>) {
        if checkpoint && self.result.is_ok() {
            self.result = self.recorder.sync();
        }
        (self.recorder.journal, self.result)
    }
}

/// Syncs on a thread of its own.
pub struct Threaded<F> {
    done: Sender<ByteRange>,
    thread: Thread<F>,
}

enum Thread<F> {
    Started(JoinHandle<(Recorder<F>, io::Result<()>)>),
    /// It could not be.
    Never(Box<Recorder<F>>),
}

impl<F: DiskFile + Send + Sync + 'static> Threaded<F> {
    /// Starts the thread.
    pub fn new(recorder: Recorder<F>) -> Self {
        let (done, ranges) = bounded(QUEUE);
        // Given to it when it is there: what a thread that cannot be started was to have is gone.
        let (give, given) = bounded(1);
        let work = move || record(given.recv().expect("it is given at once"), &ranges);
        let thread = match std::thread::Builder::new().name("claims".into()).spawn(work) {
            Ok(thread) => {
                let _ = give.send(recorder);
                Thread::Started(thread)
            }
            Err(_) => Thread::Never(Box::new(recorder)),
        };
        Self { done, thread }
    }
}

fn record<F: DiskFile>(mut recorder: Recorder<F>, ranges: &Receiver<ByteRange>) -> (Recorder<F>, io::Result<()>) {
    let mut due = Instant::now() + INTERVAL;
    loop {
        match ranges.recv_deadline(due) {
            Ok(range) => recorder.note(range),
            Err(RecvTimeoutError::Disconnected) => return (recorder, Ok(())),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() >= due {
            let began = Instant::now();
            // The thread's end closes the queue, which tells the engine.
            if let Err(error) = recorder.sync() {
                return (recorder, Err(error));
            }
            due = Instant::now() + INTERVAL.max(began.elapsed() * SYNC_SHARE);
        }
    }
}

impl<F: DiskFile + Send + Sync + 'static> Claims<F> for Threaded<F> {
    fn done(&mut self, range: ByteRange) {
        // A thread that has ended is seen by `failed`, and its error comes with `finish`.
        let _ = self.done.send(range);
    }

    fn failed(&self) -> bool {
        match &self.thread {
            Thread::Started(thread) => thread.is_finished(),
            Thread::Never(..) => true,
        }
    }

    fn finish(self: Box<Self>, checkpoint: bool) -> (Journal<F>, io::Result<()>) {
        drop(self.done);
        let (mut recorder, mut result) = match self.thread {
            Thread::Started(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Thread::Never(recorder) => (*recorder, Ok(())),
        };
        if checkpoint && result.is_ok() {
            result = recorder.sync();
        }
        (recorder.journal, result)
    }
}
