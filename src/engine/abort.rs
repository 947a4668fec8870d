//! Takes an unfinished job back: what it made goes, a snapshot that it has not touched yet returns. A job of several images
//! is taken back whole, by the name of any of its snapshots.

use super::job;
use super::members;
use super::names::Names;
use super::recover::{self, Found};
use super::undo::put_back;
use crate::disk::{Access, Disk, DiskFile};
use crate::error::{Error, Kind, Result};
use crate::journal::file as journal_file;
use crate::journal::format::{FormatError, Header, State};

/// What an abort did for one snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aborted {
    /// Partial file and journal are gone.
    Removed,
    /// The snapshot that was to be refreshed is back as it was.
    PutBack,
    /// The snapshot was in place already; only the journal was left to remove.
    WasFinished,
    /// The job had destroyed the snapshot that it refreshed: its remains are gone.
    RemovedRefreshed,
}

/// What an abort did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// Of the snapshot that was named.
    pub what: Aborted,
    /// Of the others of its job, by their absolute paths.
    pub others: Vec<(Vec<u8>, Aborted)>,
}

/// A journal, locked, with what is there beside it.
struct Taken<D: Disk> {
    disk: D,
    names: Names,
    dst: Vec<u8>,
    header: Header,
    found: Found,
    /// Holds the job's lock.
    _journal: D::File,
}

/// Aborts the job of `names`, which no process may have: the caller stops a live one first.
///
/// # Errors
/// Refused where there is no job, where what is there is not provably a job's, and where snapshots that belong together are
/// complete; busy where a process has one.
pub fn abort<D: Disk>(disk: &D, names: &Names, force: bool) -> Result<Done> {
    let Some(file) = locked(disk, names)? else {
        return Err(Error::new(Kind::Refused, "there is no job to abort: no journal", "nothing is to be done"));
    };
    mine(disk, &file, force)?;
    let header = match journal_file::read(&file).map_err(|e| cannot("read the journal", e))? {
        Ok(loaded) => loaded.header,
        Err(error) => {
            let what = abort_unreadable(disk, names, error, force)?;
            return Ok(Done { what, others: Vec::new() });
        }
    };
    let found = job::find(disk, names)?;
    may_be_undone(&header, &found, force)?;
    let others = match take_others(disk, &header) {
        Ok(others) => others,
        // Whoever forces this one leaves the others as they are; what is known to be complete is not taken apart.
        Err(_) if force && !matches!(members::is_committed(disk, &header), Ok(true)) => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut done = Vec::new();
    // The named one is the last: until then the same command finds the others.
    for other in others {
        let undone = undo(&other.disk, &other.names, &other.header, &other.found);
        done.push((other.dst.clone(), undone.map_err(|e| of_other(&other.dst, e))?));
    }
    let what = undo(disk, names, &header, &found)?;
    drop(file);
    Ok(Done { what, others: done })
}

/// The journal, with its lock; `None` where there is none.
fn locked<D: Disk>(disk: &D, names: &Names) -> Result<Option<D::File>> {
    let file = match disk.open(&names.journal, Access::Write) {
        Ok(file) => file,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(e) => return Err(cannot("open the journal", e)),
    };
    if file.try_lock().map_err(|e| cannot("lock the journal", e))? {
        return Ok(Some(file));
    }
    Err(Error::new(Kind::Busy, "the job is running", "stop it first"))
}

/// What stands in a journal of somebody else's is not to be acted on.
fn mine<D: Disk>(disk: &D, file: &D::File, force: bool) -> Result<()> {
    if force || file.stat().map_err(|e| cannot("look at the journal", e))?.uid == disk.host().uid {
        return Ok(());
    }
    let what = "the journal belongs to another user";
    Err(Error::new(Kind::Refused, what, "run as that user, or use --force if you know whose it is"))
}

/// The other snapshots of a job that has not been committed, all of which can be taken back. One without a journal of this job
/// has been, or is of another job by now.
fn take_others<D: Disk>(disk: &D, header: &Header) -> Result<Vec<Taken<D>>> {
    if header.group.is_alone() {
        return Ok(Vec::new());
    }
    let mut others = Vec::new();
    for member in header.group.others(header.job) {
        let (disk, names) = members::at(disk, member)?;
        let take = || -> Result<Option<Taken<D>>> {
            if members::of_group(&disk, &names, member, &header.group)?.is_none() {
                return Ok(None);
            }
            let Some(file) = locked(&disk, &names)? else { return Ok(None) };
            let Some(header) = members::of_group(&disk, &names, member, &header.group)? else { return Ok(None) };
            let found = job::find(&disk, &names)?;
            may_be_undone(&header, &found, false)?;
            let dst = member.dst.clone();
            Ok(Some(Taken { disk, names, dst, header, found, _journal: file }))
        };
        others.extend(take().map_err(|e| of_other(&member.dst, e))?);
    }
    // Nobody can commit it any more: all journals are locked.
    if members::is_committed(disk, header)? {
        let what = "the snapshots of this job are complete, and belong together";
        return Err(Error::new(Kind::Refused, what, "'rclone-img resume' puts all of them into place"));
    }
    Ok(others)
}

fn of_other(dst: &[u8], error: Error) -> Error {
    let name = String::from_utf8_lossy(dst);
    Error { what: format!("'{}', of the same job: {}", name.escape_debug(), error.what), ..error }
}

fn may_be_undone(header: &Header, found: &Found, force: bool) -> Result<()> {
    if force || recover::partial_is_ours(header, found) {
        return Ok(());
    }
    let hint = "move it away, or use --force to remove it";
    Err(Error::new(Kind::Refused, "the partial file is not the one that the journal speaks of", hint))
}

fn undo<D: Disk>(disk: &D, names: &Names, header: &Header, found: &Found) -> Result<Aborted> {
    if header.state == State::Committing && found.partial.is_none() {
        remove_journal(disk, names)?;
        return Ok(Aborted::WasFinished);
    }
    let untaken = header.state == State::Preparing && header.refreshes && found.partial.is_none();
    if untaken || recover::is_untouched(header, found, &disk.host()) {
        put_back(disk, names, header).map_err(|e| cannot("put the snapshot back", e))?;
        return Ok(Aborted::PutBack);
    }
    disk.unlink(&names.partial).and_then(|()| disk.sync_names()).map_err(|e| cannot("remove the partial file", e))?;
    remove_journal(disk, names)?;
    Ok(if header.refreshes { Aborted::RemovedRefreshed } else { Aborted::Removed })
}

fn abort_unreadable<D: Disk>(disk: &D, names: &Names, error: FormatError, force: bool) -> Result<Aborted> {
    let partial = disk.stat(&names.partial).map_err(|e| cannot("look at the partial file", e))?;
    let removable = match error {
        FormatError::NeverBegun | FormatError::Damaged => partial.is_none() || force,
        FormatError::Version(_) | FormatError::Foreign => false,
    };
    if !removable {
        let hint = error.hint();
        return Err(Error::new(Kind::Refused, format!("the journal cannot be used: {error}"), hint));
    }
    disk.unlink(&names.partial).and_then(|()| disk.sync_names()).map_err(|e| cannot("remove the partial file", e))?;
    remove_journal(disk, names)?;
    Ok(Aborted::Removed)
}

fn remove_journal<D: Disk>(disk: &D, names: &Names) -> Result<()> {
    disk.unlink(&names.journal).and_then(|()| disk.sync_names()).map_err(|e| cannot("remove the journal", e))
}

fn cannot(what: &str, error: std::io::Error) -> Error {
    Error::io(Kind::Failed, format!("cannot {what}"), "check the directory, then abort again", error)
}
