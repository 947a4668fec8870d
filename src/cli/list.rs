//! `list [PATH...]`: the snapshots that there are, how old and how large they are.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::service::log::with_path;
use super::{json, map, words};
use crate::disk::real::{RealDisk, RealFile, directory_of};
use crate::error::{Error, Kind, Result};
use crate::record::Verdict;
use crate::rotate::found::{Snapshot, snapshots};
use crate::stream::receive::HOLD;

/// What stands below the options in the help.
pub const EXAMPLES: &str = "\
OWN is what deleting the snapshot alone would free; SHARED is what it has in common with the image or \
with other snapshots. What only several snapshots share is OWN to none of them: deleting them all frees \
it as well. A snapshot that was written to since, or is a copy with all attributes ('cp -a'), is \
said to be: no command takes it for one any more. Nor is one whose file system has got another UUID \
since (xfs_admin -U): it counts as a copy. Other copies are ordinary files, and not listed.

Example:
  rclone-img list /backup";

/// `list [PATH...]`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ListArgs {
    /// Directories, or snapshots [default: the current directory]
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// One JSON object a snapshot, one a line
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// Refused where something is not there, or a directory cannot be read.
pub fn run(args: &ListArgs) -> Result<u8> {
    let here = [PathBuf::from(".")];
    let paths = if args.paths.is_empty() { &here[..] } else { &args.paths };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let cannot = |path: &Path, e| {
        let hint =
            "check the path; 'rclone-img list DIR' shows what there is, 'rclone-img status DIR' what is not complete";
        Error::io(Kind::Refused, format!("cannot look at {}", words::name(path)), hint, e)
    };
    // Before anything is told.
    paths.iter().try_for_each(|path| path.symlink_metadata().map(drop).map_err(|e| cannot(path, e)))?;
    let (mut any, mut none) = (false, false);
    for path in paths {
        let (dir, name) = match path.is_dir() {
            true => (path.as_path(), None),
            false => (directory_of(path), path.file_name()),
        };
        let cannot = |e| cannot(path, e);
        let mut here = false;
        let disk = RealDisk::open_dir(dir).map_err(cannot)?;
        for found in snapshots(dir, &disk, |it: &OsStr| name.is_none_or(|name| name == it)).map_err(cannot)? {
            let Some((found, file)) = Snapshot::at(&disk, &found.name) else { continue };
            let sizes = sizes(&file, found.stat.size).map_err(cannot)?;
            let told = if args.json {
                json::write_line(&mut out, &object(&dir.join(&found.name), &found, sizes))
            } else {
                person(&mut out, !any, &found, sizes)
            };
            super::written(told)?;
            (any, here) = (true, true);
        }
        if name.is_some() && !here {
            super::written(out.flush())?;
            super::warn(Some(format!(
                "{} is no snapshot: it has no record of one that could be read",
                words::name(path)
            )));
        }
        none |= name.is_none() && !here;
    }
    if none && !any && !args.json {
        super::written(out.write_all(b"no snapshots here; 'rclone-img snapshot' makes one\n"))?;
    }
    super::written(out.flush())?;
    Ok(0)
}

/// Bytes that no other file has, and bytes that others have as well.
fn sizes(file: &RealFile, size: u64) -> io::Result<(u64, u64)> {
    let shape = map::walk(file, size)?;
    Ok((shape.data_bytes + shape.unwritten_bytes - shape.shared_bytes, shape.shared_bytes))
}

/// Its point in time; what is not complete may have none yet.
fn t0(found: &Snapshot) -> Option<Timestamp> {
    let none = found.verdict == Verdict::InProgress && found.record.t0 == Timestamp::UNIX_EPOCH;
    (!none).then_some(found.record.t0)
}

/// The name of how it stands.
fn state(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Valid => "finished",
        Verdict::InProgress => "in-progress",
        Verdict::Copy => "copy",
        Verdict::Modified => "modified",
    }
}

fn object(path: &Path, found: &Snapshot, (own, shared): (u64, u64)) -> serde_json::Value {
    let record = &found.record;
    let object = json!({
        "v": json::VERSION, "event": "snapshot", "state": state(found.verdict), "t0": t0(found).map(|t0| t0.to_string()),
        "job": record.job.to_string(), "hold": record.hold, "point_in_time": record.point_in_time, "quiesced": record.quiesced,
        "image_ino": record.image.ino, "size": found.stat.size, "own_bytes": own, "shared_bytes": shared,
    });
    with_path(object, "dst", path)
}

fn person(out: &mut impl Write, first: bool, found: &Snapshot, (own, shared): (u64, u64)) -> io::Result<()> {
    if first {
        writeln!(out, "{:<20}  {:>6}  {:>10}  {:>10}  {:>10}  NAME", "T0", "AGE", "SIZE", "OWN", "SHARED")?;
    }
    let remark = match (found.verdict, found.record.point_in_time) {
        (Verdict::Valid, true) if found.record.hold == HOLD => "  (received)",
        (Verdict::Valid, true) => "",
        (Verdict::Valid, false) => "  (not of one instant)",
        (Verdict::InProgress, _) => "  (not complete)",
        (Verdict::Copy, _) => "  (a copy, no snapshot)",
        (Verdict::Modified, _) => "  (MODIFIED since, no snapshot any more)",
    };
    let bytes = [found.stat.size, own, shared].map(words::bytes);
    let [size, own, shared] = &bytes;
    let (t0, age) = match t0(found) {
        None => ("-".into(), "-".into()),
        Some(t0) => (format!("{t0:.0}"), age(Timestamp::now().duration_since(t0))),
    };
    let name = words::name(&found.name);
    writeln!(out, "{t0:<20}  {age:>6}  {size:>10}  {own:>10}  {shared:>10}  {name}{remark}")
}

/// How old, in the largest unit of which there are two.
fn age(age: SignedDuration) -> String {
    let seconds = age.as_secs().max(0);
    let units = [(365 * 86_400, "y"), (7 * 86_400, "w"), (86_400, "d"), (3600, "h"), (60, "min")];
    let unit = units.iter().find(|(unit, _)| seconds >= 2 * unit);
    unit.map_or_else(|| format!("{seconds}s"), |(unit, name)| format!("{}{name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_of_their_unit_at_least() {
        let text =
            [0, 119, 120, 7199, 86_400 * 3, 86_400 * 20, 86_400 * 800].map(|it| age(SignedDuration::from_secs(it)));
        assert_eq!(text, ["0s", "119s", "2min", "119min", "3d", "2w", "2y"]);
    }
}
