//! The fleeces of an image: begun, ended, and taken up from an earlier server.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::files::{self, MAP};
use super::map::Map;
use super::{Fleece, Look};
use crate::cbw::{Clusters, STATES_MAX};
use crate::disk::DiskFile;
use crate::disk::real::RealFile;
use crate::hold::filter::wire::{FleeceOrder, FleeceState};
use crate::range::PowerOfTwo;
use crate::serve::device::Device;
use crate::serve::finished::Finder;
use crate::serve::gate::Gate;
use crate::serve::names::{Made, Names, Taken};

/// The longest name of a fleece.
const NAME: usize = 64;

/// The greatest cluster, in bytes: one is copied through memory.
const CLUSTER: u64 = 64 << 20;

/// How long what is in memory may take to be written when the server ends.
const FAREWELL: Duration = Duration::from_secs(10);

/// How often it is looked whether it is.
const MOMENT: Duration = Duration::from_millis(5);

/// The image that they are of.
pub struct Image {
    /// For its bytes.
    pub device: Arc<dyn Device>,
    /// For its block map, and clones of it.
    pub map: Arc<RealFile>,
    /// Where its writes go through.
    pub gate: Arc<Gate>,
    /// Its finished snapshots.
    pub finder: Finder,
    /// Its path, absolute and without links.
    pub path: PathBuf,
    /// Who is told what becomes of them; must not wait.
    pub tell: Tell,
}

/// Who is told.
pub type Tell = Arc<dyn Fn(Told) + Send + Sync>;

/// What becomes of a fleece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// What.
    pub what: Fortune,
}

/// What can become of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fortune {
    /// It was begun.
    Begun,
    /// It was taken up from an earlier server.
    TakenUp,
    /// It is lost, for this reason.
    Lost(String),
    /// It was ended.
    Ended,
}

/// All of them.
pub struct Fleeces {
    pub(super) image: Image,
    all: Mutex<BTreeMap<String, Arc<Fleece>>>,
    names: Arc<Names>,
    pub(super) leaving: Arc<AtomicBool>,
    closed: AtomicBool,
}

pub(super) type Refusal<T> = Result<T, String>;

impl Fleeces {
    /// Takes up those that an earlier server has left beside the image; and says which it cannot, and why.
    ///
    /// # Errors
    /// Where the image cannot be looked at.
    pub fn adopt(image: Image) -> io::Result<(Self, Vec<(PathBuf, String)>)> {
        let fleeces = Self {
            image,
            all: Mutex::default(),
            names: Arc::default(),
            leaving: Arc::default(),
            closed: AtomicBool::new(false),
        };
        let (dir, file) = fleeces.place()?;
        let prefix = [file.as_bytes(), b"."].concat();
        let mut lost = Vec::new();
        for entry in fs::read_dir(dir)?.flatten() {
            let name = entry.file_name();
            let fleece = name.as_bytes().strip_prefix(&prefix[..]).and_then(|it| it.strip_suffix(MAP.as_bytes()));
            let Some(fleece) = fleece.and_then(|it| str::from_utf8(it).ok()).filter(|it| is_name(it)) else { continue };
            match fleeces.take_up(&entry.path(), fleece) {
                Ok(None) => {}
                Ok(Some(taken)) => {
                    fleeces.tell(fleece, Fortune::TakenUp);
                    fleeces.lock().insert(fleece.to_owned(), taken);
                }
                Err(why) => lost.push((entry.path(), why)),
            }
        }
        Ok((fleeces, lost))
    }

    /// Begins one: T0 is before this returns.
    ///
    /// # Errors
    /// Why not, in words; nothing is left then.
    pub fn start(&self, order: &FleeceOrder) -> Refusal<Arc<Fleece>> {
        self.is_open()?;
        if !is_name(&order.name) {
            return Err(format!(
                "a fleece's name has at most {NAME} letters, digits, '-', '_' and '.', and does not begin with '.'"
            ));
        }
        // Until it is among those that there are.
        let _name = self.take_name(&order.name, Made::Fleece)?;
        if self.image.finder.find(&order.name).is_some() {
            return Err(has_name("a snapshot", &order.name));
        }
        let stat = self.image.map.stat().map_err(words("look at the image"))?;
        let unit = PowerOfTwo::new(order.terms.cluster).filter(|unit| (4096..=CLUSTER).contains(&unit.get()));
        let unit = unit.ok_or("a cluster is a power of two from 4K to 64M")?;
        let unit = unit.max(self.facts()?.block);
        if Clusters::memory(stat.size, unit) > STATES_MAX {
            return Err("the image has more clusters than there is memory for: choose a larger --cluster".into());
        }
        if order.terms.max_sidecar < unit.get() {
            return Err(format!("--max-sidecar is less than a cluster, {} bytes", unit.get()));
        }
        // Before T0, when no write waits for a look at all processes.
        let strangers = self.alone()?;
        let base = order.base.as_ref().map(|path| self.base(path)).transpose()?;
        let (map_path, data_path) = self.paths(order)?;
        super::keeper::Space::of([&map_path, &data_path], order.terms.min_free).is_enough()?;
        let header = self.header(order, &stat, unit, &data_path, base.as_ref().map(|it| it.0.clone()))?;
        let map =
            Map::create(&map_path, self.mark(&order.name), header).map_err(words("make the map of the fleece"))?;
        let map = Arc::new(map);
        let data =
            self.make_data(&data_path, stat.size).inspect_err(|_| map.remove()).map_err(words("make the sidecar"))?;
        let named = data.try_clone().and_then(|data| map.has_data(RealFile::from(data).stat()?.id()));
        let named = named.map_err(words("write the map of the fleece"));
        let begun = named.and_then(|()| self.begin(&map, data, base.map(|it| it.1), strangers)).inspect_err(|_| {
            map.remove();
            let _ = fs::remove_file(&data_path);
        })?;
        self.tell(&order.name, Fortune::Begun);
        self.lock().insert(order.name.clone(), Arc::clone(&begun));
        Ok(begun)
    }

    /// Takes a name for what is to be read by it: nothing else is, or will be while it is taken.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn take_name(&self, name: &str, made: Made) -> Refusal<Taken> {
        let taken = self.names.take(name, made).map_err(|other| has_name(&other.to_string(), name))?;
        // One that has begun since is among them before it gives its name back.
        if self.lock().contains_key(name) { Err(has_name("a fleece", name)) } else { Ok(taken) }
    }

    /// The server is about to go: none is begun any more, and what is being begun is given up.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// # Errors
    /// Where none is begun any more.
    pub(super) fn is_open(&self) -> Refusal<()> {
        if self.closed.load(Ordering::Acquire) { Err("the server was told to stop".into()) } else { Ok(()) }
    }

    /// Ends one, with its files.
    ///
    /// # Errors
    /// Where there is none of this name.
    pub fn stop(&self, name: &str) -> Refusal<()> {
        let fleece = self.lock().remove(name).ok_or_else(|| format!("there is no fleece {name}"))?;
        self.tell(name, Fortune::Ended);
        fleece.end("the fleece was ended");
        let header = fleece.map.header().clone();
        files::remove_data(&header).map_err(words("remove the sidecar"))?;
        fleece.map.remove();
        Ok(())
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Fleece>> {
        self.lock().get(name).cloned()
    }

    /// All of them, by their names.
    pub fn all(&self) -> Vec<Arc<Fleece>> {
        self.lock().values().cloned().collect()
    }

    /// Looks once more at what would cost a fleece: whether somebody writes to the image past its server, and whether what is kept is on the
    /// disk.
    pub fn look(&self, name: &str) {
        if let Some(fleece) = self.get(name) {
            fleece.look(Look::Briefly);
            fleece.sync();
        }
    }

    /// How they stand.
    pub fn states(&self) -> Vec<FleeceState> {
        let state = |it: &Arc<Fleece>| {
            let (bytes, copied) = it.sidecar.sizes();
            let tally = it.watch.tally();
            FleeceState {
                name: it.name.clone(),
                t0: it.map.header().t0.to_string(),
                base: it.base.clone(),
                bytes,
                copied,
                lost: it.point.fate.lost().map(str::to_owned),
                waited: tally.waited,
                longest_us: u64::try_from(tally.longest.as_micros()).unwrap_or(u64::MAX),
            }
        };
        self.all().iter().map(state).collect()
    }

    /// Nobody writes any more, and this server goes: its successor takes them up.
    pub fn leave(&self) {
        let all = self.all();
        all.iter().for_each(|it| it.sidecar.end());
        let until = Instant::now() + FAREWELL;
        let is_written = |it: &Arc<Fleece>| it.point.fate.lost().is_some() || it.sidecar.is_written();
        while !all.iter().all(is_written) && Instant::now() < until {
            thread::sleep(MOMENT);
        }
        all.iter().for_each(|it| it.sync());
        // Whoever changes it after that is found by its time, and whoever did before is looked for after it.
        let changed = self.image.map.stat().map_or(0, |stat| stat.ctime_ns);
        all.iter().for_each(|it| it.look(Look::AtAll));
        // What this process' end is to the gate is no loss; what came before is.
        self.leaving.store(true, Ordering::Release);
        for fleece in &all {
            match fleece.point.fate.lost() {
                None => fleece.map.left(changed),
                Some(why) => {
                    if let Err(why) = fleece.map.given_up(why) {
                        self.tell(&fleece.name, Fortune::Lost(why));
                    }
                }
            }
        }
    }

    fn tell(&self, name: &str, what: Fortune) {
        (self.image.tell)(Told { name: name.to_owned(), what });
    }

    pub(super) fn place(&self) -> io::Result<(&Path, &OsStr)> {
        let path = &self.image.path;
        path.parent().zip(path.file_name()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Fleece>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it can be a part of a file's name and of an export's.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.')
}

fn has_name(what: &str, name: &str) -> String {
    format!("there is {what} of the name {name} already, which clients read by it: end that, or choose another name")
}

pub(super) fn words(what: &str) -> impl Fn(io::Error) -> String {
    move |e| format!("cannot {what}: {e}")
}
