//! What each sector of a snapshot holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::claims::{Found, Shot};
use crate::sector::{self, Content, SECTOR};

/// The bytes that are read at once.
const PIECE: u64 = 1 << 20;

/// Reads a snapshot of an image of `size` bytes. Sectors that are missing, or beyond that size, are wrong ones.
///
/// # Errors
/// What reading says.
pub fn scan(snapshot: &File, size: u64) -> io::Result<Shot> {
    let length = snapshot.metadata()?.len();
    let mut found = Vec::with_capacity(size as usize / SECTOR);
    let mut buffer = vec![0; PIECE as usize];
    for at in (0..size.min(length) / SECTOR as u64 * SECTOR as u64).step_by(PIECE as usize) {
        let piece = &mut buffer[..PIECE.min(size.min(length) - at) as usize / SECTOR * SECTOR];
        snapshot.read_exact_at(piece, at)?;
        for (number, sector) in (at / SECTOR as u64..).zip(piece.chunks_exact(SECTOR)) {
            found.push(match sector::read(sector) {
                Content::Zeros => Found::ZEROS,
                Content::Torn => Found::TORN,
                Content::Stamped(stamp) if stamp.sector == number => Found::generation(stamp.generation),
                Content::Stamped(_) => Found::MISPLACED,
            });
        }
    }
    let sectors = size.max(length).div_ceil(SECTOR as u64) as usize;
    found.resize(sectors, Found::MISSING);
    Ok(Shot { found })
}
