//! `snapshot` and `resume`: one job, joined to the real disk, the signals and the reports.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::slice::from_ref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::args::{Consistency, JobArgs, ResumeArgs, SnapshotArgs};
use super::images::{open_images, places};
use super::place::{self, Image, Place};
use super::report::{Names, Reporter};
use super::signals::Stop;
use super::worker::Process;
use super::{dry_run, last_words, metrics, words, worker};
use crate::disk::real::RealDisk;
use crate::disk::{Access, Disk, DiskFile};
use crate::engine::claims::Threaded;
use crate::engine::commit;
use crate::engine::flusher;
use crate::engine::inspect::{Condition, inspect};
use crate::engine::job::{self, Job, LATENCY_ATOMIC, Options};
use crate::engine::recover::Wish;
use crate::engine::report::{Event, Finished, Observer};
use crate::error::{Error, Kind, Result};
use crate::hold::HoldKind;
use crate::hold::choose::{self, Chosen, Means};
use crate::hold::holders;
use crate::hold::quiesced::{Quiesced, Told};
use crate::journal::file as journal_file;
use crate::journal::format::{Header, State};
use crate::plan::cluster::cluster;
use crate::quiesce::order::Order;
use crate::range::PowerOfTwo;
use crate::rotate::promise::Promise;

/// How often a job that waits for another one tries again.
const RETRY: Duration = Duration::from_millis(200);

/// Runs `snapshot`.
///
/// # Errors
/// What kept the snapshot from being made.
pub fn snapshot(args: &SnapshotArgs) -> Result<u8> {
    if args.dry_run {
        return dry_run::run(args);
    }
    if worker::is_needed(args) { worker::run(args) } else { here(args, Process::Front) }
}

/// Runs `snapshot` in this process.
///
/// # Errors
/// What kept the snapshots from being made.
pub fn here(args: &SnapshotArgs, process: Process) -> Result<u8> {
    under_watch(&args.job, &names(args), Instant::now(), |stop, reporter, _| {
        let places = places(args)?;
        let mut warned = false;
        attempts(&args.job, stop, || {
            // Anew each time: while another job was waited for an image may have been replaced.
            let images = open_images(args, &places)?;
            for (image, (src, _)) in images.iter().zip(&args.pairs).filter(|_| !warned) {
                if let Some(text) = place::warning(&*image.file, src) {
                    reporter.on(Event::Warning(text));
                }
            }
            let chosen = choose_hold(args, &images, &places)?;
            if process == Process::Front && chosen.hold.kind().wants_a_worker() {
                // A VM was started since this process took the job for one that nobody waits for.
                return Err(worker::begin_anew(stop));
            }
            if !warned && chosen.hold.kind() == HoldKind::Filter && !holders::all_are_seen("self") {
                reporter.on(Event::Warning(holders::NOT_ALL_SEEN.into()));
            }
            if !std::mem::replace(&mut warned, true)
                && !args.take.qmp.is_empty()
                && chosen.hold.kind() != HoldKind::Guard
            {
                let hold = chosen.hold.kind().name();
                reporter.on(Event::Warning(format!("--qmp was not used: the hold is {hold}, which needs no monitor")));
            }
            let options = options(args, chosen.hold.kind(), &images)?;
            let tell = |told| match told {
                Told::Warning(text) => reporter.on(Event::Warning(text)),
                Told::StillFrozen(text) => reporter.on(Event::StillFrozen(text)),
            };
            let asked = || stop.asked();
            if args.refresh && !args.by_rules {
                // A name that a run of 'rotate' has promised is not for what is made by hand.
                for Place { disk, names, .. } in &places {
                    [&names.dst, &names.partial].into_iter().for_each(|name| Promise::forget_at(disk, name));
                }
            }
            run(&places, &images, &options, quiesced(args, chosen, &tell, &asked), stop, reporter)
        })
    })
}

/// What is to be frozen.
pub(super) fn order(args: &SnapshotArgs) -> Order {
    Order { methods: args.take.quiesce(), limit: args.take.freeze_timeout }
}

/// The hold with a freeze around its T0, where that was asked for.
fn quiesced<'a>(
    args: &SnapshotArgs,
    chosen: Chosen<'a>,
    tell: &'a dyn Fn(Told),
    stop: &'a dyn Fn() -> bool,
) -> Chosen<'a> {
    let order = order(args);
    if order.methods.is_empty() {
        return chosen;
    }
    Chosen { hold: Box::new(Quiesced::new(chosen.hold, order, args.take.require_freeze, tell, stop)), ..chosen }
}

/// The names that reports use.
pub fn names(args: &SnapshotArgs) -> Vec<Names> {
    args.pairs
        .iter()
        .map(|(src, dst)| Names { src: Some(src.clone()), dst: dst.clone(), by_rules: args.by_rules })
        .collect()
}

/// Runs `resume`.
///
/// # Errors
/// What kept the job from its end; broken where its point in time is lost.
pub fn resume(args: &ResumeArgs) -> Result<u8> {
    let names = [Names { src: None, dst: args.dst.clone(), by_rules: false }];
    under_watch(&args.job, &names, Instant::now(), |stop, reporter, found| {
        let place = place::place(&args.dst)?;
        let header = header(&place)?;
        let src = PathBuf::from(std::ffi::OsString::from_vec(header.image_path.clone()));
        reporter.source(&src);
        *found.borrow_mut() = Some(src.clone());
        if matches!(header.state, State::Committing | State::Complete) {
            // Complete: only the rename is left, for which the image need not be there.
            return commit::end_complete(&place.disk, &place.names, reporter).map(|finished| vec![finished]);
        }
        let image = place::open_image(&src).map_err(|e| Error {
            kind: Kind::Broken,
            hint: "if the image was only moved, 'rclone-img snapshot' with its new path goes on at the same point in time; \
                   if it is gone, 'rclone-img abort' removes the job's files"
                .into(),
            ..e
        })?;
        let options = Options {
            chunk: header.chunk.max(header.cluster),
            latency: args.job.latency,
            cluster: PowerOfTwo::new(header.cluster).expect("the journal's loader has checked it"),
            wish: Wish { same_t0_only: true, ..Wish::default() },
            writable: header.writable,
            min_free: args.job.min_free.into(),
        };
        attempts(&args.job, stop, || {
            place::lock_image(&image)?;
            let hold = choose::make(header.hold, &[image.held()], &Means::default());
            let chosen = Chosen { hold, why: "the journal's".into() };
            run(from_ref(&place), from_ref(&image), &options, chosen, stop, reporter)
        })
    })
}

/// Does a job's work, with reports and metrics whatever way it ends.
///
/// # Errors
/// What the work says.
pub fn under_watch(
    args: &JobArgs,
    names: &[Names],
    began: Instant,
    work: impl FnOnce(&Stop, &Reporter, &std::cell::RefCell<Option<PathBuf>>) -> Result<Vec<Finished>>,
) -> Result<u8> {
    let found = std::cell::RefCell::new(names[0].src.clone());
    let file = args.metrics.as_deref();
    let ours = file.map_or(Ok(()), metrics::refuse_foreign);
    let file = file.filter(|_| ours.is_ok());
    let stop = Stop::on_signals()?;
    let dsts: Vec<&Path> = names.iter().map(|names| names.dst.as_path()).collect();
    let mut still_frozen = None;
    let result = Reporter::watch(args.output, names, |reporter| {
        let result = ours.and_then(|()| work(&stop, reporter, &found).map_err(|error| place::on_one_of(&dsts, error)));
        still_frozen = reporter.still_frozen();
        result
    });
    if let Some(file) = file {
        let found = found.into_inner().unwrap_or_default();
        let run = |(index, names): (usize, &'_ Names)| metrics::Run {
            src: names.src.clone().unwrap_or_else(|| found.clone()),
            dst: if names.by_rules { metrics::place_of(&names.dst) } else { names.dst.clone() },
            at: Timestamp::now(),
            elapsed: began.elapsed(),
            exit: result.as_ref().map_or_else(|e| e.kind.exit_code(), |_| 0),
            finished: result.as_ref().ok().and_then(|all| all.get(index)),
            still_frozen: Some(still_frozen.is_some()),
        };
        let runs: Vec<_> = names.iter().enumerate().map(run).collect();
        // The snapshot's own result counts for more than that of the report about it.
        if let Err(error) = metrics::write(file, &runs) {
            last_words(super::error_lines(&error));
        }
    }
    // Once more, where it is seen, whatever was to be told: it is the guest that matters.
    if let Some(text) = still_frozen.filter(|text| !result.as_ref().is_err_and(|e| e.what.ends_with(text))) {
        last_words(format!("WARNING: {}\n", words::line(&text)));
    }
    result.map(|_| 0)
}

/// Tries until nobody else has the image or the snapshot, for as long as `--wait` says.
fn attempts<T>(args: &JobArgs, stop: &Stop, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let until = Instant::now() + args.wait;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match attempt() {
            Err(error) if error.kind == Kind::Busy && !left.is_zero() => {
                if stop.wait(left.min(RETRY)) {
                    let hint = "run the same command again";
                    return Err(Error::new(Kind::Interrupted, "told to stop while waiting for another job", hint));
                }
            }
            other => return other,
        }
    }
}

fn run(
    places: &[Place],
    images: &[Image],
    options: &Options,
    mut chosen: Chosen<'_>,
    stop: &Stop,
    reporter: &Reporter,
) -> Result<Vec<Finished>> {
    let asked = || stop.asked();
    let jobs = jobs(places, images, options, &chosen.why, reporter, &asked);
    job::run(&jobs, chosen.hold.as_mut())
}

/// The engine's jobs, one for each image.
pub(super) fn jobs<'a>(
    places: &'a [Place],
    images: &'a [Image],
    options: &'a Options,
    why: &'a str,
    observer: &'a dyn Observer,
    stop: &'a dyn Fn() -> bool,
) -> Vec<Job<'a, RealDisk>> {
    let job = |(place, image): (&'a Place, &'a Image)| Job {
        disk: &place.disk,
        dir: &place.dir,
        names: &place.names,
        image: Arc::clone(&image.file),
        image_path: image.path.as_os_str().as_bytes(),
        options,
        why,
        observer,
        stop,
        make_claims: &|recorder| Box::new(Threaded::new(recorder)),
        make_flusher: &|image, partial| Box::new(flusher::Threaded::new(image, partial)),
    };
    places.iter().zip(images).map(job).collect()
}

/// The hold that was asked for, or the first that applies.
///
/// # Errors
/// Refused where none does.
pub(super) fn choose_hold(args: &SnapshotArgs, images: &[Image], places: &[Place]) -> Result<Chosen<'static>> {
    // The rehearsal changes nothing, so it leaves a QEMU that runs as it is.
    let monitors = if args.dry_run { Vec::new() } else { args.take.qmp.clone() };
    let making = places.iter().map(Place::making).collect();
    let means = Means { deadline: args.take.guest_deadline, monitors, making };
    let held: Vec<_> = images.iter().map(Image::held).collect();
    match args.take.consistency {
        Consistency::Auto => choose::auto(&held, args.job.latency.unwrap_or(LATENCY_ATOMIC), &means),
        Consistency::Hold(kind) if kind.one_call() && held.len() > 1 => {
            let what = "calls for several images are not of one instant, so that atomic takes one image only";
            Err(Error::new(Kind::Refused, what, "shut the VM down (frozen), or have it watched (guard)"))
        }
        Consistency::Hold(kind) => Ok(Chosen { hold: choose::make(kind, &held, &means), why: "asked for".into() }),
    }
}

/// What the user chose, for the engine and this hold.
///
/// # Errors
/// Usage; refused where an image cannot be looked at.
pub(super) fn options(args: &SnapshotArgs, kind: HoldKind, images: &[Image]) -> Result<Options> {
    let cluster = match args.take.cluster {
        Some(bytes) => PowerOfTwo::new(bytes)
            .ok_or_else(|| Error::new(Kind::Usage, "--cluster is not a power of two", "use 64K, say"))?,
        None => {
            let cannot = |e| Error::io(Kind::Refused, "cannot look at the image", "check the path", e);
            let mut chosen = PowerOfTwo::at_most(1);
            for image in images {
                let size = image.file.stat().map_err(cannot)?.size;
                let usual = cluster(kind.answers_accesses(), size).min(PowerOfTwo::at_most(args.take.chunk));
                // A call takes whole blocks, which XFS can have of up to 64 KiB.
                chosen = chosen.max(usual).max(image.file.fs().map_err(cannot)?.block);
            }
            chosen
        }
    };
    let wish = Wish { same_t0_only: false, refresh: args.refresh, restart: args.restart, force: args.force };
    Ok(Options {
        chunk: args.take.chunk,
        latency: args.job.latency,
        cluster,
        wish,
        writable: args.writable,
        min_free: args.job.min_free.into(),
    })
}

fn header(place: &Place) -> Result<Header> {
    let no_job = |e: std::io::Error| {
        if e.raw_os_error() != Some(libc::ENOENT) {
            return Error::io(Kind::Refused, "cannot open the journal", "check its permissions", e);
        }
        match place.disk.stat(&place.names.dst) {
            Ok(Some(_)) if !matches!(inspect(&place.disk, &place.names), Ok(Condition::Snapshot(..))) => {
                let what =
                    "nothing to resume: this is not a snapshot of rclone-img, and no job is making one of this name";
                Error::new(Kind::Refused, what, "name the snapshot, DST, whose job was interrupted")
            }
            Ok(Some(_)) => {
                let hint =
                    "'rclone-img status' says how it stands; 'rclone-img snapshot --refresh' brings it up to date";
                Error::new(Kind::Refused, "nothing to resume: the file is there, and no job is unfinished", hint)
            }
            _ => {
                Error::new(Kind::Refused, "nothing to resume: there is no journal", "start with 'rclone-img snapshot'")
            }
        }
    };
    let file = place.disk.open(&place.names.journal, Access::Read).map_err(no_job)?;
    let loaded = journal_file::read(&file).map_err(no_job)?;
    loaded.map(|l| l.header).map_err(|e| {
        let hint = "'rclone-img status' says more; 'rclone-img abort --force' removes the job's files";
        Error::new(Kind::Refused, format!("the journal cannot be used: {e}"), hint)
    })
}
