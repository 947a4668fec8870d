//! An image rolled back to a snapshot: only what differs is cloned, and the inode stays, with its owner, its labels and its links.
//!
//! Nobody can boot a mixture, because there is no image meanwhile:
//!
//! | step, each durable before the next | the image is | interrupted here, `resume` |
//! |---|---|---|
//! | nothing | `IMG` | |
//! | the snapshot has a second name, `IMG.restore-source` | `IMG`, as it was | the next restore removes it; a clone, which it is where the snapshot can have no second name, a person |
//! | the intent is written, `IMG.restore` | `IMG`, as it was | removes both |
//! | the image is renamed | `IMG.restoring` | rolls back, anew |
//! | the intent says that it has begun | `IMG.restoring`, as it was | rolls back, anew |
//! | it is rolled back and synced, step by step | `IMG.restoring`, a mixture | rolls back, anew |
//! | the intent is renamed to `IMG.restored` | `IMG.restoring`, rolled back | renames it back |
//! | the image is renamed back | `IMG`, rolled back | removes the intent |
//! | the snapshot's second name is removed, and the intent | `IMG` | |
//!
//! Rolling back twice does what doing it once does, and after the last but two nothing is rolled back any more: a VM may have been started
//! again by then.
//!
//! - [`intent`]: what is to be done, and the names.
//! - [`roll`]: the rolling back itself.

pub mod intent;
pub mod roll;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use crate::disk::{Access, Disk, DiskFile};
use crate::error::{Error, Kind, Result};
pub use intent::{Intent, Names, is_meanwhile};
pub use roll::{Owned, Restored};

/// How a restore stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// There is none.
    Nothing,
    /// It is intended; the image is as it was.
    Intended(Intent),
    /// The image is aside, and may be a mixture.
    Begun(Intent),
    /// The same, but it is not where it was put aside: somebody has renamed or removed it.
    Astray(Intent),
    /// The image is rolled back; it may not have its name again.
    Done(Intent),
    /// A file of the intent's name that is none: somebody else's, or cut off by a crash before anything was done.
    Foreign,
}

/// A restore that this process has the lock of, for as long as it is there.
pub struct Restore<'a, D: Disk> {
    disk: &'a D,
    names: Names,
    /// With the lock.
    intent: D::File,
}

/// Looks without a lock.
///
/// # Errors
/// Refused where the names cannot be looked at, or fit no restore.
pub fn look<D: Disk>(disk: &D, names: &Names) -> Result<Found> {
    let there = |name: &OsStr| disk.stat(name).map_err(cannot_look);
    let read = |name: &OsStr| disk.open(name, Access::Read).and_then(|file| Intent::read(&file)).map_err(cannot_look);
    let intended = there(&names.intent)?.is_some();
    if there(&names.done)?.is_some() {
        match read(&names.done)? {
            Some(intent) => return Ok(Found::Done(intent)),
            None if !intended => return Ok(Found::Foreign),
            // Somebody else's, which tells nothing of this one.
            None => {}
        }
    }
    if !intended {
        return Ok(Found::Nothing);
    }
    match (read(&names.intent)?, there(&names.aside)?) {
        (None, _) => Ok(Found::Foreign),
        (Some(intent), None) if intent.has_begun() => Ok(Found::Astray(intent)),
        (Some(intent), None) => Ok(Found::Intended(intent)),
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
    /// Says durably what is to be done, and takes the image, which is owned ([`own`]), aside. What it is rolled back to
    /// has the name [`Names::source`] already.
    ///
    /// # Errors
    /// Refused where there is one already, or somebody has begun to open the image by its name, who would be let in on a mixture; failed
    /// where a step does not succeed: nothing is changed then, or [`Restore::take`] goes on.
    pub fn begin(disk: &'a D, names: &Names, intent: &Intent, image: &D::File) -> Result<Self> {
        if disk.stat(&names.done).map_err(cannot_look)?.is_some() {
            let what = format!("a file of the name '{}' is in the way", shown(&names.done));
            return Err(Error::new(Kind::Refused, what, "move it away"));
        }
        let made = disk.create_new(&names.intent);
        let file = made.map_err(|e| match e.raw_os_error() {
            Some(libc::EEXIST) => unfinished(names, Kind::Refused, "was interrupted, or is under way"),
            _ => failed("write what is to be done", e),
        })?;
        let restore = Self { disk, names: names.clone(), intent: file };
        restore.prepare(intent).inspect_err(|_| drop(restore.undo()))?;
        disk.sync_names().map_err(|e| failed("rename the image", e))?;
        // Who has found it by its name waits for the lease, and gets it when the kernel's patience ends (45 s), whatever it is called by then; one
        // who was counted and has not come to the lease yet, as where accesses are watched, does not even break it. Asking anew finds both.
        if let Err(error) = own(image, &names.image) {
            let back = disk.rename(&names.aside, &names.image, false).and_then(|()| disk.sync_names());
            back.map_err(|e| failed("give the image its name again", e))?;
            restore.undo()?;
            return Err(error);
        }
        Intent::begin(&restore.intent).map_err(|e| failed("write that it has begun", e))?;
        Ok(restore)
    }

    /// All that is before the image has another name.
    fn prepare(&self, intent: &Intent) -> Result<()> {
        let write = || -> io::Result<()> {
            if !self.intent.try_lock()? {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            intent.write(&self.intent)?;
            self.disk.sync_names()
        };
        write().map_err(|e| failed("write what is to be done", e))?;
        let aside = self.disk.rename(&self.names.image, &self.names.aside, false);
        aside.map_err(|e| failed("rename the image", e))
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
        // In a directory that others may write to it may be theirs, and would have us read for them what they may not.
        let stat = file.stat().map_err(cannot_look)?;
        if stat.uid != disk.host().uid || stat.mode & 0o022 != 0 || stat.nlink != 1 {
            let what = format!("'{}' belongs to another user, or others may write to it", shown(&names.intent));
            let hint = "run as the user who began the restore; where that was nobody of yours, move that file away";
            return Err(Error::new(Kind::Refused, what, hint));
        }
        Ok(Self { disk, names: names.clone(), intent: file })
    }

    /// The image, which nobody else has open in any way.
    ///
    /// # Errors
    /// Refused where somebody has.
    pub fn own(&self) -> Result<D::File> {
        let image = self.disk.open(&self.names.aside, Access::Write).map_err(cannot_look)?;
        own(&image, &self.names.aside)?;
        // Whoever was killed may not have come to it, and what follows would outlive the image's other name.
        self.disk.sync_names().map_err(|e| failed("make the image's name last", e))?;
        Intent::begin(&self.intent).map_err(|e| failed("write that it has begun", e))?;
        Ok(image)
    }

    /// The image is rolled back: it gets its name again.
    ///
    /// # Errors
    /// Failed where somebody opens it meanwhile, or where a step does not succeed, and [`Restore::take`] goes on.
    pub fn complete(self, owned: &Owned<'_, D::File>) -> Result<()> {
        self.check(owned)?;
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

    /// The time that [`Owned::new`] is told.
    pub fn now(&self) -> std::time::Duration {
        self.disk.clock()
    }

    pub(super) fn check(&self, owned: &Owned<'_, D::File>) -> Result<()> {
        owned.check(&self.names.aside, self.disk.clock())
    }

    /// One that was only intended: the image is as it was.
    ///
    /// # Errors
    /// Failed where the intent cannot be removed.
    pub fn forget_intent(self) -> Result<()> {
        self.undo()
    }

    fn undo(&self) -> Result<()> {
        self.forget(&self.names.intent)
    }

    /// The snapshot's second name goes first: without an intent it would be anybody's.
    fn forget(&self, name: &OsStr) -> Result<()> {
        let unlink = |name: &OsStr| self.disk.unlink(name).and_then(|()| self.disk.sync_names());
        unlink(&self.names.source).and_then(|()| unlink(name)).map_err(|e| failed("remove what was to be done", e))
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
