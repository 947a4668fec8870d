//! The guest that writes stamps: as many threads as asked, at random, until it is told to end.
//!
//! - `locks`: no sector has two operations under way.
//! - `pace`: no more operations than asked.
//! - `writer`: one thread; `ways`, the engines that it uses.
//! - `chain`: the writer of writes that depend on each other.

use std::ops::Range;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::image::Image;
use crate::log::format::State;
use crate::log::{Kind, Log, Subject};
use crate::pages::PAGE;
use crate::percentiles::{Percentiles, ms};
use crate::sector::SECTOR;
use crate::stop::Stop;

mod chain;
mod locks;
mod pace;
mod ways;
mod writer;

#[cfg(test)]
mod tests;

use chain::Chain;
use locks::Locks;
use pace::Pace;
pub use ways::Mode;
use writer::Writer;

/// What the guest is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The images.
    pub images: Vec<PathBuf>,
    /// The log's file.
    pub log: PathBuf,
    /// Go on with the log that is there, instead of making one.
    pub go_on: bool,
    /// One write at a time, to each image in turn.
    pub dependent: bool,
    /// How writes are made.
    pub mode: Mode,
    /// How many threads write.
    pub writers: u32,
    /// What chance begins with.
    pub seed: u64,
    /// The bytes of each image that are written to.
    pub span: Range<u64>,
    /// The longest write, in bytes.
    pub max_write: u64,
    /// How many writes a thread of libaio or io_uring has under way.
    pub depth: usize,
    /// The most operations a second, of all threads together.
    pub rate: Option<u64>,
    /// The longest it goes on.
    pub longest: Option<Duration>,
    /// How often each image is flushed.
    pub flush_every: Option<Duration>,
}

/// What the guest felt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Operations that failed, or of which a part was done.
    pub errors: u64,
    /// What the writes and punches took.
    pub operations: Percentiles,
    /// What the flushes took.
    pub flushes: Percentiles,
}

impl Outcome {
    fn of(log: &Log) -> Self {
        let mut errors = 0;
        let (mut operations, mut flushes) = (Vec::new(), Vec::new());
        for record in log.records() {
            errors += u64::from(record.state == State::Failed);
            let list = if record.kind == Kind::Flush { &mut flushes } else { &mut operations };
            list.push(record.end.saturating_sub(record.start));
        }
        Self { errors, operations: Percentiles::of(operations), flushes: Percentiles::of(flushes) }
    }

    /// As one line of JSON.
    pub fn json(&self) -> String {
        let Self { errors, operations, flushes } = self;
        format!(
            "{{\"operations\":{},\"errors\":{errors},\"longest_ms\":{},\"p99_ms\":{},\"p999_ms\":{},\"flushes\":{},\
             \"longest_flush_ms\":{}}}",
            operations.count,
            ms(operations.longest),
            ms(operations.p99),
            ms(operations.p999),
            flushes.count,
            ms(flushes.longest),
        )
    }
}

/// Writes until `stop` is asked, or the time is over. `ready` is called when the images are open, the first pass is made, and
/// the writers are about to begin.
///
/// # Errors
/// What opening and the first pass say; a log that is full; an engine that the kernel does not give. An operation that fails is
/// none: it is logged and counted.
pub fn run(options: &Options, stop: &Stop, ready: impl FnOnce()) -> Result<Outcome> {
    let (cached, direct) = options.mode.needs();
    let open = |path: &PathBuf| Image::open(path, cached, direct);
    let images = options.images.iter().map(open).collect::<Result<Vec<Image>>>()?;
    let subjects: Vec<Subject> = images.iter().map(Image::subject).collect();
    let log = if options.go_on {
        Log::open(&options.log, &subjects, options.dependent)?
    } else {
        let log = Log::create(&options.log, &subjects, options.dependent)?;
        for (number, image) in (0..).zip(&images) {
            log.set_base(number, &image.first_pass()?);
        }
        log
    };
    let locks: Vec<Locks> = images.iter().map(|image| Locks::new(image.size() / SECTOR as u64)).collect();
    let works = works(options, &images, &log, &locks, stop)?;
    // What the engines do not need is not open: with registered files nothing is but the ring.
    drop(images);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for work in works {
            threads.push(scope.spawn(move || {
                let _end = stop.ask_when_dropped();
                work()
            }));
        }
        ready();
        stop.wait(options.longest);
        stop.ask();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("a writer panicked")))
        };
        // All are waited for, whatever the first one says.
        let ended: Vec<Result<()>> = threads.into_iter().map(join).collect();
        ended.into_iter().collect::<Result<()>>()
    })?;
    let outcome = Outcome::of(&log);
    log.close()?;
    Ok(outcome)
}

/// What one thread does until it is to stop.
type Work<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

fn works<'a>(
    options: &Options,
    images: &[Image],
    log: &'a Log,
    locks: &'a [Locks],
    stop: &'a Stop,
) -> Result<Vec<Work<'a>>> {
    let mut works: Vec<Work<'a>> = Vec::new();
    let threads = if options.dependent { 1 } else { options.writers };
    ensure!(threads as usize >= images.len() || options.dependent, "as many writers as images, or more");
    if options.dependent {
        let chain = Chain::new(options, images, log, stop)?;
        works.push(Box::new(move || chain.run()));
    } else {
        for id in 0..threads {
            let number = id as usize % images.len();
            let ways = ways::open(options, &images[number])?;
            let pace = Pace::new(options.rate, threads);
            let mut writer = Writer::new(id, number as u16, options, ways, pace, log, &locks[number], stop);
            works.push(Box::new(move || writer.run()));
        }
    }
    if let Some(every) = options.flush_every {
        let files = images.iter().map(Image::any_handle).collect::<Result<Vec<_>>>()?;
        works.push(Box::new(move || {
            while !stop.wait(Some(every)) {
                for (image, file) in (0..).zip(&files) {
                    let generation = log.take()?;
                    log.begin(generation, Kind::Flush, image, threads, &(0..0));
                    log.end(generation, file.sync_data().is_ok());
                }
            }
            Ok(())
        }));
    }
    Ok(works)
}

/// The part of an image that is written to, in whole `unit`s.
fn region(options: &Options, image: &Image, unit: u64) -> Result<Range<u64>> {
    let end = options.span.end.min(image.size()) / unit * unit;
    let region = options.span.start.next_multiple_of(unit)..end;
    if region.is_empty() {
        bail!("the span has nothing of {}", image.path().display());
    }
    Ok(region)
}

/// The alignment of offsets and lengths, in bytes: a sector through the page cache, a page past it.
fn unit(direct: bool) -> u64 {
    if direct { PAGE as u64 } else { SECTOR as u64 }
}

/// A buffer's size, in bytes.
fn buffer_size(options: &Options) -> Result<usize> {
    let size = usize::try_from(options.max_write).context("too long a write")?;
    Ok(size.max(PAGE).next_multiple_of(PAGE))
}
