//! Undoing a job that has cloned nothing: for `abort`, and where the preparations fail.

use std::ffi::OsStr;
use std::io;

use super::names::Names;
use crate::disk::{Access, Disk, DiskFile};
use crate::error::Error;
use crate::journal::format::Header;

/// Undoes a job that has cloned nothing: a new partial file goes, a snapshot to be refreshed comes back as it was, and the
/// journal goes last.
///
/// # Errors
/// What renaming, syncing or removing said; calling it again goes on.
pub fn put_back<D: Disk>(disk: &D, names: &Names, header: &Header) -> io::Result<()> {
    if header.refreshes {
        restore_snapshot(disk, &names.partial, &names.dst, header)?;
    } else {
        let ours = disk.stat(&names.partial)?.is_some_and(|s| header.partial_ino != 0 && s.ino == header.partial_ino);
        if ours {
            disk.unlink(&names.partial)?;
        }
    }
    disk.sync_names()?;
    disk.unlink(&names.journal)?;
    disk.sync_names()
}

/// What has not begun for this reason is undone; the reason, and where the snapshot is if that fails.
pub(super) fn taken_back<D: Disk>(disk: &D, names: &Names, header: &Header, error: Error) -> Error {
    match put_back(disk, names, header) {
        Err(e) if header.refreshes => Error {
            what: format!("{}; and the snapshot cannot be given its name back: {e}", error.what),
            hint: "it is whole, and called DST.partial: mend the cause, then 'rclone-img abort DST' puts it back"
                .into(),
            ..error
        },
        _ => error,
    }
}

fn restore_snapshot<D: Disk>(disk: &D, partial: &OsStr, dst: &OsStr, header: &Header) -> io::Result<()> {
    let is_it = |name: &OsStr| Ok::<_, io::Error>(disk.stat(name)?.is_some_and(|s| s.ino == header.partial_ino));
    let name = match (is_it(partial)?, is_it(dst)?) {
        (true, _) => partial,
        (_, true) => dst,
        // It was moved away; there is nothing to put back, and whatever stands here is not ours.
        _ => return Ok(()),
    };
    let file = disk.open(name, Access::Write)?;
    let old = Some(header.old_record.as_slice()).filter(|r| !r.is_empty());
    file.set_record(old)?;
    file.set_mode(header.old_mode)?;
    file.sync_all()?;
    if name == partial {
        disk.rename(partial, dst, false)?;
    }
    Ok(())
}
