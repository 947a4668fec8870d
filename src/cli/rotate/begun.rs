//! What an earlier run has begun and not ended: it was killed, or the host went down.

use std::ffi::{OsStr, OsString};

use super::args::{RotateArgs, shown};
use super::{Kind, Result, Rotated, Snapshot};
use crate::engine::abort::abort;
use crate::engine::commit::end_complete;
use crate::engine::inspect::{Condition, Unfinished, inspect};
use crate::engine::names::{JOURNAL, Names};
use crate::engine::report::Nobody;
use crate::rotate::remove::{self, Outcome, was_removing};

impl Rotated {
    /// Ends removals, puts complete snapshots of this pattern into place, and takes back those that are not, where a new one is about to be
    /// taken. What cannot be ended is told, and keeps nobody from a new one. Returns what could not be removed because somebody has it open.
    pub(super) fn end_what_was_begun(&self, args: &RotateArgs) -> Result<Vec<OsString>> {
        let quiet = args.job.output.quiet;
        let mut in_use = Vec::new();
        let entries = std::fs::read_dir(&self.pattern.dir).map_err(|e| self.cannot_look(e))?;
        let ours = |stem: &str| self.pattern.matches(stem);
        for entry in entries.flatten() {
            let name = entry.file_name();
            if was_removing(&name).and_then(|stem| stem.into_string().ok()).is_some_and(|stem| ours(&stem)) {
                match remove::end(&self.disk, &name) {
                    Ok(Outcome::InUse) => {
                        if let Some((snapshot, _)) = Snapshot::at(&self.disk, &name) {
                            self.say(args, "kept-in-use", &snapshot)?;
                        }
                        in_use.push(name);
                    }
                    Ok(Outcome::Removed | Outcome::NotOurs) => {}
                    Err(e) => warn(format!(
                        "cannot remove {}, as an earlier run was about to: {e}",
                        shown(&self.pattern.dir, &name)
                    )),
                }
            } else if let Some(stem) = name.to_str().and_then(|it| it.strip_suffix(JOURNAL)).filter(|stem| ours(stem)) {
                let dst = shown(&self.pattern.dir, OsStr::new(stem));
                match self.end_job(stem, args.prune_only) {
                    Ok(true) if !quiet => warn(format!(
                        "{dst}: an earlier run was interrupted; what it had begun was ended or taken back"
                    )),
                    Ok(_) => {}
                    Err(e) => warn(format!(
                        "{dst}: what an earlier run has left cannot be ended: {e}; 'rclone-img status' tells more"
                    )),
                }
            }
        }
        Ok(in_use)
    }

    /// Whether there was something to be ended.
    fn end_job(&self, name: &str, prune_only: bool) -> Result<bool> {
        let names = Names::new(OsStr::new(name))?;
        let of_this = |job: &Unfinished| {
            // One of before its T0 does not say; it has made nothing that anybody could want.
            self.image.is_none_or(|(own, _)| own == job.header.image.id()) || job.header.epoch == 0
        };
        match inspect(&self.disk, &names)? {
            Condition::Complete(job) if of_this(&job) => end_complete(&self.disk, &names, &Nobody).map(|_| true),
            Condition::Interrupted(job) | Condition::Broken(job) if !prune_only && of_this(&job) => {
                match abort(&self.disk, &names, false) {
                    Ok(_) => Ok(true),
                    // Somebody works on it by now.
                    Err(error) if error.kind == Kind::Busy => Ok(false),
                    Err(error) => Err(error),
                }
            }
            _ => Ok(false),
        }
    }
}

fn warn(text: String) {
    crate::cli::warn(Some(text));
}
