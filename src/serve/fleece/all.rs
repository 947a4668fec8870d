//! The fleeces of an image: begun, ended, and taken up from an earlier server.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::files::{self, MAP};
use super::map::Map;
use super::mark::Mark;
use super::takeup::NotTaken;
use super::{Fleece, Look, reach};
use crate::cbw::{Clusters, STATES_MAX};
use crate::disk::DiskFile;
use crate::disk::real::RealFile;
use crate::hold::filter::wire::{FleeceOrder, FleeceState};
use crate::range::PowerOfTwo;
use crate::serve::device::Device;
use crate::serve::finished::Finder;
use crate::serve::gate::Gate;
use crate::serve::names::{Made, Names, Taken};
use crate::serve::wait::within;

/// The longest name of a fleece.
const NAME: usize = 64;

/// The greatest cluster, in bytes: one is copied through memory.
const CLUSTER: u64 = 64 << 20;

/// How long what is in memory may take to be written when the server ends.
const FAREWELL: Duration = Duration::from_secs(10);

/// How long the disks may take to say how much they have, and to keep what is being kept when the server goes.
const BRIEFLY: Duration = Duration::from_millis(1000);

/// How long the disk of a fleece that is ended may take to have on it what is kept: this, and a second for so many bytes that may be in memory. The
/// slowest disk writes more.
const SLOW: Duration = Duration::from_secs(60);
const A_SECOND: u64 = 8 << 20;

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
    /// When the server began to take up what is there: nobody is served before it has.
    pub(super) since: Instant,
}

pub(super) type Refusal<T> = Result<T, String>;

impl Fleeces {
    /// Takes up those that an earlier server has left beside the image; and says which it does not, and why.
    ///
    /// # Errors
    /// Where the image cannot be looked at.
    pub fn adopt(image: Image) -> io::Result<(Self, Vec<(PathBuf, NotTaken)>)> {
        let fleeces = Self {
            image,
            all: Mutex::default(),
            names: Arc::default(),
            leaving: Arc::default(),
            closed: AtomicBool::new(false),
            since: Instant::now(),
        };
        let (dir, file) = fleeces.place()?;
        let prefix = [file.as_bytes(), b"."].concat();
        let mut left = Vec::new();
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
                Err(why) => left.push((entry.path(), why)),
            }
        }
        Ok((fleeces, left))
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
        self.is_open()?;
        let base = order.base.as_ref().map(|path| self.base(path)).transpose()?;
        let (map_path, data_path) = self.paths(order)?;
        super::keeper::Space::of([&map_path, &data_path], order.terms.min_free).is_enough()?;
        let header = self.header(order, &stat, unit, &data_path, base.as_ref().map(|it| it.0.clone()))?;
        let mark = Mark::of(header.id);
        let map = Map::create(&map_path, mark, header).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => format!(
                "{} is left of an earlier one: 'rclone-img status' of that file says what it is, 'rclone-img abort' removes it",
                map_path.display()
            ),
            _ => words("make the map of the fleece")(e),
        })?;
        let map = Arc::new(map);
        let data =
            self.make_data(&data_path, stat.size).inspect_err(|_| map.remove()).map_err(words("make the sidecar"))?;
        let own = data.try_clone().map(RealFile::from).map_err(words("open the sidecar"));
        let own = own.inspect_err(|_| map.remove())?;
        let named = own.stat().and_then(|it| map.has_data(it.id()));
        let named = named.map_err(words("write the map of the fleece"));
        let begun = named.and_then(|()| self.begin(&map, data, base.map(|it| it.1), strangers)).inspect_err(|_| {
            let _ = files::remove_data(&map.header(), Some(&own));
            map.remove();
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
        if self.leaving.load(Ordering::Acquire) {
            return Err("the server has ended, and left it to the next one".into());
        }
        let fleece = self.lock().remove(name).ok_or_else(|| format!("there is no fleece {name}"))?;
        self.tell(name, Fortune::Ended);
        fleece.end("the fleece was ended");
        let removed = reach::within(reach::ANSWERS, move || {
            let header = fleece.map.header().clone();
            files::remove_data(&header, Some(fleece.sidecar.data())).map_err(words("remove the sidecar"))?;
            fleece.map.remove();
            // Not to be closed here: that frees its blocks, and of many of them takes longer.
            Ok(fleece)
        });
        // What does not answer is removed when it does; the fleece is ended.
        let close = |fleece: Arc<Fleece>| {
            drop(reach::asked(move || {
                drop(fleece);
                Ok(())
            }));
        };
        removed.map_or(Ok(()), |removed| removed.map(close))
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
        let Some(fleece) = self.get(name) else { return };
        fleece.look(Look::Briefly);
        if fleece.point.fate.lost().is_some() {
            return;
        }
        let its = Arc::clone(&fleece);
        let synced = reach::asked(move || {
            its.sync();
            Ok(())
        });
        // A slow disk is none that does not answer; but nobody waits for it for ever, and the server's end not for longer than the guest can bear.
        let (began, mut closed) = (Instant::now(), None);
        let slow = SLOW + Duration::from_secs(fleece.map.header().terms.ram / A_SECOND);
        loop {
            match synced.recv_timeout(reach::MOMENT) {
                Ok(Ok(())) => return,
                Err(RecvTimeoutError::Timeout) if fleece.point.fate.lost().is_some() => return,
                Err(RecvTimeoutError::Timeout) if began.elapsed() < slow => {}
                _ => return fleece.watch.break_off(&reach::silent(began.elapsed())),
            }
            if self.is_open().is_err() && closed.get_or_insert_with(Instant::now).elapsed() >= reach::ANSWERS {
                return fleece.watch.break_off(&reach::silent(reach::ANSWERS));
            }
        }
    }

    /// How those of these names stand.
    pub fn states(&self, which: impl Fn(&str) -> bool) -> Vec<FleeceState> {
        let all: Vec<_> = self.all().into_iter().filter(|it| which(&it.name)).collect();
        // Of a disk that does not answer what it said last.
        let asked = all.iter().filter(|it| it.point.fate.lost().is_none()).cloned();
        reach::all(asked.collect(), Instant::now() + BRIEFLY, |it| it.sidecar.ask_size());
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
        all.iter().map(state).collect()
    }

    /// Nobody writes any more, and this server goes: its successor takes them up.
    pub fn leave(&self) {
        let all = self.all();
        let is_lost = |it: &Arc<Fleece>| it.point.fate.lost().is_some();
        // What is being kept for a write that is not made any more is no reason to lose the rest.
        within(BRIEFLY, || !all.iter().any(|it| it.ears.is_keeping()));
        all.iter().for_each(|it| it.sidecar.end());
        within(FAREWELL, || all.iter().all(|it| is_lost(it) || it.sidecar.is_written()));
        // Whatever does not answer keeps nobody from the image: neither the next server nor a job.
        let whole = all.iter().filter(|it| !is_lost(it)).cloned().collect();
        let (whole, silent) = reach::all(whole, Instant::now() + reach::ANSWERS, |it| it.sync());
        // Whoever changes it after that is found by its time, and whoever did before is looked for after it.
        let changed = self.image.map.stat().map_or(0, |stat| stat.ctime_ns);
        whole.iter().for_each(|it| it.look(Look::AtAll));
        // What this process' end is to the gate is no loss; what came before is.
        self.leaving.store(true, Ordering::Release);
        for fleece in whole.iter().filter(|it| !is_lost(it)) {
            let left = fleece.map.left(changed).map_err(|why| fleece.map.given_up(&why).err().unwrap_or(why));
            left.unwrap_or_else(|why| self.tell(&fleece.name, Fortune::Lost(why)));
        }
        silent.iter().for_each(|it| self.tell(&it.name, Fortune::Lost(reach::silent(reach::ANSWERS))));
        let lost = all.into_iter().filter(is_lost).chain(silent).collect();
        let tell = Arc::clone(&self.image.tell);
        // The mark goes first, which is on no disk; the map may be on one that does not answer either.
        reach::all(lost, Instant::now() + reach::ANSWERS, move |it| {
            let why = it.point.fate.lost().map_or_else(|| reach::silent(reach::ANSWERS), str::to_owned);
            if let Err(why) = it.map.given_up(&why) {
                tell(Told { name: it.name.clone(), what: Fortune::Lost(why) });
            }
        });
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
