//! The one that is made the new one.

use std::ffi::{OsStr, OsString};
use std::io;

use jiff::{SignedDuration, Timestamp};

use super::args::{RotateArgs, shown};
use super::{Error, Kind, Result, Rotated, Snapshot, Verdict, Why, when};
use crate::disk::Disk;
use crate::engine::inspect::{Condition, inspect};
use crate::engine::names::Names;
use crate::rotate::promise::{Due, Promise};
use crate::rotate::remove;

/// How long the snapshot's process may take to its T0, beside what it waits for others.
const TO_T0: SignedDuration = SignedDuration::from_hours(1);

/// Which snapshots are made the new ones: one of each image, or none. Their new names are promised.
pub(super) fn chosen(args: &RotateArgs, all: &[Rotated]) -> Result<Option<Vec<OsString>>> {
    if !args.recycle {
        return Ok(None);
    }
    let Some(chosen) = all.iter().map(|it| it.surplus(args)).collect::<Result<Option<Vec<_>>>>()? else {
        return Ok(None);
    };
    let wait = SignedDuration::try_from(args.job.wait).unwrap_or(TO_T0);
    let until = Timestamp::now().saturating_add(wait.saturating_add(TO_T0)).unwrap_or(Timestamp::MAX);
    for (rotated, old) in all.iter().zip(&chosen) {
        if let Err(e) = rotated.promise(old, until) {
            let old = shown(&rotated.pattern.dir, old);
            crate::cli::warn(Some(format!("{old} cannot be made the new snapshot, which is made anew: {e}")));
            return Ok(None);
        }
    }
    Ok(Some(chosen))
}

/// Whether new snapshots are to be made after the old ones could not be made new ones, which ended with this exit code: it may be they alone that are
/// in the way, because somebody has opened one in this moment, or one is damaged, and would be so in each run that comes.
pub(super) fn may_be_made_anew(args: &RotateArgs, all: &[Rotated], recycled: &[OsString], code: u8) -> bool {
    if code == Kind::Refused.exit_code() {
        return true;
    }
    let failed = [Kind::Failed, Kind::Broken].map(Kind::exit_code).contains(&code);
    // A guest that could not be thawed is not to be frozen again, nor is the alarm of it to be lost with the metrics of a second run.
    let unfrozen = args.take.quiesce().is_empty();
    let tried = || all.iter().zip(recycled);
    if !failed || !unfrozen || !tried().all(|(it, old)| it.is_given_up(old)) {
        return false;
    }
    // What could still be resumed is not to have the name that another one has by then.
    for (rotated, old) in tried() {
        if let Ok(names) = Names::new(old) {
            Promise::forget_at(&rotated.disk, &names.partial);
        }
    }
    true
}

impl Rotated {
    /// Whether this one has not been made a new one, and will not be by whoever ends what was begun: that would be one too many.
    fn is_given_up(&self, old: &OsStr) -> bool {
        let promised = || Snapshot::at(&self.disk, old).is_some_and(|(_, file)| Promise::of(&file).is_some());
        match Names::new(old).and_then(|names| inspect(&self.disk, &names)) {
            Ok(Condition::Running(_) | Condition::Complete(_)) | Err(_) => false,
            Ok(Condition::Snapshot(..)) => !promised(),
            Ok(_) => true,
        }
    }

    /// The newest that is surplus even if none is taken, and could be removed: of all such ones it shares most with the image. The run before has
    /// left it: what is surplus only because of the new one is not to be overwritten before that is complete.
    pub(super) fn surplus(&self, args: &RotateArgs) -> Result<Option<OsString>> {
        let found = self.found()?.own;
        let reasons = self.reasons(args, found.iter().map(when));
        Ok(self.to_recycle(found.iter().zip(&reasons)))
    }

    /// The newest of these that no rule keeps, and that can be made another one.
    pub(super) fn to_recycle<'a>(
        &self,
        mut newest_first: impl Iterator<Item = (&'a Snapshot, &'a Vec<Why>)>,
    ) -> Option<OsString> {
        // Another user's is not refreshed: the image had another owner when it was made.
        let owners = [Some(self.disk.host().uid), self.owner];
        let is_free = |it: &Snapshot| {
            let own = it.stat.nlink == 1 && owners.contains(&Some(it.stat.uid));
            own && remove::is_in_use(&self.disk, &it.name).is_ok_and(|it| !it)
        };
        let found = newest_first.find(|(it, reasons)| reasons.is_empty() && is_free(it));
        found.map(|(it, _)| it.name.clone())
    }

    /// Writes down, durably, what it will be called; no later T0 than `until` can be that of this run.
    fn promise(&self, old: &OsStr, until: Timestamp) -> io::Result<()> {
        let (snapshot, file) = Snapshot::at(&self.disk, old).ok_or(io::ErrorKind::NotFound)?;
        Promise::new(&snapshot.record, self.new.clone(), until).give(&file)
    }

    /// It was made the new one: its name is now.
    pub(super) fn keep_promise(&self, old: &OsStr) -> Result<()> {
        let renamed = self.disk.rename(old, OsStr::new(&self.new), false).and_then(|()| self.disk.sync_names());
        renamed.map_err(|e| {
            let old = shown(&self.pattern.dir, old);
            let hint = "it is complete under its old name, and the next run tries to give it its own again";
            Error::io(Kind::Failed, format!("cannot give {old} its new name"), hint, e)
        })?;
        self.forget_promise(OsStr::new(&self.new));
        Ok(())
    }

    /// It was not made the new one, or has its name.
    pub(super) fn forget_promise(&self, name: &OsStr) {
        let Some((snapshot, file)) = Snapshot::at(&self.disk, name) else { return };
        let Some(promise) = Promise::of(&file) else { return };
        if promise.due(&snapshot.record, Timestamp::now()) != Due::Now || snapshot.name == *promise.name {
            // What cannot be forgotten here the next run forgets.
            let _ = Promise::forget(&file);
        }
    }

    /// Gives those their names that were made new ones by a run which was killed before it could.
    pub(super) fn finish_names(&self) {
        let now = Timestamp::now();
        // Where they cannot be told, whoever comes next says why.
        for snapshot in self.found().unwrap_or_default().own {
            let Some((snapshot, file)) = Snapshot::at(&self.disk, &snapshot.name) else { continue };
            let Some(promise) = Promise::of(&file).filter(|_| snapshot.verdict == Verdict::Valid) else { continue };
            match promise.due(&snapshot.record, now) {
                Due::NotYet => continue,
                Due::Never => {}
                Due::Now if snapshot.name == *promise.name => {}
                // Its own pattern's run does it; and whoever has its journal may yet look for it under this name.
                Due::Now if !self.pattern.matches(&promise.name) || self.has_journal(&snapshot.name) => continue,
                Due::Now => {
                    let name = OsStr::new(&promise.name);
                    let renamed = self.disk.rename(&snapshot.name, name, false);
                    if let Err(e) = renamed.and_then(|()| self.disk.sync_names()) {
                        let (old, new) = (shown(&self.pattern.dir, &snapshot.name), shown(&self.pattern.dir, name));
                        crate::cli::warn(Some(format!(
                            "{old} was made the snapshot {new} by a run that was killed, and cannot be called so: {e}"
                        )));
                        continue;
                    }
                }
            }
            let _ = Promise::forget(&file);
        }
    }

    fn has_journal(&self, name: &OsStr) -> bool {
        Names::new(name).is_ok_and(|names| !matches!(self.disk.stat(&names.journal), Ok(None)))
    }
}
