//! A snapshot is removed in steps: freeing a million extents at once keeps the file system's log busy for seconds, and guests' writes wait
//! for the log.
//!
//! It loses its name first. What is left by somebody who was killed is known by its suffix and its record, and goes the next time.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::found::Snapshot;
use crate::disk::real::RealDisk;
use crate::disk::{Access, Disk, DiskFile};
use crate::record::Verdict;

/// Suffix of a snapshot that is being removed.
pub const REMOVING: &str = ".removing";

/// What a step should take; a pause half as long follows.
const STEP: Duration = Duration::from_millis(20);

/// The first step, in bytes, and the bounds of all.
const FIRST: u64 = 64 << 20;
const LEAST: u64 = 1 << 20;
const MOST: u64 = 1 << 30;

/// Removes a snapshot that is still what was found. Whoever reads it keeps what he has: it goes when he does.
///
/// # Errors
/// ESTALE where it is not what was found; what the kernel says.
pub fn remove(disk: &RealDisk, snapshot: &Snapshot) -> io::Result<()> {
    let (now, _) = Snapshot::at(disk, &snapshot.name).ok_or_else(stale)?;
    if now.verdict != Verdict::Valid || now.stat.id() != snapshot.stat.id() || now.record != snapshot.record {
        return Err(stale());
    }
    if is_in_use(disk, &snapshot.name)? {
        disk.unlink(&snapshot.name)?;
        return disk.sync_names();
    }
    let mut aside = snapshot.name.clone();
    aside.push(REMOVING);
    match disk.rename(&snapshot.name, &aside, false).and_then(|()| disk.sync_names()) {
        // A longer name may need a block of the directory, and there is none.
        Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
            disk.unlink(&snapshot.name)?;
            disk.sync_names()
        }
        Err(e) => Err(e),
        // Whoever has put another file in its place in the last moment gets it back.
        Ok(()) if disk.stat(&aside)?.is_none_or(|it| it.ino != snapshot.stat.ino) => {
            disk.rename(&aside, &snapshot.name, false)?;
            Err(stale())
        }
        Ok(()) => shrink(disk, &aside),
    }
}

/// The name of a snapshot that somebody was about to remove.
pub fn was_removing(name: &OsStr) -> Option<OsString> {
    let stem = name.as_bytes().strip_suffix(REMOVING.as_bytes())?;
    Some(OsStr::from_bytes(stem).to_owned())
}

/// Ends a removal that was interrupted; false of a file that is no snapshot of ours.
///
/// # Errors
/// What the kernel says.
pub fn end(disk: &RealDisk, name: &OsStr) -> io::Result<bool> {
    let ours = Snapshot::at(disk, name).is_some_and(|(it, _)| matches!(it.verdict, Verdict::Valid | Verdict::Modified));
    if ours {
        shrink(disk, name)?;
    }
    Ok(ours)
}

/// Whether somebody has it open, or by another name: then it is his. Whoever reads it has a lease (`send`, `restore`), which opening it for
/// writing would break; asking for a lease by a descriptor that only reads does not.
fn is_in_use(disk: &RealDisk, name: &OsStr) -> io::Result<bool> {
    let reader = disk.open(name, Access::Read)?;
    Ok(reader.stat()?.nlink > 1 || !reader.try_own()?)
}

fn shrink(disk: &RealDisk, name: &OsStr) -> io::Result<()> {
    let file = if is_in_use(disk, name)? { None } else { disk.open(name, Access::Write).ok() };
    // Somebody may have come in between.
    if let Some(file) = file.filter(|file| file.try_own().unwrap_or(false)) {
        let (mut size, mut step) = (file.stat()?.size, FIRST);
        while size > 0 {
            size = size.saturating_sub(step);
            let began = disk.clock();
            if file.set_len(size).is_err() {
                // On a full file system what takes it apart may have no room, and the removal itself has.
                break;
            }
            let took = disk.clock().saturating_sub(began);
            step = if took > STEP { step / 2 } else { step * 2 }.clamp(LEAST, MOST);
            disk.wait((took / 2).min(STEP * 10));
        }
    }
    disk.unlink(name)?;
    disk.sync_names()
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}
