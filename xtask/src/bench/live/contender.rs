//! Those who make a snapshot beside the guest, each to the end of fsync and rename.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rclone_img::range::{ByteRange, Geometry, PowerOfTwo};
use rclone_img::sys::clone::clone_range;

use crate::run;
use crate::sandbox::MIB;

/// What one call of the plain loop clones.
const CHUNK: u64 = 64 * MIB;

/// Who, or what, runs beside the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// Nobody.
    Idle,
    /// `cp --reflink=always`.
    Cp,
    /// A plain loop of clone calls.
    Loop,
    /// `rclone-img snapshot`.
    Snapshot,
    /// The same with `--latency 50ms`.
    Relaxed,
    /// `rm` of the snapshot before.
    Remove,
}

impl Who {
    /// As tables and pictures have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "nobody clones",
            Self::Cp => "cp --reflink=always",
            Self::Loop => "a loop of 64 MiB calls",
            Self::Snapshot => "rclone-img snapshot",
            Self::Relaxed => "rclone-img, --latency 50ms",
            Self::Remove => "rm of the old snapshot",
        }
    }
}

/// `cp`, then what makes its copy durable, then the rename. Gives the time of `cp` alone.
pub fn cp(source: &Path, target: &Path) -> Result<Duration> {
    let partial = target.with_extension("partial");
    let copy = run::checked(Command::new("cp").arg("--reflink=always").args([source, &partial]))?;
    run::checked(Command::new("sync").arg(&partial))?;
    put_into_place(&partial, target)?;
    Ok(copy.took)
}

/// One clone call after the other, without a pause and without a look at who writes.
pub fn plain_loop(source: &Path, target: &Path) -> Result<()> {
    let partial = target.with_extension("partial");
    let from = File::open(source).with_context(|| format!("open {}", source.display()))?;
    let to = File::create_new(&partial).with_context(|| format!("create {}", partial.display()))?;
    let stat = from.metadata()?;
    let block = PowerOfTwo::new(stat.blksize()).context("a block that is no power of two")?;
    let geometry = Geometry { size: stat.len(), block };
    to.set_len(geometry.size)?;
    for start in (0..geometry.size).step_by(CHUNK as usize) {
        let piece = ByteRange::new(start, (start + CHUNK).min(geometry.size)).and_then(|piece| geometry.cover(piece));
        let piece = piece.context("an empty piece of the image")?;
        clone_range(from.as_fd(), to.as_fd(), piece).with_context(|| format!("clone {piece}"))?;
    }
    to.sync_all()?;
    put_into_place(&partial, target)
}

fn put_into_place(partial: &Path, target: &Path) -> Result<()> {
    fs::rename(partial, target).with_context(|| format!("rename {}", partial.display()))?;
    let folder = target.parent().context("a file without a folder")?;
    File::open(folder).and_then(|it| it.sync_all()).with_context(|| format!("sync {}", folder.display()))
}
