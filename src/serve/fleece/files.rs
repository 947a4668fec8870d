//! The files of a fleece: their names, and how they begin.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::errno::Errno;
use uuid::Uuid;

use super::all::{Fleeces, Refusal, words};
use super::format::{Header, Place, hex};
use super::map::Map;
use crate::disk::real::{RealDisk, RealFile, open_itself};
use crate::disk::{Disk, DiskFile, FsFacts, Stat};
use crate::hold::choose::GUEST_DEADLINE_MAX;
use crate::hold::filter::wire::{FleeceOrder, FleeceTerms};
use crate::range::PowerOfTwo;
use crate::record::ImageId;

/// How the names of map files end.
pub const MAP: &str = ".fleece";

/// How the names of the files with the data end.
pub const DATA: &str = ".fleece-data";

/// What is said of a fleece that a server has not come to begin.
const NOT_BEGUN: &str = "the server ended while it was begun";

/// Opens the data file of a fleece, if it is still that one, and takes its lock.
///
/// # Errors
/// The kernel's; ESTALE where another file has its name, EBUSY where a server has it.
pub fn open_data(header: &Header) -> io::Result<(PathBuf, File)> {
    let (path, file) = open_same(header)?;
    lock(&file)?;
    Ok((path, file))
}

/// Removes the data file of a fleece, and no other: `own` where a server has it open, or else what is still that one, and no server has.
///
/// # Errors
/// The kernel's; one that is gone is none, nor is one that is somebody else's. EBUSY where a server has the very file: one that has given the
/// fleece up, since the disk did not answer, and has yet to be answered. Its map is what finds it afterwards.
pub fn remove_data(header: &Header, own: Option<&RealFile>) -> io::Result<()> {
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESTALE);
    let opened = match own {
        Some(own) => open_own(header, own),
        None if header.data_file == ImageId::default() => open_unnamed(header),
        None => open_same(header).and_then(|(path, file)| {
            is_known(header, &file)?;
            lock(&file)?;
            Ok((path, file))
        }),
    };
    match opened {
        Ok((path, _)) => fs::remove_file(path),
        Err(e) if gone(&e) => Ok(()),
        Err(e) => Err(e),
    }
}

/// The data file, by its number.
fn open_same(header: &Header) -> io::Result<(PathBuf, File)> {
    let (path, file) = open_named(header)?;
    let is = RealFile::from(file.try_clone()?).stat()?.id();
    if is == header.data_file { Ok((path, file)) } else { Err(Errno::ESTALE.into()) }
}

/// Whatever has the name of the data file.
fn open_named(header: &Header) -> io::Result<(PathBuf, File)> {
    let path = header.data_path().ok_or(io::ErrorKind::InvalidData)?;
    let file = open_itself(&path, true)?;
    Ok((path, file))
}

/// A server has it, for as long as the file is open; on a file system without such locks nobody knows.
fn lock(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Errno::EBUSY.into()),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

fn open_own(header: &Header, own: &RealFile) -> io::Result<(PathBuf, File)> {
    let (path, file) = open_named(header)?;
    let (there, own) = (file.metadata()?, own.stat()?);
    match (there.dev(), there.ino()) == (own.dev, own.ino) {
        true => Ok((path, file)),
        false => Err(Errno::ESTALE.into()),
    }
}

/// Whether a file of the number that the map names is that file. Where inodes have no generations (tmpfs, NFS, FUSE) a number says nothing once
/// the file system was mounted anew: the first file of each has the same.
///
/// # Errors
/// ESTALE where not.
pub fn is_known(header: &Header, data: &File) -> io::Result<()> {
    let there = RealFile::from(data.try_clone()?).fs()?.mount();
    let then = header.place.mounts.as_ref().and_then(|all| all.rsplit(' ').next());
    let same = there.is_some() && there.as_deref() == then;
    if header.data_file.generation != 0 || same { Ok(()) } else { Err(Errno::ESTALE.into()) }
}

/// The data file that a server has made and not come to name in the map: nothing was ever written to it.
fn open_unnamed(header: &Header) -> io::Result<(PathBuf, File)> {
    let (path, file) = open_named(header)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.blocks() > 0 || (meta.len() != header.size && meta.len() > 0) {
        return Err(Errno::ESTALE.into());
    }
    // Of another fleece that has just begun a server has it.
    lock(&file).map_err(|_| Errno::ESTALE)?;
    Ok((path, file))
}

impl Fleeces {
    /// The map file, beside the image, where the next server looks for it; and the file with the data.
    pub(super) fn paths(&self, order: &FleeceOrder) -> Refusal<(PathBuf, PathBuf)> {
        let (dir, file) = self.place().map_err(words("name the map of the fleece"))?;
        let named = |dir: &Path, ending: &str| {
            let name = [file.as_bytes(), b".", order.name.as_bytes(), ending.as_bytes()].concat();
            dir.join(OsString::from_vec(name))
        };
        let sidecar = order.sidecar.as_ref().map(|path| PathBuf::from(OsString::from_vec(path.clone())));
        Ok((named(dir, MAP), named(sidecar.as_deref().unwrap_or(dir), DATA)))
    }

    pub(super) fn header(
        &self,
        order: &FleeceOrder,
        stat: &Stat,
        unit: PowerOfTwo,
        data: &Path,
        base: Option<String>,
    ) -> Refusal<Header> {
        Ok(Header {
            name: order.name.clone(),
            id: Uuid::new_v4(),
            generation: 0,
            map_file: ImageId::default(),
            image: stat.id(),
            fs: Uuid::from_bytes(self.facts()?.uuid),
            size: stat.size,
            path: hex(self.image.path.as_os_str().as_bytes()),
            data: hex(data.as_os_str().as_bytes()),
            data_file: ImageId::default(),
            terms: FleeceTerms {
                cluster: unit.get(),
                deadline_us: order.terms.deadline_us.min(GUEST_DEADLINE_MAX.as_micros() as u64),
                ..order.terms.clone()
            },
            t0: Timestamp::UNIX_EPOCH,
            base,
            place: Place { boot: Uuid::nil(), mounts: None },
            seen: Timestamp::now(),
            left: None,
            broken: Some(NOT_BEGUN.into()),
        })
    }

    pub(super) fn facts(&self) -> Refusal<FsFacts> {
        self.image.map.fs().map_err(words("look at the image's file system"))
    }

    /// A file that can share blocks with the image, if its file system can.
    pub(super) fn make_data(&self, path: &Path, size: u64) -> io::Result<File> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let real = RealFile::from(file.try_clone()?);
        lock(&file).inspect_err(|_| drop(fs::remove_file(path)))?;
        // Elsewhere there is no such thing.
        let _ = self.image.map.no_cow().and_then(|on| real.set_no_cow(on));
        let made = file.set_len(size);
        made.inspect_err(|_| drop(fs::remove_file(path))).map(|()| file)
    }

    /// A base: its name, and its file.
    pub(super) fn base(&self, path: &[u8]) -> Refusal<(String, RealFile)> {
        let path = Path::new(OsStr::from_bytes(path));
        let none = || {
            format!(
                "{} is no finished snapshot of this image; 'rclone-img list' of its directory shows which are",
                path.display()
            )
        };
        let (place, name) = path.parent().zip(path.file_name()).ok_or_else(none)?;
        let found = self.image.finder.at(place, name).ok_or_else(none)?;
        if found.record.size != self.image.device.size() {
            return Err(format!("{} has another size than the image", path.display()));
        }
        Ok((name.to_string_lossy().into_owned(), RealFile::from(found.file)))
    }

    /// Where this server has a fleece with this map and this data.
    pub(super) fn here(&self, map: &Map, data: &File) -> Refusal<Place> {
        let cannot = || words("look at the file systems of the fleece");
        let (dir, _) = self.place().map_err(cannot())?;
        let boot = RealDisk::open_dir(dir).map_err(cannot())?.host().boot_id;
        let data = RealFile::from(data.try_clone().map_err(cannot())?);
        let facts = [self.image.map.fs(), map.fs(), data.fs()].into_iter().collect::<io::Result<Vec<_>>>();
        let mounts = facts.map_err(cannot())?.iter().map(FsFacts::mount).collect::<Option<Vec<_>>>();
        Ok(Place { boot: Uuid::from_bytes(boot), mounts: mounts.map(|it| it.join(" ")) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::serve::fleece::format::tests::header;

    #[test]
    fn of_a_start_that_was_killed_its_own_file_is_removed_and_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.img.f.fleece-data");
        let header = Header { data: hex(path.as_os_str().as_bytes()), data_file: ImageId::default(), ..header() };
        remove_data(&header, None).expect("there is none");
        for written in [false, true] {
            let file = File::create(&path).expect("a file");
            file.set_len(header.size).expect("sparse");
            if written {
                file.write_all_at(b"mine", 0).expect("written");
                file.sync_all().expect("on the disk");
            }
            file.lock().expect("the lock of a server of another one");
            remove_data(&header, None).expect("it is not of this one");
            assert!(path.exists());
            file.unlock().expect("that is gone");
            remove_data(&header, None).expect("it is or is not removed");
            assert_eq!(path.exists(), written);
            if !written {
                fs::write(&path, b"").expect("again");
            }
        }
    }

    /// On a file system whose inodes have no generations a number says nothing after a mount; and what a server has is nobody else's to remove.
    #[test]
    fn a_data_file_is_known_by_its_mount_where_its_inode_has_no_generation_and_is_not_taken_from_its_server() {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return eprintln!("skipped: no tmpfs here") };
        let path = dir.path().join("a.img.f.fleece-data");
        let file = File::create(&path).expect("a file");
        let real = RealFile::from(file.try_clone().expect("a descriptor"));
        let (id, mount) = (real.stat().expect("its number").id(), real.fs().expect("facts").mount());
        let Some(mount) = mount.filter(|_| id.generation == 0) else { return eprintln!("skipped: it has generations") };
        let of = |mount: &str| {
            let place = Place { boot: Uuid::nil(), mounts: Some(format!("1 2 {mount}")) };
            Header { data: hex(path.as_os_str().as_bytes()), data_file: id, place, ..header() }
        };
        remove_data(&of("another"), None).expect("it is not that one");
        assert!(path.exists());
        file.lock().expect("a server's lock");
        remove_data(&of("another"), None).expect("it is not that one, whoever has it");
        let busy = remove_data(&of(&mount), None).expect_err("a server has it");
        assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
        assert!(path.exists() && open_data(&of(&mount)).is_err());
        remove_data(&of("another"), Some(&real)).expect("the server's own");
        assert!(!path.exists());
    }
}
