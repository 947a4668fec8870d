//! A file that nobody writes to while it is read: by a lease, as an image of the hold `frozen`, or because it is a finished snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::disk::real::RealFile;
use crate::disk::{DiskFile, Stat};
use crate::error::{Error, Kind, Result};
use crate::hold::Hold;
use crate::hold::frozen::Frozen;
use crate::record::{Record, Verdict};

/// Such a file.
pub struct Still {
    file: Arc<RealFile>,
    path: PathBuf,
    stat: Stat,
    record: Option<Record>,
    /// None of a snapshot that belongs to somebody else, who alone may take a lease.
    hold: Option<Frozen>,
}

impl Still {
    /// This file, open for reading, of this path. What is dirty of it is written first, so that its map tells all.
    ///
    /// # Errors
    /// Refused where somebody has it open for writing, or where that cannot be found out and it is no finished snapshot.
    pub fn of(file: Arc<RealFile>, path: &Path) -> Result<Self> {
        let cannot = |e| cannot_read(path, e);
        let valid = |stat: &Stat| -> Result<Option<Record>> {
            let record = file.record().map_err(cannot)?.and_then(|bytes| Record::from_bytes(&bytes));
            let fs = file.fs().map_err(cannot)?.uuid;
            Ok(record.filter(|it| it.verdict((stat.id(), fs), stat.size, stat.mtime_ns) == Verdict::Valid))
        };
        let is_snapshot = valid(&file.stat().map_err(cannot)?)?.is_some();
        let mut hold = Frozen::new(Arc::clone(&file), path.to_owned());
        let hold = match hold.prepare() {
            Ok(()) => Some(hold),
            Err(e) if is_snapshot && e.errno() == Some(libc::EACCES) => None,
            Err(e) => {
                let hint =
                    "compare snapshots of it, or shut the VM down: what somebody writes to has no state to be compared";
                return Err(Error { hint: hint.into(), ..e });
            }
        };
        file.flush_for_map().map_err(cannot)?;
        // With the lease: nothing changes any more.
        let stat = file.stat().map_err(cannot)?;
        let record = valid(&stat)?;
        Ok(Self { file, path: path.to_owned(), stat, record, hold })
    }

    /// For its bytes and its map.
    pub fn file(&self) -> &Arc<RealFile> {
        &self.file
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size, in bytes.
    pub fn size(&self) -> u64 {
        self.stat.size
    }

    /// What it was found to be.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Its record, of a finished snapshot that nobody has changed since.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Whether all that was read of it so far is of one state; to be asked now and then, and at the end.
    ///
    /// # Errors
    /// Failed where somebody opens it for writing, or may have changed it.
    pub fn check(&mut self) -> Result<()> {
        self.check_within(Duration::ZERO)
    }

    /// The same; whoever opens it for writing is left waiting as long as that cannot have been for longer than `patience`, which is to be well below
    /// the kernel's (`/proc/sys/fs/lease-break-time`).
    ///
    /// # Errors
    /// As [`Still::check`].
    pub fn check_within(&mut self, patience: Duration) -> Result<()> {
        // Before the look at the file: nobody is let in between, unless he has waited already.
        let waited = self.hold.as_mut().and_then(Frozen::waited);
        let now = self.file.stat().map_err(|e| cannot_read(&self.path, e))?;
        let same = (now.size, now.mtime_ns) == (self.stat.size, self.stat.mtime_ns);
        if same && waited.is_none_or(|waited| waited < patience) {
            return Ok(());
        }
        let what = match same {
            true => format!("somebody opens '{}' for writing", self.path.display()),
            false => format!("'{}' was changed while it was read", self.path.display()),
        };
        Err(Error::new(
            Kind::Failed,
            what,
            "what was said so far does not count; run the command again when it is not in use",
        ))
    }
}

/// A file that could not be read: broken on EIO, else failed.
pub fn cannot_read(path: &Path, error: std::io::Error) -> Error {
    Error::io(
        Kind::Failed,
        format!("cannot read '{}'", path.display()),
        "check the kernel's log and the path's permissions",
        error,
    )
}

/// An error of reading the former of two files; any other one is the latter's.
#[derive(thiserror::Error, Debug)]
#[error(transparent)]
struct OfOld(std::io::Error);

/// Says of an error that it is the former one's of two files.
pub(super) fn of_old(error: std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), OfOld(error))
}

/// One of two files could not be read: the one that the error is of.
pub fn cannot_read_one(old: &Path, new: &Path, error: std::io::Error) -> Error {
    match error.downcast::<OfOld>() {
        Ok(OfOld(error)) => cannot_read(old, error),
        Err(error) => cannot_read(new, error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn whoever_opens_it_for_writing_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.img");
        fs::write(&path, b"what it was").expect("a file");
        let open = || Still::of(Arc::new(RealFile::open_image(&path).expect("open")), &path);
        // A process that another test starts may have it for a moment.
        let mut tried =
            (0..1000).map(|_| open().inspect_err(|_| std::thread::sleep(std::time::Duration::from_millis(5))));
        let mut still = tried.find_map(Result::ok).expect("nobody has it");
        still.check().expect("nobody has it");
        let path_of_writer = path.clone();
        let writer = std::thread::spawn(move || {
            let mut file = fs::File::options().append(true).open(path_of_writer).expect("as soon as the lease is gone");
            file.write_all(b", and more").expect("written");
            file
        });
        let refused = loop {
            match still.check() {
                Ok(()) => std::thread::yield_now(),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind, Kind::Failed);
        drop(still);
        let file = writer.join().expect("no panic");
        assert_eq!(open().err().map(|e| e.kind), Some(Kind::Refused));
        drop(file);
        assert_eq!(open().expect("nobody has it any more").size(), 21);
    }
}
