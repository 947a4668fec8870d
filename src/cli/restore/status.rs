//! What `status` says of restores that have not come to their end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{names, place};
use crate::cli::service::log::with_path;
use crate::cli::{json, words};
use crate::disk::real::RealDisk;
use crate::engine::restore::{Found, Names, Toward, is_live, look, refused};
use crate::error::{Kind, Result};

/// The restores in a directory that have not come to their end: for `status`.
pub fn unfinished(dir: &Path, entry: &OsStr) -> Option<PathBuf> {
    let names = Names::of_intent(entry)?;
    let image = dir.join(&names.image);
    let found = look(&RealDisk::open_dir(dir).ok()?, &names);
    // What somebody else says of an image that is there is none of one's own troubles.
    let nothing = match found {
        Ok(Found::Nothing | Found::Foreign) => true,
        Ok(Found::Anothers) => image.symlink_metadata().is_ok(),
        _ => false,
    };
    (!nothing).then_some(image)
}

/// How the restore of an image stands, in words, and the exit code; none where there is none.
///
/// # Errors
/// Refused where it cannot be looked at.
pub fn status(image: &Path, as_json: bool) -> Result<Option<(String, u8)>> {
    let Ok(place) = place(image) else { return Ok(None) };
    let live = is_live(&place.disk, &place.names)?;
    let shown = words::shell(image);
    let then = |text: &str| format!("{text}; rclone-img resume {shown}");
    let (state, text) = match look(&place.disk, &place.names)? {
        Found::Nothing | Found::Foreign => return Ok(None),
        Found::Anothers => return Err(refused(&place.disk, &place.names)?),
        _ if live => ("restoring", "is being restored; wait for it".to_owned()),
        Found::Empty | Found::Intended(_) => {
            ("restore-intended", then("a restore was about to begin, and the image is as it was"))
        }
        Found::Begun(intent) if intent.toward() == Toward::Kept => {
            let text = "'rclone-img abort' of a restore was interrupted, and there is no image until it is ended (resume --force takes the snapshot after \
                        all)";
            ("restore-abort-interrupted", then(text))
        }
        Found::Begun(intent) => {
            let back = if intent.kept.is_some() { ", and 'rclone-img abort' goes back" } else { "" };
            let text = format!("a restore was interrupted, and there is no image until it is ended{back}");
            ("restore-interrupted", then(&text))
        }
        Found::Astray(intent) => {
            let error = names::astray(&place, &intent);
            ("restore-astray", format!("{}; {}", error.what, error.hint))
        }
        Found::Done(intent) if intent.toward() == Toward::Kept => {
            ("restore-aborted", then("a restore was taken back but for the last steps"))
        }
        Found::Done(_) => ("restore-complete", then("a restore is complete but for its last steps")),
    };
    Ok(Some(told(image, as_json, state, &text, live)))
}

fn told(image: &Path, as_json: bool, state: &str, text: &str, live: bool) -> (String, u8) {
    let code = if live { 0 } else { Kind::Interrupted.exit_code() };
    if as_json {
        let object = json!({"v": json::VERSION, "event": "status", "state": state});
        return (format!("{}\n", with_path(object, "dst", image)), code);
    }
    (format!("{}: {text}\n", words::name(image)), code)
}
