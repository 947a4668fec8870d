//! The writer's side of the log.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};

use super::format::{HEADER, Kind, Layout, MOST_IMAGES, RECORD, RECORD_WORDS, Record, State, Subject};
use super::history::History;
use crate::bits::Bits;
use crate::clock;
use crate::sys::mapping::Mapping;

/// How many operations a log holds: at 50,000 a second those of twenty minutes, in 3 GiB.
pub const CAPACITY: u64 = 64 << 20;

/// A log being written, by any number of threads.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    mapping: Mapping,
    layout: Layout,
    next: AtomicU64,
    first: u64,
    capacity: u64,
}

impl Log {
    /// Makes a log of operations on these images, in place of any file that is there. No sector has a stamp, until
    /// [`Log::set_base`] says so.
    ///
    /// # Errors
    /// What making and mapping the file says; more images than a header holds.
    pub fn create(path: &Path, subjects: &[Subject], dependent: bool) -> Result<Self> {
        Self::create_for(path, subjects, dependent, CAPACITY)
    }

    /// As [`Log::create`], for so many operations.
    ///
    /// # Errors
    /// As [`Log::create`].
    pub fn create_for(path: &Path, subjects: &[Subject], dependent: bool, capacity: u64) -> Result<Self> {
        ensure!((1..=MOST_IMAGES).contains(&subjects.len()), "a log is of 1 to {MOST_IMAGES} images");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.with_context(|| format!("create the log {}", path.display()))?;
        let log = Self::map(path, file, Layout::new(subjects), 1, capacity)?;
        for (word, value) in log.mapping.words().iter().zip(log.layout.header(dependent)) {
            word.store(value, Ordering::Relaxed);
        }
        Ok(log)
    }

    /// Goes on with a log of the same images, whose writer has died or ended.
    ///
    /// # Errors
    /// What reading and mapping says; another kind of log, or other images.
    pub fn open(path: &Path, subjects: &[Subject], dependent: bool) -> Result<Self> {
        let history = History::read(path)?;
        if history.subjects() != subjects || history.dependent != dependent {
            bail!("{} is a log of other images, or of another kind", path.display());
        }
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.with_context(|| format!("open the log {}", path.display()))?;
        Self::map(path, file, Layout::new(subjects), history.records.len() as u64, CAPACITY)
    }

    fn map(path: &Path, file: File, layout: Layout, next: u64, capacity: u64) -> Result<Self> {
        let bytes = (layout.record(capacity)).next_multiple_of(HEADER);
        let grown = file.set_len(bytes).and_then(|()| Mapping::shared(&file, bytes));
        let mapping = grown.with_context(|| format!("map the log {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, mapping, layout, next: AtomicU64::new(next), first: next, capacity })
    }

    /// Says which sectors of an image bear a stamp of generation 0; the others are zeros.
    pub fn set_base(&self, image: u16, base: &Bits) {
        let start = self.layout.bases[usize::from(image)] as usize / 8;
        for (word, bits) in self.mapping.words()[start..].iter().zip(base.words()) {
            word.store(*bits, Ordering::Relaxed);
        }
    }

    /// Takes the next generation.
    ///
    /// Whoever calls it for a write or a punch owns the range: no operation that touches one of its sectors is under way.
    /// So the order of generations is, sector by sector, the order of time.
    ///
    /// # Errors
    /// Where the log is full.
    pub fn take(&self) -> Result<u64> {
        let generation = self.next.fetch_add(1, Ordering::Relaxed);
        if generation >= self.capacity {
            bail!("the log {} is full: it holds {} operations", self.path.display(), self.capacity);
        }
        Ok(generation)
    }

    /// Notes what is about to be submitted under a generation that was taken.
    pub fn begin(&self, generation: u64, kind: Kind, image: u16, writer: u32, piece: &Range<u64>) {
        let (offset, length) = (piece.start, piece.end - piece.start);
        let record = Record { kind, state: State::Begun, image, writer, offset, length, start: clock::now(), end: 0 };
        let words = self.words(generation);
        for (word, value) in words[1..].iter().zip([generation, offset, length, record.start, 0]) {
            word.store(value, Ordering::Relaxed);
        }
        words[0].store(record.head(), Ordering::Release);
    }

    /// Notes that an operation has ended, and whether all of it was done.
    pub fn end(&self, generation: u64, done: bool) {
        let words = self.words(generation);
        words[5].store(clock::now(), Ordering::Relaxed);
        let state = if done { State::Done } else { State::Failed };
        let head = words[0].load(Ordering::Relaxed) & !0xff | state as u64;
        words[0].store(head, Ordering::Release);
    }

    /// The operations that this writer has logged.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let last = self.next.load(Ordering::Relaxed).min(self.capacity);
        (self.first..last).filter_map(|generation| {
            let mut values = [0; RECORD_WORDS];
            for (value, word) in values.iter_mut().zip(self.words(generation)) {
                *value = word.load(Ordering::Acquire);
            }
            Record::from_words(values, generation)
        })
    }

    /// Cuts the file to what was used.
    ///
    /// # Errors
    /// What ftruncate(2) says.
    pub fn close(self) -> Result<()> {
        let Self { path, file, mapping, layout, next, capacity, .. } = self;
        drop(mapping);
        let end = layout.record(next.into_inner().min(capacity));
        file.set_len(end).with_context(|| format!("cut the log {}", path.display()))
    }

    fn words(&self, generation: u64) -> &[AtomicU64] {
        let start = (self.layout.records + generation * RECORD) as usize / 8;
        &self.mapping.words()[start..start + RECORD_WORDS]
    }
}
