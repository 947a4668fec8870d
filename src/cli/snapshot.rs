//! `snapshot` and `resume`: one job, joined to the real disk, the signals and the reports.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::args::{Consistency, JobArgs, ResumeArgs, SnapshotArgs};
use super::metrics;
use super::place::{self, Image, Place};
use super::report::Reporter;
use super::signals::Stop;
use super::values::MinFree;
use super::{last_words, words, worker};
use crate::disk::{Access, Disk};
use crate::engine::claims::Threaded;
use crate::engine::job::{self, GUEST_DEADLINE, Job, LATENCY_GUESTS, Options};
use crate::engine::recover::{Start, Wish};
use crate::engine::report::{Event, Finished, Observer};
use crate::error::{Error, Kind, Result};
use crate::hold::choose::{self, Chosen};
use crate::journal::file as journal_file;
use crate::journal::format::{Header, State};
use crate::range::PowerOfTwo;

/// How often a job that waits for another one tries again.
const RETRY: Duration = Duration::from_millis(200);

/// Runs `snapshot`.
///
/// # Errors
/// What kept the snapshot from being made.
pub fn snapshot(args: &SnapshotArgs) -> Result<u8> {
    if args.dry_run {
        return dry_run(args);
    }
    if worker::is_needed(args) { worker::run(args) } else { here(args) }
}

/// Runs `snapshot` in this process.
///
/// # Errors
/// What kept the snapshot from being made.
pub fn here(args: &SnapshotArgs) -> Result<u8> {
    under_watch(&args.job, Some(&args.src), &args.dst, |stop, reporter, _| {
        let place = place::place(&args.dst)?;
        let options = options(args)?;
        let mut warned = false;
        attempts(&args.job, stop, || {
            // Anew each time: while another job was waited for the image may have been replaced.
            let image = place::open_image(&args.src)?;
            place::lock_image(&image)?;
            if let Some(text) = place::warning(&*image.file, &args.src).filter(|_| !warned) {
                warned = true;
                reporter.on(Event::Warning(text));
            }
            let chosen = choose_hold(args, &image)?;
            run(&place, &image, &options, chosen, stop, reporter)
        })
    })
}

/// Runs `resume`.
///
/// # Errors
/// What kept the job from its end; broken where its point in time is lost.
pub fn resume(args: &ResumeArgs) -> Result<u8> {
    under_watch(&args.job, None, &args.dst, |stop, reporter, found| {
        let place = place::place(&args.dst)?;
        let header = header(&place)?;
        let src = PathBuf::from(std::ffi::OsString::from_vec(header.image_path.clone()));
        reporter.source(&src);
        *found.borrow_mut() = Some(src.clone());
        if header.state == State::Committing {
            // Complete: only the rename is left, for which the image need not be there.
            return job::end_complete(&place.disk, &place.names, reporter);
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
            min_free: min_free(args.job.min_free),
        };
        attempts(&args.job, stop, || {
            place::lock_image(&image)?;
            let hold = choose::make(header.hold, &image.file, &image.path, GUEST_DEADLINE);
            run(&place, &image, &options, Chosen { hold, why: "the journal's".into() }, stop, reporter)
        })
    })
}

/// Does a job's work, with reports and metrics whatever way it ends.
///
/// # Errors
/// What the work says.
pub fn under_watch(
    args: &JobArgs,
    src: Option<&Path>,
    dst: &Path,
    work: impl FnOnce(&Stop, &Reporter, &std::cell::RefCell<Option<PathBuf>>) -> Result<Finished>,
) -> Result<u8> {
    let began = Instant::now();
    let found = std::cell::RefCell::new(src.map(Path::to_owned));
    if let Some(file) = &args.metrics {
        metrics::refuse_foreign(file)?;
    }
    let stop = Stop::on_signals()?;
    let result = Reporter::watch(args.output, src, dst, |reporter| {
        work(&stop, reporter, &found).map_err(|error| place::on(dst, error))
    });
    if let Some(file) = &args.metrics {
        let src = found.into_inner();
        let run = metrics::Run {
            src: src.as_deref().unwrap_or(Path::new("")),
            dst,
            at: Timestamp::now(),
            elapsed: began.elapsed(),
            exit: result.as_ref().map_or_else(|e| e.kind.exit_code(), |_| 0),
            finished: result.as_ref().ok(),
        };
        // The snapshot's own result counts for more than that of the report about it.
        if let Err(error) = metrics::write(file, &run) {
            last_words(super::error_lines(&error));
        }
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
    place: &Place,
    image: &Image,
    options: &Options,
    mut chosen: Chosen,
    stop: &Stop,
    reporter: &Reporter,
) -> Result<Finished> {
    let asked = || stop.asked();
    let job = Job {
        disk: &place.disk,
        names: &place.names,
        image: std::sync::Arc::clone(&image.file),
        image_path: image.path.as_os_str().as_bytes(),
        options,
        why: &chosen.why,
        observer: reporter,
        stop: &asked,
        make_claims: &|recorder| Box::new(Threaded::new(recorder)),
    };
    job::run(&[job], chosen.hold.as_mut()).map(|mut all| all.swap_remove(0))
}

fn choose_hold(args: &SnapshotArgs, image: &Image) -> Result<Chosen> {
    let deadline = args.guest_deadline;
    match args.consistency {
        Consistency::Auto => {
            let stall = args.job.latency.unwrap_or(LATENCY_GUESTS);
            choose::auto(&image.file, &image.path, stall, deadline)
        }
        Consistency::Hold(kind) => {
            let hold = choose::make(kind, &image.file, &image.path, deadline);
            Ok(Chosen { hold, why: "asked for".into() })
        }
    }
}

fn options(args: &SnapshotArgs) -> Result<Options> {
    let cluster = PowerOfTwo::new(args.cluster)
        .ok_or_else(|| Error::new(Kind::Usage, "--cluster is not a power of two", "use 64K, say"))?;
    let wish = Wish { same_t0_only: false, refresh: args.refresh, restart: args.restart, force: args.force };
    Ok(Options {
        chunk: args.chunk,
        latency: args.job.latency,
        cluster,
        wish,
        writable: args.writable,
        min_free: min_free(args.job.min_free),
    })
}

fn min_free(wanted: MinFree) -> job::MinFree {
    match wanted {
        MinFree::Percent(percent) => job::MinFree::Percent(percent.into()),
        MinFree::Bytes(bytes) => job::MinFree::Bytes(bytes),
    }
}

fn header(place: &Place) -> Result<Header> {
    let no_job = |e: std::io::Error| {
        if e.raw_os_error() != Some(libc::ENOENT) {
            return Error::io(Kind::Refused, "cannot open the journal", "check its permissions", e);
        }
        match place.disk.stat(&place.names.dst) {
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

fn dry_run(args: &SnapshotArgs) -> Result<u8> {
    let look = || {
        let place = place::place(&args.dst)?;
        let image = place::open_image(&args.src)?;
        place::lock_image(&image)?;
        super::warn(place::warning(&*image.file, &args.src).filter(|_| !args.job.output.quiet));
        let options = options(args)?;
        let mut chosen = choose_hold(args, &image)?;
        let job = Job {
            disk: &place.disk,
            names: &place.names,
            image: std::sync::Arc::clone(&image.file),
            image_path: image.path.as_os_str().as_bytes(),
            options: &options,
            why: &chosen.why,
            observer: &crate::engine::report::Nobody,
            stop: &|| false,
            make_claims: &|recorder| Box::new(Threaded::new(recorder)),
        };
        let plan = job::dry_run(&job, chosen.hold.as_mut())?;
        Ok((plan, chosen))
    };
    let (plan, chosen) = look().map_err(|error| place::on(&args.dst, error))?;
    let start = match &plan.start {
        Start::Fresh { discard: false } => "would make a new snapshot".into(),
        Start::Fresh { discard: true } => "would throw the unfinished work away and make a new snapshot".into(),
        Start::Continue => "would go on from the journal at the same point in time".into(),
        Start::Renew(why) => format!("would take the partial file to a new point in time: {why}"),
        Start::Refresh => "would bring the existing snapshot to a new point in time".into(),
        Start::RollForward => "would put the complete snapshot into place".into(),
    };
    let text = if args.job.output.json {
        let object = serde_json::json!({
            "v": 1, "event": "dry-run", "src": super::json::path(&args.src).0, "dst": super::json::path(&args.dst).0,
            "would": start, "hold": chosen.hold.kind().name(), "why": chosen.why,
            "point_in_time": chosen.hold.kind().point_in_time(), "bytes": plan.bytes, "extents": plan.extents,
        });
        format!("{object}\n")
    } else {
        let extents = plan.extents.map_or_else(String::new, |n| format!(", {}", words::count(n, "extent")));
        format!(
            "{}: {start}; hold {} ({}); {}{extents}; nothing was touched, run it without --dry-run to do it\n",
            words::name(&args.dst),
            chosen.hold.kind().name(),
            chosen.why,
            words::bytes(plan.bytes),
        )
    };
    super::written(std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()))?;
    Ok(0)
}
