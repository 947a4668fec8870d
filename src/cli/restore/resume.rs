//! A restore that was interrupted is ended, or taken back.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::told::told;
use super::{Place, cannot, names, place, roll, soon, source};
use crate::changes::still::Still;
use crate::cli::args::Output;
use crate::cli::diff::open;
use crate::cli::signals::Stop;
use crate::cli::words;
use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::engine::restore::{Found, Intent, Restore, Toward, look, refused};
use crate::error::{Error, Kind, Result};

/// Where to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To where it was on its way: to the snapshot, or back.
    On,
    /// To whatever is there in its place.
    Whatever,
    /// To what the image was.
    Back,
}

/// Goes on with a restore of an image, if there is one, or with the abort of one; none otherwise. With `force` it becomes what the snapshot is, as
/// that is now.
///
/// # Errors
/// As [`super::run`].
pub fn resume(image: &Path, force: bool, output: &Output) -> Result<Option<u8>> {
    go_on(image, output, if force { Way::Whatever } else { Way::On })
}

/// Takes a restore back, if there is one: the image becomes what --keep-current has kept.
///
/// # Errors
/// As [`super::run`]; refused where nothing was kept.
pub fn abort(image: &Path, output: &Output) -> Result<Option<u8>> {
    go_on(image, output, Way::Back)
}

fn go_on(image: &Path, output: &Output, way: Way) -> Result<Option<u8>> {
    let Ok(place) = place(image) else { return Ok(None) };
    let name = words::name(image);
    let found = look(&place.disk, &place.names)?;
    match &found {
        Found::Nothing | Found::Foreign => return Ok(None),
        Found::Astray(intent) => return Err(names::astray(&place, intent)),
        Found::Anothers => return Err(refused(&place.disk, &place.names)?),
        Found::Empty | Found::Intended(_) => {
            take(&place, &found)?.forget()?;
            told(image, (None, None), output, "untouched", None)?;
        }
        // Taken back already, but for the last steps: there is no other way left.
        Found::Done(intent) if intent.toward() == Toward::Kept => {
            take(&place, &found)?.put_back()?;
            told(image, (None, None), output, "was-put-back", None)?;
        }
        Found::Done(_) if way == Way::Back => {
            let what = format!("the restore of {name} is complete but for its last steps");
            let hint = format!(
                "'rclone-img resume {}' ends it; then restore what --keep-current has kept",
                words::shell(image)
            );
            return Err(Error::new(Kind::Refused, what, hint));
        }
        Found::Done(_) => {
            take(&place, &found)?.put_back()?;
            told(image, (None, None), output, "was-restored", None)?;
        }
        Found::Begun(intent) => {
            let began = Instant::now();
            let restore = take(&place, &found)?;
            let toward = match way {
                Way::On => intent.toward(),
                Way::Back => Toward::Kept,
                Way::Whatever => Toward::Snapshot,
            };
            let (from, mut source) = match toward {
                Toward::Kept => kept(&name, image, intent)?,
                Toward::Snapshot => snapshot(&place, image, intent, way == Way::Whatever)?,
            };
            let stop = Stop::on_signals()?;
            let file = soon(&place, || restore.own(toward))?;
            let restored = roll(restore, &file, &mut source, &stop, image, output)?;
            let what = if toward == Toward::Kept { "put-back" } else { "restored" };
            told(image, (Some(&from), None), output, what, Some((restored, began)))?;
        }
    }
    Ok(Some(0))
}

/// What the restore is of, by the path that the user knows, and as it was kept; with `force` whatever has the name by which that was kept.
fn snapshot(place: &Place, image: &Path, intent: &Intent, force: bool) -> Result<(PathBuf, Still)> {
    let path = source::path(place);
    let (from, kept) = (PathBuf::from(OsString::from_vec(intent.snapshot_bytes.clone())), words::name(&path));
    let shown = words::shell(image);
    // What is there may be the last that there is of the snapshot: only where nothing is a link may be forced upon the name.
    let missing = format!(
        "put it back; or give that name to another snapshot, 'ln -f SNAP {kept}' ('cp --remove-destination --reflink=always' where that is in another \
         subvolume), and 'rclone-img resume --force {shown}' takes it",
        kept = words::shell(&path),
    );
    // A link would lead to what somebody else has chosen.
    let stat = place.disk.stat(place.names.source()).map_err(|e| cannot(&kept, e))?;
    if stat.is_some_and(|it| !it.regular) {
        return Err(Error::new(Kind::Refused, format!("{kept} is not a regular file"), missing));
    }
    let source = open(&path).map_err(|e| match stat {
        None => Error { hint: missing.clone(), ..e },
        Some(_) => Error { hint: format!("{}; then 'rclone-img resume {shown}' goes on", e.hint), ..e },
    })?;
    let is = match intent.job {
        Some(job) => source.record().is_some_and(|record| record.job == job),
        None => intent.is_unchanged(source.stat()),
    };
    if source.stat().id() == intent.source && is {
        return Ok((from, source));
    }
    if force {
        return Ok((path, source));
    }
    let what = format!("{kept}, which is {}, is not what it was when the restore began", words::name(&from));
    let hint = format!(
        "put it back; or 'rclone-img resume --force {shown}' takes what has that name as it is now, whatever it is (to take another snapshot move that \
         away first)"
    );
    Err(Error::new(Kind::Refused, what, hint))
}

/// What the image was before.
fn kept(name: &str, image: &Path, intent: &Intent) -> Result<(PathBuf, Still)> {
    let shown = words::shell(image);
    let hint = match intent.toward() {
        Toward::Snapshot => format!("'rclone-img resume {shown}' ends the restore"),
        Toward::Kept => {
            format!(
                "put it back, and 'rclone-img resume {shown}' goes on; 'rclone-img resume --force {shown}' takes the snapshot after all"
            )
        }
    };
    let none = || Error::new(Kind::Refused, format!("what {name} was before was not kept (--keep-current)"), &hint);
    let from = PathBuf::from(OsString::from_vec(intent.kept.clone().ok_or_else(none)?));
    let source = open(&from).map_err(|e| Error { hint: hint.clone(), ..e })?;
    let is = |(file, job)| source.stat().id() == file && source.record().is_some_and(|record| record.job == job);
    if source.record().is_some_and(|record| record.image == intent.image) && intent.kept_is.is_none_or(is) {
        return Ok((from, source));
    }
    let what = format!("{} is not what --keep-current has kept, or was changed since", words::name(&from));
    Err(Error::new(Kind::Refused, what, hint))
}

/// Takes a restore that still stands as it was found.
fn take<'a>(place: &'a Place, found: &Found) -> Result<Restore<'a, RealDisk>> {
    Restore::take(&place.disk, &place.names, found)
}
