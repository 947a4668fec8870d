//! Writing dirty data back before T0, so that no clone call has to, which would do that with the image's lock held.

use std::time::{Duration, Instant};

use super::choose::Image;
use crate::disk::DiskFile;
use crate::error::{Error, Kind, Result};
use crate::range::ByteRange;

/// A round that takes no longer leaves little for the clone calls to write.
const SHORT_ROUND: Duration = Duration::from_millis(20);

/// How many rounds at most: a guest that never stops writing must not keep the job from starting.
const ROUNDS: u32 = 8;

/// Writes what is dirty of the images to their disks until a round is short; whether one was.
///
/// # Errors
/// What the disk says.
pub fn images(images: &[Image]) -> Result<bool> {
    let cannot = |e| Error::io(Kind::Failed, "cannot write the image's dirty data", "check the kernel's log", e);
    until_short(|| {
        images.iter().try_for_each(|(image, _)| {
            let whole = ByteRange::new(0, image.stat().map_err(cannot)?.size);
            whole.map_or(Ok(()), |whole| image.write_back(whole)).map_err(cannot)
        })
    })
}

/// Writes dirty data back, round by round, until a round is short; whether one was.
///
/// # Errors
/// What a round says.
pub fn until_short(mut round: impl FnMut() -> Result<()>) -> Result<bool> {
    for _ in 0..ROUNDS {
        let began = Instant::now();
        round()?;
        if began.elapsed() < SHORT_ROUND {
            return Ok(true);
        }
    }
    Ok(false)
}
