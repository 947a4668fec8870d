//! Removes what nobody wants, and tells of it.

use std::io;
use std::path::Path;

use super::args::{RotateArgs, shown};
use super::{Error, Kind, Result, Rotated, Snapshot, Stop, json, when, with_path, words};
use crate::cli::last_words;
use crate::rotate::remove;

impl Rotated {
    /// Removes what nobody wants.
    pub(super) fn prune(&self, args: &RotateArgs, stop: &Stop) -> Result<()> {
        let (found, others) = self.found()?;
        let reasons = self.reasons(args, found.iter().map(when));
        let (mut kept, mut removed) = (0, Vec::new());
        for (index, (snapshot, reasons)) in found.iter().zip(&reasons).enumerate() {
            // The newest is kept whatever the rules say.
            if !reasons.is_empty() || index == 0 {
                kept += 1;
                continue;
            }
            if stop.asked() {
                return Err(Error::told_to_stop());
            }
            remove::remove(&self.disk, snapshot).map_err(|e| {
                let what = format!("cannot remove {}", shown(&self.pattern.dir, &snapshot.name));
                Error::io(Kind::Failed, what, "see what has become of it; the next run tries again", e)
            })?;
            self.say_removed(args, snapshot)?;
            removed.push(shown(Path::new("."), &snapshot.name));
        }
        self.say_pruned(args, kept, &removed, others)
    }

    fn say_removed(&self, args: &RotateArgs, snapshot: &Snapshot) -> Result<()> {
        if !args.job.output.json {
            return Ok(());
        }
        let mut object = with_path(self.object("removed"), "dst", &self.pattern.dir.join(&snapshot.name));
        object["t0"] = snapshot.record.t0.to_string().into();
        crate::cli::written(json::write_line(&mut io::stdout(), &object))
    }

    fn say_pruned(&self, args: &RotateArgs, kept: usize, removed: &[String], others: usize) -> Result<()> {
        if args.job.output.json {
            let mut object = self.object("pruned");
            (object["kept"], object["removed"], object["of_other_images"]) =
                (kept.into(), removed.len().into(), others.into());
            return crate::cli::written(json::write_line(&mut io::stdout(), &object));
        }
        if !args.job.output.quiet {
            let gone = match removed {
                [] => "none removed".into(),
                some => format!("removed {}", some.join(", ")),
            };
            let others = match others {
                0 => String::new(),
                n => format!("; {} of other images left alone", words::count(n as u64, "snapshot")),
            };
            let none = match kept {
                0 => "; no snapshot there has a name of the pattern",
                _ => "",
            };
            let kept = words::count(kept as u64, "snapshot");
            last_words(format!("{}: {kept} kept, {gone}{others}{none}\n", self.name()));
        }
        Ok(())
    }
}
