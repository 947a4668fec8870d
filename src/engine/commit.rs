//! From a complete partial file to a snapshot: sync, record, rename. Each step may be the last one of this process.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::job;
use super::members;
use super::names::Names;
use super::partial::unfinished;
use super::recover::{self, Found};
use super::report::{Event, Finished, Observer, Started};
use super::start::{self, Locked};
use crate::disk::{Access, Disk, DiskFile, Stat};
use crate::error::{Error, Kind, Result, each};
use crate::hold::T0;
use crate::journal::file::Journal;
use crate::journal::format::{Header, State};
use crate::record::{self, Record};

/// Permission bits that let somebody write.
const WRITE_BITS: u32 = 0o222;

/// What the last steps need of a job.
pub struct Ending<'a, D> {
    /// The directory.
    pub disk: &'a D,
    /// The names in it.
    pub names: &'a Names,
    /// Who watches.
    pub observer: &'a dyn Observer,
    /// An existing file may be replaced.
    pub force: bool,
    /// The image has an access control list beside its mode.
    pub image_has_acl: bool,
}

/// Makes the partial files the snapshots: all are complete and durable before the first is renamed.
///
/// # Errors
/// Failed where a step did not succeed: the same command goes on. Broken where a file is not what was cloned.
pub fn commit<D: Disk>(
    jobs: &[Ending<'_, D>],
    journals: &mut [Journal<D::File>],
    partials: &[Arc<D::File>],
    instants: &[T0],
    quiesced: bool,
) -> Result<()> {
    let all = jobs.iter().zip(journals.iter_mut()).zip(partials).zip(instants);
    each(all, |(((job, journal), partial), t0)| complete(job, journal, partial, t0, quiesced))?;
    if jobs.len() > 1 {
        each(jobs.iter().zip(journals.iter()), |(job, journal)| may_be_renamed(job, journal.header()))?;
    }
    let mut becomes = |index: usize, state| {
        let written = journals[index].update(|h| h.state = state);
        written.map_err(|e| failed("cannot write the journal", e).of_member(index))
    };
    (1..jobs.len()).try_for_each(|follower| becomes(follower, State::Complete))?;
    // From here on all are put into place, by whoever comes first.
    becomes(0, State::Committing)?;
    let mut all = jobs.iter().zip(journals.iter()).enumerate();
    let leader = all.next();
    all.chain(leader).try_for_each(|(index, (job, journal))| {
        let header = journal.header();
        rename_and_clean(job, header, header.replace || job.force).map_err(|error| error.of_member(index))
    })
}

/// What would keep one of several snapshots from its place is found out before any of them is put into its own.
fn may_be_renamed<D: Disk>(job: &Ending<'_, D>, header: &Header) -> Result<()> {
    let there = job.disk.stat(&job.names.dst).map_err(|e| failed("cannot look at the snapshot's name", e))?;
    if there.is_none() || header.replace || job.force {
        return Ok(());
    }
    let hint = "move that file away and run the same command again, or use --force to replace it";
    Err(Error::new(Kind::Failed, "a file of the snapshot's name appeared meanwhile", hint))
}

/// Makes a partial file a snapshot in all but its name: durable, with its record and its permissions. `t0` is the image as it
/// was: its owner and mode become the snapshot's.
fn complete<D: Disk>(
    job: &Ending<'_, D>,
    journal: &mut Journal<D::File>,
    partial: &Arc<D::File>,
    t0: &T0,
    quiesced: bool,
) -> Result<()> {
    let cannot = |e| failed("cannot make the snapshot durable", e);
    partial.sync_all().map_err(cannot)?;
    let header = journal.header().clone();
    let stat = partial.stat().map_err(cannot)?;
    if stat.size != header.image.size {
        // Until 2024 a clone of the whole file could end short and report success (KERNEL.md).
        let what = format!("the snapshot has {} bytes, and the image had {}", stat.size, header.image.size);
        let error = Error::new(Kind::Broken, what, "run the same command again: it takes a new point in time");
        let _ = journal.update(|h| (h.state, h.reason) = (State::Broken, error.to_string()));
        return Err(error);
    }
    let record = Record {
        state: record::State::Finished,
        t0: header.t0,
        point_in_time: header.hold.point_in_time(),
        quiesced,
        size: stat.size,
        mtime_ns: stat.mtime_ns.to_string(),
        ..unfinished(&header, &stat)
    };
    // The record first: without write permission nobody but root may set it.
    partial.set_record(Some(&record.to_bytes())).map_err(cannot)?;
    set_permissions(job, partial, &header, &t0.image).and_then(|()| partial.sync_all()).map_err(cannot)
}

/// Gives the snapshot the image's owner, where permitted, and its mode, without what that would open to others.
fn set_permissions<D: Disk>(job: &Ending<'_, D>, partial: &D::File, header: &Header, image: &Stat) -> io::Result<()> {
    // An image may belong to somebody whose name this user may not give; the snapshot is then the user's own.
    let _ = partial.set_owner(image.uid, image.gid);
    let same_group = partial.stat()?.gid == image.gid;
    // Under an ACL the group bits are its mask, and would give the group what its own entry may deny.
    let group = if job.image_has_acl || !same_group { 0 } else { 0o070 };
    let mode = image.mode & (0o707 | group);
    partial.set_mode(if header.writable { mode | 0o200 } else { mode & !WRITE_BITS })
}

/// Ends a job that is complete but for its last steps: needs no image, which may be gone by now.
///
/// # Errors
/// Refused where there is no such job, or it may be another user's; busy where another process has it; broken where its point in time is lost; failed
/// as [`commit`].
pub fn end_complete<D: Disk>(disk: &D, names: &Names, observer: &dyn Observer) -> Result<Finished> {
    let began = Instant::now();
    if let Some(header) = members::finish_one(disk, names, observer)? {
        return Ok(rolled(&header, began));
    }
    let locked = start::lock(disk, names)?;
    let found = match job::find(disk, names).and_then(|found| trusted(disk, &locked, &found).map(|()| found)) {
        Ok(found) => found,
        Err(error) => return Err(locked.give_up(disk, names, error)),
    };
    let complete = matches!(&found.journal, Some(Ok(loaded)) if recover::is_complete(&loaded.header, &found));
    if !complete {
        let error = match &found.journal {
            Some(Ok(loaded)) if loaded.header.state == State::Complete => {
                recover::lost("it was that of several images, not all of which were complete")
            }
            _ => Error::new(Kind::Refused, "there is no complete job to end", "look at it with 'rclone-img status'"),
        };
        return Err(locked.give_up(disk, names, error));
    }
    roll_forward(&Ending { disk, names, observer, force: false, image_has_acl: false }, locked, began)
}

/// A journal that somebody else has put there would have any file of his renamed over the snapshot.
fn trusted<D: Disk>(disk: &D, locked: &Locked<D::File>, found: &Found) -> Result<()> {
    let host = disk.host();
    match &found.journal {
        _ if !locked.is_own(host.uid) => Err(recover::strangers()),
        Some(Ok(loaded)) => recover::trusted_when_complete(found, &loaded.header, &host),
        _ => Ok(()),
    }
}

/// Goes on where a job that was complete was stopped: the rename, and the journal's end.
///
/// # Errors
/// As [`commit`].
pub fn roll_forward<D: Disk>(job: &Ending<'_, D>, locked: Locked<D::File>, began: Instant) -> Result<Finished> {
    let finished = rolled(&locked.header()?, began);
    job.observer.on(Event::Started(finished.started.clone()));
    put_into_place(job, locked)?;
    Ok(finished)
}

/// What is told of a job that was complete.
pub(super) fn rolled(header: &Header, began: Instant) -> Finished {
    let started = Started {
        job: header.job,
        t0: header.t0,
        hold: header.hold,
        why: "the job was complete but for its last steps".into(),
        new_t0: false,
        resumed: true,
        bytes: header.image.size,
        done_bytes: header.image.size,
        extents: None,
    };
    Finished {
        started,
        extents: None,
        calls: 0,
        longest_call: Duration::ZERO,
        call_p99: Duration::ZERO,
        longest_guest_wait: None,
        accesses: None,
        promoted: 0,
        quiescence: None,
        skipped_bytes: 0,
        copied_bytes: 0,
        window: Duration::ZERO,
        elapsed: began.elapsed(),
    }
}

/// Whether what has the snapshot's name came there, or was changed, since the journal of a job that is complete was written: it was not there when it
/// was said that it may go. Both times are the kernel's, of one file system; after a power cut the journal's may be too early, and then somebody is
/// asked.
fn came_later<D: Disk>(disk: &D, names: &Names, written_ns: i128) -> Result<bool> {
    let there = disk.stat(&names.dst).map_err(|e| failed("cannot look at the snapshot's name", e))?;
    Ok(there.is_some_and(|it| it.ctime_ns > written_ns))
}

/// Whether a job that is complete may still be put into place by its name.
///
/// # Errors
/// Failed where something came there since.
pub(super) fn may_replace<D: Disk>(disk: &D, names: &Names, force: bool) -> Result<()> {
    let stat = |name| disk.stat(name).map_err(|e| failed("cannot look at the complete snapshot", e));
    let written_ns = stat(&names.journal)?.map_or(i128::MIN, |it| it.mtime_ns);
    let taken = std::io::Error::from_raw_os_error(libc::EEXIST);
    let refused = !force && came_later(disk, names, written_ns)? && stat(&names.partial)?.is_some();
    if refused { Err(appeared(taken)) } else { Ok(()) }
}

fn appeared(error: std::io::Error) -> Error {
    Error::io(
        Kind::Failed,
        "the snapshot is complete, but a file of its name appeared meanwhile, or was changed since",
        "move that file away and run 'rclone-img resume', or use --force to replace it",
        error,
    )
}

/// The last steps of a job that is complete: the rename, if that is not done yet, and the journal's end.
pub(super) fn put_into_place<D: Disk>(job: &Ending<'_, D>, locked: Locked<D::File>) -> Result<()> {
    let committed_ns = locked.written_ns();
    let (journal, _) = locked.adopt()?;
    let header = journal.header();
    if job.disk.stat(&job.names.partial).map_err(|e| failed("cannot look at the partial file", e))?.is_some() {
        let partial = job.disk.open(&job.names.partial, Access::Read);
        let synced = partial.and_then(|p| p.sync_all());
        synced.map_err(|e| failed("cannot make the snapshot durable", e))?;
        // By the time that the journal had before this run wrote to it.
        let meant = !came_later(job.disk, job.names, committed_ns)?;
        rename_and_clean(job, header, header.replace && meant || job.force)?;
    } else {
        clean(job)?;
    }
    Ok(())
}

fn rename_and_clean<D: Disk>(job: &Ending<'_, D>, header: &Header, replace: bool) -> Result<()> {
    // The directory may be others' to write as well: what is renamed must be what was cloned.
    let named = job.disk.stat(&job.names.partial).map_err(|e| failed("cannot look at the partial file", e))?;
    if named.is_none_or(|n| n.ino != header.partial_ino) {
        let what = "the partial file was replaced or removed before it could be renamed";
        return Err(Error::new(Kind::Broken, what, "find out who writes to the directory, then start over"));
    }
    let renamed = job.disk.rename(&job.names.partial, &job.names.dst, replace).and_then(|()| job.disk.sync_names());
    renamed.map_err(|e| match e.raw_os_error() {
        Some(libc::EEXIST) => appeared(e),
        _ => failed("cannot rename the complete snapshot into place", e),
    })?;
    clean(job)
}

/// The snapshot is in place: a journal that is left is rolled forward by the next run.
fn clean<D: Disk>(job: &Ending<'_, D>) -> Result<()> {
    let gone =
        job.disk.sync_names().and_then(|()| job.disk.unlink(&job.names.journal)).and_then(|()| job.disk.sync_names());
    gone.map_err(|e| failed("the snapshot is in place, but its journal cannot be removed", e))
}

fn failed(what: &str, error: std::io::Error) -> Error {
    let hint = "mend the cause, then run the same command again: it goes on from here";
    Error::io(Kind::Failed, what.to_owned(), hint, error)
}
