//! An image rolled back to a snapshot: only what differs is cloned, and the inode stays, with its owner, its labels and its links.
//!
//! Nobody can boot a mixture, because there is no image meanwhile:
//!
//! | step, each durable before the next | the image is | interrupted here, `resume` |
//! |---|---|---|
//! | nothing | `IMG` | |
//! | the intent is written, `IMG.restore` | `IMG`, as it was | removes the intent |
//! | the image is renamed | `IMG.restoring` | rolls back, anew |
//! | it is rolled back and synced, step by step | `IMG.restoring`, a mixture | rolls back, anew |
//! | the intent is renamed to `IMG.restored` | `IMG.restoring`, rolled back | renames it back |
//! | the image is renamed back | `IMG`, rolled back | removes the intent |
//! | the intent is removed | `IMG` | |
//!
//! Rolling back twice does what doing it once does, and after the last but two nothing is rolled back any more: a VM may have been started
//! again by then.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::compare::{compare, flush};
use crate::disk::{Access, Disk, DiskFile};
use crate::error::{Error, Kind, Result};
use crate::range::{ByteRange, Geometry};
use crate::record::ImageId;

/// Suffix of the image while it is rolled back.
pub const ASIDE: &str = ".restoring";
/// Suffix of the intent.
pub const INTENT: &str = ".restore";
/// Suffix of the intent when the image is rolled back.
pub const DONE: &str = ".restored";

/// How much is compared, and at most cloned, at a time.
const STEP: u64 = 64 << 20;

/// The longest intent that is read, in bytes.
const INTENT_MAX: usize = 64 << 10;

/// The names of a restore, all in one directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    /// The image.
    pub image: OsString,
    aside: OsString,
    intent: OsString,
    done: OsString,
}

impl Names {
    /// Of an image's name, a single component.
    pub fn new(image: &OsStr) -> Self {
        let with = |suffix: &str| [image, OsStr::new(suffix)].into_iter().collect::<OsString>();
        Self { image: image.to_owned(), aside: with(ASIDE), intent: with(INTENT), done: with(DONE) }
    }

    /// Of an intent's name, in either state.
    pub fn of_intent(name: &OsStr) -> Option<Self> {
        let image = [INTENT, DONE].iter().find_map(|it| name.as_bytes().strip_suffix(it.as_bytes()))?;
        Some(Self::new(OsStr::from_bytes(image))).filter(|it| !it.image.is_empty())
    }

    /// The file that says what is to be done.
    pub fn intent(&self) -> &OsStr {
        &self.intent
    }

    /// What the image is called meanwhile.
    pub fn aside(&self) -> &OsStr {
        &self.aside
    }
}

/// What is to be done; JSON, so that a person can read it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// Which file the image is.
    pub image: ImageId,
    /// The path of the snapshot, as text and all of its bytes.
    pub snapshot: String,
    /// See [`Intent::snapshot`].
    pub snapshot_bytes: Vec<u8>,
    /// Which snapshot it is: the job that made it, nothing of a file that is none.
    pub job: Option<uuid::Uuid>,
    /// The path of what the image was before, if that was kept.
    pub kept: Option<Vec<u8>>,
    /// When it began.
    pub began: Timestamp,
}

impl Intent {
    /// The one that a file has, if it has one.
    ///
    /// # Errors
    /// What pread(2) says.
    pub fn read(file: &impl DiskFile) -> io::Result<Option<Self>> {
        let mut bytes = vec![0; INTENT_MAX];
        let read = file.read_at(0, &mut bytes)?;
        Ok(serde_json::from_slice(&bytes[..read]).ok())
    }
}

/// How a restore stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// There is none.
    Nothing,
    /// It is intended; the image is as it was.
    Intended,
    /// The image is aside, and may be a mixture.
    Begun(Intent),
    /// The image is rolled back; it may not have its name again.
    Done,
    /// A file of the intent's name that is none: somebody else's, or cut off by a crash before anything was done.
    Foreign,
}

/// What is told of a restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// Bytes that were cloned.
    pub cloned: u64,
    /// Bytes that were the same blocks.
    pub equal: u64,
    /// Bytes that could not be cloned, and were copied.
    pub copied: u64,
}

/// A restore that this process has the lock of, for as long as it is there.
pub struct Restore<'a, D: Disk> {
    disk: &'a D,
    names: Names,
    /// With the lock.
    _intent: D::File,
}

/// Looks without a lock.
///
/// # Errors
/// Refused where the names cannot be looked at, or fit no restore.
pub fn look<D: Disk>(disk: &D, names: &Names) -> Result<Found> {
    let there = |name: &OsStr| disk.stat(name).map_err(cannot_look);
    let read = |name: &OsStr| disk.open(name, Access::Read).and_then(|file| Intent::read(&file)).map_err(cannot_look);
    if there(&names.done)?.is_some() {
        return Ok(read(&names.done)?.map_or(Found::Foreign, |_| Found::Done));
    }
    if there(&names.intent)?.is_none() {
        return Ok(Found::Nothing);
    }
    match (read(&names.intent)?, there(&names.aside)?) {
        (None, _) => Ok(Found::Foreign),
        (Some(_), None) => Ok(Found::Intended),
        (Some(intent), Some(aside)) if intent.image.ino == aside.ino => Ok(Found::Begun(intent)),
        _ => {
            let what = format!("'{}' is not the image that '{}' is about", shown(&names.aside), shown(&names.intent));
            Err(Error::new(Kind::Refused, what, "find out who has renamed it; nothing was touched"))
        }
    }
}

/// Whether a process works on it; takes nothing.
///
/// # Errors
/// Refused where that cannot be found out.
pub fn is_live<D: Disk>(disk: &D, names: &Names) -> Result<bool> {
    for name in [&names.intent, &names.done] {
        match disk.open(name, Access::Read) {
            Ok(file) => return file.is_locked().map_err(cannot_look),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(cannot_look(e)),
        }
    }
    Ok(false)
}

impl<'a, D: Disk> Restore<'a, D> {
    /// Says durably what is to be done, and takes the image, which is owned ([`own`]), aside.
    ///
    /// # Errors
    /// Refused where there is one already, or somebody has begun to open the image by its name, who would be let in on a mixture; failed where a step does not succeed: nothing is changed then, or [`Restore::take`] goes on.
    pub fn begin(disk: &'a D, names: &Names, intent: &Intent, image: &D::File) -> Result<Self> {
        let made = disk.create_new(&names.intent);
        let file = made.map_err(|e| match e.raw_os_error() {
            Some(libc::EEXIST) => unfinished(names, Kind::Refused, "was interrupted, or is under way"),
            _ => failed("write what is to be done", e),
        })?;
        let write = || -> io::Result<()> {
            if !file.try_lock()? {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            file.write_at(0, &serde_json::to_vec(intent)?)?;
            file.sync_all()?;
            disk.sync_names()
        };
        write().map_err(|e| failed("write what is to be done", e)).inspect_err(|_| drop(disk.unlink(&names.intent)))?;
        let restore = Self { disk, names: names.clone(), _intent: file };
        let aside = disk.rename(&names.image, &names.aside, false);
        aside.map_err(|e| failed("rename the image", e)).inspect_err(|_| drop(disk.unlink(&names.intent)))?;
        disk.sync_names().map_err(|e| failed("rename the image", e))?;
        // Who has found it by its name waits for the lease, and gets it when the kernel's patience ends (45 s), whatever it is called by then.
        if let Err(error) = still_owned(image, &names.image) {
            let back = disk.rename(&names.aside, &names.image, false).and_then(|()| disk.sync_names());
            back.map_err(|e| failed("give the image its name again", e))?;
            restore.forget_intent()?;
            return Err(Error { kind: Kind::Refused, ..error });
        }
        Ok(restore)
    }

    /// Takes one that was interrupted.
    ///
    /// # Errors
    /// Busy where a process works on it; refused where there is none.
    pub fn take(disk: &'a D, names: &Names) -> Result<Self> {
        let open = |name: &OsStr| disk.open(name, Access::Write);
        let file = open(&names.intent).or_else(|_| open(&names.done)).map_err(cannot_look)?;
        if !file.try_lock().map_err(cannot_look)? {
            return Err(unfinished(names, Kind::Busy, "is under way"));
        }
        Ok(Self { disk, names: names.clone(), _intent: file })
    }

    /// The image, which nobody else has open in any way.
    ///
    /// # Errors
    /// Refused where somebody has.
    pub fn own(&self) -> Result<D::File> {
        let image = self.disk.open(&self.names.aside, Access::Write).map_err(cannot_look)?;
        own(&image, &self.names.aside)?;
        Ok(image)
    }

    /// Gives the image the snapshot's bytes, and makes them durable. `step` is told how far it is, and may end it.
    ///
    /// # Errors
    /// What `step` says; failed where a call fails: it can be done again from the beginning.
    pub fn roll(
        &self,
        image: &D::File,
        snapshot: &D::File,
        mut step: impl FnMut(u64) -> Result<()>,
    ) -> Result<Restored> {
        let cannot = |e| failed("roll the image back", e);
        let size = snapshot.stat().map_err(cannot)?.size;
        let geometry = Geometry { size, block: snapshot.fs().map_err(cannot)?.block };
        if image.stat().map_err(cannot)?.size != size {
            image.set_len(size).map_err(cannot)?;
        }
        let mut restored = Restored::default();
        if size > 0 {
            flush(snapshot, image, geometry)?;
        }
        let mut rest = ByteRange::new(0, size);
        while let Some(left) = rest {
            let (now, later) = left.split(left.start() + STEP);
            let now = now.expect("the beginning of a range");
            rest = later;
            let compared = compare(snapshot, image, now)?;
            restored.equal += compared.equal_bytes;
            for range in compared.differing {
                let Some(clone) = geometry.cover(range) else { continue };
                match image.clone_range(snapshot, clone) {
                    Ok(_) => restored.cloned += range.len(),
                    // What cannot be shared here and now is copied (KERNEL.md).
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EINVAL)) => {
                        copy(snapshot, image, range).map_err(cannot)?;
                        restored.copied += range.len();
                    }
                    Err(e) => return Err(cannot(e)),
                }
            }
            still_owned(image, &self.names.aside)?;
            step(now.end())?;
        }
        image.sync_all().map_err(cannot)?;
        Ok(restored)
    }

    /// The image is rolled back: it gets its name again.
    ///
    /// # Errors
    /// Failed where somebody opens it meanwhile, or where a step does not succeed, and [`Restore::take`] goes on.
    pub fn complete(self, image: &D::File) -> Result<()> {
        still_owned(image, &self.names.aside)?;
        let said = self.disk.rename(&self.names.intent, &self.names.done, false).and_then(|()| self.disk.sync_names());
        said.map_err(|e| failed("say that the image is rolled back", e))?;
        self.put_back()
    }

    /// The last steps of one that is rolled back.
    ///
    /// # Errors
    /// Failed where there is another file of the image's name, or a step does not succeed.
    pub fn put_back(self) -> Result<()> {
        if self.disk.stat(&self.names.aside).map_err(cannot_look)?.is_some() {
            let renamed = self.disk.rename(&self.names.aside, &self.names.image, false);
            renamed.map_err(|e| match e.raw_os_error() {
                Some(libc::EEXIST) => {
                    let what = format!(
                        "the image is rolled back, but a file '{}' appeared meanwhile",
                        shown(&self.names.image)
                    );
                    Error::new(Kind::Failed, what, "move that file away and run 'rclone-img resume' again")
                }
                _ => failed("give the image its name again", e),
            })?;
        }
        self.disk.sync_names().map_err(|e| failed("give the image its name again", e))?;
        self.forget(&self.names.done)
    }

    /// One that was only intended: the image is as it was.
    ///
    /// # Errors
    /// Failed where the intent cannot be removed.
    pub fn forget_intent(self) -> Result<()> {
        self.forget(&self.names.intent)
    }

    fn forget(&self, name: &OsStr) -> Result<()> {
        let gone = self.disk.unlink(name).and_then(|()| self.disk.sync_names());
        gone.map_err(|e| failed("remove what was to be done", e))
    }
}

/// Makes sure that nobody else has an image open, and that nobody can open it.
///
/// # Errors
/// Refused where somebody has.
pub fn own<F: DiskFile>(image: &F, name: &OsStr) -> Result<()> {
    match image.try_own().map_err(cannot_look)? {
        true => Ok(()),
        false => {
            let what = format!("somebody has '{}' open", shown(name));
            let hint =
                "shut the VM down and end what reads the image ('fuser -v' names them), then run the command again";
            Err(Error::new(Kind::Refused, what, hint))
        }
    }
}

/// # Errors
/// Failed where somebody opens what is owned.
fn still_owned<F: DiskFile>(image: &F, name: &OsStr) -> Result<()> {
    match image.owns().map_err(cannot_look)? {
        true => Ok(()),
        false => {
            let what = format!("somebody opens '{}' while it is restored", shown(name));
            let hint =
                "find out who ('fuser -v'), then 'rclone-img resume' goes on; 'rclone-img status' tells how it stands";
            Err(Error::new(Kind::Failed, what, hint))
        }
    }
}

/// Copies a range.
fn copy<F: DiskFile>(from: &F, to: &F, range: ByteRange) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start();
    while at < range.end() {
        let piece = &mut buffer[..(range.end() - at).min(1 << 20) as usize];
        if from.read_at(at, piece)? < piece.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_at(at, piece)?;
        at += piece.len() as u64;
    }
    Ok(())
}

fn unfinished(names: &Names, kind: Kind, how: &str) -> Error {
    let what = format!("a restore of '{}' {how}", shown(&names.image));
    Error::new(kind, what, "'rclone-img status' shows it; 'rclone-img resume' goes on with one that was interrupted")
}

fn shown(name: &OsStr) -> String {
    String::from_utf8_lossy(name.as_bytes()).escape_debug().to_string()
}

fn cannot_look(error: io::Error) -> Error {
    Error::io(
        Kind::Refused,
        "cannot look at the image and what is beside it",
        "check the directory's permissions",
        error,
    )
}

fn failed(what: &str, error: io::Error) -> Error {
    let hint = "mend the cause, then 'rclone-img resume' goes on, if it had begun; 'rclone-img status' tells";
    Error::io(Kind::Failed, format!("cannot {what}"), hint, error)
}
