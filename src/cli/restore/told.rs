//! What is told at the end.

use std::io;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::cli::args::Output;
use crate::cli::service::log::with_path;
use crate::cli::{json, last_words, words, written};
use crate::engine::restore::Restored;
use crate::error::Result;

/// What became of an image, and from which snapshot.
pub(super) fn told(
    image: &Path,
    (from, undo): (Option<&Path>, Option<&Path>),
    output: &Output,
    what: &str,
    done: Option<(Restored, Instant)>,
) -> Result<()> {
    if output.json {
        let mut object = json!({"v": json::VERSION, "event": "finished", "what": what});
        if let Some((restored, began)) = done {
            object["cloned_bytes"] = restored.cloned.into();
            object["equal_bytes"] = restored.equal.into();
            object["copied_bytes"] = restored.copied.into();
            object["elapsed_ms"] = json::ms(began.elapsed()).into();
        }
        let mut object = with_path(object, "dst", image);
        if let Some(from) = from {
            object = with_path(object, "src", from);
        }
        return written(json::write_line(&mut io::stdout(), &object));
    }
    if output.quiet {
        return Ok(());
    }
    let name = words::name(image);
    let of = from.map(words::name).unwrap_or_default();
    let sums = done.map(|(it, _)| {
        format!("{} cloned, {} had the same blocks", words::bytes(it.cloned + it.copied), words::bytes(it.equal))
    });
    let sums = sums.unwrap_or_default();
    last_words(match what {
        "untouched" => format!(
            "{name}: the restore had not begun, and the image is as it was; 'rclone-img restore' begins it anew\n"
        ),
        "was-restored" => {
            format!("{name}: the restore was complete, and the image has its name; the VM may be started\n")
        }
        "was-put-back" => {
            format!("{name}: is again what it was before the restore, and has its name; the VM may be started\n")
        }
        "put-back" => format!("{name}: is again what it was, as {of} has kept it ({sums}); the VM may be started\n"),
        _ => {
            let undo = undo
                .map(|kept| format!("; to undo: rclone-img restore {} {}", words::shell(kept), words::shell(image)));
            let undo = undo.unwrap_or_default();
            format!("{name}: is now what {of} is ({sums}); the VM may be started{undo}\n")
        }
    });
    Ok(())
}
