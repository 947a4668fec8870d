//! The rolling back, watched: by who wants it to stop, and for who opens the image or the snapshot.

use std::path::Path;
use std::time::Duration;

use super::words;
use crate::changes::still::Still;
use crate::cli::args::Output;
use crate::cli::meter::Meter;
use crate::cli::signals::Stop;
use crate::disk::real::{RealDisk, RealFile};
use crate::engine::restore::{Restore, Restored, Toward};
use crate::error::{Error, Kind, Result};

/// What the kernel's patience is where it does not tell, in seconds: its default (Documentation/admin-guide/sysctl/fs.rst).
const LEASE_BREAK_TIME: u64 = 45;

/// Rolls an image back, and gives it its name again.
pub(super) fn roll(
    restore: Restore<'_, RealDisk>,
    file: &RealFile,
    source: &mut Still,
    stop: &Stop,
    image: &Path,
    output: &Output,
) -> Result<Restored> {
    let mut meter =
        Meter::new(format!("restoring {}", words::name(image)), Some(source.size()), output.json || output.quiet);
    let snapshot = std::sync::Arc::clone(source.file());
    let told = |e: Error| Error { what: format!("{}: {}", words::name(image), e.what), ..e };
    let patience = patience();
    let (owned, toward) = (restore.owned(file, patience), restore.toward());
    let restored = restore.roll(&owned, &snapshot, |done| {
        meter.at(done);
        is_still(source, patience, image, toward)?;
        match stop.asked() {
            false => Ok(()),
            true => {
                let hint =
                    format!("'rclone-img resume {}' goes on; until then there is no such image", words::shell(image));
                Err(Error::new(Kind::Interrupted, "the restore was told to stop", hint))
            }
        }
    });
    let restored = restored.map_err(told)?;
    is_still(source, patience, image, toward).and_then(|()| restore.complete(&owned)).map_err(told)?;
    Ok(restored)
}

/// Whether the snapshot is what it was, and stays so until it is asked again: whoever opens it for writing waits for its lease, as who opens the
/// image does for that one's. To end at once would let him in on the only way forward and, by its second name, on the only way to it.
fn is_still(source: &mut Still, patience: Duration, image: &Path, toward: Toward) -> Result<()> {
    source.check_within(patience).map_err(|e| {
        let image = words::shell(image);
        let changed = match toward {
            Toward::Snapshot => format!(
                "'rclone-img resume --force {image}' takes it as it is then, and where --keep-current was given 'rclone-img abort {image}' goes back"
            ),
            Toward::Kept => format!("'rclone-img resume --force {image}' takes the snapshot after all"),
        };
        let hint = format!(
            "'rclone-img resume {image}' goes on as soon as nobody has it open for writing; where it was changed, {changed}"
        );
        Error { hint, ..e }
    })
}

/// For how long somebody who opens the image, or the snapshot for writing, is left waiting: two thirds of what the kernel allows, which 0 means
/// without a limit.
fn patience() -> Duration {
    let text = std::fs::read_to_string("/proc/sys/fs/lease-break-time").ok();
    let seconds = text.and_then(|text| text.trim().parse().ok()).unwrap_or(LEASE_BREAK_TIME);
    if seconds == 0 { Duration::MAX } else { Duration::from_secs(seconds) * 2 / 3 }
}
