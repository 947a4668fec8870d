//! Arming: whether a descriptor of an image can be watched is decided when it is opened, by somebody's interest in the
//! file.
//!
//! [`Arming`] shows that interest and wants nothing for it: its marks are there to be ignored, no event is ever
//! delivered, and no access waits for anybody. What was opened under them stays armed for as long as it is open, also
//! when the marks and whoever set them are gone. A mark does not keep a deleted file's space, and keeps no file system
//! from being unmounted.
//!
//! Marks stand on the file, the directory or the file system itself, not on names and not on mounts: they hold in every
//! mount namespace. A directory's mark is for files that are opened by a name in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::sys::fanotify::{Group, Mark};

/// How far arming reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reach {
    /// The file, or the files in the directory.
    Path,
    /// All files on the file system.
    FileSystem,
}

/// What is armed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// One file.
    File,
    /// The files in a directory, those that it has and those that it will have.
    Directory,
    /// The files on a file system, likewise.
    FileSystem,
}

/// What stands armed under a path: another file of the same name is another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Armed {
    /// What it is.
    pub what: What,
    /// Its device number (`st_dev`) and its inode number.
    pub identity: (u64, u64),
}

/// Why a path is not armed.
#[derive(Debug)]
pub enum Unarmed {
    /// It is not there now; it may come.
    Missing(io::Error),
    /// What is there cannot be armed.
    Refused(Error),
}

/// Marks, for as long as this lives.
#[derive(Debug)]
pub struct Arming(Group);

impl Arming {
    /// No marks yet.
    ///
    /// # Errors
    /// Refused without CAP_SYS_ADMIN, or on a kernel without pre-content events (before Linux 6.14).
    pub fn new() -> Result<Self> {
        // Of a group of its own, so that the root directory is not armed. A kernel that does not know the event says so
        // before it looks at the file.
        let probe = Group::pre_content().map_err(cannot)?;
        match place(Path::new("/")).and_then(|root| probe.mark_place(root.as_fd(), Mark::ArmDirectory)) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Err(cannot(e)),
            // Whatever else is wrong with the root directory, nobody has asked for it.
            _ => {}
        }
        Group::pre_content().map(Self).map_err(cannot)
    }

    /// Arms what a path leads to, links followed. What is armed already stays so, at no cost.
    ///
    /// # Errors
    /// Why not; what was armed under this path before stays armed.
    pub fn arm(&self, path: &Path, reach: Reach) -> std::result::Result<Armed, Unarmed> {
        let name = path.display();
        let found = place(path).and_then(|place| Ok((place.metadata()?, place)));
        let (meta, place) = found.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unarmed::Missing(e),
            _ => refused(format!("cannot look at '{name}'"), "check the path and its permissions", e),
        })?;
        let (what, mark) = match reach {
            _ if !meta.is_file() && !meta.is_dir() => {
                let what = format!("'{name}' is neither a regular file nor a directory");
                let hint =
                    "name an image, a directory of images, or with --file-system the place where they are mounted";
                return Err(Unarmed::Refused(Error::new(Kind::Refused, what, hint)));
            }
            Reach::FileSystem => (What::FileSystem, Mark::ArmFileSystem),
            Reach::Path if meta.is_dir() => (What::Directory, Mark::ArmDirectory),
            Reach::Path => (What::File, Mark::ArmFile),
        };
        self.0.mark_place(place.as_fd(), mark).map_err(|e| match e.raw_os_error() {
            Some(libc::EOPNOTSUPP) => refused(
                format!("the file system of '{name}' does not tell of accesses"),
                "XFS and Btrfs do; see that it is mounted",
                e,
            ),
            _ => refused(format!("cannot arm '{name}'"), "see whether CAP_DAC_READ_SEARCH or memory is wanting", e),
        })?;
        Ok(Armed { what, identity: (meta.dev(), meta.ino()) })
    }
}

/// The place that a path leads to, without opening what is there: that would break leases and wait for FIFOs.
fn place(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
}

fn refused(what: String, hint: &str, error: io::Error) -> Unarmed {
    Unarmed::Refused(Error::io(Kind::Refused, what, hint, error))
}

/// What it means that there is no group, or that the kernel does not know its event.
fn cannot(error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EPERM) => Error::io(
            Kind::Refused,
            "arming images needs CAP_SYS_ADMIN",
            "run it as root on the host itself: a container's root has no such right there",
            error,
        ),
        Some(libc::EINVAL | libc::ENOSYS) => Error::io(
            Kind::Refused,
            "this kernel has no fanotify pre-content events",
            "Linux 6.14 has them, with CONFIG_FANOTIFY_ACCESS_PERMISSIONS; images that nobody writes to need none",
            error,
        ),
        _ => Error::io(Kind::Failed, "cannot make a fanotify group", "see ulimit -n and the memory", error),
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, cannot, io};

    #[test]
    fn what_the_kernel_says_becomes_what_to_do() {
        let check = |errno: i32, kind: Kind, needle: &str| {
            let error = cannot(io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind, kind);
            assert!(format!("{error} {}", error.hint).contains(needle), "{error}; {}", error.hint);
        };
        check(libc::EPERM, Kind::Refused, "CAP_SYS_ADMIN");
        check(libc::EINVAL, Kind::Refused, "Linux 6.14");
        check(libc::ENOSYS, Kind::Refused, "Linux 6.14");
        check(libc::EMFILE, Kind::Failed, "ulimit -n");
    }
}
