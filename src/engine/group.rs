//! Several images with one T0: what the jobs of a group decide, prepare and commit together.
//!
//! All are renamed or none: each journal names all of them, and the first one's state `committing` is the commit record.
//! From then on whoever comes across one of them puts all into place.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Instant;

use super::commit::{self, Ending};
use super::job::{self, Job};
use super::names::Names;
use super::recover::Start;
use super::report::{Event, Finished, Observer};
use super::start::{self, Locked, Ready};
use crate::disk::{Access, Disk};
use crate::error::{Error, Kind, Result};
use crate::hold::{Hold, T0};
use crate::journal::file as journal_file;
use crate::journal::format::{Header, State};
use crate::journal::group::{Group, Member};

/// The decisions of the single jobs, made those of a group: unless all go on at their T0, none does.
///
/// # Errors
/// Broken where somebody asked for the old T0 and not all images have it.
pub(super) fn one_t0<D: Disk>(starts: Vec<Start>, jobs: &[Job<'_, D>]) -> Result<Vec<Start>> {
    let all = |wanted: &Start| starts.iter().all(|start| start == wanted);
    if starts.len() == 1 || all(&Start::RollForward) {
        return Ok(starts);
    }
    let why = "the images of this job have no point in time in common any more";
    if jobs.iter().any(|job| job.options.wish.same_t0_only) {
        let hint = "run the same 'rclone-img snapshot' again: it takes a new point in time and keeps the finished work";
        return Err(Error::new(Kind::Broken, why, hint));
    }
    let renewed = |start| match start {
        Start::Continue | Start::RollForward => Start::Renew(why.into()),
        other => other,
    };
    Ok(starts.into_iter().map(renewed).collect())
}

/// The jobs' files, and what they show.
pub(super) type Prepared<F> = (Vec<Ready<F>>, Vec<T0>);

/// Makes the files of all jobs, then sets their T0.
///
/// # Errors
/// What failed; what the jobs made is undone then.
pub(super) fn prepare<D: Disk>(
    jobs: &[Job<'_, D>],
    hold: &mut dyn Hold,
    locked: Vec<Locked<D::File>>,
    decisions: &[Start],
) -> Result<Prepared<D::File>> {
    let mut ready: Vec<Ready<D::File>> = Vec::new();
    let undo = |ready: &[Ready<D::File>], error| {
        ready.iter().zip(jobs).for_each(|(ready, job)| ready.undo(job));
        error
    };
    let mut locked = locked.into_iter();
    for (job, decision) in jobs.iter().zip(decisions) {
        let Some(lock) = locked.next() else { break };
        match start::make_files(job, hold.kind(), lock, decision) {
            Ok(made) => ready.push(made),
            Err(error) => {
                let error = locked
                    .zip(&jobs[ready.len() + 1..])
                    .fold(error, |error, (lock, job)| lock.give_up(job.disk, job.names, error));
                return Err(undo(&ready, error));
            }
        }
    }
    match start::set_t0(jobs, hold, &mut ready) {
        Ok(instants) => Ok((ready, instants)),
        // Accesses may wait: they go on first.
        Err(error) => {
            hold.release();
            Err(undo(&ready, error))
        }
    }
}

/// The group of these jobs, for their journals.
///
/// # Errors
/// Refused where a journal has no room for it.
pub(super) fn of<D: Disk>(jobs: &[Job<'_, D>], ready: &[Ready<D::File>]) -> Result<Group> {
    if jobs.len() == 1 {
        return Ok(Group::default());
    }
    let member = |(job, ready): (&Job<'_, D>, &Ready<D::File>)| {
        let dst = Path::new(job.dir).join(&job.names.dst).into_os_string().into_vec();
        Member { job: ready.journal.header().job, dst }
    };
    let group = Group(jobs.iter().zip(ready).map(member).collect());
    if group.to_bytes().is_some() {
        return Ok(group);
    }
    let what = "so many snapshots, with such long names, cannot be put into place together";
    Err(Error::new(Kind::Refused, what, "use fewer images in one command, or shorter paths"))
}

/// Whether the snapshot of this journal is to be put into place, whatever else: its own state says so, or its leader's.
///
/// # Errors
/// Refused where the leader's journal cannot be looked at.
pub(super) fn is_committed<D: Disk>(disk: &D, header: &Header) -> Result<bool> {
    match (header.state, header.group.leader()) {
        (State::Committing, _) => Ok(true),
        (State::Complete, Some(leader)) => {
            let there = at(disk, leader)?.and_then(|(disk, names)| read(&disk, &names));
            Ok(there.is_some_and(|h| h.job == leader.job && h.state == State::Committing))
        }
        _ => Ok(false),
    }
}

/// Where a member is; `None` where its directory is gone.
fn at<D: Disk>(disk: &D, member: &Member) -> Result<Option<(D, Names)>> {
    let path = Path::new(OsStr::from_bytes(&member.dst));
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    match disk.elsewhere(dir) {
        Ok(disk) => Ok(Some((disk, Names::new(name)?))),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(Error::io(
            Kind::Refused,
            format!("cannot look at '{}', which has a snapshot of the same job", dir.display()),
            "check the directory and its permissions",
            e,
        )),
    }
}

fn read<D: Disk>(disk: &D, names: &Names) -> Option<Header> {
    let file = disk.open(&names.journal, Access::Read).ok()?;
    journal_file::read(&file).ok()?.ok().map(|loaded| loaded.header)
}

/// Puts the snapshots of a committed group into place if these jobs come across one. The jobs' ends, if that was all of them.
///
/// # Errors
/// As [`roll_forward`].
pub(super) fn finish<D: Disk>(jobs: &[Job<'_, D>], began: Instant) -> Result<Option<Vec<Finished>>> {
    let mut ended = Vec::new();
    for job in jobs {
        if ended.iter().any(|(_, member): &(Header, Member)| is_at(member, job)) {
            continue;
        }
        if let Some(header) = finish_one(job.disk, job.names, job.observer)? {
            let members = header.group.0.clone();
            ended.extend(members.into_iter().map(|member| (header.clone(), member)));
        }
    }
    let finished = |job| {
        let (header, member) = ended.iter().find(|(_, member)| is_at(member, job))?;
        let finished = commit::rolled(&Header { job: member.job, ..header.clone() }, began);
        job.observer.on(Event::Started(finished.started.clone()));
        Some(finished)
    };
    Ok(if ended.is_empty() { None } else { jobs.iter().map(finished).collect() })
}

fn is_at<D: Disk>(member: &Member, job: &Job<'_, D>) -> bool {
    member.dst == Path::new(job.dir).join(&job.names.dst).as_os_str().as_bytes()
}

/// Puts the snapshots of a committed group into place if this journal is of one; what it said.
///
/// # Errors
/// As [`roll_forward`].
pub(super) fn finish_one<D: Disk>(disk: &D, names: &Names, observer: &dyn Observer) -> Result<Option<Header>> {
    let Some(header) = read(disk, names).filter(|h| !h.group.is_alone()) else { return Ok(None) };
    if !is_committed(disk, &header)? {
        return Ok(None);
    }
    roll_forward(disk, &header.group, observer)?;
    Ok(Some(header))
}

/// Puts all snapshots of a committed group into place; the leader's last. Those whose journals are gone are there already.
///
/// # Errors
/// Busy where another process is at it; failed as [`commit::commit`].
pub(super) fn roll_forward<D: Disk>(disk: &D, group: &Group, observer: &dyn Observer) -> Result<()> {
    let followers = group.0.iter().skip(1);
    for member in followers.chain(group.leader()) {
        let Some((disk, names)) = at(disk, member)? else { continue };
        if read(&disk, &names).is_none_or(|h| h.job != member.job) {
            continue;
        }
        let locked = start::lock(&disk, &names)?;
        let found = job::find(&disk, &names)?;
        let ours = matches!(&found.journal, Some(Ok(loaded)) if loaded.header.job == member.job);
        if !ours {
            let error = Error::new(Kind::Busy, "another job changed the snapshot meanwhile", "run it again");
            return Err(locked.give_up(&disk, &names, error));
        }
        let ending = Ending { disk: &disk, names: &names, observer, force: false, image_has_acl: false };
        commit::put_into_place(&ending, locked)?;
    }
    Ok(())
}
