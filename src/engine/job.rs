//! A job from its first look to the renamed snapshot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::claims::{MakeClaims, Recorder, Unclaimed};
use super::commit::Ending;
use super::ended::{self, Ended};
use super::flusher::MakeFlusher;
use super::names::Names;
use super::recover::{self, Existing, Found, Here, Start, Wish};
use super::report::{Event, Finished, Observer, Started};
use super::start::{self, Locked};
use super::window::{Target, Window, Work};
use super::{commit, group, inspect, members, room};
use crate::cbw::{Clusters, STATES_MAX};
use crate::disk::{Access, Disk, DiskFile, FsFacts, HostFacts, Stat, shrink};
use crate::error::{Error, Kind, Result, each};
use crate::hold::Hold;
use crate::journal::file as journal_file;
use crate::range::PowerOfTwo;
use crate::record::Record;

/// Space that a job leaves to the guests.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum MinFree {
    /// Part of the file system, in per cent.
    Percent(f64),
    /// Bytes.
    Bytes(u64),
}

/// What a user may choose; see the command line's help for each.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most bytes that one call clones.
    pub chunk: u64,
    /// What one call may take; `None` for the hold's default.
    pub latency: Option<Duration>,
    /// The unit of the done map.
    pub cluster: PowerOfTwo,
    /// What may happen to what is there already.
    pub wish: Wish,
    /// The snapshot keeps its write permission.
    pub writable: bool,
    /// Below this no job starts or goes on.
    pub min_free: MinFree,
}

/// What one call may take where what the guests ask for is cloned first (DESIGN section 6): they wait for the call that runs and for
/// their own, and 99 in a hundred of their accesses are to take 2 ms at most.
pub const LATENCY_WATCHED: Duration = Duration::from_millis(1);

/// The same on Btrfs, where a guest's own writes take 4 ms at that percentile while nobody clones, and what a call takes besides its
/// extents is more: with 1 ms three busy writers made a window of 1.9 to 2.8 times a quiet `cp`, with this of 1.6 to 1.9 (BENCHMARKS.md).
pub const LATENCY_WATCHED_BTRFS: Duration = Duration::from_micros(1500);

/// What one call may take where guests use the image and do not wait for what is theirs (`filter`, whose server holds their writes until the call
/// returns, and `none`): 5 ms made nothing faster, and p99.9 of reads longer by a fifth to a third (BENCHMARKS.md).
pub const LATENCY_GUESTS: Duration = Duration::from_millis(1);

/// What a single call for the whole image may take before `auto` wants to be asked: it comes once.
pub const LATENCY_ATOMIC: Duration = Duration::from_millis(5);

/// What one call may take where nobody does: an interrupt is answered after it.
pub const LATENCY_FROZEN: Duration = Duration::from_millis(100);

/// A job that is about to run.
pub struct Job<'a, D: Disk> {
    /// The directory of the snapshot.
    pub disk: &'a D,
    /// Its absolute path.
    pub dir: &'a std::path::Path,
    /// The names in it.
    pub names: &'a Names,
    /// The image, open for reading.
    pub image: Arc<D::File>,
    /// Its absolute path.
    pub image_path: &'a [u8],
    /// What the user chose.
    pub options: &'a Options,
    /// Why this hold, in words.
    pub why: &'a str,
    /// Who watches.
    pub observer: &'a dyn Observer,
    /// Whether somebody asked the job to stop.
    pub stop: &'a dyn Fn() -> bool,
    /// Where claims go.
    pub make_claims: MakeClaims<'a, D::File>,
    /// Who writes dirty data back.
    pub make_flusher: MakeFlusher<'a, D::File>,
}

impl<D: Disk> Job<'_, D> {
    fn ending(&self) -> Ending<'_, D> {
        Ending {
            disk: self.disk,
            names: self.names,
            observer: self.observer,
            force: false,
            image_has_acl: self.image.has_acl(),
        }
    }
}

/// What a job would do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where it would start.
    pub start: Start,
    /// Bytes of the image.
    pub bytes: u64,
    /// Extents, where the file system tells at once.
    pub extents: Option<u64>,
}

/// Looks at everything that could refuse the jobs, and touches nothing. The hold is let go again.
///
/// # Errors
/// As [`run`] would refuse.
pub fn dry_run<D: Disk>(jobs: &[Job<'_, D>], hold: &mut dyn Hold) -> Result<Vec<Plan>> {
    let look = |job: &Job<'_, D>| match members::committed(job.disk, job.names)? {
        Some(_) => Ok(Start::RollForward),
        None => first_look(job, hold),
    };
    let starts = each(jobs, look)?;
    try_cloning(jobs, &starts, hold)?;
    let prepared = hold.prepare();
    hold.release();
    prepared?;
    let plan = |(job, start): (&Job<'_, D>, Start)| {
        Ok(Plan { start, bytes: stat_image(job)?.size, extents: job.image.extent_count() })
    };
    each(jobs.iter().zip(group::one_t0(starts, jobs)?), plan)
}

/// Runs the jobs of one or several images, which have one T0: when it returns, the snapshots are complete, durable and in
/// place.
///
/// # Errors
/// [`Kind::Refused`] with nothing touched, [`Kind::Busy`], [`Kind::Interrupted`] with a checkpoint, [`Kind::Broken`] with the
/// reason in the journal, [`Kind::Failed`]; after the last three the same command goes on from what is there.
pub fn run<D: Disk>(jobs: &[Job<'_, D>], hold: &mut dyn Hold) -> Result<Vec<Finished>> {
    let result = run_held(jobs, hold);
    hold.release();
    result
}

fn run_held<D: Disk>(jobs: &[Job<'_, D>], hold: &mut dyn Hold) -> Result<Vec<Finished>> {
    let began = Instant::now();
    if let Some(finished) = members::finish(jobs, hold.kind(), began)? {
        return Ok(finished);
    }
    let first = each(jobs, |job| first_look(job, hold))?;
    try_cloning(jobs, &first, hold)?;
    // What is complete needs no hold: the image may be in use again by now.
    let complete = |starts: &[Start]| starts.iter().all(|start| *start == Start::RollForward);
    if !complete(&first) {
        hold.prepare()?;
    }
    let mut locked = Vec::new();
    let give_up = |locked: Vec<Locked<D::File>>, error| {
        locked.into_iter().zip(jobs).fold(error, |error, (lock, job)| lock.give_up(job.disk, job.names, error))
    };
    for (index, job) in jobs.iter().enumerate() {
        match start::lock(job.disk, job.names) {
            Ok(lock) => locked.push(lock),
            Err(error) => return Err(give_up(locked, error.of_member(index))),
        }
    }
    // Everything may have changed until the locks were had, and nothing can any more.
    let looks = each(jobs, |job| look(job).and_then(|(found, here)| decide(job, hold, &found, &here)));
    let decisions = match looks.and_then(|starts| group::one_t0(starts, jobs)) {
        Ok(decisions) => decisions,
        Err(error) => return Err(give_up(locked, error)),
    };
    if complete(&decisions) {
        return each(jobs.iter().zip(locked), |(job, locked)| {
            let ending = Ending { force: job.options.wish.force, ..job.ending() };
            commit::roll_forward(&ending, locked, began)
        });
    }
    if complete(&first) {
        return Err(give_up(locked, changed_meanwhile()));
    }
    clone_and_commit(jobs, hold, locked, &decisions, began)
}

fn clone_and_commit<D: Disk>(
    jobs: &[Job<'_, D>],
    hold: &mut dyn Hold,
    locked: Vec<Locked<D::File>>,
    decisions: &[Start],
    began: Instant,
) -> Result<Vec<Finished>> {
    let kind = hold.kind();
    let (ready, instants) = group::prepare(jobs, hold, locked, decisions)?;
    let held = Instant::now();
    let (mut targets, mut partials, mut all_started) = (Vec::new(), Vec::new(), Vec::new());
    for (((job, ready), t0), decision) in jobs.iter().zip(ready).zip(&instants).zip(decisions) {
        let started = Started {
            job: ready.journal.header().job,
            t0: t0.at,
            hold: kind,
            why: job.why.to_owned(),
            new_t0: matches!(decision, Start::Renew(_)),
            resumed: *decision == Start::Continue,
            bytes: t0.image.size,
            done_bytes: ready.clusters.done_bytes(),
            extents: job.image.extent_count(),
        };
        job.observer.on(Event::Started(started.clone()));
        all_started.push(started);
        partials.push(Arc::clone(&ready.partial));
        let claims = if kind.answers_accesses() {
            Box::new(Unclaimed(ready.journal))
        } else {
            (job.make_claims)(Recorder::new(ready.journal, Arc::clone(&ready.partial)))
        };
        targets.push(Target::new(job, kind, ready.partial, ready.clusters, ready.compare, t0, claims)?);
    }
    let mut window = Window::new(targets, hold, began);
    let ended = window.run().and_then(|()| window.hold.end());
    let window_took = held.elapsed();
    let ended = ended.map_err(|error| Ended::of_window(error, kind, jobs.len() > 1));
    let done = window.into_done();
    // Whatever happened, the images are let go before anything is synced: a writer may wait for one.
    hold.release();
    let (mut journals, mut works, mut synced) = (Vec::new(), Vec::new(), Ok(()));
    for (work, claims) in done {
        let (journal, result) = claims.finish(ended.is_err());
        journals.push(journal);
        works.push(work);
        synced = synced.and(result);
    }
    let synced = synced.map_err(|e| {
        // After an EIO the next sync may succeed, and what was lost stays lost (KERNEL.md); a full disk loses nothing.
        let kind = if e.raw_os_error() == Some(libc::EIO) { Kind::Broken } else { Kind::Failed };
        let hint = "check the kernel's log and the free space, then run the same command again";
        Ended::from(Error::io(kind, "cannot make the cloned data durable", hint, e))
    });
    // A sync that failed is the cause of whatever the window says then.
    if let Err(ended) = synced.and(ended) {
        // T0 is lost, and the guests go on: each block that the unfinished files share is one that their next write allocates anew.
        if ended.is_broken() && kind.answers_accesses() && jobs.iter().any(|job| room::enough_space(job).is_err()) {
            let error = ended.written_down(&mut journals);
            let all = jobs.iter().zip(&partials).zip(&journals);
            let given =
                all.filter(|((job, partial), journal)| give_back(job, partial, journal.header().refreshes)).count();
            return Err(if given > 0 { ended::with_less(error) } else { error });
        }
        return Err(ended.written_down(&mut journals));
    }
    jobs[0].observer.on(Event::Syncing);
    let endings: Vec<_> = jobs.iter().map(Job::ending).collect();
    let quiescence = hold.quiescence();
    let quiesced = quiescence.is_some_and(|known| known.quiesced);
    commit::commit(&endings, &mut journals, &partials, &instants, quiesced)?;
    let finished = |(work, started): (Work, Started)| work.finished(started, quiescence, window_took, began);
    Ok(works.into_iter().zip(all_started).map(finished).collect())
}

/// Gives the room of an unfinished file back, where it is a new one: what was a snapshot before took it then. Whatever is left of it, the next
/// run compares. Whether it is shorter now.
fn give_back<D: Disk>(job: &Job<'_, D>, partial: &D::File, refreshes: bool) -> bool {
    let Some(stat) = partial.stat().ok().filter(|_| !refreshes) else { return false };
    // One that cannot be made shorter is left to `abort`.
    let _ = shrink::to_nothing(job.disk, partial, stat.size, &|| !(job.stop)());
    partial.stat().is_ok_and(|left| left.size < stat.size)
}

/// The first look, without a lock: refuses early, before anything is touched.
fn first_look<D: Disk>(job: &Job<'_, D>, hold: &dyn Hold) -> Result<Start> {
    let (found, here) = look(job)?;
    // A job that runs is waited for (--wait); what its journal says is no reason to refuse.
    if inspect::is_live(job.disk, job.names)? {
        return Err(start::busy());
    }
    if !here.image.regular {
        return Err(Error::new(Kind::Refused, "the image is not a regular file", "name a raw disk image"));
    }
    if here.image.size == 0 {
        let hint = "check that this is the right file";
        return Err(Error::new(Kind::Refused, "the image is empty: there is nothing to snapshot", hint));
    }
    if job.options.cluster < here.fs.block {
        // A call takes whole blocks: what is cloned of a cluster would change another one that is done.
        let [cluster, block] = [job.options.cluster, here.fs.block].map(|it| bytesize::ByteSize(it.get()));
        let what = format!("a cluster of {cluster} is smaller than the file system's blocks of {block}");
        return Err(Error::new(Kind::Refused, what, format!("use --cluster {} or a larger one", here.fs.block.get())));
    }
    if Clusters::memory(here.image.size, job.options.cluster) > STATES_MAX {
        let what = format!("the done map of an image of {} would not fit", bytesize::ByteSize(here.image.size));
        return Err(Error::new(Kind::Refused, what, "use a larger --cluster, up to 64M"));
    }
    let decision = decide(job, hold, &found, &here)?;
    if decision != Start::RollForward {
        room::enough_space(job)?;
    }
    Ok(decision)
}

/// The last part of the first look: what the file system refuses, it refuses now.
fn try_cloning<D: Disk>(jobs: &[Job<'_, D>], starts: &[Start], hold: &mut dyn Hold) -> Result<()> {
    if starts.iter().all(|start| *start == Start::RollForward) {
        return Ok(());
    }
    // A clone call writes the image's dirty data with the lock held: all of it on Btrfs, however short the call is (KERNEL.md).
    hold.settle()?;
    let tried = jobs.iter().zip(starts).filter(|(_, start)| **start != Start::RollForward);
    each(tried, |(job, _)| room::try_cloning(job, &now(job)?)).map(drop)
}

/// The image, its file system and the host, as they are now.
pub struct Now {
    /// The image.
    pub image: Stat,
    /// Its file system.
    pub fs: FsFacts,
    /// The host.
    pub host: HostFacts,
}

impl std::ops::Deref for Now {
    type Target = Stat;

    fn deref(&self) -> &Stat {
        &self.image
    }
}

fn stat_image<D: Disk>(job: &Job<'_, D>) -> Result<Stat> {
    job.image.stat().map_err(|e| Error::io(Kind::Refused, "cannot look at the image", "check the path", e))
}

pub(super) fn look<D: Disk>(job: &Job<'_, D>) -> Result<(Found, Now)> {
    let now = now(job)?;
    Ok((find(job.disk, job.names)?, now))
}

fn now<D: Disk>(job: &Job<'_, D>) -> Result<Now> {
    let image = stat_image(job)?;
    let cannot = |e| Error::io(Kind::Refused, "cannot look at the image's file system", "check the path", e);
    Ok(Now { image, fs: job.image.fs().map_err(cannot)?, host: job.disk.host() })
}

fn decide<D: Disk>(job: &Job<'_, D>, hold: &dyn Hold, found: &Found, now: &Now) -> Result<Start> {
    let here = Here { image: &now.image, image_path: job.image_path, fs: &now.fs, host: &now.host, hold: hold.kind() };
    recover::decide(found, job.options.wish, &here)
}

/// What is in the directory under the job's names.
///
/// # Errors
/// Refused where it cannot be looked at.
pub fn find<D: Disk>(disk: &D, names: &Names) -> Result<Found> {
    let journal_stat = disk.stat(&names.journal).map_err(|e| cannot_look("the journal", e))?;
    if journal_stat.is_some_and(|s| !s.regular) {
        let what = "the journal's name is taken by something that is not a regular file";
        return Err(Error::new(Kind::Refused, what, "move it away, or use another name for the snapshot"));
    }
    let journal = match disk.open(&names.journal, Access::Read) {
        Ok(file) => Some(journal_file::read(&file).map_err(|e| cannot_look("the journal", e))?),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => None,
        Err(e) => return Err(cannot_look("the journal", e)),
    };
    Ok(Found { dst: existing(disk, &names.dst)?, partial: existing(disk, &names.partial)?, journal_stat, journal })
}

/// Whether there is something under the partial file's name.
pub(super) fn has_partial<D: Disk>(job: &Job<'_, D>) -> Result<bool> {
    Ok(job.disk.stat(&job.names.partial).map_err(|e| cannot_look("the partial file", e))?.is_some())
}

fn existing<D: Disk>(disk: &D, name: &std::ffi::OsStr) -> Result<Option<Existing>> {
    let what = || format!("'{}'", name.to_string_lossy().escape_debug());
    let Some(stat) = disk.stat(name).map_err(|e| cannot_look(&what(), e))? else { return Ok(None) };
    // A file that cannot be opened, or is none, has no record that counts.
    let file = if stat.regular { disk.open(name, Access::Read).ok() } else { None };
    // The open file tells more of itself than its name does: the subvolume, say.
    let stat = file.as_ref().and_then(|f| f.stat().ok()).filter(|s| s.ino == stat.ino).unwrap_or(stat);
    let fs = file.as_ref().and_then(|f| f.fs().ok()).map(|fs| fs.uuid);
    let bytes = file.filter(|_| fs.is_some()).and_then(|f| f.record().ok().flatten());
    Ok(Some(Existing { stat, fs: fs.unwrap_or_default(), record: bytes.and_then(|b| Record::from_bytes(&b)) }))
}

pub(super) fn cannot_look(what: &str, error: std::io::Error) -> Error {
    Error::io(Kind::Refused, format!("cannot look at {what}"), "check the directory and its permissions", error)
}

pub(super) fn changed_meanwhile() -> Error {
    Error::new(Kind::Busy, "another job changed the snapshot meanwhile", "run the same command again")
}
