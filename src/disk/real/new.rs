//! A file that has no name until it is complete: whoever is killed before leaves nothing.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use uuid::Uuid;

use super::{RealDisk, RealFile, component, directory_of};
use crate::disk::{Disk, DiskFile, Stat};

/// Such a file.
pub struct NewFile {
    dir: RealDisk,
    name: OsString,
    file: RealFile,
    /// Where the file system knows no files without a name.
    meanwhile: Option<OsString>,
}

impl NewFile {
    /// An empty file of mode 0600 that will be at this path.
    ///
    /// # Errors
    /// EEXIST where there is something; what open(2) says.
    pub fn at(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let dir = RealDisk::open_dir(directory_of(path))?;
        if dir.stat(&name)?.is_some() {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let (file, meanwhile) = match dir.create_unnamed() {
            Ok(file) => (file, None),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {
                let meanwhile = OsString::from(format!(".rclone-img-{}", Uuid::new_v4().simple()));
                (dir.create_new(&meanwhile)?, Some(meanwhile))
            }
            Err(e) => return Err(e),
        };
        Ok(Self { dir, name, file, meanwhile })
    }

    /// The file.
    pub fn file(&self) -> &RealFile {
        &self.file
    }

    /// The directory that it will be in.
    pub fn dir(&self) -> &RealDisk {
        &self.dir
    }

    /// Writes to it from its beginning on.
    pub fn writer(&self) -> impl io::Write + '_ {
        Appended { file: &self.file, at: 0 }
    }

    /// Makes it durable, and gives it its name; where that fails it has none.
    ///
    /// # Errors
    /// EEXIST where somebody else took the name meanwhile; what fsync(2) and linkat(2) say.
    pub fn keep(mut self) -> io::Result<Kept> {
        self.file.sync_all()?;
        match self.meanwhile.take() {
            Some(meanwhile) => {
                let renamed = self.dir.rename(&meanwhile, &self.name, false);
                renamed.inspect_err(|_| self.meanwhile = Some(meanwhile))?;
            }
            None => self.dir.link(&self.file, &self.name)?,
        }
        let kept = Kept(self);
        match kept.0.dir.sync_names() {
            Ok(()) => Ok(kept),
            Err(e) => {
                kept.take_back();
                Err(e)
            }
        }
    }
}

/// A new file that has its name.
pub struct Kept(NewFile);

impl Kept {
    /// Takes its name away again, unless somebody has put another file there since.
    pub fn take_back(self) {
        let Self(NewFile { dir, name, file, .. }) = &self;
        let own = |it: Stat| file.stat().is_ok_and(|own| (own.dev, own.ino) == (it.dev, it.ino));
        if dir.stat(name).is_ok_and(|there| there.is_some_and(own)) {
            let _ = dir.unlink(name);
        }
    }
}

impl RealDisk {
    /// Gives an open file a name in this directory, another one if it has any.
    ///
    /// # Errors
    /// EEXIST; EXDEV where it was opened through another mount, or is on another file system; EPERM where it is immutable, or belongs to
    /// somebody else; what linkat(2) says.
    pub fn link(&self, file: &RealFile, name: &OsStr) -> io::Result<()> {
        // By the descriptor itself it needs CAP_DAC_READ_SEARCH; by its name in /proc it does not.
        let own = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        Ok(linkat(AT_FDCWD, own.as_str(), &self.dir, component(name)?, AtFlags::AT_SYMLINK_FOLLOW)?)
    }
}

struct Appended<'a> {
    file: &'a RealFile,
    at: u64,
}

impl io::Write for Appended<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(meanwhile) = &self.meanwhile {
            // Nobody else knows it.
            let _ = self.dir.unlink(meanwhile);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_is_there_when_it_is_kept_and_never_in_anothers_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new");
        let names = || fs::read_dir(dir.path()).expect("the directory").count();
        let new = NewFile::at(&path).expect("nothing is there");
        new.file().write_at(0, b"all").expect("written");
        assert!(!path.exists());
        new.keep().expect("kept");
        assert_eq!(fs::read(&path).expect("there"), b"all");
        assert_eq!(NewFile::at(&path).err().and_then(|e| e.raw_os_error()), Some(libc::EEXIST));
        let late = dir.path().join("late");
        let new = NewFile::at(&late).expect("nothing is there");
        fs::write(&late, b"theirs").expect("somebody else");
        assert_eq!(new.keep().err().and_then(|e| e.raw_os_error()), Some(libc::EEXIST));
        // What is taken back is the file, not the name.
        let path = dir.path().join("taken back");
        for theirs in [false, true] {
            let kept = NewFile::at(&path).and_then(NewFile::keep).expect("kept");
            if theirs {
                fs::remove_file(&path).and_then(|()| fs::write(&path, b"theirs")).expect("somebody else");
            }
            kept.take_back();
            assert_eq!(path.exists(), theirs);
        }
        fs::remove_file(&path).expect("there");
        drop(NewFile::at(&dir.path().join("never")).expect("nothing is there"));
        assert_eq!((fs::read(&late).expect("there"), names()), (b"theirs".to_vec(), 2));
    }
}
