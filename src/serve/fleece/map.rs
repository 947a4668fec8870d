//! A fleece's map file ([`super::format`]), and the mark in the runtime directory that no write has passed it by.
//!
//! The mark is gone before a write goes on for which the fleece is lost, and with the boot; and it tells when a server was last there. So
//! a server that is started again knows whether what it finds is whole.

#[cfg(test)]
mod tests;

use std::fs::{self, File, FileTimes, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use uuid::Uuid;

use super::format::{self, Header, STATES, State};
use crate::disk::real::{NewFile, RealDisk, open_itself};
use crate::disk::{Disk, DiskFile};
use crate::range::ByteRange;
use crate::record::ImageId;

/// How much later than a server was last known to be there the image may have been written to by it: a few of the keeper's looks. Who
/// writes past a server within this time of its end cannot be told from it.
const SLACK: Duration = Duration::from_millis(300);

/// The same where that has to be put on a disk.
const SLACK_DURABLE: Duration = Duration::from_secs(4);

/// How long somebody who looks at it may have it, and how often it is tried again.
const PATIENCE: Duration = Duration::from_millis(500);
const MOMENT: Duration = Duration::from_millis(5);

/// How often the time is put on a disk.
const DURABLY: Duration = Duration::from_secs(1);

/// The map of one fleece. It has the file's lock as long as it is open.
pub struct Map {
    file: File,
    path: PathBuf,
    mark: Option<PathBuf>,
    header: Mutex<Header>,
    /// Why a sync has failed once. The kernel tells that once, and then that all is well.
    unsynced: Mutex<Option<i32>>,
    /// Set before anything else where it is lost.
    lost: AtomicBool,
}

impl Map {
    /// A new one at this path, durably, and there is never a part of one; `mark` is where the mark is to be, if anywhere.
    ///
    /// # Errors
    /// EEXIST, and what the kernel says.
    pub fn create(path: &Path, mark: Option<PathBuf>, header: Header) -> io::Result<Self> {
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
        new.keep().map(|()| map)
    }

    /// The one at a path, with its lock; `None` where it is none, and an error where somebody else has it.
    ///
    /// # Errors
    /// EBUSY, and what the kernel says.
    pub fn open(path: &Path, mark: impl FnOnce(&Header) -> Option<PathBuf>) -> io::Result<Option<Self>> {
        let file = open_itself(path, true)?;
        let Content::Map(header) = read(&file)? else { return Ok(None) };
        let mark = mark(&header);
        let map = Self::of(file, path, mark, *header);
        if map.lock_soon()? { Ok(Some(map)) } else { Err(nix::errno::Errno::EBUSY.into()) }
    }

    fn of(file: File, path: &Path, mark: Option<PathBuf>, header: Header) -> Self {
        let (header, unsynced, lost) = (Mutex::new(header), Mutex::default(), AtomicBool::new(false));
        Self { file, path: path.to_owned(), mark, header, unsynced, lost }
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

    /// Whether all that was written to an image that was changed last at this time, in nanoseconds since 1970, is accounted for: the mark is
    /// there, or what is kept is durable; and nobody wrote after the last server was there.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn is_whole(&self, boot: Uuid, changed_ns: i128) -> Result<(), String> {
        let header = self.header();
        if let Some(why) = &header.broken {
            return Err(why.clone());
        }
        let same_boot = header.boot == boot;
        let marked =
            self.mark.as_ref().filter(|_| same_boot).map(|mark| fs::metadata(mark).and_then(|it| it.modified()));
        let (seen, slack) = match marked {
            Some(Ok(seen)) => (seen, SLACK),
            // It was removed, before a write went on.
            Some(Err(_)) => return Err("the guest has overwritten what could not be kept".into()),
            None if header.terms.durable => (SystemTime::from(header.seen), SLACK_DURABLE),
            None if same_boot => return Err("there is no runtime directory that would tell whether it is whole".into()),
            None => return Err("the host was started again, and what was kept was not durable (--durable)".into()),
        };
        // One that was told to stop has said when the image was changed last.
        let left = header.left.as_ref().and_then(|left| left.parse::<i128>().ok());
        let changed = u64::try_from(changed_ns)
            .map_or(SystemTime::UNIX_EPOCH, |ns| SystemTime::UNIX_EPOCH + Duration::from_nanos(ns));
        if left.map_or(changed > seen + slack, |left| left != changed_ns) {
            return Err("the image was written to while no server had it".into());
        }
        Ok(())
    }

    /// It is begun: all of it is kept from now on, and a server that is killed leaves it whole.
    ///
    /// # Errors
    /// The kernel's; where it is lost already.
    pub fn begun(&self, boot: Uuid, t0: Timestamp) -> io::Result<()> {
        self.take(boot, |header| (header.t0, header.broken) = (t0, None))?;
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

    /// A server has it, in this boot.
    ///
    /// # Errors
    /// The kernel's; where it is lost already.
    pub fn taken(&self, boot: Uuid) -> io::Result<()> {
        self.take(boot, |_| ())
    }

    fn take(&self, boot: Uuid, how: impl FnOnce(&mut Header)) -> io::Result<()> {
        // Without a mark nobody takes it up in this boot.
        self.mark.iter().for_each(|mark| drop(File::create(mark)));
        let mut header = self.header();
        // Whoever says that it is lost has said so before this, or removes the mark and has the header after it.
        if self.lost.load(Ordering::SeqCst) {
            drop(header);
            let why = "it was lost while it was begun";
            return Err(io::Error::other(self.given_up(why).err().unwrap_or_else(|| why.to_owned())));
        }
        how(&mut header);
        (header.boot, header.seen, header.left) = (boot, Timestamp::now(), None);
        self.write_header(&mut header)?;
        if header.terms.durable { self.sync() } else { Ok(()) }
    }

    /// The server is there.
    pub fn seen(&self) {
        if let Some(mark) = self.mark.as_ref().and_then(|mark| File::options().write(true).open(mark).ok()) {
            let now = FileTimes::new().set_modified(SystemTime::now());
            // One that cannot be said is missed by the next server alone.
            let _ = mark.set_times(now);
        }
        let written = {
            let mut header = self.header();
            let now = Timestamp::now();
            let due = now.duration_since(header.seen) >= DURABLY.try_into().unwrap_or_default();
            if header.terms.durable && header.broken.is_none() && due {
                header.seen = now;
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
    pub fn left(&self, changed_ns: i128) {
        self.seen();
        let mut header = self.header();
        header.left = Some(changed_ns.to_string());
        let _ = self.write_header(&mut header);
        if header.terms.durable {
            let _ = self.sync();
        }
    }

    /// It is lost. Said in a moment, before a write goes on; of one that is durable, durably.
    ///
    /// # Errors
    /// In words, where it can neither be said nor the map be removed: the next server would take it for whole.
    pub fn lost(&self, why: &str) -> Result<(), String> {
        self.lost.store(true, Ordering::SeqCst);
        let unmarked = self.mark.as_ref().is_none_or(|mark| is_gone(fs::remove_file(mark)));
        if unmarked && !self.header().terms.durable {
            return Ok(());
        }
        self.say_lost(why).or_else(|e| {
            // What cannot be said in it is said by its absence.
            let removed = is_gone(fs::remove_file(&self.path)) && self.sync_directory().is_ok();
            if removed { Ok(()) } else { Err(e) }
        })
        .map_err(|e| {
            let path = self.path.display();
            format!("that it is lost cannot be written down ({e}): remove {path} before another server of the image is started")
        })
    }

    /// The same for people, when there is time; in both slots, so that damage to one does not bring it back to life.
    pub fn write_lost(&self, why: &str) {
        // A server that does not read it finds no mark, or has it from [`Map::lost`].
        let _ = self.say_lost(why).and_then(|()| self.say_lost(why));
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
        self.write_lost(why);
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
        for path in self.mark.iter().chain([&self.path]) {
            let _ = fs::remove_file(path);
        }
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

/// Whether a file was removed, or was not there.
fn is_gone(removed: io::Result<()>) -> bool {
    removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }).is_ok()
}
