//! `rotate SRC=PATTERN...`: a snapshot is taken, and those that nobody wants any more are removed.

pub mod args;
mod begun;
mod found;
mod plan;
mod prune;
mod recycle;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};
use uuid::Uuid;

use self::args::{RotateArgs, shown};
use super::service::log::with_path;
use super::signals::Stop;
use super::{error_lines, json, last_words, metrics, place, words, worker};
use crate::children;
use crate::disk::real::RealDisk;
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Kind, Result};
use crate::record::{ImageId, Verdict};
use crate::rotate::found::Snapshot;
use crate::rotate::pattern::Pattern;
use crate::rotate::policy::{Reason, Why};

/// How often a run that waits for another one tries again.
const RETRY: Duration = Duration::from_millis(200);

/// An image with its snapshots.
struct Rotated {
    src: Option<PathBuf>,
    /// None of a pattern alone: then whatever image they are of.
    image: Option<(ImageId, Uuid)>,
    /// Who owns the image.
    owner: Option<u32>,
    pattern: Pattern,
    disk: RealDisk,
    /// The name of the new one.
    new: String,
}

/// Runs the verb.
///
/// # Errors
/// Refused where an image or a directory cannot be looked at; busy where another run works in the same directory; failed where one cannot be
/// removed.
pub fn run(args: &RotateArgs) -> Result<u8> {
    let began = Instant::now();
    // What the process of the snapshot has ended with it has written itself.
    rotate(args).inspect_err(|error| write_metrics(args, began, error))
}

/// Writes what came of a run that failed in other ways than its snapshot: before that, or after it.
fn write_metrics(args: &RotateArgs, began: Instant, error: &Error) {
    let Some(file) = args.job.metrics.as_ref().filter(|_| !args.dry_run && !args.prune_only) else { return };
    let run = |(src, pattern): &(Option<PathBuf>, Pattern)| metrics::Run {
        src: src.clone().unwrap_or_default(),
        dst: metrics::place_of(&pattern.dir.join("any")),
        at: Timestamp::now(),
        elapsed: began.elapsed(),
        exit: error.kind.exit_code(),
        finished: None,
        // The snapshot's process may have said so.
        still_frozen: None,
    };
    let runs: Vec<_> = args.pairs.iter().map(run).collect();
    if let Err(error) = metrics::write(file, &runs) {
        last_words(error_lines(&error));
    }
}

fn rotate(args: &RotateArgs) -> Result<u8> {
    let now = Zoned::now();
    let stop = Stop::on_signals()?;
    let all: Vec<Rotated> = args.pairs.iter().map(|pair| rotated(pair, &now)).collect::<Result<_>>()?;
    // Who only looks keeps nobody from his turn.
    let _turn = if args.dry_run { Vec::new() } else { turn(&all, args.job.wait, &stop)? };
    if !args.prune_only {
        all.iter().try_for_each(Rotated::has_a_name)?;
    }
    if args.dry_run {
        all.iter().try_for_each(|it| it.say_plan(args, now.timestamp()))?;
        // Whether the first line of it would be refused; that has said why. A rehearsal leaves a QEMU alone that --qmp would arm.
        return if args.prune_only || !args.take.qmp.is_empty() { Ok(0) } else { rehearse(args, &all, &stop) };
    }
    let left: Vec<_> = all.iter().map(|it| it.end_what_was_begun(args)).collect::<Result<_>>()?;
    all.iter().for_each(Rotated::finish_names);
    if !args.prune_only {
        // What was ended may have it by now.
        all.iter().try_for_each(Rotated::has_a_name)?;
        let code = take(args, &all, &stop)?;
        if code != 0 {
            // It has said why; nothing is removed.
            return Ok(code);
        }
        all.iter().zip(&left).for_each(|(it, left)| it.end_the_rest(args, left));
    }
    let mut failed: Option<Error> = None;
    for (rotated, left) in all.iter().zip(&left) {
        match rotated.prune(args, &left.in_use, &stop) {
            Ok(()) => {}
            Err(error) if error.kind == Kind::Interrupted => return Err(error),
            // What is wrong with one image's snapshots is nothing to the next one's.
            Err(error) => {
                if let Some(before) = failed.replace(error) {
                    last_words(error_lines(&before));
                }
            }
        }
    }
    failed.map_or(Ok(0), Err)
}

/// What the rules look at: of which moment it is, and whether of one.
fn when(snapshot: &Snapshot) -> (Timestamp, bool) {
    (snapshot.record.t0, snapshot.record.point_in_time)
}

fn rotated((src, pattern): &(Option<PathBuf>, Pattern), now: &Zoned) -> Result<Rotated> {
    let cannot = |e| {
        Error::io(
            Kind::Refused,
            format!("cannot open {}", words::name(&pattern.dir)),
            "the directory must exist already",
            e,
        )
    };
    let (image, owner) = match src {
        None => (None, None),
        Some(src) => {
            let (_, image) = place::open_regular(src)?;
            let look =
                |e| Error::io(Kind::Refused, format!("cannot look at {}", words::name(src)), "check the path", e);
            let fs = image.fs().map_err(look)?;
            let stat = image.stat().map_err(look)?;
            (Some((stat.id(), Uuid::from_bytes(fs.uuid))), Some(stat.uid))
        }
    };
    let disk = RealDisk::open_dir(&pattern.dir).map_err(cannot)?;
    let new = pattern.name_at(now).map_err(|why| Error::new(Kind::Usage, why, "choose another pattern"))?;
    Ok(Rotated { src: src.clone(), image, owner, pattern: pattern.clone(), disk, new })
}

/// One run at a time works in a directory.
fn turn(all: &[Rotated], wait: Duration, stop: &Stop) -> Result<Vec<File>> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    for rotated in all {
        let dir = rotated.pattern.dir.canonicalize();
        let cannot = |e| Error::io(Kind::Refused, "cannot find the snapshots' directory", "check the path", e);
        dirs.push(dir.map_err(cannot)?);
    }
    // In one order, so that no two runs wait for each other.
    dirs.sort();
    dirs.dedup();
    let until = Instant::now() + wait;
    dirs.iter().map(|dir| lock(dir, until, stop)).collect()
}

fn lock(dir: &Path, until: Instant, stop: &Stop) -> Result<File> {
    let name = words::name(dir);
    let cannot = |e| Error::io(Kind::Refused, format!("cannot lock {name}"), "check the directory's permissions", e);
    let file = File::open(dir).map_err(cannot)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < until => {
                if stop.wait(RETRY) {
                    return Err(Error::told_to_stop());
                }
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                let what = format!("another 'rclone-img rotate' works in {name}");
                return Err(Error::new(Kind::Busy, what, "wait for it (--wait)"));
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(cannot(e)),
        }
    }
}

/// Takes the new snapshots, in a process of their own; its exit code.
fn take(args: &RotateArgs, all: &[Rotated], stop: &Stop) -> Result<u8> {
    if let Some(recycled) = recycle::chosen(args, all)? {
        let mut command = snapshot(args);
        command.args(["--by-rules", "--refresh"]);
        let code = ended(command, all, |_, index| recycled[index].clone(), stop)?;
        for (rotated, old) in all.iter().zip(&recycled) {
            match code {
                0 => rotated.keep_promise(old)?,
                _ => rotated.forget_promise(old),
            }
        }
        if !recycle::may_be_made_anew(args, all, &recycled, code) {
            return Ok(code);
        }
        let what = "no old snapshot could be made the new one (see above): a new one is made";
        super::warn(Some(what.into()).filter(|_| !args.job.output.quiet));
    }
    let mut command = snapshot(args);
    command.arg("--by-rules");
    ended(command, all, |it, _| OsString::from(&it.new), stop)
}

/// Whether new snapshots could be taken now: the exit code of who has looked.
fn rehearse(args: &RotateArgs, all: &[Rotated], stop: &Stop) -> Result<u8> {
    let mut command = snapshot(args);
    command.arg("--dry-run").stdout(Stdio::null());
    ended(command, all, |it, _| OsString::from(&it.new), stop)
}

fn snapshot(args: &RotateArgs) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("rclone-img").arg("snapshot").args(&args.handed_on).stdin(Stdio::null());
    command
}

/// Runs `snapshot` of all images, with these names for their snapshots; its exit code.
fn ended(
    mut command: Command,
    all: &[Rotated],
    named: impl Fn(&Rotated, usize) -> OsString,
    stop: &Stop,
) -> Result<u8> {
    command.arg("--");
    for (index, rotated) in all.iter().enumerate() {
        let Some(src) = &rotated.src else { continue };
        let dst = rotated.pattern.dir.join(named(rotated, index));
        command.arg([src.as_os_str(), dst.as_os_str()].join(OsStr::new("=")));
    }
    let cannot = |e| Error::io(Kind::Failed, "cannot start the snapshot's process", "check the limit of processes", e);
    let mut child = children::spawn(&mut command).map_err(cannot)?;
    let ended = worker::hand_on_signals(&child, stop.clone());
    let status = child.wait().map_err(cannot)?;
    *ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = true;
    status.code().and_then(|code| u8::try_from(code).ok()).ok_or_else(|| {
        let hint = "run the command again; nothing was removed";
        Error::new(Kind::Failed, "the snapshot's process was killed", hint)
    })
}

impl Rotated {
    /// Why each of these is kept; for no reason where it is not.
    fn reasons(&self, args: &RotateArgs, all: impl Iterator<Item = (Timestamp, bool)>) -> Vec<Vec<Why>> {
        let zone = jiff::tz::TimeZone::system();
        let times: Vec<_> = all.map(|(t0, whole)| (t0.to_zoned(zone.clone()).datetime(), whole)).collect();
        args.keep.policy().map_or_else(
            || vec![vec![Why { reason: Reason::Last, oldest: false }]; times.len()],
            |policy| policy.reasons_of(&times),
        )
    }

    /// Whether the new one's name is free: found out before anything is done.
    fn has_a_name(&self) -> Result<()> {
        if self.disk.stat(OsStr::new(&self.new)).map_err(|e| self.cannot_look(e))?.is_none() {
            return Ok(());
        }
        let what = format!("{} exists already", shown(&self.pattern.dir, OsStr::new(&self.new)));
        Err(Error::new(
            Kind::Refused,
            what,
            "give each run a name of its own: with the time of day in the pattern, like %Y%m%dT%H%M%S%z",
        ))
    }

    fn cannot_look(&self, error: io::Error) -> Error {
        let what = format!("cannot look at the snapshots in {}", words::name(&self.pattern.dir));
        Error::io(Kind::Refused, what, "check the directory's permissions", error)
    }

    /// What a report calls it.
    fn name(&self) -> String {
        self.src.as_ref().map_or_else(|| words::name(&self.pattern.dir), words::name)
    }

    fn object(&self, event: &str) -> Value {
        let object = json!({"v": json::VERSION, "event": event});
        match &self.src {
            Some(src) => with_path(object, "src", src),
            None => object,
        }
    }
}
