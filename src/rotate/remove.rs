//! A snapshot is removed in steps: freeing a million extents at once keeps the file system's log busy for seconds, and guests' writes wait
//! for the log.
//!
//! One that somebody has open, to read it or to write to it, stays until nobody has. The others lose their name first. What is left by somebody who was killed is known by its suffix and its record, and goes the next time.

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

/// What became of one that was to be removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is gone.
    Removed,
    /// It is there: somebody has it open. A guest that runs from it would write to a file without a name, and lose all of it.
    InUse,
    /// It is no snapshot of ours, and was not touched.
    NotOurs,
}

/// Removes a snapshot that is still what was found, unless somebody has it open.
///
/// # Errors
/// ESTALE where it is not what was found; what the kernel says.
pub fn remove(disk: &RealDisk, snapshot: &Snapshot) -> io::Result<Outcome> {
    let (now, reader) = Snapshot::at(disk, &snapshot.name).ok_or_else(stale)?;
    if now.verdict != Verdict::Valid || now.stat.id() != snapshot.stat.id() || now.record != snapshot.record {
        return Err(stale());
    }
    // Whoever opens it from here on waits, and is seen.
    if !reader.try_own()? {
        return Ok(Outcome::InUse);
    }
    if now.stat.nlink > 1 {
        // By its other name it stays what it is.
        return unlink(disk, &snapshot.name);
    }
    let mut aside = snapshot.name.clone();
    aside.push(REMOVING);
    let put_back = || disk.rename(&aside, &snapshot.name, false).and_then(|()| disk.sync_names());
    match disk.rename(&snapshot.name, &aside, false).and_then(|()| disk.sync_names()) {
        // A longer name may need a block of the directory, and there is none; or it may be too long.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::ENAMETOOLONG)) => {
            return unlink(disk, &snapshot.name);
        }
        Err(e) => return Err(e),
        // Whoever has put another file in its place in the last moment gets it back.
        Ok(()) if disk.stat(&aside)?.is_none_or(|it| it.ino != snapshot.stat.ino) => {
            put_back()?;
            return Err(stale());
        }
        Ok(()) => {}
    }
    // Somebody had found it by its name before it lost that.
    let wanted = !reader.owns()?;
    drop(reader);
    if wanted || shrink(disk, &aside)? == Outcome::InUse {
        put_back()?;
        return Ok(Outcome::InUse);
    }
    Ok(Outcome::Removed)
}

/// Whether somebody has it open. Asking lets everybody go on at once.
///
/// # Errors
/// What the kernel says.
pub fn is_in_use(disk: &RealDisk, name: &OsStr) -> io::Result<bool> {
    match disk.open(name, Access::Read) {
        Ok(reader) => Ok(!reader.try_own()?),
        Err(e) if is_leased(&e) => Ok(true),
        Err(e) => Err(e),
    }
}

/// The name of a snapshot that somebody was about to remove.
pub fn was_removing(name: &OsStr) -> Option<OsString> {
    let stem = name.as_bytes().strip_suffix(REMOVING.as_bytes())?;
    Some(OsStr::from_bytes(stem).to_owned())
}

/// Ends a removal that was interrupted, unless somebody has the file open.
///
/// # Errors
/// What the kernel says.
pub fn end(disk: &RealDisk, name: &OsStr) -> io::Result<Outcome> {
    let found = Snapshot::at(disk, name).map(|(it, _)| it);
    match found.filter(|it| matches!(it.verdict, Verdict::Valid | Verdict::Modified)) {
        None => Ok(Outcome::NotOurs),
        // Not by us, who make it shorter: whoever had it open when it lost its name has written to it.
        Some(it) if it.verdict == Verdict::Modified && it.stat.size == it.record.size => {
            if let Some(before) = was_removing(name) {
                disk.rename(name, &before, false).and_then(|()| disk.sync_names())?;
            }
            Ok(Outcome::NotOurs)
        }
        Some(_) => shrink(disk, name),
    }
}

/// Takes the file apart and removes it, unless somebody has it open.
fn shrink(disk: &RealDisk, name: &OsStr) -> io::Result<Outcome> {
    // Whoever reads it has a lease (`send`, `restore`), which opening it for writing would break; asking for a lease by a descriptor that only
    // reads does not.
    let reader = match disk.open(name, Access::Read) {
        Ok(reader) => reader,
        Err(e) if is_leased(&e) => return Ok(Outcome::InUse),
        Err(e) => return Err(e),
    };
    let stat = reader.stat()?;
    if !reader.try_own()? {
        return Ok(Outcome::InUse);
    }
    if stat.nlink > 1 {
        return unlink(disk, name);
    }
    drop(reader);
    let file = match disk.open(name, Access::Write) {
        Ok(file) => file,
        Err(e) if is_leased(&e) => return Ok(Outcome::InUse),
        // It cannot be taken apart, and goes at once.
        Err(_) => disk.open(name, Access::Read)?,
    };
    // Somebody may have come in between, or have found it by the name that it had before.
    if !file.try_own()? || !file.owns()? || file.stat()?.nlink > 1 {
        let _ = file.set_mode(stat.mode);
        return Ok(Outcome::InUse);
    }
    let (mut size, mut step) = (stat.size, FIRST);
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
    unlink(disk, name)
}

fn unlink(disk: &RealDisk, name: &OsStr) -> io::Result<Outcome> {
    disk.unlink(name)?;
    disk.sync_names()?;
    Ok(Outcome::Removed)
}

/// Whether it could not be opened because somebody else has a lease on it.
fn is_leased(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}
