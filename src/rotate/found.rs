//! The snapshots in a directory: files with a record of ours, whatever has become of them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::Path;

use uuid::Uuid;

use crate::disk::real::{RealDisk, RealFile};
use crate::disk::{Access, Disk, DiskFile, Stat};
use crate::engine::restore::is_meanwhile;
use crate::record::{ImageId, Record, Verdict};

/// One of them.
pub struct Snapshot {
    /// Its name.
    pub name: OsString,
    /// What it is.
    pub stat: Stat,
    /// What it says of itself.
    pub record: Record,
    /// Whether that is so.
    pub verdict: Verdict,
}

impl Snapshot {
    /// The one of this name; none where the file has no record of ours, or cannot be opened.
    pub fn at(disk: &RealDisk, name: &OsStr) -> Option<(Self, RealFile)> {
        // Whoever opens an image that is being restored keeps that waiting; what it is rolled back to is the snapshot by another name.
        if is_meanwhile(name) {
            return None;
        }
        // A pipe, or a device, is not opened to find out what it is.
        disk.stat(name).ok()?.filter(|stat| stat.regular)?;
        let file = disk.open(name, Access::Read).ok()?;
        let record = Record::from_bytes(&file.record().ok()??)?;
        let stat = file.stat().ok()?;
        let verdict = record.verdict((stat.id(), file.fs().ok()?.uuid), stat.size, stat.mtime_ns);
        Some((Self { name: name.to_owned(), stat, record, verdict }, file))
    }

    /// Whether it is a finished snapshot of this image, of this file system, that nobody has changed.
    pub fn is_of(&self, (image, fs): (ImageId, Uuid)) -> bool {
        self.verdict == Verdict::Valid && (self.record.image, self.record.fs) == (image, fs)
    }
}

/// All of a directory whose names are wanted, the newest first.
///
/// # Errors
/// What reading the directory says.
pub fn snapshots(dir: &Path, disk: &RealDisk, wanted: impl Fn(&OsStr) -> bool) -> io::Result<Vec<Snapshot>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        all.extend(Some(name).filter(|name| wanted(name)).and_then(|name| Snapshot::at(disk, &name)).map(|it| it.0));
    }
    all.sort_by(|a, b| b.record.t0.cmp(&a.record.t0).then_with(|| b.name.cmp(&a.name)));
    Ok(all)
}
