//! The points in time of an image that can be read: those that are being made, and its finished snapshots.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::changes::{Base, NAMESPACE};
use super::device::Device;
use super::finished::Finder;
use super::fleece::Fleece;
use super::fleece::all::Fleeces;
use super::gate::Point;
use super::view::{Making, View};
use crate::disk::real::{self, RealFile};

/// The most that are being made, or were and have not come to their end.
const SHOWN: usize = 16;

/// The most finished snapshots that one can be compared with.
const BASES: usize = 32;

/// Opens a file that is read as the image is (`--cache`).
pub type Open = Box<dyn Fn(File) -> io::Result<Arc<dyn Device>> + Send + Sync>;

/// One that can be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its name, a single component.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The names of those that its changes since can be asked of.
    pub bases: Vec<String>,
    /// What it is, for a person.
    pub what: &'static str,
    /// Whether readers may let parts of it go (TRIM).
    pub trims: bool,
}

struct Shown {
    name: String,
    point: Point,
    file: File,
    /// Where it will be.
    path: PathBuf,
}

/// All of them.
pub struct Points {
    image: Arc<dyn Device>,
    map: Arc<RealFile>,
    finder: Finder,
    open: Open,
    shown: Mutex<Vec<Shown>>,
    fleeces: Arc<Fleeces>,
}

impl Points {
    /// Of an image, for its bytes and for its map, with a finder of what is finished, and its fleeces.
    pub fn new(image: Arc<dyn Device>, map: Arc<RealFile>, finder: Finder, open: Open, fleeces: Arc<Fleeces>) -> Self {
        Self { image, map, finder, open, shown: Mutex::default(), fleeces }
    }

    /// One that is being made in the file `partial` and will be at `path`.
    ///
    /// # Errors
    /// Where it cannot be opened, or is not of the image's size.
    pub fn show(&self, partial: &Path, path: &Path, point: Point) -> io::Result<()> {
        let file = real::open_itself(partial, false)?;
        let meta = file.metadata()?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        if !meta.is_file() || meta.len() != self.image.size() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
        let mut shown = self.shown();
        shown.retain(|it| it.name != name);
        shown.truncate(SHOWN - 1);
        shown.insert(0, Shown { name, point, file, path: path.to_owned() });
        Ok(())
    }

    /// Forgets what is lost, and holds what is finished no longer: it is found where it is.
    pub fn look(&self) {
        self.shown().retain(|it| {
            let Ok(meta) = it.file.metadata() else { return false };
            let is_there = || {
                let (place, name) = (it.path.parent()?, it.path.file_name()?);
                let found = self.finder.at(place, name)?;
                (found.identity == (meta.dev(), meta.ino())).then(|| self.finder.add(place))
            };
            let finished = it.point.clusters.all_done() && is_there().is_some();
            !finished && it.point.fate.lost().is_none() && meta.nlink() > 0
        });
    }

    /// The job of a point has ended. Where there is no snapshot of it, nobody reads it any more: the next job may overwrite what it has made.
    pub fn ended(&self, point: &Point) {
        let mut shown = self.shown();
        if let Some(at) = shown.iter().position(|it| Arc::ptr_eq(&it.point.fate, &point.fate)) {
            point.fate.lose("its job has ended without a snapshot");
            shown.remove(at);
        }
    }

    /// All that can be had now.
    pub fn all(&self) -> Vec<Listed> {
        self.look();
        let finished = self.finder.all();
        let bases = |newest: usize| finished.iter().skip(newest).take(BASES).map(|it| it.0.clone()).collect();
        let size = self.image.size();
        let making = |it: &Shown| Listed {
            name: it.name.clone(),
            size,
            bases: bases(0),
            what: "a snapshot that is being made",
            trims: false,
        };
        let fleece = |it: Arc<Fleece>| Listed {
            name: it.name().to_owned(),
            size,
            bases: it.base().map_or_else(|| bases(0), |base| vec![base.to_owned()]),
            what: "a fleece",
            trims: true,
        };
        let fleeces = self.fleeces.all().into_iter().filter(|it| it.point().fate.lost().is_none());
        let mut all: Vec<_> = fleeces.map(fleece).chain(self.shown().iter().map(making)).collect();
        for (index, (name, _, size)) in finished.iter().enumerate() {
            if all.iter().all(|it| it.name != *name) {
                all.push(Listed {
                    name: name.clone(),
                    size: *size,
                    bases: bases(index + 1),
                    what: "a snapshot",
                    trims: false,
                });
            }
        }
        all
    }

    /// The one of this name, with changes since those of `contexts`, in their order.
    ///
    /// # Errors
    /// What the kernel says of its file.
    pub fn open(&self, name: &str, contexts: &[String]) -> io::Result<Option<View>> {
        self.look();
        let bases = contexts.iter().filter_map(|it| it.strip_prefix(NAMESPACE));
        let bases = bases.map(|base| Base::new(base.into(), self.finder.clone())).collect();
        if let Some(fleece) = self.fleeces.get(name) {
            return Ok(Some(View::of_fleece(fleece, Arc::clone(&self.image), Arc::clone(&self.map), bases)));
        }
        let shown = self.shown();
        if let Some(shown) = shown.iter().find(|it| it.name == name) {
            let making = Making::new(Arc::clone(&self.image), Arc::clone(&self.map), shown.point.clone());
            return self.view(shown.file.try_clone()?, Some(making), bases).map(Some);
        }
        drop(shown);
        self.finder.find(name).map(|found| self.view(found.file, None, bases)).transpose()
    }

    fn view(&self, file: File, making: Option<Making>, bases: Vec<Base>) -> io::Result<View> {
        let map = Arc::new(RealFile::from(file.try_clone()?));
        Ok(View::new((self.open)(file)?, map, making, bases))
    }

    fn shown(&self) -> MutexGuard<'_, Vec<Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
