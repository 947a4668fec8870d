//! What becomes of the snapshots of a job of several images after the process that made them has ended.
//!
//! All are put into place or none: each journal names all of them, and the first one's state `committing` is the commit
//! record. From then on whoever comes across one of them puts all into place. A journal counts only if it names the same
//! snapshots itself, so that no other journal can make anything of it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::commit::{self, Ending};
use super::job::{self, Job, Now};
use super::names::Names;
use super::recover::{self, Here};
use super::report::{Event, Finished, Observer};
use super::start;
use crate::disk::{Access, Disk};
use crate::error::{Error, Kind, Result, each};
use crate::hold::HoldKind;
use crate::journal::file as journal_file;
use crate::journal::format::{FormatError, Header, State};
use crate::journal::group::{Group, Member};

/// Whether the snapshot of this journal is to be put into place, whatever else: its own state says so, or its leader's.
///
/// # Errors
/// Refused where the leader's journal cannot be looked at: nobody can say then.
pub(super) fn is_committed<D: Disk>(disk: &D, header: &Header) -> Result<bool> {
    match (header.state, header.group.leader()) {
        (State::Committing, _) => Ok(true),
        (State::Complete, Some(leader)) => {
            let (disk, names) = at(disk, leader)?;
            Ok(of_group(&disk, &names, leader, &header.group)?.is_some_and(|h| h.state == State::Committing))
        }
        _ => Ok(false),
    }
}

/// Where a member is.
///
/// # Errors
/// Refused where its file system is not mounted there: what has become of it cannot be told, and must not be guessed.
pub(super) fn at<D: Disk>(disk: &D, member: &Member) -> Result<(D, Names)> {
    let path = path(member);
    let what = || format!("cannot look at '{}', a snapshot of the same job", path.display());
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(Kind::Refused, what(), "the journal is damaged: see 'rclone-img status'"));
    };
    let hint = "mount its file system where it was, then run the same command again";
    let there = disk.elsewhere(dir).and_then(|disk| Ok((disk.fs_uuid()?, disk)));
    let (fs, disk) = there.map_err(|e| Error::io(Kind::Refused, what(), hint, e))?;
    if fs != member.fs {
        return Err(Error::new(Kind::Refused, format!("{}: its file system is not mounted there", what()), hint));
    }
    Ok((disk, Names::new(name)?))
}

/// The path of a member's snapshot.
pub fn path(member: &Member) -> &Path {
    Path::new(OsStr::from_bytes(&member.dst))
}

/// The journal of a member, where there is still one of this job.
///
/// # Errors
/// Refused where it cannot be looked at, or is of another user.
pub(super) fn of_group<D: Disk>(disk: &D, names: &Names, member: &Member, group: &Group) -> Result<Option<Header>> {
    let header = read(disk, names).map_err(|error| {
        let what = format!("'{}', a snapshot of the same job: {}", path(member).display(), error.what);
        Error { what, ..error }
    })?;
    Ok(header.filter(|h| h.job == member.job && h.group == *group))
}

/// What a journal says; nothing where there is none, or it never began.
fn read<D: Disk>(disk: &D, names: &Names) -> Result<Option<Header>> {
    let cannot = |e| job::cannot_look("the journal", e);
    let file = match disk.open(&names.journal, Access::Read) {
        Ok(file) => file,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(e) => return Err(cannot(e)),
    };
    // By its name, which opens nothing: whose it is decides whether it counts.
    let stat = disk.stat(&names.journal).map_err(cannot)?;
    if stat.is_some_and(|s| !recover::is_own(&s, disk.host().uid)) {
        let what = "the journal belongs to another user, or others may write to it";
        return Err(Error::new(Kind::Refused, what, "run as the user who began the job"));
    }
    match journal_file::read(&file).map_err(cannot)? {
        Ok(loaded) => Ok(Some(loaded.header)),
        Err(FormatError::NeverBegun) => Ok(None),
        // Its first write was torn.
        Err(FormatError::Damaged) if disk.stat(&names.partial).map_err(cannot)?.is_none() => Ok(None),
        Err(error) => Err(Error::new(Kind::Refused, format!("the journal cannot be used: {error}"), error.hint())),
    }
}

/// What this journal says, if it is of several snapshots that are to be put into place.
///
/// # Errors
/// As [`is_committed`].
pub(super) fn committed<D: Disk>(disk: &D, names: &Names) -> Result<Option<Header>> {
    // What keeps it from being read is for others to tell, who look at more than this.
    let header = read(disk, names).ok().flatten().filter(|h| !h.group.is_alone());
    Ok(match header {
        Some(header) if is_committed(disk, &header)? => Some(header),
        _ => None,
    })
}

/// Puts the snapshots of committed groups into place that these jobs come across. The jobs' ends, where that was all that
/// there is to do: the images are still as they were.
///
/// # Errors
/// As [`finish_one`].
pub(super) fn finish<D: Disk>(jobs: &[Job<'_, D>], hold: HoldKind, began: Instant) -> Result<Option<Vec<Finished>>> {
    let headers = each(jobs, |job| committed(job.disk, job.names))?;
    let mut groups: Vec<&Group> = Vec::new();
    for (index, (job, header)) in jobs.iter().zip(&headers).enumerate() {
        let Some(header) = header.as_ref().filter(|h| !groups.contains(&&h.group)) else { continue };
        groups.push(&header.group);
        let done = roll_forward(job.disk, &header.group, job.options.wish.force, job.observer);
        done.map_err(|error| error.of_member(index))?;
        let told =
            format!("the snapshots of an earlier job were complete and are in place now, of T0 {:.0}", header.t0);
        job.observer.on(Event::Warning(told));
    }
    let all_of_one = groups.len() == 1 && headers.iter().all(Option::is_some);
    let mut kept = all_of_one;
    for (job, header) in jobs.iter().zip(&headers) {
        kept = kept && header.as_ref().is_some_and(|header| is_as_then(job, header, hold));
    }
    if !kept {
        return Ok(None);
    }
    let finished = |(job, header): (&Job<'_, D>, Header)| {
        let finished = commit::rolled(&header, began);
        job.observer.on(Event::Started(finished.started.clone()));
        finished
    };
    Ok(Some(jobs.iter().zip(headers.into_iter().flatten()).map(finished).collect()))
}

/// Whether the snapshot that was put into place shows the image as it is now: what `snapshot` promises.
fn is_as_then<D: Disk>(job: &Job<'_, D>, header: &Header, hold: HoldKind) -> bool {
    let Ok((found, Now { image, fs, host })) = job::look(job) else { return false };
    let here = Here { image: &image, image_path: job.image_path, fs: &fs, host: &host, hold };
    recover::is_in_place(header, &found) && recover::image_lost(header, &here).is_none()
}

/// Puts the snapshots of a committed group into place if this journal is of one; what it said.
///
/// # Errors
/// Busy where another process is at it; refused where a member's file system is not there; broken where somebody removed
/// this snapshot; failed as [`commit::commit`].
pub(super) fn finish_one<D: Disk>(disk: &D, names: &Names, observer: &dyn Observer) -> Result<Option<Header>> {
    let Some(header) = committed(disk, names)? else { return Ok(None) };
    roll_forward(disk, &header.group, false, observer)?;
    if recover::is_in_place(&header, &job::find(disk, names)?) {
        return Ok(Some(header));
    }
    let what = "the complete snapshot was removed, or moved away; the others of its job are in place";
    Err(Error::new(Kind::Broken, what, "run 'rclone-img snapshot' to make a new one"))
}

/// Puts all snapshots of a committed group into place; the leader's last. Those whose journals are gone are there already.
fn roll_forward<D: Disk>(disk: &D, group: &Group, force: bool, observer: &dyn Observer) -> Result<()> {
    let Some(leader) = group.leader() else { return Ok(()) };
    // All are found before any is touched.
    let places = group.0.iter().map(|member| at(disk, member)).collect::<Result<Vec<_>>>()?;
    let Some(((leader_disk, leader_names), followers)) = places.split_first() else { return Ok(()) };
    if of_group(leader_disk, leader_names, leader, group)?.is_none() {
        return Ok(());
    }
    let locked = start::lock(leader_disk, leader_names)?;
    match of_group(leader_disk, leader_names, leader, group) {
        Ok(Some(header)) if header.state == State::Committing => {}
        Ok(_) => return Err(locked.give_up(leader_disk, leader_names, job::changed_meanwhile())),
        Err(error) => return Err(locked.give_up(leader_disk, leader_names, error)),
    }
    // Also before the leader's journal is written once more, whose time says what was there when the job was complete.
    commit::may_replace(leader_disk, leader_names, force)?;
    for (member, (disk, names)) in group.0.iter().skip(1).zip(followers) {
        if of_group(disk, names, member, group)?.is_some_and(|h| h.state == State::Complete) {
            commit::may_replace(disk, names, force)?;
        }
    }
    // The process that wrote the commit record may have been killed before it was durable.
    let locked = locked.made_durable()?;
    for (member, (disk, names)) in group.0.iter().skip(1).zip(followers) {
        if of_group(disk, names, member, group)?.is_none_or(|h| h.state != State::Complete) {
            continue;
        }
        let follower = start::lock(disk, names)?;
        match of_group(disk, names, member, group) {
            Ok(Some(_)) => commit::put_into_place(&ending(disk, names, force, observer), follower)?,
            Ok(None) => return Err(follower.give_up(disk, names, job::changed_meanwhile())),
            Err(error) => return Err(follower.give_up(disk, names, error)),
        }
    }
    commit::put_into_place(&ending(leader_disk, leader_names, force, observer), locked)
}

fn ending<'a, D: Disk>(disk: &'a D, names: &'a Names, force: bool, observer: &'a dyn Observer) -> Ending<'a, D> {
    Ending { disk, names, observer, force, image_has_acl: false }
}

/// The other snapshots of a job, for people.
pub fn others(header: &Header) -> Vec<PathBuf> {
    header.group.others(header.job).map(|member| path(member).to_owned()).collect()
}
