//! What a job tells whoever watches it, as plain data. The engine never formats and never blocks on a watcher.

use std::time::Duration;

use jiff::Timestamp;

use crate::hold::kind::HoldKind;
use crate::quiesce::freezer::Quiescence;

/// What a job is, once T0 is set.
#[derive(Clone, Debug)]
pub struct Started {
    /// The job's id.
    pub job: [u8; 16],
    /// The instant the snapshot shows.
    pub t0: Timestamp,
    /// How T0 is kept.
    pub hold: HoldKind,
    /// Why this hold, in words.
    pub why: String,
    /// The job took up a partial file but the T0 is a new one.
    pub new_t0: bool,
    /// The job goes on from a journal at the same T0.
    pub resumed: bool,
    /// Bytes of the image.
    pub bytes: u64,
    /// Bytes already done when the job started.
    pub done_bytes: u64,
    /// Extents of the image, where the file system tells at once.
    pub extents: Option<u64>,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes of the image.
    pub bytes: u64,
    /// Extents seen so far, where they were counted.
    pub extents: u64,
    /// FICLONERANGE calls so far.
    pub calls: u64,
    /// The longest of them.
    pub longest_call: Duration,
    /// Time since the job started.
    pub elapsed: Duration,
}

/// What a finished job did.
#[derive(Clone, Debug)]
pub struct Finished {
    /// As it started.
    pub started: Started,
    /// Extents of the image; `None` where nobody counted them because no call could exceed its budget.
    pub extents: Option<u64>,
    /// FICLONERANGE calls.
    pub calls: u64,
    /// The longest of them.
    pub longest_call: Duration,
    /// What 99 % of the calls stayed within.
    pub call_p99: Duration,
    /// The longest that a guest's access waited on the program; `None` where nobody could measure it.
    pub longest_guest_wait: Option<Duration>,
    /// Accesses to the image that were looked at before they went on; `None` where the hold does not see them.
    pub accesses: Option<u64>,
    /// Clusters cloned out of turn.
    pub promoted: u64,
    /// How the guests were frozen for T0; `None` where nobody asked for it, or it came to nothing.
    pub quiescence: Option<Quiescence>,
    /// Bytes that a refresh did not clone, because both files share the blocks.
    pub skipped_bytes: u64,
    /// Bytes that were copied because the kernel refused to share them.
    pub copied_bytes: u64,
    /// From T0 to the end of the hold.
    pub window: Duration,
    /// From the start to the renamed snapshot.
    pub elapsed: Duration,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// T0 is set.
    Started(Started),
    /// Some work was done.
    Progress(Progress),
    /// The file system is asked to make the finished snapshot durable.
    Syncing,
    /// Something the user should know; the job goes on.
    Warning(String),
    /// A guest may have been left frozen; the job goes on.
    StillFrozen(String),
}

/// Who watches a job. Calls come from the engine's thread and must not block.
pub trait Observer {
    /// Something happened.
    fn on(&self, event: Event);
}

/// Watches nothing.
pub struct Nobody;

impl Observer for Nobody {
    fn on(&self, _: Event) {}
}
