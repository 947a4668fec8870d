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
//! | the intent is renamed to `IMG.restored`, or says so itself where another file has that name | `IMG.restoring`, rolled back | renames it back |
//! | the image is renamed back | `IMG`, rolled back | removes the intent |
//! | the snapshot's second name is removed, and the intent | `IMG` | |
//!
//! Rolling back twice does what doing it once does, and after the last but two nothing is rolled back any more: a VM may have been started
//! again by then.
//!
//! - [`intent`]: what is to be done, and the names.
//! - [`look`]: how one stands, and whose word that is.
//! - [`roll`]: the rolling back itself.

pub mod intent;
mod look;
pub mod roll;

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::disk::{Access, Disk, DiskFile, Stat};
use crate::error::{Error, Kind, Result};
use crate::record::ImageId;
pub use intent::{Intent, Names, Toward, is_meanwhile};
pub use look::{Found, is_live, look, refused};
pub use roll::{Owned, Restored};

/// A restore that this process has the lock of, for as long as it is there.
pub struct Restore<'a, D: Disk> {
    disk: &'a D,
    names: Names,
    /// With the lock.
    intent: D::File,
    /// What that is called.
    called: OsString,
    toward: Cell<Toward>,
    /// By [`Disk::clock`], a time before the image was last asked for as one's own.
    asked: Cell<Duration>,
}

impl<'a, D: Disk> Restore<'a, D> {
    /// Says durably what is to be done, and takes the image, which is owned ([`own`]), aside. What it is rolled back to
    /// has the name [`Names::source`] already. `was`: what it was when it was looked at.
    ///
    /// # Errors
    /// Refused where there is one already, or somebody has begun to open the image by its name, who would be let in on a mixture, has
    /// changed it since it was looked at, or has given its name to another file; failed where a step does not succeed: nothing is changed
    /// then, or [`Restore::take`] goes on.
    pub fn begin(disk: &'a D, names: &Names, intent: &Intent, image: &D::File, was: &Stat) -> Result<Self> {
        if disk.stat(&names.done).map_err(cannot_look)?.is_some() {
            let what = format!("a file of the name '{}' is in the way", shown(&names.done));
            return Err(Error::new(Kind::Refused, what, "move it away"));
        }
        let made = disk.create_new(&names.intent);
        let file = made.map_err(|e| match e.raw_os_error() {
            Some(libc::EEXIST) => unfinished(names, Kind::Refused, "was interrupted, or is under way"),
            _ => failed("write what is to be done", e),
        })?;
        let restore = Self::new(disk, names, file, &names.intent);
        restore.lock()?;
        restore.prepare(intent).inspect_err(|_| drop(restore.forget()))?;
        disk.sync_names().map_err(|e| failed("rename the image", e))?;
        // Who has found it by its name waits for the lease, and gets it when the kernel's patience ends (45 s), whatever it is called by then; one
        // who was counted and has not come to the lease yet, as where accesses are watched, does not even break it. Asking anew finds both.
        restore.asked.set(disk.clock());
        if let Err(error) = own(image, &names.image).and_then(|()| restore.is_as_it_was(image, was)) {
            let back = disk.rename(&names.aside, &names.image, false).and_then(|()| disk.sync_names());
            back.map_err(|e| failed("give the image its name again", e))?;
            restore.forget()?;
            return Err(error);
        }
        Intent::begin(&restore.intent, Toward::Snapshot).map_err(|e| failed("write that it has begun", e))?;
        Ok(restore)
    }

    fn new(disk: &'a D, names: &Names, intent: D::File, called: &OsStr) -> Self {
        let (names, called, asked) = (names.clone(), called.to_owned(), Cell::new(disk.clock()));
        Self { disk, names, intent, called, toward: Cell::new(Toward::Snapshot), asked }
    }

    /// Takes the lock of an intent that was just made. Whoever takes an empty one for what a crash has left may be about to remove it.
    fn lock(&self) -> Result<()> {
        let is_ours = self.intent.try_lock().and_then(|locked| Ok(locked && self.is_called_so()?));
        match is_ours.map_err(cannot_look)? {
            true => Ok(()),
            false => Err(unfinished(&self.names, Kind::Busy, "is under way")),
        }
    }

    /// Whether what has just been renamed is the image, and nobody has written to it: the lease may have been kept from somebody for so long, by
    /// what was done since, that he was let in and is gone again.
    fn is_as_it_was(&self, image: &D::File, was: &Stat) -> Result<()> {
        let now = image.stat().map_err(cannot_look)?;
        let named = self.disk.stat(&self.names.aside).map_err(cannot_look)?;
        let is_it = named.is_some_and(|it| (it.dev, it.ino) == (now.dev, now.ino));
        if is_it && (now.size, now.mtime_ns) == (was.size, was.mtime_ns) {
            return Ok(());
        }
        let how = if is_it { "was changed after" } else { "is another file than when" };
        let what = format!("'{}' {how} it was looked at", shown(&self.names.image));
        Err(Error::new(Kind::Refused, what, "run the command again; nothing was touched"))
    }

    fn is_called_so(&self) -> io::Result<bool> {
        let there = self.disk.stat(&self.called)?;
        let ino = self.intent.stat()?.ino;
        Ok(there.is_some_and(|there| there.ino == ino))
    }

    /// All that is before the image has another name.
    fn prepare(&self, intent: &Intent) -> Result<()> {
        let written = intent.write(&self.intent).and_then(|()| self.disk.sync_names());
        written.map_err(|e| failed("write what is to be done", e))?;
        let aside = self.disk.rename(&self.names.image, &self.names.aside, false);
        aside.map_err(|e| match e.raw_os_error() {
            Some(libc::EEXIST) => {
                let what = format!("a file of the name '{}' is in the way", shown(&self.names.aside));
                Error::new(Kind::Refused, what, "find out whose it is, and move it away; the image was not touched")
            }
            _ => failed("rename the image", e),
        })
    }

    /// Takes one that was interrupted, as it was found: by the very file that says so.
    ///
    /// # Errors
    /// Busy where a process works on it, or it does not stand as it was found any more; refused where there is none, or it is another user's.
    pub fn take(disk: &'a D, names: &Names, found: &Found) -> Result<Self> {
        let (_, called) = look::find(disk, names)?;
        let file = disk.open(called, Access::Write).map_err(cannot_look)?;
        if !file.try_lock().map_err(cannot_look)? {
            return Err(unfinished(names, Kind::Busy, "is under way"));
        }
        // In a directory that others may write to it may be theirs, and would have us read for them what they may not.
        if !look::is_ours(disk, &file.stat().map_err(cannot_look)?) {
            return Err(look::anothers(called));
        }
        let restore = Self::new(disk, names, file, called);
        // With the lock: nobody of ours changes it any more.
        if look::find(disk, names)? == (found.clone(), called) && restore.is_called_so().map_err(cannot_look)? {
            return Ok(restore);
        }
        let what = "somebody else has worked on the restore in this moment";
        Err(Error::new(Kind::Busy, what, "look with 'rclone-img status'"))
    }

    /// The image, which nobody else has open in any way, and which becomes something else from now on.
    ///
    /// # Errors
    /// Refused where somebody has.
    pub fn own(&self, toward: Toward) -> Result<D::File> {
        let image = open_image(self.disk, &self.names.aside).map_err(cannot_look)?;
        // A look by the name tells a number alone, which another file may have by now. Not by the subvolume: of one that was rolled back to a snapshot of itself it is another.
        let of = |it: ImageId| (it.ino, it.generation);
        let intended = Intent::read(&self.intent).map_err(cannot_look)?.map(|it| of(it.image));
        if intended != Some(of(image.stat().map_err(cannot_look)?.id())) {
            let what = format!("'{}' is not the image that the restore is of", shown(&self.names.aside));
            return Err(Error::new(Kind::Refused, what, "find out who has put it there; nothing was touched"));
        }
        self.asked.set(self.disk.clock());
        own(&image, &self.names.aside)?;
        // Whoever was killed may not have come to it, and what follows would outlive the image's other name.
        self.disk.sync_names().map_err(|e| failed("make the image's name last", e))?;
        Intent::begin(&self.intent, toward).map_err(|e| failed("write that it has begun", e))?;
        self.toward.set(toward);
        Ok(image)
    }

    /// What the image becomes.
    pub fn toward(&self) -> Toward {
        self.toward.get()
    }

    /// The image that [`Restore::begin`] or [`Restore::own`] has made sure of, which openers can be kept waiting for as long as `patience`: well
    /// below the kernel's.
    pub fn owned<'f>(&self, image: &'f D::File, patience: Duration) -> Owned<'f, D::File> {
        Owned::new(image, patience, self.asked.get())
    }

    /// The image is rolled back: it gets its name again. Who is let in from here on has what the snapshot is.
    ///
    /// # Errors
    /// Failed where somebody may have been let in before, or where a step does not succeed, and [`Restore::take`] goes on.
    pub fn complete(mut self, owned: &Owned<'_, D::File>) -> Result<()> {
        self.check(owned)?;
        let cannot = |e| failed("say that the image is rolled back", e);
        match self.disk.rename(&self.names.intent, &self.names.done, false) {
            Ok(()) => self.called.clone_from(&self.names.done),
            // Somebody else's file has that name, in a directory that others may write to.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                Intent::end(&self.intent, self.toward.get()).map_err(cannot)?;
            }
            Err(e) => return Err(cannot(e)),
        }
        self.disk.sync_names().map_err(cannot)?;
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
        self.forget()
    }

    pub(super) fn check(&self, owned: &Owned<'_, D::File>) -> Result<()> {
        owned.check(&self.names.aside, self.disk.clock())
    }

    /// One that was only intended, or not even that: the image is as it was. The snapshot's second name goes first: without an intent it would
    /// be anybody's. What somebody has put in its place, and has no other name, stays.
    ///
    /// # Errors
    /// Failed where the intent cannot be removed.
    pub fn forget(&self) -> Result<()> {
        let unlink = |name: &OsStr| self.disk.unlink(name).and_then(|()| self.disk.sync_names());
        let forgotten = || -> io::Result<()> {
            let source = Intent::read(&self.intent)?.map(|it| it.source.ino);
            let there = self.disk.stat(&self.names.source)?;
            if there.is_some_and(|it| it.nlink > 1 || source == Some(it.ino)) {
                unlink(&self.names.source)?;
            }
            unlink(&self.called)
        };
        forgotten().map_err(|e| failed("remove what was to be done", e))
    }
}

/// Opens an image to be rolled back. Where its mode keeps its owner from writing it is as it was afterwards.
///
/// # Errors
/// What [`Disk::open`] says.
pub fn open_image<D: Disk>(disk: &D, name: &OsStr) -> io::Result<D::File> {
    let before = disk.stat(name)?;
    let image = disk.open(name, Access::Write)?;
    let now = image.stat()?;
    if let Some(before) = before.filter(|before| before.ino == now.ino && before.mode != now.mode) {
        image.set_mode(before.mode)?;
    }
    Ok(image)
}

/// Whether nobody else has a file open, nor can open it from now on.
pub(super) fn owned<F: DiskFile>(file: &F) -> io::Result<bool> {
    if !file.try_own()? {
        return Ok(false);
    }
    if file.owns()? {
        return Ok(true);
    }
    // One who would not wait has broken the lease and is gone; the kernel would take it away all the same, 45 s after him. Only one that was
    // given back is whole when it is taken again, and in between everybody is let in.
    file.disown()?;
    Ok(file.try_own()? && file.owns()?)
}

/// Makes sure that nobody else has an image open, and that nobody can open it. Not for one that is rolled back already: see below.
///
/// # Errors
/// Refused where somebody has.
pub fn own<F: DiskFile>(image: &F, name: &OsStr) -> Result<()> {
    match owned(image).map_err(cannot_look)? {
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

/// What can be done where a step did not succeed.
const RESUME: &str = "mend the cause, then 'rclone-img resume' goes on, if it had begun; 'rclone-img status' tells";

fn failed(what: &str, error: io::Error) -> Error {
    Error::io(Kind::Failed, format!("cannot {what}"), RESUME, error)
}
