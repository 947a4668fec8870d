//! What an earlier run has begun and not ended: it was killed, or the host went down.

use std::ffi::{OsStr, OsString};

use super::args::{RotateArgs, shown};
use super::{Kind, Result, Rotated, Snapshot};
use crate::cli::status::with_image;
use crate::disk::Disk;
use crate::engine::abort::abort;
use crate::engine::commit::end_complete;
use crate::engine::inspect::{Condition, Unfinished, inspect, is_live};
use crate::engine::names::{JOURNAL, Names};
use crate::engine::recover::is_own;
use crate::engine::report::Nobody;
use crate::journal::format::FormatError;
use crate::rotate::remove::{self, Outcome, was_removing};

/// What is left of earlier runs.
#[derive(Default)]
pub(super) struct Left {
    /// What is to be removed, and somebody has open.
    pub in_use: Vec<OsString>,
    /// Jobs whose T0 still holds, by their snapshots' names.
    resumable: Vec<String>,
}

/// What becomes of a job of an earlier run.
enum Fate {
    /// There is none that is to be ended.
    Nothing,
    /// Its snapshot is complete, and is put into place.
    Finish,
    /// It is taken back.
    TakeBack,
    /// It stays as it is, and can be resumed.
    Resumable,
    /// It stays as it is: it may be another user's.
    Anothers,
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
        let ended = match self.end_job(stem, args.prune_only, all) {
            Ok(Fate::Resumable) => return true,
            Ok(Fate::Nothing) => return false,
            Ok(Fate::Anothers) => {
                warn(format!(
                    "{dst}: the journal of a job of that name belongs to another user, or others may write to it: it is left alone; find out who has \
                     put it there"
                ));
                return false;
            }
            Ok(Fate::Finish) => "its snapshot was complete, and has been put into place",
            Ok(Fate::TakeBack) => "what it had begun was taken back",
            Err(e) => {
                warn(format!(
                    "{dst}: what an earlier run has left cannot be ended: {e}; 'rclone-img status' tells more"
                ));
                return false;
            }
        };
        if !args.job.output.quiet {
            warn(format!("{dst}: an earlier run was interrupted; {ended}"));
        }
        false
    }

    fn end_job(&self, name: &str, prune_only: bool, all: bool) -> Result<Fate> {
        let names = Names::new(OsStr::new(name))?;
        let fate = self.fate(&names, prune_only, all)?;
        match fate {
            Fate::Finish => end_complete(&self.disk, &names, &Nobody).map(|_| fate),
            Fate::TakeBack => match abort(&self.disk, &names, false) {
                Ok(_) => Ok(fate),
                // Somebody works on it by now.
                Err(error) if error.kind == Kind::Busy => Ok(Fate::Nothing),
                Err(error) => Err(error),
            },
            Fate::Nothing | Fate::Resumable | Fate::Anothers => Ok(fate),
        }
    }

    /// `all`: what can be resumed as well.
    fn fate(&self, names: &Names, prune_only: bool, all: bool) -> Result<Fate> {
        if self.disk.stat(&names.journal).is_ok_and(|found| found.is_some_and(|it| !is_own(&it, self.disk.host().uid)))
        {
            // One that runs is somebody's business, and no concern of this run's.
            return Ok(if is_live(&self.disk, names).unwrap_or(false) { Fate::Nothing } else { Fate::Anothers });
        }
        let of_image = |job: &Unfinished| self.image.is_none_or(|(own, _)| own == job.header.image.id());
        // One of before its T0 does not say; it has made nothing that anybody could want.
        let of_this = |job: &Unfinished| of_image(job) || job.header.epoch == 0;
        let has_partial = || !matches!(self.disk.stat(&names.partial), Ok(None));
        Ok(match with_image(inspect(&self.disk, names)?, &self.disk) {
            Condition::Complete(job) if of_image(&job) => Fate::Finish,
            Condition::Interrupted(job) | Condition::Broken(job) if prune_only || !of_this(&job) => Fate::Nothing,
            // What is not of one instant is worth nothing, and may have what space the new one needs.
            Condition::Interrupted(job) if !all && job.header.hold.point_in_time() => Fate::Resumable,
            Condition::Interrupted(_) | Condition::Broken(_) => Fate::TakeBack,
            // It was never completed: no job began.
            Condition::Unreadable(FormatError::NeverBegun | FormatError::Damaged)
                if !has_partial() && !is_live(&self.disk, names)? =>
            {
                Fate::TakeBack
            }
            _ => Fate::Nothing,
        })
    }

    /// What a run would do with what is left of earlier ones: how that is called, and the name of what it is about.
    pub(super) fn plan_of_what_was_begun(&self, args: &RotateArgs) -> Result<Vec<(&'static str, OsString)>> {
        let mut plan = Vec::new();
        let entries = std::fs::read_dir(&self.pattern.dir).map_err(|e| self.cannot_look(e))?;
        for name in entries.flatten().map(|it| it.file_name()) {
            let removing = was_removing(&name).and_then(|stem| stem.into_string().ok());
            if removing.is_some_and(|stem| self.pattern.matches(&stem)) {
                plan.extend(remove::is_remains(&self.disk, &name).then_some(("remove", name)));
            } else if let Some(stem) = self.stem(&name).filter(|stem| *stem != self.new) {
                let what = match self.fate(&Names::new(OsStr::new(stem))?, args.prune_only, true)? {
                    Fate::Finish => "finish",
                    Fate::TakeBack => "abort",
                    Fate::Nothing | Fate::Resumable | Fate::Anothers => continue,
                };
                plan.push((what, stem.into()));
            }
        }
        plan.sort();
        Ok(plan)
    }
}

fn warn(text: String) {
    crate::cli::warn(Some(text));
}
