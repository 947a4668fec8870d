//! Takes an unfinished job back: what it made goes, a snapshot that it has not touched yet returns.

use super::group;
use super::job;
use super::names::Names;
use super::recover;
use super::undo::put_back;
use crate::disk::{Access, Disk, DiskFile};
use crate::error::{Error, Kind, Result};
use crate::journal::file as journal_file;
use crate::journal::format::{FormatError, Header, State};

/// What an abort did.
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

/// Aborts the job of `names`, which no process may have: the caller stops a live one first.
///
/// # Errors
/// Refused where there is no job, or what is there is not provably a job's; busy where a process has it.
pub fn abort<D: Disk>(disk: &D, names: &Names, force: bool) -> Result<Aborted> {
    let file = match disk.open(&names.journal, Access::Write) {
        Ok(file) => file,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
            return Err(Error::new(Kind::Refused, "there is no job to abort: no journal", "nothing is to be done"));
        }
        Err(e) => return Err(cannot("open the journal", e)),
    };
    if !file.try_lock().map_err(|e| cannot("lock the journal", e))? {
        return Err(Error::new(Kind::Busy, "the job is running", "stop it first"));
    }
    // What stands in a journal of somebody else's is not to be acted on.
    if file.stat().map_err(|e| cannot("look at the journal", e))?.uid != disk.host().uid && !force {
        let what = "the journal belongs to another user";
        return Err(Error::new(Kind::Refused, what, "run as that user, or use --force if you know whose it is"));
    }
    let header = match journal_file::read(&file).map_err(|e| cannot("read the journal", e))? {
        Ok(loaded) => loaded.header,
        Err(error) => return abort_unreadable(disk, names, error, force),
    };
    let aborted = undo(disk, names, &header, force);
    drop(file);
    aborted
}

fn undo<D: Disk>(disk: &D, names: &Names, header: &Header, force: bool) -> Result<Aborted> {
    let found = job::find(disk, names)?;
    if !header.group.is_alone() && group::is_committed(disk, header)? {
        let what = "the snapshots of this job are complete, and belong together";
        return Err(Error::new(Kind::Refused, what, "'rclone-img resume' puts all of them into place"));
    }
    let partial = found.partial.as_ref().map(|p| p.stat);
    if !recover::partial_is_ours(header, &found) && !force {
        let hint = "move it away, or use --force to remove it";
        return Err(Error::new(Kind::Refused, "the partial file is not the one that the journal speaks of", hint));
    }
    if header.state == State::Committing && partial.is_none() {
        remove_journal(disk, names)?;
        return Ok(Aborted::WasFinished);
    }
    let untaken = header.state == State::Preparing && header.refreshes && found.partial.is_none();
    if untaken || recover::is_untouched(header, &found) {
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
