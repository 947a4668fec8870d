//! What is served: opened, locked as QEMU locks what a VM uses, and looked at.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::args::{Cache, ServeArgs};
use crate::cli::{place, words};
use crate::disk::DiskFile;
use crate::disk::real::RealFile;
use crate::disk::{FsKind, Stat};
use crate::error::{Error, Kind, Result};
use crate::hold::filter::link::{self, Link};
use crate::hold::{holders, image_lock};
use crate::serve::control::Served;
use crate::serve::device::Device;
use crate::serve::direct::Direct;
use crate::serve::disk::{Alarm, Disk};
use crate::serve::filtered::Filtered;
use crate::serve::finished::Finder;
use crate::serve::fleece::all::{self, Fleeces, Tell};
use crate::serve::fleece::takeup::NotTaken;
use crate::serve::gate::Gate;
use crate::serve::orphans::Orphans;
use crate::serve::points::{Open, Points};

/// What is known of an image.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Its size.
    pub bytes: u64,
    /// The file system's block, in bytes.
    pub block: u32,
}

/// An image that can be served.
pub struct Image {
    /// What sessions use. It has the lock.
    pub device: Arc<dyn Device>,
    /// What it is.
    pub facts: Facts,
    /// The same for jobs.
    pub served: Served,
}

/// An image that nobody was in the way of when it was looked at, open for reading: whom it is served to by another server takes whoever has it
/// open for writing for one who writes.
pub struct Free(File);

impl Free {
    /// Looks at an image; follows links.
    ///
    /// # Errors
    /// Refused where it cannot be opened, is no regular file, is somebody else's already, or is a snapshot that would be written to.
    pub fn look(args: &ServeArgs) -> Result<Self> {
        let (path, writes) = (&args.src, !args.read_only);
        let (name, refused) = (words::name(path), refused(path));
        // Looked at before it is opened: opening a FIFO or a device has effects of its own.
        if !std::fs::metadata(path).map_err(&refused)?.is_file() {
            let what = format!("{name} is not a regular file");
            let hint = "name a raw disk image; qemu-nbd and nbdkit serve block devices";
            return Err(Error::new(Kind::Refused, what, hint));
        }
        let file = File::open(path).map_err(&refused)?;
        let real = RealFile::from(file.try_clone().map_err(&refused)?);
        crate::cli::warn(place::warning(&real, path));
        if writes && real.record().map_err(&refused)?.is_some() {
            let what = format!("{name} is a snapshot, and one that is written to is none any more");
            let hint = "serve it with --read-only, or a copy of it (cp --reflink=always)";
            return Err(Error::new(Kind::Refused, what, hint));
        }
        match image_lock::is_free(file.as_fd(), writes).map_err(unlocked(path))? {
            true => Ok(Self(file)),
            false => Err(in_use(&file, path)),
        }
    }

    /// The same, with QEMU's locks.
    fn taken(self, args: &ServeArgs) -> Result<File> {
        let (path, writes) = (&args.src, !args.read_only);
        // Another one may have been started in the same moment, and be faster.
        if !image_lock::is_free(self.0.as_fd(), writes).map_err(unlocked(path))? {
            return Err(in_use(&self.0, path));
        }
        // The file itself, whatever its name is by now.
        let again = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let file = File::options().read(true).write(writes).open(again).map_err(refused(path))?;
        if !image_lock::take(file.as_fd(), writes).map_err(unlocked(path))? {
            return Err(in_use(&file, path));
        }
        if let Some(who) = others(&file) {
            let name = words::name(path);
            let harm = "a guest whose disk others write to is lost, and no snapshot can be made through this server";
            crate::cli::warn(Some(format!("others may write to {name} as well: {who}; {harm}")));
        }
        Ok(file)
    }
}

fn refused(path: &Path) -> impl Fn(io::Error) -> Error {
    let what = format!("cannot open the image {}", words::name(path));
    move |e| Error::io(Kind::Refused, what.clone(), "check the path and its permissions", e)
}

fn unlocked(path: &Path) -> impl Fn(io::Error) -> Error {
    let what = format!("cannot lock {} as QEMU does", words::name(path));
    move |e| Error::io(Kind::Refused, what.clone(), "the file system must support locks", e)
}

fn in_use(file: &File, path: &Path) -> Error {
    let who = others(file).unwrap_or_else(|| "somebody has QEMU's lock on it".into());
    let what = format!("the image {} is in use: {who}", words::name(path));
    let link = file.metadata().ok().and_then(|it| Link::find(it.dev(), it.ino()).ok().flatten());
    let hint = link.map_or("shut the VM down, or end the server that has it".into(), |link| {
        format!("'rclone-img serve' has it already (pid {}): use that one, or stop it first", link.pid)
    });
    Error::new(Kind::Refused, what, hint)
}

/// Opens an image that is free.
///
/// # Errors
/// Refused where it cannot be opened, or somebody was faster.
pub fn open(args: &ServeArgs, free: Free, alarm: Alarm, tell: Tell) -> Result<Image> {
    let (path, writes) = (&args.src, !args.read_only);
    let (name, refused) = (words::name(path), refused(path));
    let file = free.taken(args)?;
    let real = RealFile::from(file.try_clone().map_err(&refused)?);
    let stat = real.stat().map_err(&refused)?;
    let facts = Facts { bytes: stat.size, block: block(&real) };
    let gate = Arc::new(Gate::default());
    let finder = finder(&real, path).map_err(&refused)?;
    let device = device(file, args, &real, Arc::clone(&gate), alarm).map_err(|e| {
        let what = format!("the image {name} cannot be used with this --cache");
        Error::io(Kind::Refused, what, "leave --cache out", e)
    })?;
    let map = Arc::new(real);
    let fleeces = fleeces(&device, &map, &gate, &finder, path, tell).map_err(&refused)?;
    let points = Points::new(Arc::clone(&device), map, finder, opener(args.cache), Arc::clone(&fleeces));
    // Nobody is served yet.
    let orphans = Arc::new(Orphans::adopt(&gate, stat.dev, stat.ino, stat.size));
    let (points, Stat { dev, ino, size, .. }) = (Arc::new(points), stat);
    let served = Served { gate, points, orphans, fleeces, socket: None, dev, ino, size, writes };
    Ok(Image { device, facts, served })
}

/// Those that an earlier server has left; which of them cannot be taken up is told.
fn fleeces(
    device: &Arc<dyn Device>,
    map: &Arc<RealFile>,
    gate: &Arc<Gate>,
    finder: &Finder,
    path: &Path,
    tell: Tell,
) -> io::Result<Arc<Fleeces>> {
    let (device, map, gate) = (Arc::clone(device), Arc::clone(map), Arc::clone(gate));
    // Where there is none, the jobs' socket says so.
    let _ = link::make_directory();
    let image = all::Image { device, map, gate, finder: finder.clone(), path: path.canonicalize()?, tell };
    let (fleeces, left) = Fleeces::adopt(image)?;
    for (path, why) in left {
        let (name, shell) = (words::name(&path), words::shell(&path));
        crate::cli::warn(Some(match why {
            NotTaken::Lost(why) => format!("the fleece {name} is lost: {why}; 'rclone-img abort {shell}' removes it"),
            NotTaken::Others(why) => format!("{name} is not taken up: {why}; 'rclone-img status {shell}' tells more"),
        }));
    }
    Ok(Arc::new(fleeces))
}

/// Finished snapshots are looked for beside the image itself, wherever the path is a link to it.
fn finder(image: &RealFile, path: &Path) -> io::Result<Finder> {
    let path = path.canonicalize()?;
    Finder::new(image, path.parent().unwrap_or(Path::new("/")))
}

/// A snapshot is read as the image is.
fn opener(cache: Cache) -> Open {
    Box::new(move |file| match cache {
        Cache::Writeback => Ok(Arc::new(Disk::new(file)?)),
        Cache::None => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(Arc::new(Direct::new(Disk::new(file)?, Path::new(&path), false)?))
        }
    })
}

fn device(
    file: File,
    args: &ServeArgs,
    image: &RealFile,
    gate: Arc<Gate>,
    alarm: Alarm,
) -> io::Result<Arc<dyn Device>> {
    let mut meanwhile: Option<Arc<dyn Device>> = None;
    let disk: Arc<dyn Device> = match args.cache {
        Cache::Writeback => Arc::new(Disk::with(file, alarm)?),
        Cache::None => {
            if image.fs().is_ok_and(|fs| fs.kind == FsKind::Btrfs) {
                meanwhile = Some(Arc::new(Disk::new(file.try_clone()?)?));
            }
            Arc::new(Direct::new(Disk::with(file, alarm)?, &args.src, !args.read_only)?)
        }
    };
    Ok(Arc::new(Filtered::new(disk, gate, meanwhile)))
}

/// Who else has an image open for writing, as far as can be seen.
fn others(image: &File) -> Option<String> {
    let found = holders::holders(image.as_fd()).ok()?.found;
    (!found.is_empty()).then(|| holders::named(&found))
}

/// The preferred block, as the protocol allows for it.
fn block(image: &RealFile) -> u32 {
    let block = image.fs().ok().and_then(|fs| u32::try_from(fs.block.get()).ok());
    block.unwrap_or(4096).clamp(512, 32 << 20)
}
