//! A fleece's map file ([`super::format`]), and the mark in the runtime directory that no write has passed it by.
//!
//! The mark is gone before a write goes on for which the fleece is lost, and with the boot; and it tells when a server was last there. So
//! a server that is started again knows whether what it finds is whole.

use std::fs::{self, File, FileTimes, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::format::{Header, STATES, State};
use crate::range::ByteRange;

/// How much later than a server was last known to be there the image may have been written to by it: a few of the keeper's looks. Who
/// writes past a server within this time of its end cannot be told from it.
const SLACK: Duration = Duration::from_millis(300);

/// The same where that has to be put on a disk.
const SLACK_DURABLE: Duration = Duration::from_secs(4);

/// How often the time is put on a disk.
const DURABLY: Duration = Duration::from_secs(1);

/// The map of one fleece. It has the file's lock as long as it is open.
pub struct Map {
    file: File,
    path: PathBuf,
    mark: Option<PathBuf>,
    header: Mutex<Header>,
}

impl Map {
    /// A new one at this path; `mark` is where the mark is to be, if anywhere.
    ///
    /// # Errors
    /// EEXIST, and what the kernel says.
    pub fn create(path: &Path, mark: Option<PathBuf>, header: Header) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let map = Self { file, path: path.to_owned(), mark, header: Mutex::new(header) };
        let made = map.lock().and_then(|_| {
            let header = map.header().clone();
            map.file.set_len(STATES + header.size.div_ceil(header.cluster))?;
            map.write_header(&header)?;
            map.file.sync_all()
        });
        made.inspect_err(|_| map.remove()).map(|()| map)
    }

    /// The one at a path, with its lock; `None` where it is none, and an error where somebody else has it.
    ///
    /// # Errors
    /// EBUSY, and what the kernel says.
    pub fn open(path: &Path, mark: impl FnOnce(&Header) -> Option<PathBuf>) -> io::Result<Option<Self>> {
        let file =
            File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
        let Some(header) = read_header(&file)? else { return Ok(None) };
        let mark = mark(&header);
        let map = Self { file, path: path.to_owned(), mark, header: Mutex::new(header) };
        if map.lock()? { Ok(Some(map)) } else { Err(nix::errno::Errno::EBUSY.into()) }
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether all that was written to an image that was changed last at this time is accounted for: the mark is there, or what is kept is
    /// durable, and nobody wrote after the last server was there.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn is_whole(&self, boot: uuid::Uuid, changed: SystemTime) -> Result<(), String> {
        let header = self.header();
        if let Some(why) = &header.broken {
            return Err(why.clone());
        }
        let marked = self.mark.as_ref().and_then(|mark| fs::metadata(mark).and_then(|it| it.modified()).ok());
        let (seen, slack) = match marked.filter(|_| header.boot == boot) {
            Some(seen) => (seen, SLACK),
            None if header.durable => (SystemTime::from(header.seen), SLACK_DURABLE),
            None if header.boot == boot => return Err("the guest has overwritten what could not be kept".into()),
            None => return Err("the host was started again, and what was kept was not durable (--durable)".into()),
        };
        if changed > seen + slack {
            return Err("the image was written to while no server had it".into());
        }
        Ok(())
    }

    /// This is T0, while all writes wait.
    ///
    /// # Errors
    /// The kernel's.
    pub fn begun(&self, boot: uuid::Uuid, t0: Timestamp) -> io::Result<()> {
        {
            let mut header = self.header();
            (header.t0, header.broken) = (t0, None);
        }
        self.taken(boot)
    }

    /// The states of all clusters, in pieces: the first cluster of each, and the bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn states(&self, mut piece: impl FnMut(u64, &[u8])) -> io::Result<()> {
        let Header { size, cluster, .. } = *self.header();
        let count = size.div_ceil(cluster.max(1));
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
        self.file.sync_data()
    }

    /// A server has it, in this boot.
    ///
    /// # Errors
    /// The kernel's.
    pub fn taken(&self, boot: uuid::Uuid) -> io::Result<()> {
        let mut header = self.header();
        (header.boot, header.seen) = (boot, Timestamp::now());
        self.write_header(&header)?;
        if header.durable {
            self.file.sync_all()?;
        }
        drop(header);
        self.mark.as_ref().map_or(Ok(()), |mark| File::create(mark).map(drop))
    }

    /// The server is there.
    pub fn seen(&self) {
        if let Some(mark) = self.mark.as_ref().and_then(|mark| File::options().write(true).open(mark).ok()) {
            let now = FileTimes::new().set_modified(SystemTime::now());
            // One that cannot be said is missed by the next server alone.
            let _ = mark.set_times(now);
        }
        let mut header = self.header();
        let now = Timestamp::now();
        if header.durable
            && header.broken.is_none()
            && now.duration_since(header.seen) >= DURABLY.try_into().unwrap_or_default()
        {
            header.seen = now;
            let _ = self.write_header(&header).and_then(|()| self.sync());
        }
    }

    /// It is lost. Said in a moment, before a write goes on; of one that is durable, durably.
    pub fn lost(&self, why: &str) {
        if let Some(mark) = &self.mark {
            let _ = fs::remove_file(mark);
        }
        if self.header().durable {
            self.write_lost(why);
        }
    }

    /// The same for people, when there is time.
    pub fn write_lost(&self, why: &str) {
        let mut header = self.header();
        if header.broken.is_none() {
            header.broken = Some(why.to_owned());
            // A server that does not read it finds no mark.
            let _ = self.write_header(&header).and_then(|()| self.sync());
        }
    }

    /// Removes it, and the mark.
    pub fn remove(&self) {
        for path in self.mark.iter().chain([&self.path]) {
            let _ = fs::remove_file(path);
        }
    }

    fn write_header(&self, header: &Header) -> io::Result<()> {
        self.file.write_all_at(&header.to_bytes(), 0)
    }

    fn header_cluster(&self) -> u64 {
        self.header().cluster.max(1)
    }
}

/// What a file says, if it is a map.
///
/// # Errors
/// The kernel's, but for a file that is too short.
pub fn read_header(file: &File) -> io::Result<Option<Header>> {
    let mut bytes = vec![0; STATES as usize];
    match file.read_exact_at(&mut bytes, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        other => other.map(|()| Header::from_bytes(&bytes)),
    }
}
