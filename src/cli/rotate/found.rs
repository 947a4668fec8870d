//! Which snapshots there are of an image.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::Timestamp;

use super::{Error, Kind, Result, Rotated, Snapshot, Verdict, shown, words};
use crate::disk::Disk;
use crate::rotate::found::snapshots;

/// So many images are named in an error.
const SHOWN: usize = 8;

/// The finished snapshots of a pattern that nobody has changed, the newest first.
#[derive(Default)]
pub(super) struct Found {
    /// Those of the image that count.
    pub own: Vec<Snapshot>,
    /// Those of the image that a wrong clock has given a T0 in the future: they are kept, and count for nothing.
    pub future: Vec<Snapshot>,
    /// How many there are of other images.
    pub others: usize,
    /// How many there are of the image that users have put there who have no say in what is kept.
    pub strangers: usize,
}

impl Rotated {
    /// What there is.
    pub(super) fn found(&self) -> Result<Found> {
        let wanted = |name: &OsStr| name.to_str().is_some_and(|name| self.pattern.matches(name));
        let all = snapshots(&self.pattern.dir, &self.disk, wanted).map_err(|e| self.cannot_look(e))?;
        let (all, now) = (all.into_iter().filter(|it| it.verdict == Verdict::Valid), Timestamp::now());
        let (own, others): (Vec<_>, Vec<_>) = all.partition(|it| self.image.is_none_or(|image| it.is_of(image)));
        let trusted = self.trusted().map_err(|e| self.cannot_look(e))?;
        let (own, strangers): (Vec<_>, Vec<_>) = own.into_iter().partition(|it| trusted(it.stat.uid));
        let (future, own): (Vec<_>, Vec<_>) = own.into_iter().partition(|it| it.record.t0 > now);
        if self.image.is_none() {
            self.of_one_image(&own)?;
        }
        Ok(Found { own, future, others: others.len(), strangers: strangers.len() })
    }

    /// Whose snapshots count. In a directory like /tmp anybody may put files, and nobody may remove another one's: a record that somebody has made up
    /// would push real ones out of what is kept. Elsewhere whoever may put files there may also remove all of them, and the snapshots have whatever
    /// owners the image had.
    fn trusted(&self) -> io::Result<impl Fn(u32) -> bool + use<>> {
        let dir = fs::metadata(&self.pattern.dir)?;
        let of_all = dir.mode() & libc::S_ISVTX != 0 && dir.mode() & 0o022 != 0;
        let owners = [Some(self.disk.host().uid), Some(dir.uid()), self.owner];
        Ok(move |uid| !of_all || owners.contains(&Some(uid)))
    }

    /// Where no image is named the snapshots say themselves of which one they are.
    fn of_one_image(&self, all: &[Snapshot]) -> Result<()> {
        let mut images: Vec<Vec<&Snapshot>> = Vec::new();
        for snapshot in all {
            let image = (snapshot.record.image, snapshot.record.fs);
            match images.iter_mut().find(|of_one| of_one[0].is_of(image)) {
                Some(of_one) => of_one.push(snapshot),
                None => images.push(vec![snapshot]),
            }
        }
        if images.len() < 2 {
            return Ok(());
        }
        let told = images.iter().take(SHOWN).map(|of_one| {
            let name = |it: &Snapshot| shown(Path::new("."), &it.name);
            match &of_one[..] {
                [one] => name(one),
                [newest, .., oldest] => format!("{} to {} ({})", name(oldest), name(newest), of_one.len()),
                [] => String::new(),
            }
        });
        let mut told: Vec<String> = told.collect();
        if images.len() > SHOWN {
            told.push(format!("and {} more", images.len() - SHOWN));
        }
        let dir = words::name(&self.pattern.dir);
        let what = format!(
            "the snapshots in {dir} of this pattern are of several images, or of one that was sent whole several times: {}",
            told.join("; "),
        );
        let hint = "move those of all but one to another directory of the same file system, and run this once for each directory; where the image is on this host, name it: SRC=PATTERN";
        Err(Error::new(Kind::Refused, what, hint))
    }
}
