//! Holds: the means by which every byte not yet cloned stays as it was at T0 (DESIGN section 4).
//!
//! A hold goes through [`Hold::prepare`] (everything that can be refused, nothing touched), [`Hold::begin`] (T0),
//! [`Hold::demand`] before every call, and [`Hold::end`]. The engine is the same for all of them; what differs is what
//! it demands between two calls, and whether a T0 outlives the run that set it ([`HoldKind::keeps_t0`]).

pub mod arm;
pub mod choose;
pub mod filter;
pub mod frozen;
pub mod guard;
pub mod holders;
pub mod image_lock;
pub mod kind;
pub mod live;
pub mod quiesced;
pub mod settle;
pub mod several;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::cbw::{Clusters, Tally};
use crate::disk::real::RealFile;
use crate::disk::{DiskFile, Stat};
use crate::error::{Error, Kind, Result};
use crate::quiesce::freezer::Quiescence;
use crate::range::ByteRange;

pub use kind::HoldKind;

/// The instant that a snapshot shows, and the image at that instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct T0 {
    /// The wall clock.
    pub at: Timestamp,
    /// The image; its size is the snapshot's.
    pub image: Stat,
}

/// What a hold wants of the engine, between two calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Demand {
    /// Go on.
    Nothing,
    /// Clone what is pending in this range of this image (by its number in [`Hold::begin`]) before anything else, or the first
    /// part of it, then say [`Hold::promoted`]: somebody waits to access it. What is left of it is asked for again.
    Promote(usize, ByteRange),
    /// Somebody waits for the image: finish within this time, or [`Hold::release`] and stop with a checkpoint.
    Leave(Duration),
    /// T0 is lost, for this reason.
    Broken(String),
}

/// How every byte not yet cloned stays as it was at T0.
pub trait Hold {
    /// Which hold it is.
    fn kind(&self) -> HoldKind;

    /// Everything that can be refused is refused here; nothing is touched.
    ///
    /// # Errors
    /// [`crate::error::Kind::Refused`] with who is in the way and what to do.
    fn prepare(&mut self) -> Result<()>;

    /// Writes what is dirty of the images to their disks, as far as that takes a bounded time: less has to be written when T0
    /// is set.
    ///
    /// # Errors
    /// What the disk says.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// Sets T0, which all images have in common. `images` are the states of their clusters, which whoever waits for one may
    /// look at; their sizes are those that the images had after [`Hold::prepare`].
    ///
    /// # Errors
    /// What keeps it from being set, such as an image that was resized meanwhile; nothing was cloned yet.
    fn begin(&mut self, images: &[Arc<Clusters>]) -> Result<Vec<T0>>;

    /// What the hold wants now. Called before every clone call; must not block.
    fn demand(&mut self) -> Demand;

    /// The range of the last [`Demand::Promote`] is in the snapshot, or its first part: let those go who may.
    fn promoted(&mut self, image: usize, range: ByteRange);

    /// A clone call of this image is about to be made by the background, or for somebody who waits. Waits until it can be.
    fn calling(&mut self, _image: usize) {}

    /// It has returned.
    fn called(&mut self, _image: usize) {}

    /// All of these bytes of an image are in the snapshot.
    fn done(&mut self, _image: usize, _range: ByteRange) {}

    /// How much of what lies beside the range of a [`Demand::Promote`] may be cloned along with it: 1 is as much as the pacing allows, 0
    /// is nothing.
    fn beside(&self) -> f64 {
        1.0
    }

    /// Waits for this time, with `sleep`, or less where there is something to demand.
    fn idle(&mut self, time: Duration, sleep: &dyn Fn(Duration)) {
        sleep(time);
    }

    /// What the guests felt so far; `None` where nobody could measure it.
    fn felt(&self) -> Option<Tally> {
        None
    }

    /// How the guests were frozen for T0; `None` where they were not, or where that is not known yet.
    fn quiescence(&self) -> Option<Quiescence> {
        None
    }

    /// Everything is cloned: says whether all of it is of T0, and lets the image go.
    ///
    /// # Errors
    /// [`crate::error::Kind::Broken`] where it is not.
    fn end(&mut self) -> Result<()>;

    /// Lets the image go at once. No error: there is nothing that a caller could do about it.
    fn release(&mut self);
}

/// The image had another size when the job's files were made.
fn resized_before_t0() -> Error {
    let hint = "run the same command again";
    Error::new(Kind::Failed, "the image was resized while the job's files were made", hint)
}

/// Whether `path` still names the file that was cloned: a snapshot of a file that was replaced meanwhile would pass for one
/// of its successor.
fn still_at(image: &RealFile, path: &Path) -> Result<()> {
    let cannot = |e| Error::io(Kind::Failed, format!("cannot look at '{}'", path.display()), "check the path", e);
    let cloned = image.stat().map_err(cannot)?;
    let hint = "run the same command again: it takes a new point in time";
    let lost =
        || Error::new(Kind::Broken, format!("'{}' was replaced or removed during the job", path.display()), hint);
    let named = std::fs::metadata(path).map_err(|_| lost())?;
    use std::os::unix::fs::MetadataExt;
    if (named.dev(), named.ino()) == (cloned.dev, cloned.ino) { Ok(()) } else { Err(lost()) }
}
