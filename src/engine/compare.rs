//! What a refresh need not clone: the ranges where both files' maps have the same blocks.

use crate::disk::DiskFile;
use crate::disk::blocks::same_addresses;
use crate::error::{Error, Kind, Result};
use crate::extent::delta::{Run, joined, proves_equal};
use crate::extent::lockstep::lockstep;
use crate::extent::segments::segments;
use crate::extent::walk::MapWalk;
use crate::plan::chunk::WALK_BATCH;
use crate::range::{ByteRange, Geometry};

/// A range, compared.
pub struct Compared {
    /// What is not proved equal, in order.
    pub differing: Vec<ByteRange>,
    /// Bytes that both files share.
    pub equal_bytes: u64,
    /// The image's extents in the range, where the map could be relied on.
    pub extents: Option<u64>,
}

/// Dirty data shows its old block in the map, without a flag (KERNEL.md): both files are flushed before the first
/// comparison.
///
/// # Errors
/// As [`cannot_map`].
pub fn flush<F: DiskFile>(image: &F, partial: &F, geometry: Geometry) -> Result<()> {
    let first = ByteRange::new(0, geometry.block.get()).expect("a block has bytes");
    for (file, name) in [(image, "image"), (partial, "partial file")] {
        file.map(first, 1, true, &mut Vec::new()).map_err(|e| cannot_map(name, first, e))?;
    }
    Ok(())
}

/// Compares the maps of `range`. Where their addresses do not mean the same blocks nothing is proved, and where the file system moves extents about meanwhile, nothing is proved: the same address at
/// two moments is the same content only if neither file's blocks went anywhere in between.
///
/// # Errors
/// As [`cannot_map`].
pub fn compare<F: DiskFile>(image: &F, partial: &F, range: ByteRange) -> Result<Compared> {
    let cannot = |e| cannot_map("image or snapshot", range, e);
    let distrusted = Compared { differing: vec![range], equal_bytes: 0, extents: None };
    if !same_addresses(image, partial).map_err(cannot)? || image.relocating().map_err(cannot)? {
        return Ok(distrusted);
    }
    let (mut differing, mut equal_bytes) = (Vec::new(), 0);
    let mut left = MapWalk::new(image, range, WALK_BATCH);
    let mut right = MapWalk::new(partial, range, WALK_BATCH);
    let sides =
        lockstep(segments(&mut left, range.start(), range.end()), segments(&mut right, range.start(), range.end()));
    let runs = sides.map(|pair| pair.map(|pair| Run { range: pair.range, what: proves_equal(&pair) }));
    for run in joined(runs) {
        match run.map_err(cannot)? {
            Run { range, what: true } => equal_bytes += range.len(),
            Run { range, what: false } => differing.push(range),
        }
    }
    if image.relocating().map_err(cannot)? {
        return Ok(distrusted);
    }
    Ok(Compared { differing, equal_bytes, extents: Some(left.seen()) })
}

/// A map that could not be read: broken on EIO, else failed.
pub fn cannot_map(file: &str, range: ByteRange, error: std::io::Error) -> Error {
    let kind = if error.raw_os_error() == Some(libc::EIO) { Kind::Broken } else { Kind::Failed };
    let hint = "check the kernel's log, then run the same command again";
    Error::io(kind, format!("cannot read the block map of the {file}, {range}"), hint, error)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::disk::sim::{Faults, IMAGE, Setup, SimDisk};
    use crate::disk::{Disk, FsKind};

    #[test]
    fn what_is_shared_is_equal_unless_extents_move_meanwhile() {
        let disk = SimDisk::new(Setup::new(1));
        disk.add_file(IMAGE, &[0x11; 8192]);
        let (image, partial) = (disk.image().expect("there"), disk.create_new(OsStr::new("partial")).expect("new"));
        let geometry = Geometry { size: 8192, block: image.fs().expect("facts").block };
        partial.set_len(8192).expect("sized");
        let whole = geometry.whole().expect("not empty");
        partial.clone_range(&image, whole).expect("cloned");
        flush(&image, &partial, geometry).expect("flushed");
        let compared = compare(&image, &partial, whole.bytes()).expect("compared");
        assert_eq!((compared.differing, compared.equal_bytes), (vec![], 8192));
        disk.set_faults(Faults { relocating: 1000, ..Faults::default() });
        let compared = compare(&image, &partial, whole.bytes()).expect("compared");
        assert_eq!((compared.differing, compared.equal_bytes, compared.extents), (vec![whole.bytes()], 0, None));
    }

    #[test]
    fn addresses_of_an_unknown_file_system_prove_nothing() {
        let disk = SimDisk::new(Setup { kind: FsKind::Other, ..Setup::new(1) });
        disk.add_file(IMAGE, &[0x11; 8192]);
        let image = disk.image().expect("there");
        let whole = ByteRange::new(0, 8192).expect("not empty");
        let compared = compare(&image, &image, whole).expect("compared");
        assert_eq!((compared.differing, compared.equal_bytes), (vec![whole], 0));
    }
}
