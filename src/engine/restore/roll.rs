//! An image is given a snapshot's bytes, while nobody else can open it.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::time::Duration;

use super::{RESUME, Restore, cannot_look, failed, shown};
use crate::disk::{Disk, DiskFile};
use crate::engine::compare::{compare, flush};
use crate::error::{Error, Kind, Result};
use crate::range::{ByteRange, Geometry};

/// How much is compared, and at most cloned, at a time.
const STEP: u64 = 64 << 20;

/// What is told of a restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// Bytes that were cloned.
    pub cloned: u64,
    /// Bytes that were the same blocks.
    pub equal: u64,
    /// Bytes that could not be cloned, and were copied.
    pub copied: u64,
}

/// An image that nobody else can open, for long enough: whoever opens it waits for the lease, and the kernel has patience with us before it lets
/// him in (`/proc/sys/fs/lease-break-time`). To end at once would let him in at once, on a mixture; one who does not wait was never let in, but has
/// broken the lease all the same: from then on it lasts as long as for one who waits, and cannot be made whole but by giving it back, with everybody
/// let in for that moment (fs/locks.c: F_SETLEASE with F_WRLCK leaves a break as it is). So it is not given back before the image is no mixture.
pub struct Owned<'a, F> {
    image: &'a F,
    patience: Duration,
    /// When the lease was last known to be ours. From then on, and not from when it is found to be wanted, the kernel's patience counts: the lease
    /// is gone as it was while somebody only waits for it.
    sure: Cell<Duration>,
}

impl<'a, F: DiskFile> Owned<'a, F> {
    pub(super) fn new(image: &'a F, patience: Duration, asked: Duration) -> Self {
        Self { image, patience, sure: Cell::new(asked) }
    }

    /// The image.
    pub fn image(&self) -> &'a F {
        self.image
    }

    /// # Errors
    /// Failed where somebody has been waiting for it for so long that he may be let in.
    pub(super) fn check(&self, name: &OsStr, now: Duration) -> Result<()> {
        if self.image.owns().map_err(cannot_look)? {
            self.sure.set(now);
            return Ok(());
        }
        if now.saturating_sub(self.sure.get()) < self.patience {
            return Ok(());
        }
        let what = format!("somebody has opened '{}' while it is restored, or tried to", shown(name));
        let hint = "he is let in now, on a mixture: find out who ('fuser -v') and end that; then 'rclone-img resume' goes on, and clones only what is \
                    not cloned yet";
        Err(Error::new(Kind::Failed, what, hint))
    }
}

impl<D: Disk> Restore<'_, D> {
    /// Gives the image the snapshot's bytes, and makes them durable. `step` is told how far it is, and may end it.
    ///
    /// # Errors
    /// What `step` says; failed where a call fails, or somebody opens the image and could be let in: it can be done again from the beginning.
    pub fn roll(
        &self,
        owned: &Owned<'_, D::File>,
        snapshot: &D::File,
        mut step: impl FnMut(u64) -> Result<()>,
    ) -> Result<Restored> {
        let image = owned.image();
        let cannot = |e| failed("roll the image back", e);
        let size = snapshot.stat().map_err(cannot)?.size;
        let geometry = Geometry { size, block: snapshot.fs().map_err(cannot)?.block };
        if image.stat().map_err(cannot)?.size != size {
            image.set_len(size).map_err(cannot)?;
        }
        let mut restored = Restored::default();
        if size > 0 {
            flush(snapshot, image, geometry).map_err(resumable)?;
        }
        let mut rest = ByteRange::new(0, size);
        while let Some(left) = rest {
            let (now, later) = left.split(left.start() + STEP);
            let now = now.expect("the beginning of a range");
            rest = later;
            let compared = compare(snapshot, image, now).map_err(resumable)?;
            restored.equal += compared.equal_bytes;
            for range in compared.differing {
                let Some(clone) = geometry.cover(range) else { continue };
                match image.clone_range(snapshot, clone) {
                    Ok(_) => restored.cloned += range.len(),
                    // What cannot be shared here and now is copied (KERNEL.md).
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EINVAL)) => {
                        copy(snapshot, image, range).map_err(cannot)?;
                        restored.copied += range.len();
                    }
                    Err(e) => return Err(cannot(e)),
                }
            }
            self.check(owned)?;
            step(now.end())?;
        }
        image.sync_all().map_err(cannot)?;
        Ok(restored)
    }
}

/// What would be a broken job, of a snapshot: the image is aside, and `resume` begins to compare anew.
fn resumable(error: Error) -> Error {
    Error { kind: Kind::Failed, hint: RESUME.into(), ..error }
}

/// Copies a range.
fn copy<F: DiskFile>(from: &F, to: &F, range: ByteRange) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start();
    while at < range.end() {
        let piece = &mut buffer[..(range.end() - at).min(1 << 20) as usize];
        if from.read_at(at, piece)? < piece.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_at(at, piece)?;
        at += piece.len() as u64;
    }
    Ok(())
}
