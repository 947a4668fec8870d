//! How a restore stands, by what is in the directory. Others may write to that, `/tmp` for one, and put files there that say what they like: what counts
//! is the word of this user, and of whoever owns the image.

use std::ffi::OsStr;
use std::io;

use super::{Intent, Names, cannot_look, shown};
use crate::disk::{Access, Disk, DiskFile, Stat};
use crate::error::{Error, Kind, Result};

/// How a restore stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// There is none.
    Nothing,
    /// The next thing would have been to write what is to be done: the file is there, and empty.
    Empty,
    /// It is intended; the image is as it was.
    Intended(Intent),
    /// The image is aside, and may be a mixture.
    Begun(Intent),
    /// The same, but it is not where it was put aside: somebody has renamed or removed it.
    Astray(Intent),
    /// The image is rolled back; it may not have its name again.
    Done(Intent),
    /// Somebody else says that there is one, or anybody could have said so.
    Anothers,
    /// A file of the intent's name that is none: somebody else's, or cut off by a crash before anything was done.
    Foreign,
}

/// Looks without a lock.
///
/// # Errors
/// Refused where the names cannot be looked at, or fit no restore.
pub fn look<D: Disk>(disk: &D, names: &Names) -> Result<Found> {
    find(disk, names).map(|(found, _)| found)
}

/// The same, and the name of the file that says so.
pub(super) fn find<'n, D: Disk>(disk: &D, names: &'n Names) -> Result<(Found, &'n OsStr)> {
    let mut found = (Found::Nothing, names.intent.as_os_str());
    for name in [&names.intent, &names.done] {
        match said(disk, names, name)? {
            Said::Intent(intent) => return Ok((standing(disk, names, name, intent)?, name)),
            // It tells nothing of what another one may say.
            Said::Nothing(what) if found.0 == Found::Nothing => found = (what, name),
            Said::Nothing(_) => {}
        }
    }
    Ok(found)
}

enum Said {
    /// By somebody who may.
    Intent(Intent),
    Nothing(Found),
}

fn said<D: Disk>(disk: &D, names: &Names, name: &OsStr) -> Result<Said> {
    let nothing = |found| Ok(Said::Nothing(found));
    let Some(there) = there(disk, name)? else { return nothing(Found::Nothing) };
    if !there.regular {
        return nothing(Found::Foreign);
    }
    let file = match disk.open(name, Access::Read) {
        Ok(file) => file,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return nothing(Found::Nothing),
        // Nobody can be made to wait, or to fail, by what he need not believe.
        Err(_) if there.uid != disk.host().uid => return nothing(Found::Anothers),
        Err(e) => return Err(cannot_look(e)),
    };
    let stat = file.stat().map_err(cannot_look)?;
    let Some(intent) = Intent::read(&file).map_err(cannot_look)? else {
        let empty = stat.size == 0 && name == names.intent && is_ours(disk, &stat);
        let nothing_begun = empty && self::there(disk, &names.aside)?.is_none();
        return nothing(if nothing_begun { Found::Empty } else { Found::Foreign });
    };
    match is_ours(disk, &stat) || is_owners(disk, names, &stat)? {
        true => Ok(Said::Intent(intent)),
        false => nothing(Found::Anothers),
    }
}

/// What somebody who may say so has said, and what there is.
fn standing<D: Disk>(disk: &D, names: &Names, name: &OsStr, intent: Intent) -> Result<Found> {
    let is = |name: &OsStr| Ok(there(disk, name)?.map(|it| it.ino == intent.image.ino));
    let done = name == names.done || intent.is_done();
    let wrong = match is(&names.aside)? {
        Some(true) if done => return Ok(Found::Done(intent)),
        Some(true) => return Ok(Found::Begun(intent)),
        Some(false) => format!("'{}' is", shown(&names.aside)),
        None if done && is(&names.image)? == Some(true) => return Ok(Found::Done(intent)),
        None if done => format!("there is no '{}', and '{}' is", shown(&names.aside), shown(&names.image)),
        None if intent.has_begun() => return Ok(Found::Astray(intent)),
        None => return Ok(Found::Intended(intent)),
    };
    let what = format!("{wrong} not the image that '{}' is about", shown(name));
    let hint = match done {
        true => "that one is rolled back: find out who has renamed it, and move the file that is about it away",
        false => "find out who has renamed it; nothing was touched",
    };
    Err(Error::new(Kind::Refused, what, hint))
}

/// Whether a process works on it; takes nothing.
///
/// # Errors
/// Refused where that cannot be found out.
pub fn is_live<D: Disk>(disk: &D, names: &Names) -> Result<bool> {
    let (found, name) = find(disk, names)?;
    if matches!(found, Found::Nothing | Found::Anothers | Found::Foreign) {
        return Ok(false);
    }
    match disk.open(name, Access::Read) {
        Ok(file) => file.is_locked().map_err(cannot_look),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(cannot_look(e)),
    }
}

/// Whether nobody but this user can have written a file.
pub(super) fn is_ours<D: Disk>(disk: &D, stat: &Stat) -> bool {
    stat.uid == disk.host().uid && is_guarded(stat)
}

fn is_guarded(stat: &Stat) -> bool {
    stat.regular && stat.mode & 0o022 == 0 && stat.nlink == 1
}

/// Whether nobody but the image's owner can have, who may do with it what he likes: enough to be told of, and no more.
fn is_owners<D: Disk>(disk: &D, names: &Names, stat: &Stat) -> Result<bool> {
    let image = match there(disk, &names.image)? {
        None => there(disk, &names.aside)?,
        image => image,
    };
    Ok(is_guarded(stat) && image.is_some_and(|image| image.uid == stat.uid))
}

pub(super) fn anothers(name: &OsStr) -> Error {
    let what =
        format!("'{}' belongs to another user, has another name as well, or others may write to it", shown(name));
    let hint = "run as the user who began the restore, remove the other names ('find DIR -samefile FILE': a backup by hard links makes such), and \
                'chmod go-w' it; move it away only where nobody of yours began a restore, and there is no IMG.restoring, which may be a mixture";
    Error::new(Kind::Refused, what, hint)
}

/// What is refused where somebody else says that there is a restore.
///
/// # Errors
/// As [`look`].
pub fn refused<D: Disk>(disk: &D, names: &Names) -> Result<Error> {
    find(disk, names).map(|(_, name)| anothers(name))
}

/// No file has a name that is too long.
fn there<D: Disk>(disk: &D, name: &OsStr) -> Result<Option<Stat>> {
    match disk.stat(name) {
        Err(e) if is_too_long(&e) => Ok(None),
        found => found.map_err(cannot_look),
    }
}

fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENAMETOOLONG)
}
