//! The judge: is there one instant at which the images were what the snapshots show?
//!
//! The rule, sector by sector. Write (or punch) g may be what the snapshot shows if
//! - T0 is not before the start of g, and
//! - T0 is not after the end of any later write to that sector: one that had ended before T0 would have to be seen.
//!
//! So each sector allows T0 an interval, `start(g)..=end(the next write to it that ended well)`. A sector of zeros may have several,
//! one for each time that it was zeros. The snapshots are good if one T0 is in an interval of every sector of every image.
//! The logged times enclose the true ones, so a good snapshot is never called bad; how bad a snapshot must be to be seen
//! is a matter of how busy the writer was.
//!
//! - [`scan`]: what each sector of a snapshot holds.
//! - [`claims`]: what that, with the log, allows T0 to be.
//! - [`sweep`]: the T0 that most sectors allow.
//! - [`verdict`]: what is told.

use std::fs::File;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::log::History;

pub mod claims;
pub mod scan;
pub mod sweep;
pub mod verdict;

#[cfg(test)]
mod tests;

pub use claims::Shot;
pub use verdict::{Verdict, judge};

/// How many bad sectors are told of one by one.
pub const TOLD: usize = 8;

/// Judges the snapshots of all images of a log, in the log's order. T0 is looked for in `range`, in ns of the clock.
///
/// # Errors
/// What reading says; a number of snapshots that is not the log's number of images.
pub fn verify(snapshots: &[PathBuf], log: &Path, range: RangeInclusive<u64>) -> Result<Verdict> {
    let history = History::read(log)?;
    let images = history.images.len();
    ensure!(snapshots.len() == images, "{} snapshots for a log of {images} images", snapshots.len());
    let mut shots = Vec::new();
    for (snapshot, (subject, _)) in snapshots.iter().zip(&history.images) {
        let read = || scan::scan(&File::open(snapshot)?, subject.size);
        shots.push(read().with_context(|| format!("read {}", snapshot.display()))?);
    }
    Ok(judge(&history, &shots, range))
}
