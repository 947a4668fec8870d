//! What is served: opened, locked as QEMU locks what a VM uses, and looked at.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use super::args::{Cache, ServeArgs};
use crate::cli::{place, words};
use crate::disk::DiskFile;
use crate::disk::real::RealFile;
use crate::error::{Error, Kind, Result};
use crate::hold::image_lock;
use crate::serve::device::Device;
use crate::serve::direct::Direct;
use crate::serve::disk::Disk;

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
}

/// Opens an image; follows links.
///
/// # Errors
/// Refused where it cannot be opened, is no regular file, is somebody else's already, or is a snapshot that would be written to.
pub fn open(args: &ServeArgs) -> Result<Image> {
    let (path, writes) = (&args.src, !args.read_only);
    let name = words::name(path);
    let refused =
        |e| Error::io(Kind::Refused, format!("cannot open the image {name}"), "check the path and its permissions", e);
    // Looked at before it is opened: opening a FIFO or a device has effects of its own.
    if !std::fs::metadata(path).map_err(refused)?.is_file() {
        let what = format!("{name} is not a regular file");
        return Err(Error::new(Kind::Refused, what, "name a raw disk image; qemu-nbd and nbdkit serve block devices"));
    }
    let file = File::options().read(true).write(writes).open(path).map_err(refused)?;
    let real = RealFile::from(file.try_clone().map_err(refused)?);
    place::warning(&real, path).into_iter().for_each(|text| crate::cli::warn(Some(text)));
    if writes && real.record().map_err(refused)?.is_some() {
        let what = format!("{name} is a snapshot, and one that is written to is none any more");
        let hint = "serve it with --read-only, or a copy of it (cp --reflink=always)";
        return Err(Error::new(Kind::Refused, what, hint));
    }
    let unlocked = |e| {
        Error::io(Kind::Refused, format!("cannot lock {name} as QEMU does"), "the file system must support locks", e)
    };
    if !image_lock::take(file.as_fd(), writes).map_err(unlocked)? {
        let what = format!("the image {name} is in use: a QEMU has it, or a server");
        let hint = "shut the VM down, or end the server; 'rclone-img check' names who has it open";
        return Err(Error::new(Kind::Refused, what, hint));
    }
    let facts = Facts { bytes: real.stat().map_err(refused)?.size, block: block(&real) };
    let device = device(file, path, args).map_err(|e| {
        let what = format!("the image {name} cannot be used with this --cache");
        Error::io(Kind::Refused, what, "leave --cache out", e)
    })?;
    Ok(Image { device, facts })
}

fn device(file: File, path: &Path, args: &ServeArgs) -> io::Result<Arc<dyn Device>> {
    let disk = Disk::new(file)?;
    Ok(match args.cache {
        Cache::Writeback => Arc::new(disk),
        Cache::None => Arc::new(Direct::new(disk, path, !args.read_only)?),
    })
}

/// What the protocol allows for.
fn block(image: &RealFile) -> u32 {
    let block = image.fs().ok().and_then(|fs| u32::try_from(fs.block.get()).ok());
    block.unwrap_or(4096).clamp(512, 32 << 20)
}
