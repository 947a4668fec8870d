//! The lock, the files and T0: everything between the decision and the first clone.
//!
//! Order, and why: the journal is durable before there is a partial file, so that a partial file always has one; the record of
//! a snapshot that is refreshed is invalid, durably, before its first byte changes; T0 is in the journal before the first
//! clone. Until then [`super::undo::put_back`] undoes everything.

use std::io;
use std::sync::Arc;

use jiff::Timestamp;

use super::group;
use super::job::{self, Job};
pub use super::locked::{Locked, busy, lock};
use super::partial::{alone_again, discard_partial, make_partial, open_partial, own_snapshot, resize, take_snapshot};
use super::recover::{Start, is_untouched};
use super::undo::{put_back, taken_back};
use crate::cbw::Clusters;
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Kind, Result};
use crate::hold::{Hold, HoldKind, T0};
use crate::journal::file::Journal;
use crate::journal::format::{Header, Image, State};
use crate::journal::group::Group;

/// The files of an image whose T0 is not set yet.
pub struct Ready<F> {
    /// The journal.
    pub journal: Journal<F>,
    /// The partial file.
    pub partial: Arc<F>,
    /// What is done.
    pub clusters: Arc<Clusters>,
    /// Whether the maps are compared, to clone only what differs.
    pub compare: bool,
    /// Nothing of worth is lost if everything is undone: a new job's files, or a snapshot that is as it was.
    undo: bool,
    /// The instant that the job keeps.
    keeps: Option<Timestamp>,
}

impl<F: DiskFile> Ready<F> {
    /// Undoes what was made for a job that has no T0; an interrupted job's files stay as they are.
    pub fn undo<D: Disk<File = F>>(&self, job: &Job<'_, D>) {
        let (header, host) = (self.journal.header(), job.disk.host());
        let untouched = || job::find(job.disk, job.names).is_ok_and(|found| is_untouched(header, &found, &host));
        if self.undo && (!header.refreshes || untouched()) {
            let _ = put_back(job.disk, job.names, header);
        }
    }
}

/// Makes or opens the files of a job.
///
/// # Errors
/// What failed; then a new job's files are gone again, a snapshot to be refreshed is back in its place, and an interrupted
/// job's files are as they were.
pub fn make_files<D: Disk>(
    job: &Job<'_, D>,
    kind: HoldKind,
    locked: Locked<D::File>,
    decision: &Start,
) -> Result<Ready<D::File>> {
    match decision {
        Start::Continue => carry_on(job, kind, locked),
        Start::Renew(_) => renew(job, kind, locked),
        Start::Fresh { discard } => {
            if *discard {
                discard_partial(job)?;
            }
            begin(job, kind, locked, Origin::New)
        }
        Start::Refresh => begin(job, kind, locked, Origin::Snapshot),
        Start::RollForward => unreachable!("a job that is rolled forward is not prepared"),
    }
}

/// Where the partial file comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    New,
    Snapshot,
}

fn begin<D: Disk>(job: &Job<'_, D>, kind: HoldKind, locked: Locked<D::File>, origin: Origin) -> Result<Ready<D::File>> {
    let mut header = blank(job, kind)?;
    if !locked.created {
        // The old journal is the only word of a job whose last rename a power cut may yet undo.
        names_are_durable(job)?;
    }
    let snapshot = match origin {
        Origin::New => None,
        Origin::Snapshot => match own_snapshot(job, &mut header) {
            Ok(file) => Some(file),
            Err(error) => return Err(locked.give_up(job.disk, job.names, error)),
        },
    };
    let old_mode = header.old_mode;
    let mut journal = match Journal::create(locked.file, header).and_then(|j| job.disk.sync_names().map(|()| j)) {
        Ok(journal) => journal,
        Err(error) => {
            // To open it for writing its owner may have been given the permission; without a journal nobody knows that later.
            let _ = snapshot.map(|file| file.set_mode(old_mode));
            let _ = job.disk.unlink(&job.names.journal);
            return Err(failed("cannot write the journal", error));
        }
    };
    let made = match snapshot {
        Some(file) => take_snapshot(job, &journal, file),
        None => make_partial(job, &mut journal),
    };
    match made.and_then(|partial| Ok((partial, pending(job)?))) {
        Ok((partial, clusters)) => {
            let compare = origin == Origin::Snapshot && !kind.one_call();
            Ok(Ready { journal, partial: Arc::new(partial), clusters, compare, undo: true, keeps: None })
        }
        Err(error) => Err(taken_back(job.disk, job.names, journal.header(), error)),
    }
}

fn carry_on<D: Disk>(job: &Job<'_, D>, kind: HoldKind, locked: Locked<D::File>) -> Result<Ready<D::File>> {
    let (journal, claims) = locked.adopt()?;
    names_are_durable(job)?;
    let partial = Arc::new(open_partial(job, journal.header())?);
    let clusters = pending(job)?;
    for claim in claims {
        clusters.finish(claim);
    }
    // A refresh that was stopped has done ranges and old ones: those are compared again.
    let compare = (journal.header().refreshes || journal.header().epoch > 1) && !kind.one_call();
    // The image is the one of T0, which `decide` has proved while the hold stood; the instant is the journal's.
    let keeps = Some(journal.header().t0);
    Ok(Ready { journal, partial, clusters, compare, undo: false, keeps })
}

fn renew<D: Disk>(job: &Job<'_, D>, kind: HoldKind, locked: Locked<D::File>) -> Result<Ready<D::File>> {
    let (journal, _) = locked.adopt()?;
    names_are_durable(job)?;
    let partial = Arc::new(open_partial(job, journal.header())?);
    alone_again(journal.header(), &*partial)?;
    let clusters = pending(job)?;
    Ok(Ready { journal, partial, clusters, compare: !kind.one_call(), undo: false, keeps: None })
}

/// The run before may have been killed between a rename and its sync. Without this a power cut could bring the snapshot's
/// name back to a file that a refresh has begun to change.
fn names_are_durable<D: Disk>(job: &Job<'_, D>) -> Result<()> {
    job.disk.sync_names().map_err(|e| failed("cannot make the directory durable", e))
}

/// The states of the image's clusters, all pending.
fn pending<D: Disk>(job: &Job<'_, D>) -> Result<Arc<Clusters>> {
    let size = job.image.stat().map_err(|e| failed("cannot look at the image", e))?.size;
    Ok(Arc::new(Clusters::new(size, job.options.cluster)))
}

/// Sets T0, for all images at once, and enters it in the journals.
///
/// Where accesses wait from T0 on they must not wait for a disk, not even for a file system's log: the journals are durable
/// before, with an instant that is a moment early, and the true one is written when the window is over. Such a T0 does not
/// outlive the process, so that no crash can make anything of it.
///
/// # Errors
/// What failed; nothing was cloned. The caller undoes what can be undone.
pub fn set_t0<D: Disk>(jobs: &[Job<'_, D>], hold: &mut dyn Hold, ready: &mut [Ready<D::File>]) -> Result<Vec<T0>> {
    let cannot = |e| failed("cannot write the journal", e);
    let kind = hold.kind();
    let group = group::of(jobs, ready)?;
    if kind.answers_accesses() {
        for (job, ready) in jobs.iter().zip(ready.iter_mut()) {
            let image = job.image.stat().map_err(|e| failed("cannot look at the image", e))?;
            let early = T0 { at: job.disk.host().now, image };
            let entry = entry(job, kind, &group)?;
            ready.journal.update(|h| entry(h, &early)).map_err(cannot)?;
            forget_claims(ready).map_err(cannot)?;
            if !ready.journal.header().refreshes {
                resize::<D>(&ready.partial, early.image.size)?;
            }
        }
    }
    let images: Vec<_> = ready.iter().map(|r| Arc::clone(&r.clusters)).collect();
    hold.settle()?;
    let mut instants = hold.begin(&images)?;
    for ((job, ready), t0) in jobs.iter().zip(ready.iter_mut()).zip(&mut instants) {
        let entered = match ready.keeps {
            Some(at) => {
                t0.at = at;
                go_on(job, &mut ready.journal)
            }
            None if kind.answers_accesses() => {
                ready.journal.change_later(|h| h.t0 = t0.at);
                Ok(())
            }
            None => entry(job, kind, &group).and_then(|entry| {
                ready.journal.update(|h| entry(h, t0)).and_then(|()| forget_claims(ready)).map_err(cannot)
            }),
        };
        entered?;
    }
    // Last of all: a snapshot that is to be refreshed and has got another size cannot be put back.
    ready.iter().zip(&instants).try_for_each(|(ready, t0)| resize::<D>(&ready.partial, t0.image.size))?;
    Ok(instants)
}

/// Claims of the old T0 do not count in the new epoch; they are dropped so that the log stays short.
fn forget_claims<F: DiskFile>(ready: &mut Ready<F>) -> io::Result<()> {
    if ready.undo || ready.keeps.is_some() { Ok(()) } else { ready.journal.clear_log() }
}

/// A job goes on at its old T0.
fn go_on<D: Disk>(job: &Job<'_, D>, journal: &mut Journal<D::File>) -> Result<()> {
    let (host, replace) = (job.disk.host(), replaces(job)?);
    let running = |h: &mut Header| {
        h.state = State::Running;
        h.reason.clear();
        (h.pid, h.pid_start) = (host.pid, host.pid_start);
        h.replace |= replace;
        h.writable = job.options.writable;
    };
    journal.update(running).map_err(|e| failed("cannot write the journal", e))
}

/// What a new T0 changes in the journal's header.
fn entry<'a, D: Disk>(job: &'a Job<'_, D>, kind: HoldKind, group: &'a Group) -> Result<impl Fn(&mut Header, &T0) + 'a> {
    let fs = job.image.fs().map_err(|e| failed("cannot look at the image's file system", e))?;
    let (host, replace) = (job.disk.host(), replaces(job)?);
    let options = job.options;
    Ok(move |h: &mut Header, t0: &T0| {
        if h.epoch > 0 && h.boot != host.boot_id {
            // What was cloned before a power cut may be there without having left a trace: nothing is to be put back.
            h.old_record.clear();
        }
        h.epoch += 1;
        h.state = State::Running;
        h.reason.clear();
        h.hold = kind;
        h.t0 = t0.at;
        h.image = Image {
            dev: t0.image.dev,
            ino: t0.image.ino,
            generation: t0.image.generation,
            subvolume: t0.image.subvolume,
            size: t0.image.size,
            ctime_ns: t0.image.ctime_ns,
        };
        h.fs = fs.uuid;
        h.mount_instance = fs.mount_instance;
        h.boot = host.boot_id;
        (h.pid, h.pid_start) = (host.pid, host.pid_start);
        h.image_path = job.image_path.to_vec();
        h.replace |= replace;
        h.writable = options.writable;
        h.cluster = options.cluster.get();
        h.chunk = options.chunk;
        h.group = group.clone();
    })
}

/// Whether the rename at the end may replace a file. Only what is there now: a file that appears meanwhile is news to whoever
/// said --force.
fn replaces<D: Disk>(job: &Job<'_, D>) -> Result<bool> {
    let there = job.disk.stat(&job.names.dst).map_err(|e| failed("cannot look at the snapshot", e))?.is_some();
    Ok(job.options.wish.force && there)
}

/// The header of a job that has done nothing.
fn blank<D: Disk>(job: &Job<'_, D>, kind: HoldKind) -> Result<Header> {
    let fs = job.image.fs().map_err(|e| failed("cannot look at the image's file system", e))?;
    let image = job.image.stat().map_err(|e| failed("cannot look at the image", e))?;
    let host = job.disk.host();
    Ok(Header {
        job: job.disk.fresh_id(),
        epoch: 0,
        state: State::Preparing,
        hold: kind,
        replace: replaces(job)?,
        writable: job.options.writable,
        refreshes: false,
        t0: Timestamp::UNIX_EPOCH,
        image: Image { ino: image.ino, generation: image.generation, subvolume: image.subvolume, ..Image::default() },
        fs: fs.uuid,
        boot: host.boot_id,
        mount_instance: fs.mount_instance,
        cluster: job.options.cluster.get(),
        chunk: job.options.chunk,
        partial_ino: 0,
        old_mode: 0,
        pid: host.pid,
        pid_start: host.pid_start,
        image_path: job.image_path.to_vec(),
        reason: String::new(),
        old_record: Vec::new(),
        group: Group::default(),
    })
}

pub(super) fn failed(what: &str, error: io::Error) -> Error {
    let hint = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => "free space, then run the same command again",
        _ => "mend the cause, then run the same command again",
    };
    Error::io(Kind::Failed, what.to_owned(), hint, error)
}
