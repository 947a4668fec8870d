//! From paths to open things: the directory of a snapshot and the names in it, the image.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::fstat;

use crate::cli::words;
use crate::disk::DiskFile;
use crate::disk::real::{RealDisk, RealFile, directory_of};
use crate::engine::names::Names;
use crate::engine::restore;
use crate::error::{Error, Kind, Result};
use crate::hold::{choose, guard};

/// How a qcow2 image begins, of every version.
const QCOW2: [u8; 4] = *b"QFI\xfb";

/// A snapshot's directory, open, and the names that its job uses in it.
pub struct Place {
    /// The directory.
    pub disk: RealDisk,
    /// Its absolute path, without links.
    pub dir: PathBuf,
    /// The names.
    pub names: Names,
}

impl Place {
    /// Where the snapshot is made, and will be.
    pub fn making(&self) -> choose::Making {
        choose::Making { partial: self.dir.join(&self.names.partial), snapshot: self.dir.join(&self.names.dst) }
    }
}

/// The place of a snapshot.
///
/// # Errors
/// Refused where the directory cannot be opened, or the path has no name.
pub fn place(dst: &Path) -> Result<Place> {
    let (dir, name) = split(dst)?;
    let cannot = |e| {
        let what = format!("cannot open the directory {}", words::name(&dir));
        Error::io(Kind::Refused, what, "it must exist already", e)
    };
    let dir = std::fs::canonicalize(&dir).map_err(cannot)?;
    let disk = RealDisk::open_dir(&dir).map_err(cannot)?;
    Ok(Place { disk, dir, names: Names::new(name)? })
}

fn split(dst: &Path) -> Result<(PathBuf, &OsStr)> {
    let Some(name) = dst.file_name() else {
        let what = format!("{} does not name a file", words::name(dst));
        return Err(Error::new(Kind::Refused, what, "name the snapshot's file"));
    };
    Ok((directory_of(dst).to_owned(), name))
}

/// An image, open for reading, with the image's lock.
pub struct Image {
    /// The file, through a descriptor that sends no fanotify events where one can be had: a job must not watch itself.
    pub file: Arc<RealFile>,
    /// Whether it is such a descriptor.
    pub exempt: bool,
    /// The file as it was opened, which holds the job's lock.
    lock: RealFile,
    /// Its path, absolute and without links.
    pub path: PathBuf,
}

impl Image {
    /// As a hold wants it.
    pub fn held(&self) -> choose::Image {
        (Arc::clone(&self.file), self.path.clone())
    }
}

/// Opens an image; follows links.
///
/// # Errors
/// Refused where it cannot be opened or is no regular file.
pub fn open_image(path: &Path) -> Result<Image> {
    let (real, file) = open_regular(path)?;
    // Without the right to it there is no watching either.
    let tried = guard::exempt(&file, &real);
    let exempt = tried.is_ok();
    let used = tried.or_else(|_| RealFile::open_image(&real).map_err(|e| cannot_open(path, e)))?;
    Ok(Image { file: Arc::new(used), exempt, lock: file, path: real })
}

/// Opens a file that is only read, and its path without links. Making an exempt descriptor takes the kernel 20 ms.
///
/// # Errors
/// As [`open_image`].
pub fn open_regular(path: &Path) -> Result<(PathBuf, RealFile)> {
    let refused = |e| cannot_open(path, e);
    let real = std::fs::canonicalize(path).map_err(refused)?;
    // Looked at before it is opened: opening a FIFO or a device has effects of its own.
    let not_regular = || {
        let what = format!("{} is not a regular file", words::name(path));
        Error::new(Kind::Refused, what, "name a raw disk image; block devices cannot be reflinked")
    };
    if !std::fs::metadata(&real).map_err(refused)?.is_file() {
        return Err(not_regular());
    }
    let file = RealFile::open_image(&real).map_err(refused)?;
    if file.stat().map_err(refused)?.regular { Ok((real, file)) } else { Err(not_regular()) }
}

fn cannot_open(path: &Path, error: std::io::Error) -> Error {
    let what = format!("cannot open {}", words::name(path));
    let hint = match error.raw_os_error() {
        Some(libc::ENOENT) if is_being_restored(path) => {
            format!("a restore of it was interrupted: 'rclone-img status {}' shows it", words::shell(path))
        }
        _ => "check the path and its permissions".into(),
    };
    Error::io(Kind::Refused, what, hint, error)
}

/// Whether a restore has this file aside.
fn is_being_restored(path: &Path) -> bool {
    let found = path.file_name().map(restore::Names::new).zip(RealDisk::open_dir(directory_of(path)).ok());
    let found = found.and_then(|(names, disk)| restore::look(&disk, &names).ok());
    found.is_some_and(|found| !matches!(found, restore::Found::Nothing | restore::Found::Foreign))
}

/// What to say of an image that is none of the raw ones: the program takes every file byte by byte.
pub fn warning(image: &impl DiskFile, path: &Path) -> Option<String> {
    let mut magic = [0; QCOW2.len()];
    let read = image.read_at(0, &mut magic).ok()?;
    (read == magic.len() && magic == QCOW2).then(|| {
        let name = words::name(path);
        format!("{name} is a qcow2 image: it is taken byte by byte, without the backing files that it may have ('qemu-img info' lists them)")
    })
}

/// Looks whether a job of ours has an image, and takes nothing: a job that begins now is not to find it taken.
///
/// # Errors
/// As [`lock_image`].
pub fn is_unlocked(image: &Image) -> Result<()> {
    locker(image.lock.as_fd()).map_or(Ok(()), |pid| Err(taken(image, Some(pid))))
}

fn taken(image: &Image, by: Option<u32>) -> Error {
    let who = by.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    let hint = "wait for it (--wait); 'rclone-img status DIR' shows the jobs of the directory that its snapshot is in";
    Error::new(Kind::Busy, format!("another job{who} has the image {}", words::name(&image.path)), hint)
}

/// Takes the one job's lock on an image (flock(2), which QEMU and libvirt do not use).
///
/// # Errors
/// Busy where another job has it.
pub fn lock_image(image: &Image) -> Result<()> {
    let name = words::name(&image.path);
    match image.lock.try_flock() {
        Ok(true) => Ok(()),
        Ok(false) => Err(taken(image, locker(image.lock.as_fd()))),
        Err(e) => Err(Error::io(Kind::Refused, format!("cannot lock the image {name}"), "check the file system", e)),
    }
}

/// Who has the lock that [`lock_image`] takes, if that is one of our jobs. /proc/locks has a file system's own device numbers, which on Btrfs are
/// not those of stat(2), and the first file of every XFS has the same number: who has the image open is looked at as well, where that may be seen.
fn locker(image: BorrowedFd<'_>) -> Option<u32> {
    let image = fstat(image).ok()?;
    let inode = image.st_ino.to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let ours = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "rclone-img\n");
    let has_it = |pid: u32| {
        let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return true };
        let mut open = open.flatten().filter_map(|entry| std::fs::metadata(entry.path()).ok());
        open.any(|it| (it.dev(), it.ino()) == (image.st_dev, image.st_ino))
    };
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else { return None };
        let same = file.rsplit(':').next() == Some(inode.as_str());
        pid.parse().ok().filter(|pid| same && ours(*pid) && has_it(*pid))
    })
}

/// How many snapshots of a job are named in an error about all of them.
const NAMED: usize = 3;

/// Adds the snapshot's name to an error of the engine, which knows no paths.
pub fn on(dst: &Path, error: Error) -> Error {
    on_one_of(&[dst], error)
}

/// The same of a job of several images, at least one: that of the snapshot which the error is about, or those of all.
pub fn on_one_of(all: &[&Path], error: Error) -> Error {
    let about = error.member.and_then(|index| all.get(index..=index)).unwrap_or(all);
    let mut names: Vec<String> = about.iter().take(NAMED).map(words::name).collect();
    if about.len() > NAMED {
        names.push(format!("and {} more", about.len() - NAMED));
    }
    let resume = format!("'rclone-img resume {}'", words::shell(about[0]));
    let status = format!("'rclone-img status {}'", words::shell(about[0]));
    let hint = error.hint.replace("'rclone-img resume'", &resume).replace("'rclone-img status'", &status);
    Error { what: format!("{}: {}", names.join(", "), error.what), hint, ..error }
}

#[cfg(test)]
mod tests {
    use super::{Error, Kind, Path, on_one_of, warning};
    use crate::disk::sim::{IMAGE, Setup, SimDisk};

    #[test]
    fn an_error_of_a_group_names_the_snapshot_that_it_is_about() {
        let check = |count: usize, member: Option<usize>, expect: &str| {
            let all = ["a/m", "b/m", "c/m", "d/m"].map(Path::new);
            let error = Error { member, ..Error::new(Kind::Refused, "no", "'rclone-img resume' it") };
            let told = on_one_of(&all[..count], error);
            assert_eq!(format!("{told}; {}", told.hint), expect);
        };
        check(1, None, "a/m: no; 'rclone-img resume a/m' it");
        check(2, Some(1), "b/m: no; 'rclone-img resume b/m' it");
        check(2, None, "a/m, b/m: no; 'rclone-img resume a/m' it");
        check(4, None, "a/m, b/m, c/m, and 1 more: no; 'rclone-img resume a/m' it");
        check(2, Some(7), "a/m, b/m: no; 'rclone-img resume a/m' it");
    }

    #[test]
    fn qcow2_images_are_told_from_raw_ones() {
        let check = |bytes: &[u8], expect: bool| {
            let disk = SimDisk::new(Setup::new(1));
            disk.add_file(IMAGE, bytes);
            let told = warning(&disk.image().expect("there"), Path::new("a\nb"));
            assert_eq!(told.is_some(), expect, "{bytes:?}");
            assert!(told.is_none_or(|t| t.starts_with("a\\nb is a qcow2 image: ")));
        };
        check(b"QFI\xfb\0\0\0\x03", true);
        check(b"QFI\xfb", true);
        check(b"QFI", false);
        check(b"", false);
        check(b"\0QFI\xfb", false);
    }
}
