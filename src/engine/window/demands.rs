//! What the hold demands between two calls: promotions first, ahead of everything in the background.

use std::time::{Duration, Instant};

use super::Window;
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::hold::Demand;
use crate::range::ByteRange;

/// The most that one call promotes: 64 blocks of 4 KiB, at 11 us an extent (KERNEL.md) 0.7 ms. Then it is asked again who
/// waits.
const PROMOTE: u64 = 256 << 10;

impl<D: Disk> Window<'_, D> {
    /// Meets the demands that there are, and those that come meanwhile, for about as long as two calls of the background may take: where guests
    /// ask without end it has its turn as well. Whether something was cloned for them.
    pub(super) fn meet_demands(&mut self) -> Result<bool> {
        let most = self.targets[0].pacer.promotions();
        let mut promoted = 0;
        while promoted < most {
            match self.hold.demand() {
                Demand::Nothing => break,
                Demand::Promote(image, range) => {
                    self.promote(image, range)?;
                    promoted += 1;
                }
                Demand::Leave(within) => {
                    self.leave(within)?;
                    break;
                }
                Demand::Broken(why) => {
                    return Err(Error::new(
                        Kind::Broken,
                        why,
                        "run the same command again: it takes a new point in time",
                    ));
                }
            }
        }
        Ok(promoted > 0)
    }

    fn promote(&mut self, image: usize, range: ByteRange) -> Result<()> {
        let target = &mut self.targets[image];
        if let Some(cover) = target.geometry.cover(range) {
            let cluster = target.job.options.cluster;
            let end = cluster.align_up(cover.bytes().end()).min(target.geometry.size);
            let at = cluster.align_down(cover.bytes().start());
            if let Some(open) = target.clusters.next_open(at, PROMOTE.min(end - at)).filter(|o| o.start() < end) {
                let open = target.with_neighbours(open, self.hold.beside());
                self.call(image, |target| target.clone_promoted(open))?;
                self.done(image, open)?;
                self.targets[image].work.promoted += open.len().div_ceil(cluster.get());
            } else if let Some(all) = ByteRange::new(at, end) {
                // What a comparison has proved equal is done before its whole part is: a server that has clusters of its own learns of it here.
                self.hold.done(image, all);
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
                // There are at most as many extents as blocks.
                let estimate = self.targets.iter().map(|target| {
                    let left = target.geometry.size - target.clusters.done_bytes();
                    target.pacer.estimate(left.div_ceil(target.geometry.block.get()))
                });
                if estimate.sum::<Duration>() < within {
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

/// The job stops here. Whether it can go on, and how, [`crate::engine::ended`] says.
pub(super) fn interrupted(why: &str) -> Error {
    Error::new(Kind::Interrupted, why, "")
}
