//! What a guest feels: a thread that reads, one or more that write and one that flushes, with a clock beside every access.
//!
//! The reader and the writer each have one access of 4 KiB under way, at random places, as fast as it goes or once every so
//! often. So an access that takes a second keeps others from being made, and a plain percentile would count it once beside
//! thousands of short ones. For paced threads the summary makes up for that ([`summary`]); for threads that go as fast as they can there
//! is no number of accesses that should have been, and the longest access, per time slot, is the figure to look at.
//!
//! - [`access`]: one access, in two words.
//! - [`mod@file`]: the file that they are logged to, mapped into memory; nothing is written to it while the clock runs.
//! - [`summary`]: figures of a stretch of time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::clock;
use crate::image::Image;
use crate::pages::{PAGE, Pages};
use crate::random::Random;
use crate::sector::{self, SECTOR};
use crate::stop::Stop;

pub mod access;
pub mod file;
pub mod summary;

#[cfg(test)]
mod tests;

pub use access::{Access, Kind};
pub use file::{Recorder, read};
pub use summary::Accesses;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The image. What is written to it are stamps of generation 0: where [`fill`](crate::fill) made it, nothing changes.
    pub image: PathBuf,
    /// The file that the accesses are logged to.
    pub out: PathBuf,
    /// Through the page cache.
    pub buffered: bool,
    /// How many threads write: none beside a [`stamp`](crate::stamp) of the same image, whose stamps they would overwrite.
    pub writers: u32,
    /// From the start of a read or a write to the next; nothing for as fast as it goes.
    pub every: Option<Duration>,
    /// From the start of a flush to the next.
    pub flush_every: Duration,
    /// What chance begins with.
    pub seed: u64,
    /// The longest it goes on.
    pub longest: Option<Duration>,
}

/// Accesses the image until `stop` is asked, or the time is over. `ready` is called when the image and the log are open.
///
/// # Errors
/// What opening says; a log that is full. An access that fails is none: it is logged as such.
pub fn run(options: &Options, stop: &Stop, ready: impl FnOnce()) -> Result<Accesses> {
    let image = Image::open(&options.image, options.buffered, !options.buffered)?;
    let recorder = Recorder::create(&options.out, options.every, options.flush_every)?;
    let handle = || image.any_handle();
    let probe = |kind, file, every| Probe { kind, file, every, size: image.size(), stop, recorder: &recorder };
    let mut probes =
        vec![probe(Kind::Read, handle()?, options.every), probe(Kind::Flush, handle()?, Some(options.flush_every))];
    for _ in 0..options.writers {
        probes.push(probe(Kind::Write, handle()?, options.every));
    }
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, probe) in probes.into_iter().enumerate() {
            let random = Random::new(options.seed ^ (probe.kind as u64) << 32 ^ (number as u64) << 40);
            threads.push(scope.spawn(move || {
                let _end = stop.ask_when_dropped();
                probe.run(random)
            }));
        }
        ready();
        stop.wait(options.longest);
        stop.ask();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("a probe panicked")))
        };
        // All are waited for, whatever the first one says.
        let ended: Vec<Result<()>> = threads.into_iter().map(join).collect();
        ended.into_iter().collect::<Result<()>>()
    })?;
    recorder.close()?;
    read(&options.out)
}

/// One of the threads.
struct Probe<'a> {
    kind: Kind,
    file: File,
    every: Option<Duration>,
    size: u64,
    stop: &'a Stop,
    recorder: &'a Recorder,
}

impl Probe<'_> {
    fn run(&self, mut random: Random) -> Result<()> {
        let mut pages = Pages::new(PAGE);
        let blocks = self.size.div_ceil(PAGE as u64);
        let mut complained = false;
        while !self.stop.asked() {
            let offset = random.below(blocks) * PAGE as u64;
            let length = (self.size - offset).min(PAGE as u64) as usize;
            let block = &mut pages.bytes_mut()[..length];
            if self.kind == Kind::Write {
                sector::put_all(block, offset / SECTOR as u64, 0, 0);
            }
            let start = clock::now();
            let result = self.access(block, offset);
            let took = clock::now() - start;
            self.recorder.add(Access::new(self.kind, start, took, result.is_err())).context("log an access")?;
            if let Err(error) = result
                && !std::mem::replace(&mut complained, true)
            {
                eprintln!("{} at {offset}: {error}; further errors are counted only", self.kind.word());
            }
            if let Some(every) = self.every {
                self.stop.wait(Some(every.saturating_sub(Duration::from_nanos(took))));
            }
        }
        Ok(())
    }

    fn access(&self, block: &mut [u8], offset: u64) -> io::Result<()> {
        match self.kind {
            Kind::Read => self.file.read_exact_at(block, offset),
            Kind::Write => self.file.write_all_at(block, offset),
            Kind::Flush => self.file.sync_data(),
        }
    }
}
