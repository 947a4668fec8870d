//! The reader's side of the log.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::format::{HEADER, Layout, RECORD, RECORD_WORDS, Record, Subject};
use crate::bits::Bits;

/// Records that are read at once. As many without an operation in a row are the end: no writer has so many threads that
/// die between taking a number and using it.
const BATCH: u64 = 4096;

/// What was done to the images.
#[derive(Clone, Debug)]
pub struct History {
    /// The images, each with the sectors that bore a stamp of generation 0 before the first operation; the others were
    /// zeros.
    pub images: Vec<(Subject, Bits)>,
    /// Whether each write waited for the one before it.
    pub dependent: bool,
    /// The operations; the index is the generation. The first is none.
    pub records: Vec<Record>,
}

impl History {
    /// Reads a log. Its writer may go on meanwhile: what began later is not in it, or has not ended.
    ///
    /// # Errors
    /// What reading says; a file that is no log of this version.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open the log {}", path.display()))?;
        let header = words(&file, 0, HEADER).with_context(|| format!("read {}", path.display()))?;
        let (layout, dependent) =
            Layout::from_header(&header).with_context(|| format!("{} is no log of this version", path.display()))?;
        let read = || {
            let mut images = Vec::new();
            for (subject, base) in layout.subjects.iter().zip(&layout.bases) {
                let bytes = 8 * Bits::words_for(subject.size / 512) as u64;
                images.push((*subject, Bits::from_words(words(&file, *base, bytes)?)));
            }
            Ok::<_, std::io::Error>(Self { images, dependent, records: records(&file, &layout)? })
        };
        read().with_context(|| format!("read the log {}", path.display()))
    }

    /// The images.
    pub fn subjects(&self) -> Vec<Subject> {
        self.images.iter().map(|(subject, _)| *subject).collect()
    }
}

fn records(file: &File, layout: &Layout) -> std::io::Result<Vec<Record>> {
    let mut records = Vec::new();
    let mut used = 1;
    loop {
        let first = records.len() as u64;
        let batch = words(file, layout.record(first), BATCH * RECORD)?;
        let (batch, _) = batch.as_chunks::<RECORD_WORDS>();
        let mut any = false;
        for (generation, words) in (first..).zip(batch) {
            let record = Record::from_words(*words, generation);
            records.push(record.unwrap_or(Record::NOTHING));
            if record.is_some() {
                any = true;
                used = records.len();
            }
        }
        if !any || (batch.len() as u64) < BATCH {
            records.truncate(used);
            // A log that was never written to has not even the first, unused record.
            records.resize(used, Record::NOTHING);
            return Ok(records);
        }
    }
}

/// The words from `at` on, as many as there are up to `bytes`. A record's words are copied in the order in which they lie, so
/// that a first word that says "ended" comes with an end.
fn words(file: &File, at: u64, bytes: u64) -> std::io::Result<Vec<u64>> {
    let mut buffer = vec![0; bytes as usize];
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], at + have as u64) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer[..have].as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect())
}
