//! The one that is made the new one.

use std::ffi::{OsStr, OsString};

use super::args::{RotateArgs, shown};
use super::{Result, Rotated, Snapshot, when};
use crate::disk::Disk;
use crate::rotate::remove;

impl Rotated {
    /// The newest that would be removed even if none were taken, and could be: of all that are, it shares most with the image.
    pub(super) fn surplus(&self, args: &RotateArgs) -> Result<Option<OsString>> {
        let found = self.found()?.0;
        let reasons = self.reasons(args, found.iter().map(when));
        let is_free = |it: &Snapshot| it.stat.nlink == 1 && remove::is_in_use(&self.disk, &it.name).is_ok_and(|it| !it);
        let surplus = found.iter().zip(reasons).find(|(it, reasons)| reasons.is_empty() && is_free(it));
        Ok(surplus.map(|(it, _)| it.name.clone()))
    }

    /// A run that was killed between the refresh of an old snapshot and its new name has left it under its old one.
    pub(super) fn mend_names(&self) -> Result<()> {
        let zone = jiff::tz::TimeZone::system();
        for snapshot in self.found()?.0 {
            let taken = snapshot.record.t0.to_zoned(zone.clone());
            let named = snapshot.name.to_str().and_then(|name| self.pattern.date(name));
            let days = named.map_or(0, |named| (taken.date() - named).get_days().abs());
            if days > 1
                && let Ok(name) = self.pattern.name_at(&taken)
                && let Err(e) =
                    self.disk.rename(&snapshot.name, OsStr::new(&name), false).and_then(|()| self.disk.sync_names())
            {
                let old = shown(&self.pattern.dir, &snapshot.name);
                crate::cli::warn(Some(format!("{old} is of {}, and cannot be called so: {e}", taken.date())));
            }
        }
        Ok(())
    }
}
