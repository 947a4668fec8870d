//! Whether a job can be done here at all: the space that is left to the guests, and one block cloned for a trial.

use bytesize::ByteSize;

use super::job::{Job, MinFree, Now, cannot_look};
use crate::disk::{Disk, DiskFile, Space};
use crate::error::{Error, Kind, Result};
use crate::range::{ByteRange, Geometry};

/// Whether the file system has the space that is to be left to the guests.
///
/// # Errors
/// Refused, with the figures.
pub fn enough_space<D: Disk>(job: &Job<'_, D>) -> Result<()> {
    let space = job.disk.space().map_err(|e| cannot_look("the free space", e))?;
    leaves(space, job.options.min_free, 0).map(drop)
}

/// The same of the file system that a directory is on.
///
/// # Errors
/// Refused, with the figures.
pub fn is_enough(disk: &impl Disk, min_free: MinFree) -> Result<()> {
    for_more(disk, min_free, 0).map(drop)
}

/// How many bytes more may be taken of the file system that a directory is on; so many are needed at least.
///
/// # Errors
/// Refused where they are not there, with the figures.
pub fn for_more(disk: &impl Disk, min_free: MinFree, needed: u64) -> Result<u64> {
    let space = disk.space().map_err(|e| cannot_look("the free space", e))?;
    leaves(space, min_free, needed)
}

/// How much there is beyond what is to be left of this.
fn leaves(space: Space, min_free: MinFree, needed: u64) -> Result<u64> {
    let part = match min_free {
        MinFree::Bytes(bytes) => bytes as f64 / space.total.max(1) as f64,
        MinFree::Percent(percent) => percent / 100.0,
    };
    let enough = |(total, free): (u64, u64), needed: u64, of: &str, hint: &str| {
        let wanted = (total as f64 * part) as u64;
        let more = free.checked_sub(wanted).filter(|more| *more >= needed);
        if let Some(more) = more {
            return Ok(more);
        }
        let (free, wanted) = (ByteSize(free), ByteSize(wanted));
        let needed = if needed > 0 { format!("; {} more are needed", ByteSize(needed)) } else { String::new() };
        let what = format!(
            "the file system has {free} {of}free, and {wanted} are to be left to the guests (--min-free){needed}"
        );
        Err(Error::new(Kind::Refused, what, hint))
    };
    let more = enough(
        (space.total, space.free),
        needed,
        "",
        "free space, or delete old snapshots first: 'rclone-img list DIR' shows what each would free, 'rclone-img rotate --prune-only' removes by rules",
    )?;
    // The same part of it: a guest's write needs both.
    let hint = "delete old snapshots, or give metadata more room: 'btrfs balance start -dusage=50 MOUNTPOINT'";
    let metadata = space.metadata.map(|metadata| enough(metadata, 0, "for metadata ", hint)).transpose()?;
    // The smallest pieces take less metadata than a quarter of what they are.
    Ok(metadata.map_or(more, |metadata| more.min(metadata.saturating_mul(4).max(needed))))
}

/// Clones the first block into a file without a name: what the file system refuses it refuses here, with nothing left.
pub(super) fn try_cloning<D: Disk>(job: &Job<'_, D>, now: &Now) -> Result<()> {
    can_clone(job.disk, &*job.image, Geometry { size: now.image.size, block: now.fs.block })
}

/// The same of an image, of which a snapshot in this directory may be asked for some time.
///
/// # Errors
/// Refused, with what to do about it.
pub fn can_clone<D: Disk>(disk: &D, image: &D::File, geometry: Geometry) -> Result<()> {
    let refuse = |what: &str, hint: &str, e| Err(Error::io(Kind::Refused, what.to_owned(), hint, e));
    let probe = match disk.create_unnamed() {
        Ok(probe) => probe,
        Err(e) => return refuse("cannot make a file in the snapshot's directory", hint_for(&e), e),
    };
    let first = ByteRange::new(0, geometry.block.get()).and_then(|block| geometry.cover(block));
    let Some(first) = first else { return Ok(()) };
    let tried = image
        .no_cow()
        .and_then(|on| probe.set_no_cow(on))
        .and_then(|()| probe.set_len(geometry.size))
        .and_then(|()| probe.clone_range(image, first).map(|_| ()));
    match tried {
        Err(e) if e.raw_os_error() == Some(libc::EFBIG) => {
            refuse("the image is larger than a file may be here (ulimit -f)", "raise the limit", e)
        }
        // These the window meets again, and knows what to do about them.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ENOSPC)) => Ok(()),
        Err(e) => refuse("the first block of the image cannot be cloned to the snapshot's directory", hint_for(&e), e),
        Ok(()) => Ok(()),
    }
}

fn hint_for(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EXDEV) => "a reflink cannot leave its file system: put the snapshot where the image is",
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EISDIR) => {
            "the file system has no reflinks: use XFS (made with reflink=1) or Btrfs"
        }
        Some(libc::EROFS) => "the file system is mounted read-only",
        Some(libc::EACCES | libc::EPERM) => "the directory must be writable for you and not immutable (lsattr -d)",
        Some(libc::ETXTBSY) => "an active swap file cannot be cloned: swapoff it",
        Some(libc::ENOSPC | libc::EDQUOT) => "free space, or raise the quota",
        Some(libc::EINVAL) => {
            "image and directory differ in DAX or realtime, or the image has not the file system's block size"
        }
        _ => "check the directory and the kernel's log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_left_their_part_of_the_space_and_of_what_is_for_metadata() {
        let space = |free, metadata| Space { total: 1000 << 30, free, metadata };
        let refused = |space, min_free| leaves(space, min_free, 0).err().map(|e| e.what).unwrap_or_default();
        let percent = MinFree::Percent(5.0);
        assert_eq!(refused(space(50 << 30, None), percent), "");
        assert!(refused(space((50 << 30) - 1, None), percent).contains("50.0 GiB are to be left"));
        assert!(refused(space(1 << 30, None), MinFree::Bytes(2 << 30)).contains("has 1.0 GiB free, and 2.0 GiB"));
        assert_eq!(refused(space(2 << 30, None), MinFree::Bytes(2 << 30)), "");
        assert_eq!(refused(space(50 << 30, Some((10 << 30, 512 << 20))), percent), "");
        let short = refused(space(50 << 30, Some((10 << 30, 511 << 20))), percent);
        assert!(short.contains("has 511.0 MiB for metadata free, and 512.0 MiB"), "{short}");
        let short = refused(space(50 << 30, Some((10 << 30, 10 << 20))), MinFree::Bytes(2 << 30));
        assert!(short.contains("has 10.0 MiB for metadata free, and 20.5 MiB"), "{short}");
        assert_eq!(refused(space(0, Some((10 << 30, 0))), MinFree::Bytes(0)), "");
    }
}
