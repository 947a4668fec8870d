//! The files of a fleece: their names, and how they begin.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use super::all::{Fleeces, Refusal, words};
use super::format::{Header, hex};
use crate::disk::real::{RealDisk, RealFile, open_itself};
use crate::disk::{Disk, DiskFile, Stat};
use crate::hold::choose::GUEST_DEADLINE_MAX;
use crate::hold::filter::link;
use crate::hold::filter::wire::{FleeceOrder, FleeceTerms};
use crate::range::PowerOfTwo;
use crate::record::ImageId;

/// How the names of map files end.
pub const MAP: &str = ".fleece";

/// How the names of the files with the data end.
pub const DATA: &str = ".fleece-data";

/// What is said of a fleece that a server has not come to begin.
const NOT_BEGUN: &str = "the server ended while it was begun";

/// Opens the data file of a fleece, if it is still that one.
///
/// # Errors
/// The kernel's; ESTALE where another file has its name.
pub fn open_data(header: &Header) -> io::Result<(PathBuf, File)> {
    let path = header.data_path().ok_or(io::ErrorKind::InvalidData)?;
    let file = open_itself(&path, true)?;
    match RealFile::from(file.try_clone()?).stat()?.id() == header.data_file {
        true => Ok((path, file)),
        false => Err(nix::errno::Errno::ESTALE.into()),
    }
}

/// Removes the data file of a fleece, and no other.
///
/// # Errors
/// The kernel's; one that is gone is none.
pub fn remove_data(header: &Header) -> io::Result<()> {
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESTALE);
    let opened = if header.data_file == ImageId::default() { open_unnamed(header) } else { open_data(header) };
    match opened {
        Ok((path, _)) => fs::remove_file(path),
        Err(e) if gone(&e) => Ok(()),
        Err(e) => Err(e),
    }
}

/// The data file that a server has made and not come to name in the map: nothing was ever written to it.
fn open_unnamed(header: &Header) -> io::Result<(PathBuf, File)> {
    let path = header.data_path().ok_or(io::ErrorKind::InvalidData)?;
    let file = open_itself(&path, true)?;
    let meta = file.metadata()?;
    match meta.is_file() && meta.blocks() == 0 && (meta.len() == header.size || meta.len() == 0) {
        true => Ok((path, file)),
        false => Err(nix::errno::Errno::ESTALE.into()),
    }
}

/// Where the mark of a fleece is, of an image of this device and inode.
pub fn mark(dev: u64, ino: u64, name: &str) -> Option<PathBuf> {
    link::beside(dev, ino, &[MAP, "-", name].concat())
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
            boot: Uuid::nil(),
            seen: Timestamp::now(),
            left: None,
            broken: Some(NOT_BEGUN.into()),
        })
    }

    pub(super) fn facts(&self) -> Refusal<crate::disk::FsFacts> {
        self.image.map.fs().map_err(words("look at the image's file system"))
    }

    /// A file that can share blocks with the image, if its file system can.
    pub(super) fn make_data(&self, path: &Path, size: u64) -> io::Result<File> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let real = RealFile::from(file.try_clone()?);
        // Elsewhere there is no such thing.
        let _ = self.image.map.no_cow().and_then(|on| real.set_no_cow(on));
        let made = file.set_len(size);
        made.inspect_err(|_| drop(fs::remove_file(path))).map(|()| file)
    }

    pub(super) fn mark(&self, name: &str) -> Option<PathBuf> {
        let stat = self.image.map.stat().ok()?;
        mark(stat.dev, stat.ino, name)
    }

    /// A base: its name, and its file.
    pub(super) fn base(&self, path: &[u8]) -> Refusal<(String, RealFile)> {
        let path = Path::new(OsStr::from_bytes(path));
        let none = || format!("{} is no finished snapshot of this image", path.display());
        let (place, name) = path.parent().zip(path.file_name()).ok_or_else(none)?;
        let found = self.image.finder.at(place, name).ok_or_else(none)?;
        if found.record.size != self.image.device.size() {
            return Err(format!("{} has another size than the image", path.display()));
        }
        Ok((name.to_string_lossy().into_owned(), RealFile::from(found.file)))
    }

    pub(super) fn boot(&self) -> Refusal<[u8; 16]> {
        let (dir, _) = self.place().map_err(words("look at the image's directory"))?;
        Ok(RealDisk::open_dir(dir).map_err(words("look at the image's directory"))?.host().boot_id)
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
        remove_data(&header).expect("there is none");
        for written in [false, true] {
            let file = File::create(&path).expect("a file");
            file.set_len(header.size).expect("sparse");
            if written {
                file.write_all_at(b"mine", 0).expect("written");
                file.sync_all().expect("on the disk");
            }
            remove_data(&header).expect("it is or is not removed");
            assert_eq!(path.exists(), written);
            if !written {
                fs::write(&path, b"").expect("again");
            }
        }
    }
}
