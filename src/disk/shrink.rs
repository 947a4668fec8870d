//! A file is taken apart in steps: freeing a million extents at once keeps the file system's log busy for seconds, and guests' writes wait for
//! the log.

use std::io;
use std::time::Duration;

use super::{Disk, DiskFile};

/// What a step should take; a pause half as long follows.
const STEP: Duration = Duration::from_millis(20);

/// The first step, in bytes, and the bounds of all.
const FIRST: u64 = 64 << 20;
const LEAST: u64 = 1 << 20;
const MOST: u64 = 1 << 30;

/// Takes everything from a file of this size, from its end on, for as long as it is `wanted`.
///
/// # Errors
/// What ftruncate(2) says: on a full file system what takes a file apart may have no room.
pub fn to_nothing<D: Disk>(disk: &D, file: &D::File, mut size: u64, wanted: &dyn Fn() -> bool) -> io::Result<()> {
    let mut step = FIRST;
    while size > 0 && wanted() {
        size = size.saturating_sub(step);
        let began = disk.clock();
        file.set_len(size)?;
        let took = disk.clock().saturating_sub(began);
        step = if took > STEP { step / 2 } else { step * 2 }.clamp(LEAST, MOST);
        disk.wait((took / 2).min(STEP * 10));
    }
    Ok(())
}
