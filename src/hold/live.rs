//! `atomic` and `none`: nothing keeps writers out.
//!
//! `atomic` is of one instant because a single FICLONERANGE call for the whole file is (the kernel holds the inode's locks
//! throughout). `none` is not a point in time and is marked so wherever it is shown.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Demand, Hold, HoldKind, T0, settle};
use crate::cbw::Clusters;
use crate::disk::DiskFile;
use crate::disk::real::RealFile;
use crate::error::{Error, Kind, Result};
use crate::range::ByteRange;

/// The hold.
pub struct Live {
    image: Arc<RealFile>,
    path: PathBuf,
    kind: HoldKind,
    size: u64,
}

impl Live {
    /// A hold of kind `atomic` or `none`.
    pub fn new(image: Arc<RealFile>, path: PathBuf, kind: HoldKind) -> Self {
        Self { image, path, kind, size: 0 }
    }

    fn size_now(&self) -> Result<u64> {
        let cannot = |e| Error::io(Kind::Failed, "cannot look at the image", "check the kernel's log", e);
        Ok(self.image.stat().map_err(cannot)?.size)
    }

    fn resized(&self, now: u64) -> String {
        format!("the image was resized during the job, from {} to {now} bytes", self.size)
    }
}

fn cannot(error: std::io::Error) -> Error {
    Error::io(Kind::Failed, "cannot flush the image", "check the kernel's log", error)
}

impl Hold for Live {
    fn kind(&self) -> HoldKind {
        self.kind
    }

    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// Outside the clone's lock: on Btrfs a clone call flushes the whole inode under it (217-389 ms for 256 MiB, KERNEL.md).
    fn settle(&mut self) -> Result<()> {
        settle::until_short(|| self.image.sync_data().map_err(cannot)).map(drop)
    }

    fn begin(&mut self, images: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        let image = self.image.stat().map_err(cannot)?;
        self.size = image.size;
        if images.iter().any(|i| i.size() != self.size) {
            return Err(super::resized_before_t0());
        }
        Ok(vec![T0 { at: Timestamp::now(), image }])
    }

    fn demand(&mut self) -> Demand {
        match self.size_now() {
            Ok(now) if now != self.size => Demand::Broken(self.resized(now)),
            _ => Demand::Nothing,
        }
    }

    fn promoted(&mut self, _: usize, _: ByteRange) {}

    fn end(&mut self) -> Result<()> {
        let now = self.size_now()?;
        if now != self.size {
            let hint = "run the same command again: it takes a new point in time";
            return Err(Error::new(Kind::Broken, self.resized(now), hint));
        }
        super::still_at(&self.image, &self.path)
    }

    fn release(&mut self) {}
}
