//! Holds: the means by which every byte not yet cloned stays as it was at T0 (DESIGN section 4).
//!
//! A hold goes through [`Hold::prepare`] (everything that can be refused, nothing touched), [`Hold::begin`] (T0),
//! [`Hold::demand`] after every call, and [`Hold::end`]. The engine is the same for all of them; what differs is the order
//! what the hold demands between two calls, and whether a T0 outlives the run that set it ([`HoldKind::keeps_t0`]).

pub mod choose;
pub mod frozen;
pub mod holders;
pub mod live;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::disk::real::RealFile;
use crate::disk::{DiskFile, Stat};
use crate::error::{Error, Kind, Result};
use crate::range::ByteRange;

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
    /// Clone what is pending in this range before anything else, then say [`Hold::promoted`]: somebody waits to write it.
    Promote(ByteRange),
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

    /// Sets T0.
    ///
    /// # Errors
    /// What keeps it from being set; nothing was cloned yet.
    fn begin(&mut self) -> Result<T0>;

    /// What the hold wants now. Called before every clone call; must not block.
    fn demand(&mut self) -> Demand;

    /// The range of the last [`Demand::Promote`] is in the snapshot: let its writer go.
    fn promoted(&mut self, range: ByteRange);

    /// Everything is cloned: says whether all of it is of T0, and lets the image go.
    ///
    /// # Errors
    /// [`crate::error::Kind::Broken`] where it is not.
    fn end(&mut self) -> Result<()>;

    /// Lets the image go at once. No error: there is nothing that a caller could do about it.
    fn release(&mut self);
}

/// Which hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldKind {
    /// Nobody has the image open for writing, and a lease keeps it so.
    Frozen,
    /// One call for the whole file.
    Atomic,
    /// Nothing keeps the image still: not a point in time.
    None,
}

impl HoldKind {
    /// All kinds that are built.
    pub const ALL: [Self; 3] = [Self::Frozen, Self::Atomic, Self::None];

    /// The name on the command line, in the journal's words and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Atomic => "atomic",
            Self::None => "none",
        }
    }

    /// The number in the journal and in the record; never reused.
    pub fn code(self) -> u8 {
        match self {
            Self::Frozen => 1,
            Self::Atomic => 2,
            Self::None => 3,
        }
    }

    /// The kind of a number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.code() == code)
    }

    /// Whether a snapshot under this hold is of one instant.
    pub fn point_in_time(self) -> bool {
        self != Self::None
    }

    /// Whether the whole image has to be cloned by a single call.
    pub fn one_call(self) -> bool {
        self == Self::Atomic
    }

    /// Whether a T0 can outlive the run that set it, for a later run to go on with.
    pub fn keeps_t0(self) -> bool {
        self != Self::Atomic
    }

    /// Whether a guest may be using the image while the job runs: decides the default of `--latency`.
    pub fn has_guests(self) -> bool {
        self != Self::Frozen
    }
}

/// Whether `path` still names the file that was cloned: a snapshot of a file that was replaced meanwhile would pass for one
/// of its successor.
fn still_at(image: &RealFile, path: &Path) -> Result<()> {
    let cannot = |e| Error::io(Kind::Failed, format!("cannot look at '{}'", path.display()), "check the path", e);
    let cloned = image.stat().map_err(cannot)?;
    let hint = "run the same command again: it takes a new point in time";
    let lost = || Error::new(Kind::Broken, format!("'{}' was replaced or removed during the job", path.display()), hint);
    let named = std::fs::metadata(path).map_err(|_| lost())?;
    use std::os::unix::fs::MetadataExt;
    if (named.dev(), named.ino()) == (cloned.dev, cloned.ino) { Ok(()) } else { Err(lost()) }
}
