//! What is at a name, looked at without a lock: for `status`, and for `abort` before it acts.

use super::job;
use super::members;
use super::names::Names;
use super::recover::{self, Existing, Found, Here};
use crate::disk::{Access, Disk, DiskFile};
use crate::error::{Error, Kind, Result};
use crate::journal::format::{FormatError, Header, State};
use crate::record::{Record, Verdict};

/// How a job or a snapshot stands.
#[derive(Clone, Debug)]
pub enum Condition {
    /// There is nothing of ours.
    Nothing,
    /// A file without a record of ours.
    NotOurs,
    /// A snapshot, and whether its record still holds.
    Snapshot(Record, Verdict),
    /// A job that is running now.
    Running(Unfinished),
    /// A job without a process, which can be resumed if the image has not changed.
    Interrupted(Unfinished),
    /// A job whose point in time is lost.
    Broken(Unfinished),
    /// A complete snapshot that was not renamed yet.
    Complete(Unfinished),
    /// A journal that cannot be used, and why.
    Unreadable(FormatError),
}

/// A job as its journal tells it.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// The journal's header.
    pub header: Header,
    /// Bytes claimed as done.
    pub done_bytes: u64,
}

impl Condition {
    /// An interrupted job whose image is as `here` says: broken where its point in time is lost.
    #[must_use]
    pub fn with_image(self, here: &Here<'_>) -> Self {
        match self {
            Self::Interrupted(mut job) => match recover::t0_lost(&job.header, here) {
                Some(why) => {
                    job.header.reason = format!("its point in time is lost: {why}");
                    Self::Broken(job)
                }
                None => Self::Interrupted(job),
            },
            other => other,
        }
    }
}

/// What is under the names.
///
/// # Errors
/// Refused where the directory cannot be looked at.
pub fn inspect<D: Disk>(disk: &D, names: &Names) -> Result<Condition> {
    let found = job::find(disk, names)?;
    let live = is_live(disk, names)?;
    let condition = condition(&found, live);
    Ok(match condition {
        Condition::Interrupted(mut job) => match members::is_committed(disk, &job.header) {
            Ok(true) => Condition::Complete(job),
            Ok(false) => Condition::Interrupted(job),
            // The others say whether it is complete, and cannot be asked now.
            Err(error) => {
                job.header.reason = error.to_string();
                Condition::Complete(job)
            }
        },
        other => other,
    })
}

/// Whether a process has the job's lock; takes nothing.
///
/// # Errors
/// Refused where the journal cannot be looked at.
pub fn is_live<D: Disk>(disk: &D, names: &Names) -> Result<bool> {
    match disk.open(&names.journal, Access::Read) {
        Ok(file) => file.is_locked().map_err(|e| cannot(e, "whether the job is running")),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(cannot(e, "the journal")),
    }
}

fn condition(found: &Found, live: bool) -> Condition {
    match &found.journal {
        None => found.dst.as_ref().map_or(Condition::Nothing, snapshot),
        Some(Err(error)) => Condition::Unreadable(*error),
        Some(Ok(loaded)) => {
            let done_bytes = loaded.claims.iter().map(|c| c.len()).sum::<u64>().min(loaded.header.image.size);
            let unfinished = Unfinished { header: loaded.header.clone(), done_bytes };
            match loaded.header.state {
                _ if live => Condition::Running(unfinished),
                State::Broken => Condition::Broken(unfinished),
                State::Committing => Condition::Complete(unfinished),
                State::Preparing | State::Running | State::Interrupted | State::Complete => {
                    Condition::Interrupted(unfinished)
                }
            }
        }
    }
}

fn snapshot(dst: &Existing) -> Condition {
    match (&dst.record, dst.verdict()) {
        (Some(record), Some(verdict)) => Condition::Snapshot(record.clone(), verdict),
        _ => Condition::NotOurs,
    }
}

fn cannot(error: std::io::Error, what: &str) -> Error {
    Error::io(Kind::Refused, format!("cannot find out {what}"), "check the directory's permissions", error)
}
