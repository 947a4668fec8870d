//! Removes what nobody wants, and tells of it.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use super::args::{RotateArgs, shown};
use super::found::Found;
use super::{Error, Kind, Result, Rotated, Snapshot, Stop, json, when, with_path, words};
use crate::cli::{error_lines, last_words};
use crate::rotate::remove::{self, Outcome};

/// What to do about snapshots of the future.
pub(super) const CLOCK: &str = "a clock was wrong: remove by hand what is not wanted";

/// What has become of an image's snapshots.
#[derive(Default)]
struct Tally {
    kept: usize,
    failed: usize,
    others: usize,
    strangers: usize,
    /// By their names, as the next ones.
    removed: Vec<String>,
    in_use: Vec<String>,
    to_recycle: Vec<String>,
    future: Vec<String>,
}

impl Rotated {
    /// Removes what nobody wants. `in_use`: what an earlier run was about to remove, and could not.
    pub(super) fn prune(&self, args: &RotateArgs, in_use: &[OsString], stop: &Stop) -> Result<()> {
        let Found { own: found, future, others, strangers } = self.found()?;
        let reasons = self.reasons(args, found.iter().map(when));
        let named = |name: &OsString| shown(Path::new("."), name);
        let in_use = in_use.iter().map(named).collect();
        let mut tally = Tally { others, strangers, in_use, ..Tally::default() };
        tally.future = future.iter().map(|it| named(&it.name)).collect();
        // What is left for the next run: without it there would be none that is surplus before a new one is complete.
        let next = if args.recycle { self.to_recycle(found.iter().zip(&reasons)) } else { None };
        for (index, (snapshot, reasons)) in found.iter().zip(&reasons).enumerate() {
            // The newest is kept whatever the rules say.
            if !reasons.is_empty() || index == 0 {
                tally.kept += 1;
                continue;
            }
            if next.as_ref() == Some(&snapshot.name) {
                self.say(args, "kept-to-recycle", snapshot)?;
                tally.to_recycle.push(named(&snapshot.name));
                continue;
            }
            if stop.asked() {
                return Err(Error::told_to_stop());
            }
            match remove::remove(&self.disk, snapshot) {
                Ok(Outcome::InUse) => {
                    self.say(args, "kept-in-use", snapshot)?;
                    tally.in_use.push(named(&snapshot.name));
                }
                Ok(Outcome::Removed | Outcome::NotOurs) => {
                    self.say(args, "removed", snapshot)?;
                    tally.removed.push(named(&snapshot.name));
                }
                // The others go all the same: one that stays for ever is not to keep all that come after it.
                Err(e) => {
                    self.say(args, "not-removed", snapshot)?;
                    tally.failed += 1;
                    let what = format!("cannot remove {}", shown(&self.pattern.dir, &snapshot.name));
                    let hint =
                        "see what has become of it (lsattr: one with the flag 'i' stays); the next run tries again";
                    last_words(error_lines(&Error::io(Kind::Failed, what, hint, e)));
                }
            }
        }
        self.say_pruned(args, &tally)?;
        if tally.failed == 0 {
            return Ok(());
        }
        let failed = words::count(tally.failed as u64, "snapshot");
        let what = format!("{}: {failed} could not be removed, and all else was done", self.name());
        Err(Error::new(Kind::Failed, what, "see above why; the next run tries again"))
    }

    /// What has become of one, for programs.
    pub(super) fn say(&self, args: &RotateArgs, event: &str, snapshot: &Snapshot) -> Result<()> {
        if !args.job.output.json {
            return Ok(());
        }
        let mut object = with_path(self.object(event), "dst", &self.pattern.dir.join(&snapshot.name));
        object["t0"] = snapshot.record.t0.to_string().into();
        crate::cli::written(json::write_line(&mut io::stdout(), &object))
    }

    fn say_pruned(&self, args: &RotateArgs, tally: &Tally) -> Result<()> {
        if args.job.output.json {
            let mut object = self.object("pruned");
            object["kept"] = tally.kept.into();
            object["removed"] = tally.removed.len().into();
            object["in_use"] = tally.in_use.len().into();
            object["to_recycle"] = tally.to_recycle.len().into();
            object["of_the_future"] = tally.future.len().into();
            object["failed"] = tally.failed.into();
            object["of_other_images"] = tally.others.into();
            object["of_other_users"] = tally.strangers.into();
            return crate::cli::written(json::write_line(&mut io::stdout(), &object));
        }
        // What is left although no rule keeps it fills the disk, and a cron job with --quiet is to say so.
        if !args.job.output.quiet || !tally.in_use.is_empty() || !tally.future.is_empty() || tally.strangers > 0 {
            last_words(format!("{}: {}\n", self.name(), tally.text()));
        }
        Ok(())
    }
}

impl Tally {
    fn text(&self) -> String {
        let gone = match &self.removed[..] {
            [] => "none removed".into(),
            some => format!("removed {}", some.join(", ")),
        };
        let mut text = format!("{} kept, {gone}", words::count(self.kept as u64, "snapshot"));
        if !self.in_use.is_empty() {
            text += &format!("; in use, and left for the next run: {}", self.in_use.join(", "));
        }
        if !self.to_recycle.is_empty() {
            text += &format!("; left for the next run to make it the new one: {}", self.to_recycle.join(", "));
        }
        if self.others > 0 {
            text += &format!("; {} of other images left alone", words::count(self.others as u64, "snapshot"));
        }
        if self.strangers > 0 {
            text += &format!("; {} of other users left alone", words::count(self.strangers as u64, "snapshot"));
        }
        if !self.future.is_empty() {
            text += &format!("; with a time in the future, and left alone: {} ({CLOCK})", self.future.join(", "));
        }
        if self.kept + self.future.len() + self.in_use.len() + self.strangers == 0 {
            text += "; no snapshot there has a name of the pattern";
        }
        text
    }
}
