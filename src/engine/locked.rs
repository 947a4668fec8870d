//! The journal's file, with the lock of its snapshot's job.

use super::names::Names;
use super::recover;
use super::start::failed;
use crate::disk::{Access, Disk, DiskFile, Stat};
use crate::error::{Error, Kind, Result};
use crate::journal::file::{self as journal_file, Journal};
use crate::journal::format::{FormatError, Header};
use crate::range::ByteRange;

/// The journal's file, with the job's lock.
pub struct Locked<F> {
    pub(super) file: F,
    pub(super) created: bool,
    /// What it was when it was locked.
    was: Stat,
}

impl<F: DiskFile> Locked<F> {
    /// Gives the lock back, and takes away the file that was made for it.
    pub fn give_up<D: Disk<File = F>>(self, disk: &D, names: &Names, error: Error) -> Error {
        if self.created {
            let _ = disk.unlink(&names.journal);
        }
        error
    }

    /// Whether it is this user's alone: what stands in any other one is not to be acted on.
    pub(super) fn is_own(&self, uid: u32) -> bool {
        recover::is_own(&self.was, uid)
    }

    /// When it was last written to before it was locked, in nanoseconds since 1970.
    pub(super) fn written_ns(&self) -> i128 {
        self.was.mtime_ns
    }

    /// What the journal that is there says.
    ///
    /// # Errors
    /// Failed where it cannot be read.
    pub fn header(&self) -> Result<Header> {
        let loaded = journal_file::read(&self.file).map_err(|e| failed("cannot read the journal", e))?;
        loaded.map(|l| l.header).map_err(unusable)
    }

    /// Writes the journal that is there once more, and syncs it: what it says may not be durable yet.
    ///
    /// # Errors
    /// Failed where it cannot be read or written.
    pub fn made_durable(self) -> Result<Self> {
        let (created, was) = (self.created, self.was);
        let (mut journal, _) = self.adopt()?;
        journal.update(|_| {}).map_err(|e| failed("cannot write the journal", e))?;
        Ok(Self { file: journal.into_file(), created, was })
    }

    /// Goes on with the journal that is there: itself, which keeps the lock, and its claims.
    ///
    /// # Errors
    /// Failed where it cannot be read.
    pub fn adopt(self) -> Result<(Journal<F>, Vec<ByteRange>)> {
        let loaded = journal_file::read(&self.file).map_err(|e| failed("cannot read the journal", e))?;
        let loaded = loaded.map_err(unusable)?;
        Ok((Journal::adopt(self.file, &loaded), loaded.claims))
    }
}

fn unusable(error: FormatError) -> Error {
    Error::new(Kind::Failed, format!("the journal cannot be used: {error}"), error.hint())
}

/// Takes the lock of the snapshot's job; makes the journal's file where there is none.
///
/// # Errors
/// Busy where another job has it; refused where the file cannot be made.
pub fn lock<D: Disk>(disk: &D, names: &Names) -> Result<Locked<D::File>> {
    const TRIES: u32 = 100;
    let name = &names.journal;
    let refused =
        |e| Error::io(Kind::Refused, "cannot make the journal", "check the directory's permissions and space", e);
    for _ in 0..TRIES {
        let (file, created) = match disk.open(name, Access::Write) {
            Ok(file) => (file, false),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => match disk.create_new(name) {
                Ok(file) => (file, true),
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => continue,
                Err(e) => return Err(refused(e)),
            },
            Err(e) => return Err(refused(e)),
        };
        if !file.try_lock().map_err(refused)? {
            return Err(busy());
        }
        let was = file.stat().map_err(refused)?;
        if !was.regular {
            let what = "the journal's name is taken by something that is not a regular file";
            return Err(Error::new(Kind::Refused, what, "move it away, or use another name for the snapshot"));
        }
        // The job that had the lock may have ended and removed the file between the opening and the lock.
        let named = disk.stat(name).map_err(refused)?;
        if named.is_some_and(|n| n.ino == was.ino) {
            return Ok(Locked { file, created, was });
        }
    }
    Err(busy())
}

/// Somebody else has the job's lock.
pub fn busy() -> Error {
    Error::new(
        Kind::Busy,
        "another job is making this snapshot",
        "wait for it (--wait), or look at it with 'rclone-img status'",
    )
}
