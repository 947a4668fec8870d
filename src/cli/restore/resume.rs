//! A restore that was interrupted is ended, or taken back.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::told::told;
use super::{Place, names, place, roll, soon, source};
use crate::changes::still::Still;
use crate::cli::args::Output;
use crate::cli::diff::open;
use crate::cli::signals::Stop;
use crate::cli::words;
use crate::disk::real::RealDisk;
use crate::engine::restore::{Found, Intent, Restore, look};
use crate::error::{Error, Kind, Result};

/// Goes on with a restore of an image, if there is one; none otherwise.
///
/// # Errors
/// As [`super::run`].
pub fn resume(image: &Path, output: &Output) -> Result<Option<u8>> {
    go_on(image, output, false)
}

/// Takes a restore back, if there is one: the image becomes what --keep-current has kept.
///
/// # Errors
/// As [`super::run`]; refused where nothing was kept.
pub fn abort(image: &Path, output: &Output) -> Result<Option<u8>> {
    go_on(image, output, true)
}

fn go_on(image: &Path, output: &Output, back: bool) -> Result<Option<u8>> {
    let Ok(place) = place(image) else { return Ok(None) };
    let name = words::name(image);
    let found = look(&place.disk, &place.names)?;
    match &found {
        Found::Nothing | Found::Foreign => return Ok(None),
        Found::Astray(_) => return Err(names::astray(&place)),
        Found::Intended(_) => {
            take(&place, &found)?.forget_intent()?;
            told(image, (None, None), output, "untouched", None)?;
        }
        Found::Done(_) if back => {
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
            let (from, mut source) = if back { kept(&name, image, intent)? } else { snapshot(&place, intent)? };
            let stop = Stop::on_signals()?;
            let file = soon(&place, || restore.own())?;
            let restored = roll(restore, &file, &mut source, &stop, image, output)?;
            let what = if back { "put-back" } else { "restored" };
            told(image, (Some(&from), None), output, what, Some((restored, began)))?;
        }
    }
    Ok(Some(0))
}

/// What the restore is of, by the path that the user knows, and as it was kept.
fn snapshot(place: &Place, intent: &Intent) -> Result<(PathBuf, Still)> {
    let path = source::path(place);
    let (from, kept) = (PathBuf::from(OsString::from_vec(intent.snapshot_bytes.clone())), words::name(&path));
    let new = format!(
        "put it back, or make the image anew from another snapshot: 'cp --reflink=always SNAP NEW', give NEW the owner and mode of {aside} and \
         the name {image}, then remove {aside} and {intent}",
        aside = words::name(place.names.aside()),
        image = words::name(&place.names.image),
        intent = words::name(place.names.intent()),
    );
    let source = open(&path).map_err(|e| Error { hint: new.clone(), ..e })?;
    let is = |job| source.record().is_some_and(|record| record.job == job);
    if source.stat().id() == intent.source && intent.job.is_none_or(is) {
        return Ok((from, source));
    }
    let what = format!("{kept}, which is {}, is not what it was when the restore began", words::name(&from));
    Err(Error::new(Kind::Refused, what, new))
}

/// What the image was before.
fn kept(name: &str, image: &Path, intent: &Intent) -> Result<(PathBuf, Still)> {
    let hint = format!("'rclone-img resume {}' ends the restore", words::shell(image));
    let none = || Error::new(Kind::Refused, format!("what {name} was before was not kept (--keep-current)"), &hint);
    let from = PathBuf::from(OsString::from_vec(intent.kept.clone().ok_or_else(none)?));
    let source = open(&from).map_err(|e| Error { hint: hint.clone(), ..e })?;
    if source.record().is_some_and(|record| record.image == intent.image) {
        return Ok((from, source));
    }
    let what = format!("{} is not what it was when the restore began", words::name(&from));
    Err(Error::new(Kind::Refused, what, hint))
}

/// Takes a restore that still stands as it was found.
fn take<'a>(place: &'a Place, found: &Found) -> Result<Restore<'a, RealDisk>> {
    let restore = Restore::take(&place.disk, &place.names)?;
    if look(&place.disk, &place.names)? == *found {
        return Ok(restore);
    }
    Err(Error::new(
        Kind::Busy,
        "somebody else has worked on the restore in this moment",
        "look with 'rclone-img status'",
    ))
}
