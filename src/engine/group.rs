//! Several images with one T0: what the jobs of a group decide and prepare together. [`super::members`] ends what was
//! committed.

use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::job::{self, Job};
use super::recover::Start;
use super::start::{self, Locked, Ready};
use crate::disk::Disk;
use crate::error::{Error, Kind, Result, each};
use crate::hold::{Hold, T0};
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
    let renewed = |(start, job): (Start, &Job<'_, D>)| match start {
        Start::Continue => Ok(Start::Renew(why.into())),
        Start::RollForward if job::has_partial(job)? => Ok(Start::Renew(why.into())),
        Start::RollForward if job.options.wish.force => Ok(Start::Fresh { discard: true }),
        Start::RollForward => {
            let what = "the snapshot exists already, of a job of its own";
            let hint = "use another name, --refresh to bring it up to date, or --force to replace it";
            Err(Error::new(Kind::Refused, what, hint))
        }
        other => Ok(other),
    };
    each(starts.into_iter().zip(jobs), renewed)
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
                let error = error.of_member(ready.len());
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
        let fs = job.disk.fs_uuid().map_err(|e| start::failed("cannot look at the snapshot's file system", e))?;
        let dst = Path::new(job.dir).join(&job.names.dst).into_os_string().into_vec();
        Ok(Member { job: ready.journal.header().job, fs, dst })
    };
    let group = Group(each(jobs.iter().zip(ready), member)?);
    if group.to_bytes().is_some() {
        return Ok(group);
    }
    let what = "so many snapshots, with such long names, cannot be put into place together";
    Err(Error::new(Kind::Refused, what, "use fewer images in one command, or shorter paths"))
}
