//! What an earlier run has begun and not ended: it was killed, or the host went down.

use std::ffi::OsStr;

use super::args::shown;
use super::{Error, Kind, Result, Rotated};
use crate::engine::abort::abort;
use crate::engine::inspect::{Condition, Unfinished, inspect};
use crate::engine::names::{JOURNAL, Names};
use crate::record::ImageId;
use crate::rotate::remove::{self, was_removing};

impl Rotated {
    /// Ends removals, and takes back snapshots of this pattern that nobody works on: the new one takes their place.
    pub(super) fn end_what_was_begun(&self, quiet: bool) -> Result<()> {
        let entries = std::fs::read_dir(&self.pattern.dir).map_err(|e| self.cannot_look(e))?;
        let ours = |stem: &str| self.pattern.matches(stem);
        for entry in entries.flatten() {
            let name = entry.file_name();
            if was_removing(&name).and_then(|stem| stem.into_string().ok()).is_some_and(|stem| ours(&stem)) {
                remove::end(&self.disk, &name).map_err(|e| {
                    let what = format!("cannot remove {}", shown(&self.pattern.dir, &name));
                    Error::io(Kind::Failed, what, "an earlier run was about to; remove it yourself", e)
                })?;
            } else if let Some(stem) = name.to_str().and_then(|it| it.strip_suffix(JOURNAL)).filter(|stem| ours(stem)) {
                self.end_job(stem, quiet)?;
            }
        }
        Ok(())
    }

    fn end_job(&self, name: &str, quiet: bool) -> Result<()> {
        let names = Names::new(OsStr::new(name))?;
        let of_this = |job: &Unfinished| {
            let image = &job.header.image;
            let id = ImageId { ino: image.ino, generation: image.generation, subvolume: image.subvolume };
            // One of before its T0 does not say; it has made nothing that anybody could want.
            self.image.is_none_or(|(own, _)| own == id) || job.header.epoch == 0
        };
        let interrupted = match inspect(&self.disk, &names)? {
            Condition::Interrupted(job) | Condition::Broken(job) | Condition::Complete(job) => of_this(&job),
            _ => false,
        };
        if !interrupted {
            return Ok(());
        }
        match abort(&self.disk, &names, false) {
            Ok(_) if quiet => {}
            Ok(_) => {
                let name = shown(&self.pattern.dir, OsStr::new(name));
                crate::cli::warn(Some(format!(
                    "{name}: an earlier run was interrupted; what it had begun was ended or taken back"
                )));
            }
            // Somebody works on it by now.
            Err(error) if error.kind == Kind::Busy => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
