//! New images, every sector a stamp of generation 0.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::engine::{Ended, Engine};
use crate::pages::PAGE;
use crate::random::Random;
use crate::sector::{self, SECTOR};
use crate::sys::aio::Aio;

/// Writes under way at a time.
const DEPTH: usize = 32;

/// The bytes of a write where extents are to be few.
const LARGE: usize = 256 << 10;

/// Makes an image of `size` bytes, synced, with nothing of it in the page cache. With `fragment` it is written 4 KiB at a time in
/// random order into a sparse file, so that nearly every block is an extent of its own.
///
/// # Errors
/// What making and writing the file says; a size that is not a multiple of 4096. A file that is there already is an error.
pub fn fill(path: &Path, size: u64, fragment: bool, seed: u64) -> Result<()> {
    ensure!(size > 0 && size.is_multiple_of(PAGE as u64), "an image has a multiple of {PAGE} bytes");
    let piece = if fragment { PAGE } else { LARGE };
    let mut pieces: Vec<u32> = (0..u32::try_from(size.div_ceil(piece as u64)).context("too large")?).collect();
    if fragment {
        Random::new(seed).shuffle(&mut pieces);
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT);
    let file = options.open(path).with_context(|| format!("create {}", path.display()))?;
    let write = || -> Result<()> {
        file.set_len(size)?;
        let mut aio = Aio::new(file.try_clone()?, DEPTH, piece)?;
        let mut free: Vec<usize> = (0..DEPTH).collect();
        let mut left = pieces.iter();
        while free.len() < DEPTH || left.len() > 0 {
            while !free.is_empty()
                && let Some(number) = left.next()
                && let Some(slot) = free.pop()
            {
                let offset = u64::from(*number) * piece as u64;
                let length = (size - offset).min(piece as u64) as usize;
                sector::put_all(&mut aio.buffer(slot)[..length], offset / SECTOR as u64, 0, 0);
                aio.write(slot, offset, length)?;
            }
            let mut ended = Vec::new();
            Engine::wait(&mut aio, &mut ended)?;
            for Ended { slot, result } in ended {
                let written = result?;
                ensure!(written.is_multiple_of(PAGE) && written > 0, "a short write");
                free.push(slot);
            }
        }
        Ok(file.sync_all()?)
    };
    let written = write().with_context(|| format!("fill {}", path.display()));
    if written.is_err() {
        // It is ours, and half an image is none.
        let _ = std::fs::remove_file(path);
    }
    written
}
