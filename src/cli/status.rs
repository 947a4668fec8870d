//! `status [PATH...]`: jobs and snapshots, looked at without their lock.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uuid::Uuid;

use super::args::StatusArgs;
use super::fleece::orphan;
use super::{live, place, restore, words};
use crate::disk::real::RealDisk;
use crate::disk::{Disk, DiskFile};
use crate::engine::inspect::{Condition, Unfinished, inspect};
use crate::engine::members;
use crate::engine::names::JOURNAL;
use crate::engine::recover::Here;
use crate::error::{Error, Kind, Result};
use crate::journal::format::Header;
use crate::record::{Record, Verdict};

/// Runs `status`: for one path 0, 4 or 6, or 3 where there is nothing; for several the worst of them.
///
/// # Errors
/// Refused where a directory cannot be read.
pub fn run(args: &StatusArgs) -> Result<u8> {
    let here = [PathBuf::from(".")];
    let paths = if args.paths.is_empty() { &here[..] } else { &args.paths };
    let mut snapshots = Vec::new();
    for path in paths {
        if path.is_dir() {
            snapshots.extend(jobs_in(path)?);
        } else {
            snapshots.push(path.clone());
        }
    }
    let mut worst = 0;
    let mut out = std::io::stdout().lock();
    for path in &snapshots {
        if let Some(fleece) = orphan::at(path) {
            worst = worst.max(fleece.exit_code());
            let text = if args.json { format!("{}\n", fleece.object()) } else { fleece.person() };
            super::written(out.write_all(text.as_bytes()))?;
            continue;
        }
        match restore::status(path, args.json) {
            Ok(None) => {}
            Ok(Some((text, code))) => {
                worst = worst.max(code);
                super::written(out.write_all(text.as_bytes()))?;
                continue;
            }
            Err(error) => {
                worst = worst.max(error.kind.exit_code());
                super::last_words(super::error_lines(&error));
                continue;
            }
        }
        let condition = match condition(path) {
            Ok(condition) => condition,
            // The others are looked at all the same.
            Err(error) => {
                worst = worst.max(error.kind.exit_code());
                super::last_words(super::error_lines(&error));
                continue;
            }
        };
        worst = worst.max(exit_code(&condition));
        let text = if args.json { format!("{}\n", object(path, &condition)) } else { person(path, &condition) };
        super::written(out.write_all(text.as_bytes()))?;
    }
    if snapshots.is_empty() && !args.json {
        super::written(out.write_all(b"no jobs here; 'rclone-img status DST' looks at one snapshot\n"))?;
    }
    Ok(worst)
}

/// How the job or snapshot of this name stands.
fn condition(path: &Path) -> Result<Condition> {
    let place = place::place(path)?;
    let condition = inspect(&place.disk, &place.names).map_err(|e| place::on(path, e))?;
    if let Condition::Nothing = condition {
        let hint = "check the path; 'rclone-img status DIR' lists the jobs of a directory";
        return Err(Error::new(Kind::Refused, format!("{}: no job and no snapshot", words::name(path)), hint));
    }
    Ok(with_image(condition, &place.disk))
}

/// The condition, given the image as it is now: what `resume` would say.
pub(super) fn with_image(condition: Condition, disk: &RealDisk) -> Condition {
    let Condition::Interrupted(job) = &condition else { return condition };
    let path = PathBuf::from(OsString::from_vec(job.header.image_path.clone()));
    let hold = job.header.hold;
    let looked = place::open_image(&path).ok().and_then(|i| Some((i.file.stat().ok()?, i.file.fs().ok()?)));
    match looked {
        Some((image, fs)) => {
            let host = disk.host();
            let image_path = path.as_os_str().as_bytes();
            condition.with_image(&Here { image: &image, image_path, fs: &fs, host: &host, hold })
        }
        None => {
            let Condition::Interrupted(mut job) = condition else { return condition };
            job.header.reason = "its point in time is lost: the image is gone".into();
            Condition::Broken(job)
        }
    }
}

/// The snapshots that have a journal in a directory, and the maps of fleeces.
fn jobs_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let cannot = |e| {
        Error::io(Kind::Refused, format!("cannot list {}", words::name(dir)), "check the directory's permissions", e)
    };
    let mut jobs = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(cannot)? {
        let name = entry.map_err(cannot)?.file_name();
        if let Some(stem) = name.as_bytes().strip_suffix(JOURNAL.as_bytes()).filter(|s| !s.is_empty()) {
            jobs.push(dir.join(OsStr::from_bytes(stem)));
        }
        jobs.extend(restore::unfinished(dir, &name));
        jobs.extend(Some(dir.join(&name)).filter(|path| orphan::is_map(path) && orphan::at(path).is_some()));
    }
    jobs.sort();
    // A restore may have two files beside the image.
    jobs.dedup();
    Ok(jobs)
}

fn exit_code(condition: &Condition) -> u8 {
    match condition {
        Condition::Nothing | Condition::Snapshot(_, Verdict::Valid) | Condition::Running(_) => 0,
        // There is a file, and no snapshot that could be relied on.
        Condition::NotOurs | Condition::Snapshot(..) => Kind::Broken.exit_code(),
        Condition::Interrupted(_) | Condition::Complete(_) => Kind::Interrupted.exit_code(),
        Condition::Broken(_) | Condition::Unreadable(_) => Kind::Broken.exit_code(),
    }
}

fn person(path: &Path, condition: &Condition) -> String {
    let (name, shell) = (words::name(path), words::shell(path));
    let job = |state: &str, job: &Unfinished, next: &str| {
        let image = OsString::from_vec(job.header.image_path.clone());
        let why = if job.header.reason.is_empty() {
            String::new()
        } else {
            format!(" ({})", words::line(&job.header.reason))
        };
        if job.header.epoch == 0 {
            return format!(
                "{name}: {state} before it had a point in time; run the same snapshot command again, or abort\n"
            );
        }
        // Nothing is written down while a guest may wait for it.
        let size = words::bytes(job.header.image.size);
        let done = match job.header.hold.answers_accesses() {
            true if state.contains(" % of ") => String::new(),
            true => format!(", {size}"),
            false => format!(", {} of {size} done", words::bytes(job.done_bytes)),
        };
        let next = if next.is_empty() { String::new() } else { format!("; {next}") };
        format!(
            "{name}: {state}{why}; T0 {:.0} of {}, hold {}{done}{next}\n",
            job.header.t0,
            words::name(image),
            job.header.hold.name(),
        ) + &with_others(&job.header)
    };
    match condition {
        Condition::Nothing => String::new(),
        Condition::NotOurs => format!("{name}: a file without a record of rclone-img; not a snapshot of ours\n"),
        Condition::Snapshot(record, verdict) => format!("{name}: {}\n", snapshot(record, *verdict)),
        Condition::Running(j) => {
            let (done, guest) = live::person(&j.header);
            let done = if done.is_empty() { done } else { format!(", {done}") };
            job(&format!("running (pid {}){done}", j.header.pid), j, "") + &guest
        }
        Condition::Interrupted(j) => job("interrupted", j, &format!("rclone-img resume {shell} goes on")),
        Condition::Complete(j) => job("complete, but not renamed", j, &format!("rclone-img resume {shell} ends it")),
        Condition::Broken(j) => {
            job("broken", j, "the same snapshot command takes a new point in time and keeps what is left of the work")
        }
        Condition::Unreadable(why) => format!("{name}: its journal cannot be used: {why}; {}\n", why.hint()),
    }
}

/// The other snapshots of a job of several images: what is done to one is done to all.
fn with_others(header: &Header) -> String {
    let others: Vec<String> = members::others(header).iter().map(words::name).collect();
    if others.is_empty() { String::new() } else { format!("  one job with {}\n", others.join(", ")) }
}

fn snapshot(record: &Record, verdict: Verdict) -> String {
    let instant = if record.point_in_time { "one point in time" } else { "NOT A POINT IN TIME" };
    let what = match verdict {
        Verdict::Valid => "snapshot",
        Verdict::Modified => "MODIFIED since it was made as a snapshot",
        Verdict::Copy => "a copy of a snapshot, not the snapshot itself;",
        Verdict::InProgress => "a job's unfinished work without its journal;",
    };
    format!("{what} of T0 {:.0}, hold {}, {instant}, {}", record.t0, record.hold, words::bytes(record.size))
}

fn object(path: &Path, condition: &Condition) -> Value {
    let (name, raw) = super::json::path(path);
    let mut object = json!({"v": 1, "event": "status", "dst": name, "state": state(condition)});
    if let Some(raw) = raw {
        object["dst_bytes"] = raw.into();
    }
    match condition {
        Condition::Running(j) | Condition::Interrupted(j) | Condition::Broken(j) | Condition::Complete(j) => {
            object["job"] = Uuid::from_bytes(j.header.job).to_string().into();
            object["src"] = String::from_utf8_lossy(&j.header.image_path).into();
            object["t0"] = j.header.t0.to_string().into();
            object["hold"] = j.header.hold.name().into();
            object["point_in_time"] = j.header.hold.point_in_time().into();
            object["bytes"] = j.header.image.size.into();
            object["done_bytes"] = j.done_bytes.into();
            object["pid"] = j.header.pid.into();
            object["reason"] = j.header.reason.clone().into();
            let others: Vec<_> = members::others(&j.header).iter().map(|path| super::json::path(path).0).collect();
            object["with"] = others.into();
            if matches!(condition, Condition::Running(_)) {
                let live = live::object(&j.header);
                // Of several images it is of all of them.
                if let Some(done) = live["done_bytes"].as_u64().filter(|_| j.header.group.is_alone()) {
                    object["done_bytes"] = done.max(j.done_bytes).into();
                }
                object["live"] = live;
            }
        }
        Condition::Snapshot(record, _) => {
            object["job"] = record.job.to_string().into();
            object["t0"] = record.t0.to_string().into();
            object["hold"] = record.hold.clone().into();
            object["point_in_time"] = record.point_in_time.into();
            object["quiesced"] = record.quiesced.into();
            object["bytes"] = record.size.into();
        }
        Condition::Unreadable(why) => object["reason"] = why.to_string().into(),
        Condition::Nothing | Condition::NotOurs => {}
    }
    object
}

fn state(condition: &Condition) -> &'static str {
    match condition {
        Condition::Nothing => "nothing",
        Condition::NotOurs => "not-ours",
        Condition::Snapshot(_, Verdict::Valid) => "finished",
        Condition::Snapshot(_, Verdict::Modified) => "modified",
        Condition::Snapshot(_, Verdict::Copy) => "copy",
        Condition::Snapshot(_, Verdict::InProgress) => "orphaned",
        Condition::Running(_) => "running",
        Condition::Interrupted(_) => "interrupted",
        Condition::Broken(_) => "broken",
        Condition::Complete(_) => "complete",
        Condition::Unreadable(_) => "unreadable",
    }
}
