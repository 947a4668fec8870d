//! What an image is rolled back to, kept for as long as the restore may have to be ended by `resume`: whoever removes the snapshot meanwhile,
//! `rotate` for one, would leave a mixture.

use std::io;
use std::path::Path;

use uuid::Uuid;

use super::{Place, cannot};
use crate::changes::still::Still;
use crate::cli::signals::Stop;
use crate::cli::words;
use crate::disk::real::{NewFile, RealFile};
use crate::disk::{Access, Disk, DiskFile, Stat};
use crate::error::{Error, Kind, Result};
use crate::range::{ByteRange, Geometry};
use crate::record::{ImageId, Record};

/// How much of a snapshot one clone call takes.
const CLONE: u64 = 64 << 20;

/// Gives the snapshot its second name, or makes a clone of it where it cannot have one (another subvolume or mount, an immutable file); which
/// file has that name now.
pub(super) fn keep(place: &Place, source: &Still, stop: &Stop) -> Result<Stat> {
    let name = place.names.source();
    let shown = words::name(name);
    if may_be_kept(place, source)?.is_some() {
        place.disk.unlink(name).map_err(|e| cannot(&shown, e))?;
    }
    let kept = match place.disk.link(source.file(), name) {
        Ok(()) => Ok(*source.stat()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EXDEV | libc::EPERM | libc::EMLINK)) => {
            match cloned(place, source, stop) {
                Ok(None) => return Err(Error::told_to_stop()),
                Ok(Some(is)) => Ok(is),
                Err(e) => Err(e),
            }
        }
        Err(e) => Err(e),
    };
    kept.map_err(|e| {
        let hint = "see what is in the way; the image was not touched";
        Error::io(Kind::Refused, format!("cannot keep {} as {shown}", words::name(source.path())), hint, e)
    })
}

/// Makes sure that nobody's file has a name that the restore is about to give; what a restore that was cut off before it began has left, which
/// is no more than another name of a snapshot.
pub(super) fn may_be_kept(place: &Place, source: &Still) -> Result<Option<Stat>> {
    let in_the_way = |shown: &str, hint: &str| {
        Err(Error::new(Kind::Refused, format!("a file of the name '{shown}' is in the way"), hint))
    };
    let look = |name| {
        let shown = words::name(name);
        place.disk.stat(name).map_err(|e| cannot(&shown, e)).map(|found| (found, shown))
    };
    if let (Some(_), shown) = look(place.names.aside())? {
        return in_the_way(&shown, "find out whose it is, and move it away; the image was not touched");
    }
    let (left, shown) = look(place.names.source())?;
    if left.is_some_and(|left| left.nlink < 2 || !is_snapshot(place, &left, source)) {
        return in_the_way(&shown, "move it away; an interrupted restore may have left it");
    }
    Ok(left)
}

/// Which file has kept what the image is, and the job that made it.
pub(super) fn kept_is(path: &Path) -> Result<(ImageId, Uuid)> {
    let looked = || -> io::Result<Option<(ImageId, Uuid)>> {
        let file = RealFile::open_image(path)?;
        let record = file.record()?.and_then(|bytes| Record::from_bytes(&bytes));
        record.map(|record| file.stat().map(|it| (it.id(), record.job))).transpose()
    };
    let what = format!("what --keep-current has kept cannot be found again: {}", words::name(path));
    match looked() {
        Ok(Some(is)) => Ok(is),
        Ok(None) => Err(Error::new(Kind::Refused, what, "it was changed in this moment: run the command again")),
        Err(e) => Err(Error::io(Kind::Refused, what, "the image was not touched", e)),
    }
}

/// Removes that name from this file, unless a restore has an intent by now. What somebody has put in its place, and has no other name, stays.
pub(super) fn let_go(place: &Place, kept: ImageId) {
    let is_left = || place.disk.stat(place.names.intent()).is_ok_and(|found| found.is_none());
    let named = place.disk.stat(place.names.source()).ok().flatten();
    if named.is_some_and(|it| it.nlink > 1 || it.ino == kept.ino) && is_left() {
        // It costs nothing but a name; the next restore removes it.
        let _ = place.disk.unlink(place.names.source());
    }
}

/// What this restore is to be rolled back to.
pub(super) fn path(place: &Place) -> std::path::PathBuf {
    place.dir.join(place.names.source())
}

/// Whether the file of that name is this snapshot, or another one: with another name it loses nothing by losing this one.
fn is_snapshot(place: &Place, left: &Stat, source: &Still) -> bool {
    let record = || place.disk.open(place.names.source(), Access::Read).and_then(|file| file.record()).ok().flatten();
    // A look by the name tells no generation.
    (left.dev, left.ino) == (source.stat().dev, source.stat().ino)
        || record().is_some_and(|bytes| Record::from_bytes(&bytes).is_some())
}

/// Nothing where it was told to stop.
fn cloned(place: &Place, source: &Still, stop: &Stop) -> io::Result<Option<Stat>> {
    let new = NewFile::at(&path(place))?;
    prepare(new.file(), source)?;
    let geometry = Geometry { size: source.size(), block: source.file().fs()?.block };
    let mut rest = ByteRange::new(0, source.size());
    while let Some(left) = rest {
        if stop.asked() {
            return Ok(None);
        }
        let (now, later) = left.split(left.start() + CLONE);
        rest = later;
        if let Some(range) = now.and_then(|now| geometry.cover(now)) {
            new.file().clone_range(source.file(), range)?;
        }
    }
    let is = new.file().stat()?;
    new.keep().map(|_| Some(is))
}

/// Makes a new file one that the snapshot's blocks can be cloned into.
pub(super) fn prepare(file: &RealFile, source: &Still) -> io::Result<()> {
    source.file().no_cow().and_then(|on| file.set_no_cow(on))?;
    file.set_len(source.size())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::disk::real::RealDisk;
    use crate::engine::restore::Names;

    #[test]
    fn what_somebody_has_put_in_its_place_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let names = Names::new("a.img".as_ref());
        let disk = RealDisk::open_dir(dir.path()).expect("open");
        let place = Place { disk, names, dir: dir.path().to_owned() };
        let (snapshot, named) = (dir.path().join("a.snap"), path(&place));
        fs::write(&snapshot, b"a snapshot").expect("a file");
        let kept = RealFile::open_image(&snapshot).and_then(|file| file.stat()).expect("a file").id();
        let link = || fs::hard_link(&snapshot, &named).expect("a link");
        let rename_there = |text: &str| {
            fs::write(dir.path().join("his"), text).expect("a file");
            fs::rename(dir.path().join("his"), &named).expect("renamed");
        };
        link();
        let_go(&place, kept);
        assert!(!named.exists());
        link();
        rename_there("his only one");
        let_go(&place, kept);
        assert_eq!(fs::read(&named).expect("still there"), b"his only one");
        fs::hard_link(&named, dir.path().join("his")).expect("a link");
        let_go(&place, kept);
        assert!(!named.exists() && dir.path().join("his").exists());
        // A clone has no other name.
        fs::rename(&snapshot, &named).expect("renamed");
        fs::write(dir.path().join("a.img.restore"), b"an intent").expect("a file");
        let_go(&place, kept);
        assert!(named.exists(), "the restore has begun");
        fs::remove_file(dir.path().join("a.img.restore")).expect("removed");
        let_go(&place, kept);
        assert!(!named.exists());
    }
}
