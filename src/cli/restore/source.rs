//! What an image is rolled back to, kept for as long as the restore may have to be ended by `resume`: whoever removes the snapshot meanwhile,
//! `rotate` for one, would leave a mixture.

use std::io;

use super::{Place, cannot};
use crate::changes::still::Still;
use crate::cli::signals::Stop;
use crate::cli::words;
use crate::disk::real::{NewFile, RealFile};
use crate::disk::{Access, Disk, DiskFile};
use crate::error::{Error, Kind, Result};
use crate::range::{ByteRange, Geometry};
use crate::record::{ImageId, Record};

/// How much of a snapshot one clone call takes.
const CLONE: u64 = 64 << 20;

/// Gives the snapshot its second name, or makes a clone of it where it cannot have one (another subvolume or mount, an immutable file); which
/// file has that name now.
pub(super) fn keep(place: &Place, source: &Still, stop: &Stop) -> Result<ImageId> {
    let name = place.names.source();
    let shown = words::name(name);
    // A restore that was cut off before it began has left it.
    if let Some(left) = place.disk.stat(name).map_err(|e| cannot(&shown, e))? {
        if left.nlink < 2 || !is_snapshot(place, left.id(), source) {
            let what = format!("a file of the name {shown} is in the way");
            return Err(Error::new(Kind::Refused, what, "move it away; an interrupted restore may have left it"));
        }
        place.disk.unlink(name).map_err(|e| cannot(&shown, e))?;
    }
    let kept = match place.disk.link(source.file(), name) {
        Ok(()) => Ok(source.stat().id()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EXDEV | libc::EPERM | libc::EMLINK)) => {
            match cloned(place, source, stop) {
                Ok(None) => return Err(Error::told_to_stop()),
                Ok(Some(id)) => Ok(id),
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

/// Removes that name, unless a restore has an intent by now.
pub(super) fn let_go(place: &Place) {
    if place.disk.stat(place.names.intent()).is_ok_and(|found| found.is_none()) {
        // It costs nothing but a name; the next restore removes it.
        let _ = place.disk.unlink(place.names.source());
    }
}

/// What this restore is to be rolled back to.
pub(super) fn path(place: &Place) -> std::path::PathBuf {
    place.dir.join(place.names.source())
}

/// Whether the file of that name is this snapshot, or another one: with another name it loses nothing by losing this one.
fn is_snapshot(place: &Place, left: ImageId, source: &Still) -> bool {
    let record = || place.disk.open(place.names.source(), Access::Read).and_then(|file| file.record()).ok().flatten();
    left == source.stat().id() || record().is_some_and(|bytes| Record::from_bytes(&bytes).is_some())
}

/// Nothing where it was told to stop.
fn cloned(place: &Place, source: &Still, stop: &Stop) -> io::Result<Option<ImageId>> {
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
    let id = new.file().stat()?.id();
    new.keep().map(|()| Some(id))
}

/// Makes a new file one that the snapshot's blocks can be cloned into.
pub(super) fn prepare(file: &RealFile, source: &Still) -> io::Result<()> {
    source.file().no_cow().and_then(|on| file.set_no_cow(on))?;
    file.set_len(source.size())
}
