//! `map FILE`: how fragmented a file is, and how long a clone of it takes here. Reads the map and the first bytes: flushes
//! nothing, takes no lock, and its memory does not grow with the extents.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::args::MapArgs;
use super::{json, place, words};
use crate::disk::{DiskFile, FsKind};
use crate::error::{Error, Kind, Result};
use crate::extent::Extent;
use crate::extent::histogram::{Class, Shape};
use crate::range::ByteRange;

/// Extents asked for at a time: 56 KiB of the kernel's answer.
const BATCH: usize = 1024;
/// The width of the longest bar.
const BAR: u64 = 32;
/// Eighths of a block, from none.
const LEVELS: [char; 9] =
    [' ', '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}', '\u{2588}'];

/// Runs `map`.
///
/// # Errors
/// As [`show`].
pub fn run(args: &MapArgs) -> Result<u8> {
    let image = place::open_image(&args.file)?;
    super::warn(place::warning(&*image.file, &args.file));
    show(&*image.file, &args.file, args.json, &mut io::BufWriter::new(io::stdout()))?;
    Ok(0)
}

/// Walks over the map of `file` and shows it on `out`. A reader that went away is no error.
///
/// # Errors
/// Refused where `file` is no regular file; failed where it cannot be read or `out` not be written.
pub fn show(file: &impl DiskFile, path: &Path, as_json: bool, out: &mut impl Write) -> Result<()> {
    let failed = |e| Error::io(Kind::Failed, format!("cannot read the map of {}", words::name(path)), MAP_HINT, e);
    let stat = file.stat().map_err(failed)?;
    if !stat.regular {
        let what = format!("{} is not a regular file", words::name(path));
        return Err(Error::new(Kind::Refused, what, "only regular files have a map of extents"));
    }
    let kind = file.fs().map_err(failed)?.kind;
    let shape = walk(file, stat.size).map_err(failed)?;
    let written =
        if as_json { json::write_line(out, &Object::new(path, &shape, kind)) } else { text(path, &shape, kind, out) };
    super::written(written.and_then(|()| out.flush()))
}

const MAP_HINT: &str = "the file system must support FIEMAP, as XFS and Btrfs do";

/// The shape of the first `size` bytes. A map that changes meanwhile is counted once at every offset.
///
/// # Errors
/// What FS_IOC_FIEMAP says, or an answer of it that does not get on.
pub(super) fn walk(file: &impl DiskFile, size: u64) -> io::Result<Shape> {
    let mut shape = Shape::new(size);
    let mut batch = Vec::with_capacity(BATCH);
    let mut at = 0;
    while let Some(range) = ByteRange::new(at, size) {
        batch.clear();
        file.map(range, BATCH, false, &mut batch)?;
        for extent in &batch {
            // The first may begin before the range, and was counted up to here if the map changed.
            let Some(logical) = ByteRange::new(extent.logical.start().max(at), extent.logical.end()) else { continue };
            shape.add(&Extent { logical, ..*extent });
            at = logical.end();
        }
        if batch.len() < BATCH {
            break;
        }
        if at == range.start() {
            return Err(io::Error::other("the kernel's answer does not get past byte ".to_owned() + &at.to_string()));
        }
    }
    Ok(shape.finish())
}

/// What one clone of the whole file would take.
fn clone_time(shape: &Shape, kind: FsKind) -> Duration {
    let micros = kind.clone_cost_per_extent().as_micros().saturating_mul(u128::from(shape.extents));
    Duration::from_micros(micros.try_into().unwrap_or(u64::MAX))
}

#[derive(Serialize)]
struct Object<'a> {
    v: u8,
    event: &'static str,
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_bytes: Option<String>,
    size: u64,
    extents: u64,
    shared_extents: u64,
    shared_bytes: u64,
    data_bytes: u64,
    unwritten_bytes: u64,
    holes: u64,
    histogram: Vec<Bin>,
    strip: &'a [u64],
    estimated_clone_ms: f64,
}

#[derive(Serialize)]
struct Bin {
    from: u64,
    extents: u64,
    bytes: u64,
}

impl<'a> Object<'a> {
    fn new(path: &Path, shape: &'a Shape, kind: FsKind) -> Self {
        let (file, file_bytes) = json::path(path);
        Self {
            v: json::VERSION,
            event: "map",
            file,
            file_bytes,
            size: shape.size(),
            extents: shape.extents,
            shared_extents: shape.shared_extents,
            shared_bytes: shape.shared_bytes,
            data_bytes: shape.data_bytes,
            unwritten_bytes: shape.unwritten_bytes,
            holes: shape.holes,
            histogram: shape.classes().map(|c| Bin { from: c.from, extents: c.extents, bytes: c.bytes }).collect(),
            strip: shape.strip(),
            estimated_clone_ms: json::ms(clone_time(shape, kind)),
        }
    }
}

fn text(path: &Path, shape: &Shape, kind: FsKind, out: &mut impl Write) -> io::Result<()> {
    let cost = words::time(kind.clone_cost_per_extent());
    let takes = words::time(clone_time(shape, kind));
    let shared = words::bytes(shape.shared_bytes);
    writeln!(out, "{}", words::name(path))?;
    writeln!(out, "  size       {} ({} bytes)", words::bytes(shape.size()), shape.size())?;
    writeln!(out, "  extents    {}", shape.extents)?;
    writeln!(out, "  shared     {shared} in {}", words::count(shape.shared_extents, "extent"))?;
    writeln!(out, "  data       {}", words::bytes(shape.data_bytes))?;
    writeln!(out, "  unwritten  {}", words::bytes(shape.unwritten_bytes))?;
    writeln!(out, "  holes      {}", shape.holes)?;
    writeln!(out, "  one clone  about {takes} ({}, {cost} an extent)", kind.name())?;
    if shape.extents == 0 {
        return Ok(());
    }
    writeln!(out, "\n  extents of at least      how many       bytes")?;
    let most = shape.classes().map(|c| c.extents).max().unwrap_or(1);
    for class in shape.classes() {
        writeln!(out, "{}", row(&class, most))?;
    }
    writeln!(out, "\n  where extents begin, from the file's start to its end (blank: none)")?;
    writeln!(out, "  |{}|", strip(shape.strip()))
}

fn row(class: &Class, most: u64) -> String {
    let bar = "\u{2588}".repeat(scale(class.extents, most, BAR) as usize);
    let (from, bytes) = (words::bytes(class.from), words::bytes(class.bytes));
    format!("  {from:>19}  {:>12}  {bytes:>10}  {bar}", class.extents)
}

/// Counts, scaled to the largest, as a line of blocks.
pub(super) fn strip(counts: &[u64]) -> String {
    let most = counts.iter().copied().max().unwrap_or(0);
    counts.iter().map(|&n| LEVELS[scale(n, most, 8) as usize]).collect()
}

/// `part` of `most` on a scale of `steps`; only nothing is 0.
fn scale(part: u64, most: u64, steps: u64) -> u64 {
    let steps = u128::from(part) * u128::from(steps);
    u64::try_from(steps.div_ceil(u128::from(most.max(1)))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
