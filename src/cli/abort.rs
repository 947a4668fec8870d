//! `abort DST`: stops a live job, then takes back what it made.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use super::args::AbortArgs;
use super::fleece::orphan;
use super::place::{self, Place};
use super::{last_words, restore, words};
use crate::disk::{Access, Disk, DiskFile, process};
use crate::engine::abort::{Aborted, Done, abort};
use crate::engine::inspect::{Condition, inspect};
use crate::error::{Error, Kind, Result};

/// How long a job that was told to stop may take: a call of 10 s, the most that `--latency` allows, and a sync.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// Runs `abort`.
///
/// # Errors
/// Refused where there is nothing to abort; busy where the job does not stop.
pub fn run(args: &AbortArgs) -> Result<u8> {
    if let Some(fleece) = orphan::at(&args.dst) {
        let text = fleece.remove()?;
        say(args, &args.dst, "removed", format!("{}: {text}\n", words::name(&args.dst)))?;
        return Ok(0);
    }
    if let Some(code) = restore::abort(&args.dst, &args.output)? {
        return Ok(code);
    }
    let place = place::place(&args.dst)?;
    // The job that is told to stop promises nothing of what it leaves, as long as this is open.
    let mark = place.disk.open(&place.names.journal, Access::Read);
    let _mark = mark.inspect(|journal| drop(journal.mark_for_abort()));
    let aborted = stop_live(&place)
        .and_then(|removed| match removed {
            true => Ok(Done { what: Aborted::Removed, others: Vec::new() }),
            false => abort(&place.disk, &place.names, args.force),
        })
        .map_err(|e| place::on(&args.dst, e))?;
    let others = aborted.others.into_iter().map(|(dst, what)| (PathBuf::from(OsString::from_vec(dst)), what));
    let all: Vec<(PathBuf, Aborted)> = std::iter::once((args.dst.clone(), aborted.what)).chain(others).collect();
    for (dst, what) in &all {
        tell(args, dst, *what, all.len() > 1)?;
    }
    Ok(0)
}

fn tell(args: &AbortArgs, dst: &Path, aborted: Aborted, of_several: bool) -> Result<()> {
    let name = words::name(dst);
    let (event, text) = match aborted {
        Aborted::Removed => {
            ("removed", format!("{name}: the unfinished job's files are gone; the image was not touched"))
        }
        Aborted::PutBack => ("put-back", format!("{name}: the snapshot is back as it was before the refresh")),
        Aborted::WasFinished => {
            ("was-finished", format!("{name}: the snapshot was complete and is in place; nothing was undone"))
        }
        Aborted::RemovedRefreshed => (
            "removed",
            format!("{name}: the unfinished refresh is gone, and with it the snapshot that it had begun to overwrite"),
        ),
    };
    let of_job = if of_several { "; it was of a job of several images, all of which is taken back" } else { "" };
    say(args, dst, event, format!("{text}{of_job}; 'rclone-img snapshot' makes a new one\n"))
}

fn say(args: &AbortArgs, dst: &Path, event: &str, text: String) -> Result<()> {
    if args.output.json {
        let (dst, bytes) = super::json::path(dst);
        let mut object = json!({"v": 1, "event": "aborted", "dst": dst, "what": event});
        if let Some(bytes) = bytes {
            object["dst_bytes"] = bytes.into();
        }
        super::written(std::io::Write::write_all(&mut std::io::stdout(), format!("{object}\n").as_bytes()))?;
    } else if !args.output.quiet {
        last_words(text);
    }
    Ok(())
}

/// Stops a job that runs. Whether it has taken its files away itself, since it had not come to its T0.
fn stop_live(place: &Place) -> Result<bool> {
    let until = Instant::now() + STOP_LIMIT;
    let mut told = false;
    loop {
        let job = match inspect(&place.disk, &place.names)? {
            Condition::Running(job) => job,
            other => return Ok(told && matches!(other, Condition::Nothing)),
        };
        if !told {
            let owner = place.disk.stat(&place.names.journal).ok().flatten().map(|s| s.uid);
            if owner.is_some_and(|uid| uid != place.disk.host().uid) {
                let what = "the job that has the journal belongs to another user";
                return Err(Error::new(Kind::Refused, what, "run as that user"));
            }
            let cannot =
                |e| Error::io(Kind::Busy, format!("cannot stop process {}", job.header.pid), "stop it yourself", e);
            // A job whose journal is not written yet has no pid there; it is looked at again.
            if job.header.pid != 0 {
                told = process::terminate(job.header.pid, job.header.pid_start, Signal::SIGTERM).map_err(cannot)?;
            }
        }
        if Instant::now() >= until {
            let what = format!("process {} was told to stop and runs on", job.header.pid);
            return Err(Error::new(Kind::Busy, what, "wait for it, then abort again"));
        }
        std::thread::sleep(LOOK);
    }
}
