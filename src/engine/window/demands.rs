//! What the hold demands between two calls: promotions first, ahead of everything in the background.

use std::time::{Duration, Instant};

use super::Window;
use crate::disk::Disk;
use crate::engine::claims::Claims;
use crate::error::{Error, Kind, Result};
use crate::hold::Demand;
use crate::range::ByteRange;

/// The most that one call promotes: 256 blocks of 4 KiB, at 11 us an extent (KERNEL.md) about 3 ms.
const PROMOTE: u64 = 1 << 20;

impl<D: Disk> Window<'_, D> {
    /// Meets every demand that there is now.
    pub(super) fn meet_demands(&mut self, claims: &mut dyn Claims<D::File>) -> Result<()> {
        loop {
            match self.hold.demand() {
                Demand::Nothing => return Ok(()),
                Demand::Promote(image, range) => self.promote(image, range, claims)?,
                Demand::Leave(within) => return self.leave(within),
                Demand::Broken(why) => {
                    return Err(Error::new(
                        Kind::Broken,
                        why,
                        "run the same command again: it takes a new point in time",
                    ));
                }
            }
        }
    }

    fn promote(&mut self, image: usize, range: ByteRange, claims: &mut dyn Claims<D::File>) -> Result<()> {
        if let Some(cover) = self.geometry.cover(range) {
            let cluster = self.job.options.cluster;
            let end = cluster.align_up(cover.bytes().end()).min(self.geometry.size);
            let mut at = cluster.align_down(cover.bytes().start());
            while at < end {
                let limit = PROMOTE.min(end - at);
                let Some(open) = self.clusters.next_open(at, limit).filter(|o| o.start() < end) else { break };
                self.clone_piece(open, None)?;
                self.done(open, claims)?;
                self.work.promoted += open.len().div_ceil(cluster.get());
                at = open.end();
            }
        }
        self.hold.promoted(image, range);
        Ok(())
    }

    /// Somebody waits for the image: what is left is finished if that takes no longer than they can wait.
    fn leave(&mut self, within: Duration) -> Result<()> {
        let now = Instant::now();
        match self.leave_by {
            Some(by) if now < by => return Ok(()),
            None => {
                let left = self.geometry.size - self.clusters.done_bytes();
                // There are at most as many extents as blocks.
                let estimate = self.pacer.estimate(left.div_ceil(self.geometry.block.get()));
                if estimate < within {
                    self.leave_by = Some(now + within);
                    return Ok(());
                }
            }
            Some(_) => {}
        }
        // The writer is let in first, and the checkpoint is made after: it changes what is cloned no more.
        self.hold.release();
        Err(interrupted("somebody opened the image for writing and was let in"))
    }
}

/// The job stops here, and can go on.
pub(super) fn interrupted(why: &str) -> Error {
    let hint = "'rclone-img resume' goes on from the checkpoint";
    Error::new(Kind::Interrupted, format!("stopped with a checkpoint: {why}"), hint)
}
