//! Whether two files have the same bytes: what their maps prove is not read, and the rest is read by several threads.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, bounded};

use super::Span;
use super::content::{PIECE, Reader};
use crate::disk::DiskFile;
use crate::range::ByteRange;

/// The most threads that read: with two buffers of [`PIECE`] each they stay far below the memory that a job may have.
const THREADS: usize = 8;

/// The most differences that are told.
pub const TOLD: usize = 16;

/// How far it has come; read by another thread while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that are known to be equal or not.
    pub done: AtomicU64,
    /// Of those, bytes that were read.
    pub read: AtomicU64,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// Bytes equal by their blocks, or zeros in both.
    pub proved: u64,
    /// Bytes that were read of both.
    pub read: u64,
    /// Bytes in units that differ.
    pub differing: u64,
    /// The first of them, at most [`TOLD`].
    pub first: Vec<ByteRange>,
}

/// Compares what the spans say. `keep_on` is asked before each piece.
///
/// # Errors
/// What reading says, of the first that fails; what `keep_on` says.
pub fn verify<F: DiskFile + Sync>(
    old: &F,
    new: &F,
    spans: impl Iterator<Item = io::Result<Span>>,
    progress: &Progress,
    mut keep_on: impl FnMut() -> io::Result<()>,
) -> io::Result<Verified> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let (give, take) = bounded::<ByteRange>(threads);
    let (found, failed) = (Mutex::new(Verified::default()), AtomicBool::new(false));
    thread::scope(|scope| {
        let spawn = |take: Receiver<ByteRange>| {
            let (found, failed) = (&found, &failed);
            scope.spawn(move || {
                work(Reader::new(old, new), take, found, progress)
                    .inspect_err(|_| failed.store(true, Ordering::Relaxed))
            })
        };
        let workers: Vec<_> = (0..threads).map(|_| spawn(take.clone())).collect();
        // Whoever gives is told when nobody takes any more.
        drop(take);
        let mut proved = 0;
        let give_all = || -> io::Result<()> {
            for span in spans {
                let span = span?;
                if span.what.equal {
                    proved += span.range.len();
                    progress.done.fetch_add(span.range.len(), Ordering::Relaxed);
                    keep_on()?;
                    continue;
                }
                let mut rest = Some(span.range);
                while let Some(left) = rest {
                    let (piece, later) = left.split(left.start() + PIECE as u64);
                    rest = later;
                    keep_on()?;
                    // Whoever has failed says why.
                    if failed.load(Ordering::Relaxed) || piece.is_some_and(|piece| give.send(piece).is_err()) {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        let given = give_all();
        drop(give);
        let worked: Vec<io::Result<()>> = workers
            .into_iter()
            .map(|it| it.join().unwrap_or_else(|_| Err(io::Error::other("a thread has died"))))
            .collect();
        given?;
        worked.into_iter().collect::<io::Result<()>>()?;
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        found.proved = proved;
        Ok(found)
    })
}

fn work<F: DiskFile>(
    mut reader: Reader<'_, F>,
    pieces: Receiver<ByteRange>,
    found: &Mutex<Verified>,
    progress: &Progress,
) -> io::Result<()> {
    for piece in pieces {
        let mut differing: Vec<ByteRange> = Vec::new();
        reader.compare(piece, |range, equal| {
            if !equal {
                push(&mut differing, range);
            }
        })?;
        progress.done.fetch_add(piece.len(), Ordering::Relaxed);
        progress.read.fetch_add(piece.len(), Ordering::Relaxed);
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        found.read += piece.len();
        for range in differing {
            found.differing += range.len();
            found.insert(range);
        }
    }
    Ok(())
}

fn push(all: &mut Vec<ByteRange>, range: ByteRange) {
    match all.last_mut() {
        Some(last) if last.end() == range.start() => {
            *last = ByteRange::new(last.start(), range.end()).expect("longer than before");
        }
        _ => all.push(range),
    }
}

impl Verified {
    /// Threads find them in any order.
    fn insert(&mut self, range: ByteRange) {
        let at = self.first.partition_point(|it| it.start() < range.start());
        if at < TOLD {
            self.first.insert(at, range);
            self.first.truncate(TOLD);
        }
    }
}
