//! The images of a `snapshot`, and where their snapshots are to be: nothing is named twice, exchanged, or in another one's way.

use std::path::{Path, PathBuf};

use super::args::SnapshotArgs;
use super::place::{self, Image, Place};
use super::words;
use crate::disk::real::{RealDisk, directory_of};
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Kind, Result, each};
use crate::record::Verdict;
use crate::rotate::found::Snapshot;

/// Where the snapshots are to be.
///
/// # Errors
/// Refused where a directory cannot be opened, and where two snapshots would have one name.
pub(super) fn places(args: &SnapshotArgs) -> Result<Vec<Place>> {
    let places = each(&args.pairs, |(_, dst)| place::place(dst))?;
    let path = |place: &Place| place.dir.join(&place.names.dst);
    match twice(&places, path) {
        None => Ok(places),
        Some(path) => {
            let what = format!("{} is named twice as a snapshot", words::name(&path));
            Err(Error::new(Kind::Refused, what, "give each image a snapshot of its own"))
        }
    }
}

/// The images, each locked.
///
/// # Errors
/// As [`look_at_images`].
pub(super) fn open_images(args: &SnapshotArgs, places: &[Place]) -> Result<Vec<Image>> {
    let images = opened(args, places)?;
    each(&images, place::lock_image)?;
    Ok(images)
}

/// The images, none locked: a job that begins now is not to find one taken by who only looks.
///
/// # Errors
/// Refused where one cannot be opened, is named twice, or has a name that a job uses for the snapshot of another; busy where another
/// job has one.
pub(super) fn look_at_images(args: &SnapshotArgs, places: &[Place]) -> Result<Vec<Image>> {
    let images = opened(args, places)?;
    each(&images, place::is_unlocked)?;
    Ok(images)
}

fn opened(args: &SnapshotArgs, places: &[Place]) -> Result<Vec<Image>> {
    args.pairs.iter().zip(places).try_for_each(|((src, dst), place)| not_exchanged(src, dst, place, args.force))?;
    let images = each(&args.pairs, |(src, _)| place::open_image(src))?;
    if let Some(path) = twice(&images, |image| image.path.clone()) {
        let what = format!("the image {} is named twice", words::name(&path));
        return Err(Error::new(Kind::Refused, what, "name each image once"));
    }
    if let Some(image) = in_the_way(&images, places)? {
        let what = format!(
            "the image {} is where the job would put a snapshot, or that one's partial file or journal",
            words::name(&image.path)
        );
        return Err(Error::new(Kind::Refused, what, "use another name for the snapshot"));
    }
    Ok(images)
}

/// A snapshot that comes first, and a file of another kind that is there already, were exchanged, whatever is to be forced.
fn not_exchanged(src: &Path, dst: &Path, place: &Place, force: bool) -> Result<()> {
    let is_there = matches!(place.disk.stat(&place.names.dst), Ok(Some(_)));
    // A record alone makes no snapshot: an image that began as a copy of one has it as well.
    let is_snapshot = |(it, _): &(Snapshot, _)| it.verdict == Verdict::Valid;
    if !is_there || Snapshot::at(&place.disk, &place.names.dst).is_some_and(|it| is_snapshot(&it)) {
        return Ok(());
    }
    // What cannot be looked at is told when it is opened; what links lead to is what would be.
    let Ok(real) = src.canonicalize() else { return Ok(()) };
    let (Some(name), Ok(disk)) = (real.file_name(), RealDisk::open_dir(directory_of(&real))) else { return Ok(()) };
    let Some((snapshot, _)) = Snapshot::at(&disk, name).filter(is_snapshot) else {
        return Ok(());
    };
    // A clone of it that is laid out anew may be meant; its own image is not.
    let its_image =
        place.disk.stat(&place.names.dst).ok().flatten().is_some_and(|it| it.ino == snapshot.record.image.ino);
    if force && !its_image {
        return Ok(());
    }
    let what = format!("{} is a finished snapshot, and {} is there and is none", words::name(src), words::name(dst));
    let hint = format!(
        "the image comes first: rclone-img snapshot IMG {}; or choose a new name{}",
        words::shell(src),
        if its_image { "" } else { ", or --force" }
    );
    Err(Error::new(Kind::Refused, what, hint))
}

/// An image that a job would replace or remove, whatever it was told to replace.
fn in_the_way<'a>(images: &'a [Image], places: &[Place]) -> Result<Option<&'a Image>> {
    let cannot =
        |e| Error::io(Kind::Refused, "cannot look at the image or at the snapshot's name", "check the paths", e);
    for place in places {
        for name in [&place.names.dst, &place.names.partial, &place.names.journal] {
            let Some(there) = place.disk.stat(name).map_err(cannot)? else { continue };
            for image in images {
                let stat = image.file.stat().map_err(cannot)?;
                if (stat.dev, stat.ino) == (there.dev, there.ino) {
                    return Ok(Some(image));
                }
            }
        }
    }
    Ok(None)
}

fn twice<T>(all: &[T], path: impl Fn(&T) -> PathBuf) -> Option<PathBuf> {
    let mut paths: Vec<PathBuf> = all.iter().map(path).collect();
    paths.sort();
    paths.windows(2).find(|two| two[0] == two[1]).map(|two| two[0].clone())
}
