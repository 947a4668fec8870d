//! The file of a measurement: a page of header (magic, version, ns between accesses or 0, ns between flushes), then two words
//! an access. As with the log, what was stored outlives a process that is killed, and the file is sparse until it is closed.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Access, Accesses};
use crate::sys::mapping::Mapping;

/// How many accesses a file holds: at 50,000 a second those of twenty minutes, in 1 GiB.
const CAPACITY: u64 = 64 << 20;
/// "reflatcy", little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"reflatcy");
const VERSION: u64 = 1;
const HEADER: usize = 4096;
/// Accesses that are read at once; as many slots in a row without one are the end.
const BATCH: usize = 65536;

/// A file being written, by any number of threads.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: File,
    mapping: Mapping,
    next: AtomicU64,
}

impl Recorder {
    /// Makes the file, in place of any that is there.
    ///
    /// # Errors
    /// What making and mapping it says.
    pub fn create(path: &Path, every: Option<Duration>, flush_every: Duration) -> Result<Self> {
        let bytes = HEADER as u64 + 16 * CAPACITY;
        let map = || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
            file.set_len(bytes)?;
            let mapping = Mapping::shared(&file, bytes)?;
            Ok::<_, std::io::Error>((file, mapping))
        };
        let (file, mapping) = map().with_context(|| format!("create {}", path.display()))?;
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let header = [MAGIC, VERSION, every.map_or(0, nanoseconds), nanoseconds(flush_every)];
        for (word, value) in mapping.words().iter().zip(header) {
            word.store(value, Ordering::Relaxed);
        }
        Ok(Self { path: path.to_owned(), file, mapping, next: AtomicU64::new(0) })
    }

    /// Logs an access.
    ///
    /// # Errors
    /// Where the file is full.
    pub fn add(&self, access: Access) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= CAPACITY {
            bail!("{} is full: it holds {CAPACITY} accesses", self.path.display());
        }
        let place = &self.mapping.words()[HEADER / 8 + 2 * number as usize..][..2];
        let [start, rest] = access.words();
        place[0].store(start, Ordering::Relaxed);
        place[1].store(rest, Ordering::Release);
        Ok(())
    }

    /// Cuts the file to what was used.
    ///
    /// # Errors
    /// What ftruncate(2) says.
    pub fn close(self) -> Result<()> {
        let Self { path, file, mapping, next } = self;
        drop(mapping);
        let end = HEADER as u64 + 16 * next.into_inner().min(CAPACITY);
        file.set_len(end).with_context(|| format!("cut {}", path.display()))
    }
}

/// Reads what was logged. The measurement may go on meanwhile.
///
/// # Errors
/// What reading says; a file that is no measurement of this version.
pub fn read(path: &Path) -> Result<Accesses> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut words = |count: usize| words(&mut file, count).with_context(|| format!("read {}", path.display()));
    let [MAGIC, VERSION, every, flush_every, ..] = words(HEADER / 8)?[..] else {
        bail!("{} is no measurement of this version", path.display());
    };
    let mut list = Vec::new();
    loop {
        let batch = words(2 * BATCH)?;
        let before = list.len();
        list.extend(batch.as_chunks::<2>().0.iter().filter_map(|words| Access::from_words(*words)));
        if list.len() == before {
            return Ok(Accesses { list, every, flush_every });
        }
    }
}

/// The next words, as many as there are up to `count`.
fn words(file: &mut File, count: usize) -> std::io::Result<Vec<u64>> {
    let mut bytes = vec![0; 8 * count];
    let mut have = 0;
    while have < bytes.len() {
        match file.read(&mut bytes[have..]) {
            Ok(0) => break,
            Ok(more) => have += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes[..have].as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect())
}
