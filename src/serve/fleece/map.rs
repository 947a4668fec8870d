//! A fleece's map file ([`super::format`]), and with its mark ([`super::mark`]) whether it is whole.

#[cfg(test)]
mod tests;
mod whole;

use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use self::whole::SLACK;
use super::format::{self, Header, Place, STATES, State};
use super::mark::{Mark, Moment};
use crate::disk::real::{NewFile, RealDisk, RealFile, open_itself};
use crate::disk::{Disk, DiskFile, FsFacts};
use crate::range::ByteRange;
use crate::record::ImageId;

/// How long somebody who looks at it may have it, and how often it is tried again.
const PATIENCE: Duration = Duration::from_millis(500);
const MOMENT: Duration = Duration::from_millis(5);

/// How often the time is put on a disk.
const DURABLY: Duration = Duration::from_secs(1);

/// The map of one fleece. It has the file's lock as long as it is open.
pub struct Map {
    file: File,
    path: PathBuf,
    mark: Option<Mark>,
    header: Mutex<Header>,
    /// Why a sync has failed once. The kernel tells that once, and then that all is well.
    unsynced: Mutex<Option<i32>>,
    /// Set before anything else where it is lost.
    lost: AtomicBool,
    /// Whoever has written to the image past the server before this moment was found.
    looked: Mutex<Option<Moment>>,
}

impl Map {
    /// A new one at this path, durably, and there is never a part of one; `mark` is its mark, if it can have one.
    ///
    /// # Errors
    /// EEXIST, and what the kernel says.
    pub fn create(path: &Path, mark: Option<Mark>, header: Header) -> io::Result<Self> {
        let new = NewFile::at(path)?;
        let file = File::from(new.file().as_fd().try_clone_to_owned()?);
        let map = Self::of(file, path, mark, Header { map_file: new.file().stat()?.id(), ..header });
        map.lock()?;
        {
            let mut header = map.header();
            map.file.set_len(STATES + header.size.div_ceil(header.terms.cluster))?;
            map.write_header(&mut header)?;
            map.write_header(&mut header)?;
        }
        new.keep().map(|_| map)
    }

    /// The one at a path, with its lock; `None` where it is none, and an error where somebody else has it.
    ///
    /// # Errors
    /// EBUSY, and what the kernel says.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = open_itself(path, true)?;
        let Content::Map(header) = read(&file)? else { return Ok(None) };
        let mark = Mark::of(header.id);
        let map = Self::of(file, path, mark, *header);
        if !map.lock_soon()? {
            return Err(nix::errno::Errno::EBUSY.into());
        }
        // Who had it until now may have said that it is lost.
        let Content::Map(header) = read(&map.file)? else { return Ok(None) };
        *map.header() = *header;
        Ok(Some(map))
    }

    fn of(file: File, path: &Path, mark: Option<Mark>, header: Header) -> Self {
        let (header, unsynced, lost) = (Mutex::new(header), Mutex::default(), AtomicBool::new(false));
        Self { file, path: path.to_owned(), mark, header, unsynced, lost, looked: Mutex::default() }
    }

    /// Whoever only looks has it for a moment.
    fn lock_soon(&self) -> io::Result<bool> {
        let until = Instant::now() + PATIENCE;
        while !self.lock()? {
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(MOMENT);
        }
        Ok(true)
    }

    fn lock(&self) -> io::Result<bool> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// What it says of the fleece.
    pub fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file system that it is on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn fs(&self) -> io::Result<FsFacts> {
        RealFile::from(self.file.try_clone()?).fs()
    }

    /// It is begun: all of it is kept from now on, and a server that is killed leaves it whole.
    ///
    /// # Errors
    /// The kernel's; where it is lost already.
    pub fn begun(&self, here: Place, t0: Timestamp) -> io::Result<()> {
        self.take(here, |header| (header.t0, header.broken) = (t0, None))?;
        // So that it is known after a power cut what it was.
        self.sync()
    }

    /// The states of all clusters, in pieces: the first cluster of each, and the bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn states(&self, mut piece: impl FnMut(u64, &[u8])) -> io::Result<()> {
        let cluster = self.header_cluster();
        let count = self.header().size.div_ceil(cluster);
        let (mut at, mut bytes) = (0, vec![0; 1 << 16]);
        while at < count {
            let length = (count - at).min(bytes.len() as u64) as usize;
            self.file.read_exact_at(&mut bytes[..length], STATES + at)?;
            piece(at, &bytes[..length]);
            at += length as u64;
        }
        Ok(())
    }

    /// Says of whole clusters how they stand.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set(&self, range: ByteRange, state: State) -> io::Result<()> {
        let cluster = self.header_cluster();
        let (first, last) = (range.start() / cluster, range.end().div_ceil(cluster));
        let bytes = vec![state as u8; (last - first).min(1 << 16) as usize];
        let mut at = first;
        while at < last {
            let length = (last - at).min(bytes.len() as u64) as usize;
            self.file.write_all_at(&bytes[..length], STATES + at)?;
            at += length as u64;
        }
        Ok(())
    }

    /// Makes durable what was said.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sync(&self) -> io::Result<()> {
        // Held meanwhile: of two that are under way the kernel would tell one alone.
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(errno) = *unsynced {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.file.sync_data().inspect_err(|e| *unsynced = Some(e.raw_os_error().unwrap_or(libc::EIO)))
    }

    /// A server has it, here.
    ///
    /// # Errors
    /// The kernel's; where it is lost already.
    pub fn taken(&self, here: Place) -> io::Result<()> {
        self.take(here, |_| ())
    }

    /// Whoever has written to the image past the server before this moment was found, and it is lost then. Looking takes a while, in which
    /// somebody may write who is found by the next look: the moment is that at which it began.
    pub fn looked(&self, began: Moment) {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(began);
        // One that cannot be said is missed by the next server alone.
        self.mark.iter().for_each(|mark| drop(mark.renew(began)));
    }

    /// A look has begun that may take long, since somebody has opened the image: who does not come to its end leaves to the next server no
    /// moment after the last look in which it would have written itself.
    pub fn looking(&self) {
        if let (Some(mark), Ok(looked)) = (&self.mark, self.looked_until()) {
            let _ = mark.renew(looked.earlier(SLACK));
        }
    }

    fn looked_until(&self) -> io::Result<Moment> {
        let looked = *self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        looked.map_or_else(Moment::now, Ok)
    }

    fn take(&self, here: Place, how: impl FnOnce(&mut Header)) -> io::Result<()> {
        let looked = self.looked_until()?;
        // Without a mark nobody takes it up in this boot. Of one that is lost there is none any more, and never again.
        self.mark.iter().for_each(|mark| drop(mark.make(looked)));
        let mut header = self.header();
        // Whoever says that it is lost has said so before this, or removes the mark and has the header after it.
        if self.lost.load(Ordering::SeqCst) {
            drop(header);
            let why = "it was lost while it was begun";
            return Err(io::Error::other(self.given_up(why).err().unwrap_or_else(|| why.to_owned())));
        }
        how(&mut header);
        (header.place, header.seen, header.left) = (here, looked.timestamp(), None);
        self.write_header(&mut header)?;
        if header.terms.durable { self.sync() } else { Ok(()) }
    }

    /// Puts on the disk of one that is durable until when it was looked ([`Map::looked`]).
    pub fn seen(&self) {
        let Ok(looked) = self.looked_until() else { return };
        let written = {
            let mut header = self.header();
            let due = looked.timestamp().duration_since(header.seen) >= DURABLY.try_into().unwrap_or_default();
            if header.terms.durable && header.broken.is_none() && due {
                header.seen = looked.timestamp();
                self.write_header(&mut header).is_ok()
            } else {
                false
            }
        };
        // Not with the header: whoever says that it is lost must not wait for that.
        if written {
            let _ = self.sync();
        }
    }

    /// The server goes, and the image was changed last at this time: nobody else has changed it where it still was when the next one comes.
    ///
    /// # Errors
    /// In words, where that cannot be put on the disk of one that is durable: it is lost.
    pub fn left(&self, changed_ns: i128) -> Result<(), String> {
        self.seen();
        let mut header = self.header();
        header.left = Some(changed_ns.to_string());
        let written = self.write_header(&mut header);
        let durable = header.terms.durable;
        drop(header);
        // After a power cut it would look as if a server had been there until then.
        let said = written.and_then(|()| if durable { self.sync() } else { Ok(()) });
        said.map_err(|e| format!("cannot write down that its server was stopped: {e}"))
    }

    /// It is lost. Said in a moment, before a write goes on; of one that is durable, durably.
    ///
    /// # Errors
    /// In words, where it can neither be said nor the map be removed: the next server would take it for whole.
    pub fn lost(&self, why: &str) -> Result<(), String> {
        self.lost.store(true, Ordering::SeqCst);
        let unmarked = self.mark.as_ref().is_none_or(Mark::remove);
        if unmarked && !self.header().terms.durable {
            return Ok(());
        }
        self.say_lost(why).or_else(|e| {
            // What cannot be said in it is said by its absence.
            let removed = self.unlink() && self.sync_directory().is_ok();
            if removed { Ok(()) } else { Err(e) }
        })
        .map_err(|e| {
            let path = self.path.display();
            format!("that it is lost cannot be written down ({e}): remove {path} before another server of the image is started")
        })
    }

    /// The same for people, when there is time; in both slots, so that damage to one does not bring it back to life.
    ///
    /// # Errors
    /// The kernel's: a server that does not read it finds no mark, or has it from [`Map::lost`].
    pub fn write_lost(&self, why: &str) -> io::Result<()> {
        self.say_lost(why).and_then(|()| self.say_lost(why))
    }

    fn say_lost(&self, why: &str) -> io::Result<()> {
        let mut header = self.header();
        header.broken.get_or_insert_with(|| why.to_owned());
        self.write_header(&mut header)?;
        drop(header);
        self.sync()
    }

    fn sync_directory(&self) -> io::Result<()> {
        RealDisk::open_dir(self.path.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_names()
    }

    /// It cannot be taken up, for this reason, and the guest writes on.
    ///
    /// # Errors
    /// As [`Map::lost`]; with the reason.
    pub fn given_up(&self, why: &str) -> Result<(), String> {
        let lost = self.lost(why).map_err(|more| format!("{why}; {more}"));
        let _ = self.write_lost(why);
        lost
    }

    /// Which file has the data.
    ///
    /// # Errors
    /// The kernel's.
    pub fn has_data(&self, file: ImageId) -> io::Result<()> {
        let mut header = self.header();
        header.data_file = file;
        self.write_header(&mut header)?;
        // Before there is anything in that file.
        self.sync()
    }

    /// Removes it, and the mark.
    pub fn remove(&self) {
        let _ = self.mark.as_ref().is_none_or(Mark::remove);
        self.unlink();
    }

    /// Removes its name, if that has not become somebody else's; whether it has none any more.
    fn unlink(&self) -> bool {
        let id = |it: Metadata| (it.dev(), it.ino());
        let own = self.file.metadata().map(id).ok();
        if own.is_some() && own == fs::symlink_metadata(&self.path).map(id).ok() {
            let _ = fs::remove_file(&self.path);
        }
        self.file.metadata().is_ok_and(|it| it.nlink() == 0)
    }

    /// Over the older of the two: where that is cut off, the other one counts.
    fn write_header(&self, header: &mut Header) -> io::Result<()> {
        header.generation += 1;
        self.file.write_all_at(&header.to_bytes(), header.slot())
    }

    fn header_cluster(&self) -> u64 {
        self.header().terms.cluster.max(1)
    }
}

/// What is in a file that is called as a map is.
pub enum Content {
    /// A map.
    Map(Box<Header>),
    /// What was one, or is of another version.
    Damaged,
    /// Something else.
    Foreign,
}

/// What is in a file.
///
/// # Errors
/// The kernel's.
pub fn read(file: &File) -> io::Result<Content> {
    let mut bytes = Vec::new();
    let mut from = file;
    from.seek(SeekFrom::Start(0))?;
    from.take(STATES).read_to_end(&mut bytes)?;
    Ok(match Header::newest(&bytes) {
        Some(header) => Content::Map(Box::new(header)),
        None if format::is_ours(&bytes) => Content::Damaged,
        None => Content::Foreign,
    })
}
