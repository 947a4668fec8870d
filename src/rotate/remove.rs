//! A snapshot is removed in steps ([`shrink`]), which guests do not feel.
//!
//! One that somebody has open, to read it or to write to it, stays until nobody has. The others lose their name first. What is left by somebody who was killed is known by its suffix and its record, and goes the next time.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

use super::found::Snapshot;
use crate::disk::real::{RealDisk, RealFile};
use crate::disk::{Access, Disk, DiskFile, Stat, shrink};
use crate::record::Verdict;

/// Suffix of a snapshot that is being removed.
pub const REMOVING: &str = ".removing";

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
    let mut aside = snapshot.name.clone();
    aside.push(REMOVING);
    let put_back = || disk.rename(&aside, &snapshot.name, false).and_then(|()| disk.sync_names());
    match disk.rename(&snapshot.name, &aside, false).and_then(|()| disk.sync_names()) {
        // A longer name may need a block of the directory, and there is none; or it may be too long.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::ENAMETOOLONG)) => {
            return unlink_unwanted(disk, &snapshot.name, &reader, &now.stat);
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
    if wanted || take_apart(disk, &aside)? == Outcome::InUse {
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
    match remains(disk, name) {
        Remains::Nobodys => Ok(Outcome::NotOurs),
        Remains::Theirs => {
            if let Some(before) = was_removing(name) {
                disk.rename(name, &before, false).and_then(|()| disk.sync_names())?;
            }
            Ok(Outcome::NotOurs)
        }
        Remains::Ours => take_apart(disk, name),
    }
}

/// Whether it is what is left of a removal, and nobody has it open.
pub fn is_remains(disk: &RealDisk, name: &OsStr) -> bool {
    matches!(remains(disk, name), Remains::Ours) && is_in_use(disk, name).is_ok_and(|it| !it)
}

/// What a file is whose name is that of one that is being removed.
enum Remains {
    /// No snapshot of ours.
    Nobodys,
    /// A snapshot that somebody has written to.
    Theirs,
    /// What is to be removed.
    Ours,
}

fn remains(disk: &RealDisk, name: &OsStr) -> Remains {
    match Snapshot::at(disk, name).map(|(it, _)| it) {
        // Not by us, who make it shorter and no longer: whoever had it open when it lost its name has written to it.
        Some(it) if it.verdict == Verdict::Modified && it.stat.size >= it.record.size => Remains::Theirs,
        Some(it) if matches!(it.verdict, Verdict::Valid | Verdict::Modified) => Remains::Ours,
        _ => Remains::Nobodys,
    }
}

/// Takes the file apart and removes it, unless somebody has it open.
fn take_apart(disk: &RealDisk, name: &OsStr) -> io::Result<Outcome> {
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
        // By its other name it stays what it is.
        return unlink(disk, name, &stat);
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
    // Where that has no room, the removal itself has.
    let _ = shrink::to_nothing(disk, &file, stat.size, &|| true);
    unlink(disk, name, &stat)
}

/// Removes a file by its own name, which is owned, unless somebody has found it by that meanwhile and waits.
fn unlink_unwanted(disk: &RealDisk, name: &OsStr, owned: &RealFile, file: &Stat) -> io::Result<Outcome> {
    if owned.owns()? { unlink(disk, name, file) } else { Ok(Outcome::InUse) }
}

/// Removes the name if it is still that of this file: somebody may have put another one there.
fn unlink(disk: &RealDisk, name: &OsStr, file: &Stat) -> io::Result<Outcome> {
    if disk.stat(name)?.is_none_or(|it| (it.dev, it.ino) != (file.dev, file.ino)) {
        return Err(stale());
    }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn one_that_cannot_be_renamed_stays_where_somebody_waits_for_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = RealDisk::open_dir(dir.path()).expect("open");
        let (name, path) = (OsStr::new("a.snap"), dir.path().join("a.snap"));
        fs::write(&path, b"a snapshot").expect("a file");
        let reader = disk.open(name, Access::Read).expect("open");
        let stat = reader.stat().expect("there");
        // A process that another test starts may have it for a moment.
        let mut tries = (0..1000).inspect(|_| std::thread::sleep(std::time::Duration::from_millis(5)));
        assert!(tries.any(|_| reader.try_own().expect("a lease")));
        let opener = fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert_eq!(opener.err().and_then(|e| e.raw_os_error()), Some(libc::EAGAIN));
        assert_eq!(unlink_unwanted(&disk, name, &reader, &stat).expect("asked"), Outcome::InUse);
        assert!(path.exists());
        reader.disown().expect("given back");
        assert!(reader.try_own().expect("a lease"));
        assert_eq!(unlink_unwanted(&disk, name, &reader, &stat).expect("removed"), Outcome::Removed);
        assert!(!path.exists());
    }
}
