//! What an earlier run has begun and not ended: it was killed, or the host went down.

use std::ffi::{OsStr, OsString};

use super::args::{RotateArgs, shown};
use super::{Kind, Result, Rotated, Snapshot};
use crate::cli::status::with_image;
use crate::engine::abort::abort;
use crate::engine::commit::end_complete;
use crate::engine::inspect::{Condition, Unfinished, inspect};
use crate::engine::names::{JOURNAL, Names};
use crate::engine::report::Nobody;
use crate::rotate::remove::{self, Outcome, was_removing};

/// What is left of earlier runs.
#[derive(Default)]
pub(super) struct Left {
    /// What is to be removed, and somebody has open.
    pub in_use: Vec<OsString>,
    /// Jobs whose T0 still holds, by their snapshots' names.
    resumable: Vec<String>,
}

/// What became of a job of an earlier run.
enum Ended {
    /// There is none that is to be ended.
    Nothing,
    /// It is ended, or taken back.
    Done,
    /// It is as it was, and can be resumed.
    Resumable,
}

impl Rotated {
    /// Ends removals, puts complete snapshots of this pattern into place, and where a new one is about to be taken takes back those that are not,
    /// unless they can be resumed: until the new one is there such a one may be all that there is of its instant. What cannot be ended is told, and keeps nobody from a new one.
    pub(super) fn end_what_was_begun(&self, args: &RotateArgs) -> Result<Left> {
        let mut left = Left::default();
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
                        left.in_use.push(name);
                    }
                    Ok(Outcome::Removed | Outcome::NotOurs) => {}
                    Err(e) => warn(format!(
                        "cannot remove {}, as an earlier run was about to: {e}",
                        shown(&self.pattern.dir, &name)
                    )),
                }
            } else if let Some(stem) = self.stem(&name)
                && self.end(stem, args, false)
            {
                left.resumable.push(stem.to_owned());
            }
        }
        Ok(left)
    }

    /// Takes back what could still have been resumed, now that there is a new one.
    pub(super) fn end_the_rest(&self, args: &RotateArgs, left: &Left) {
        for stem in &left.resumable {
            self.end(stem, args, true);
        }
    }

    /// The snapshot's name of a journal of this pattern.
    fn stem<'a>(&self, name: &'a OsStr) -> Option<&'a str> {
        name.to_str()?.strip_suffix(JOURNAL).filter(|stem| self.pattern.matches(stem))
    }

    /// Whether it is left, because it can be resumed. `all`: that is taken back as well.
    fn end(&self, stem: &str, args: &RotateArgs, all: bool) -> bool {
        let dst = shown(&self.pattern.dir, OsStr::new(stem));
        match self.end_job(stem, args.prune_only, all) {
            Ok(Ended::Resumable) => return true,
            Ok(Ended::Done) if !args.job.output.quiet => {
                warn(format!("{dst}: an earlier run was interrupted; what it had begun was ended or taken back"));
            }
            Ok(_) => {}
            Err(e) => warn(format!(
                "{dst}: what an earlier run has left cannot be ended: {e}; 'rclone-img status' tells more"
            )),
        }
        false
    }

    fn end_job(&self, name: &str, prune_only: bool, all: bool) -> Result<Ended> {
        let names = Names::new(OsStr::new(name))?;
        let of_this = |job: &Unfinished| {
            // One of before its T0 does not say; it has made nothing that anybody could want.
            self.image.is_none_or(|(own, _)| own == job.header.image.id()) || job.header.epoch == 0
        };
        match with_image(inspect(&self.disk, &names)?, &self.disk) {
            Condition::Complete(job) if of_this(&job) => end_complete(&self.disk, &names, &Nobody).map(|_| Ended::Done),
            Condition::Interrupted(job) | Condition::Broken(job) if prune_only || !of_this(&job) => Ok(Ended::Nothing),
            // What is not of one instant is worth nothing, and may have what space the new one needs.
            Condition::Interrupted(job) if !all && job.header.hold.point_in_time() => Ok(Ended::Resumable),
            Condition::Interrupted(_) | Condition::Broken(_) => match abort(&self.disk, &names, false) {
                Ok(_) => Ok(Ended::Done),
                // Somebody works on it by now.
                Err(error) if error.kind == Kind::Busy => Ok(Ended::Nothing),
                Err(error) => Err(error),
            },
            _ => Ok(Ended::Nothing),
        }
    }
}

fn warn(text: String) {
    crate::cli::warn(Some(text));
}
