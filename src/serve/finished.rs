//! The finished snapshots of an image: files with a record that says so, in the directories that are known.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use uuid::Uuid;

use crate::disk::DiskFile;
use crate::disk::real::{self, RealFile};
use crate::engine::restore::is_meanwhile;
use crate::record::{ImageId, Record, Verdict};

/// The most directories that are looked into.
const PLACES: usize = 16;

/// The most names of a directory that are looked at.
const NAMES: usize = 10_000;

/// A snapshot.
pub struct Finished {
    /// Open for reading.
    pub file: File,
    /// What it says of itself.
    pub record: Record,
    /// What it is.
    pub identity: (u64, u64),
}

/// Finds them.
#[derive(Clone)]
pub struct Finder {
    image: ImageId,
    /// The image's device and inode.
    own: (u64, u64),
    fs: Uuid,
    places: Arc<Mutex<Vec<PathBuf>>>,
}

impl Finder {
    /// Of an image, at first in this directory.
    ///
    /// # Errors
    /// What fstat(2) or fstatfs(2) say.
    pub fn new(image: &RealFile, place: &Path) -> io::Result<Self> {
        let stat = image.stat()?;
        let fs = Uuid::from_bytes(image.fs()?.uuid);
        let places = Arc::new(Mutex::new(vec![place.to_owned()]));
        Ok(Self { image: stat.id(), own: (stat.dev, stat.ino), fs, places })
    }

    /// Looks into this directory as well, and before all others.
    pub fn add(&self, place: &Path) {
        let mut places = self.places();
        places.retain(|it| it != place);
        places.insert(0, place.to_owned());
        places.truncate(PLACES);
    }

    /// The snapshot of this name; none whose name is not of a single component.
    pub fn find(&self, name: &str) -> Option<Finished> {
        let places = self.places().clone();
        places.iter().find_map(|place| self.at(place, OsStr::new(name)))
    }

    /// The snapshot at this path.
    pub fn at(&self, place: &Path, name: &OsStr) -> Option<Finished> {
        let single = Path::new(name).components().count() == 1 && Path::new(name).file_name() == Some(name);
        // Whoever opens an image that is being restored keeps that waiting.
        let path = Some(place.join(name)).filter(|_| single && !is_meanwhile(name))?;
        // Whoever watches who opens the image would take this process for somebody.
        fs::symlink_metadata(&path).ok().filter(|it| it.is_file() && (it.dev(), it.ino()) != self.own)?;
        let file = real::open_itself(&path, false).ok()?;
        let looked = RealFile::from(file.try_clone().ok()?);
        let stat = looked.stat().ok().filter(|stat| stat.regular)?;
        let record = Record::from_bytes(&looked.record().ok()??)?;
        let ours = (record.image, record.fs) == (self.image, self.fs);
        let valid = record.verdict((stat.id(), looked.fs().ok()?.uuid), stat.size, stat.mtime_ns) == Verdict::Valid;
        (ours && valid).then_some(Finished { file, record, identity: (stat.dev, stat.ino) })
    }

    /// All of them whose names are text, the newest first.
    pub fn all(&self) -> Vec<(String, Timestamp, u64)> {
        let places = self.places().clone();
        let mut all: Vec<(String, Timestamp, u64)> = Vec::new();
        for place in &places {
            let Ok(entries) = fs::read_dir(place) else { continue };
            for entry in entries.take(NAMES).flatten().filter(|it| it.file_type().is_ok_and(|kind| kind.is_file())) {
                let Ok(name) = entry.file_name().into_string() else { continue };
                if all.iter().all(|(known, ..)| *known != name)
                    && let Some(found) = self.at(place, OsStr::new(&name))
                {
                    all.push((name, found.record.t0, found.record.size));
                }
            }
        }
        all.sort_by(|(_, a, _), (_, b, _)| b.cmp(a));
        all
    }

    fn places(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::filter::strangers::Strangers;

    #[test]
    fn the_image_itself_is_not_opened_where_snapshots_are_looked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = RealFile::from(File::create(dir.path().join("a.img")).expect("an image"));
        std::os::unix::fs::symlink("a.img", dir.path().join("link")).expect("a link");
        fs::hard_link(dir.path().join("a.img"), dir.path().join("other name")).expect("a link");
        let finder = Finder::new(&image, dir.path()).expect("a finder");
        let mut strangers = Strangers::of(&image).expect("a watch");
        assert!(finder.all().is_empty() && finder.find("a.img").is_none() && finder.find("link").is_none());
        assert!(!strangers.came() && !strangers.has_opened());
    }
}
