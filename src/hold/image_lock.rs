//! QEMU's image locking (`raw_apply_lock_bytes` in QEMU's `block/file-posix.c`), which libvirt's tools and qemu-nbd take part in as well.
//!
//! A shared lock on byte 100 + n says that somebody uses permission n (0 is to read, 1 to write, 3 to resize), one on byte 200 + n that he
//! shares it with nobody: whoever has taken
//! his own looks for those of others that are in the way. The locks belong to the open file and end with it.

use std::io;
use std::os::fd::BorrowedFd;

use crate::range::ByteRange;
use crate::sys::ofd::{self, Lock};

const USED: u64 = 100;
const NOT_SHARED: u64 = 200;

const READING: u64 = 0;
const WRITING: u64 = 1;
const RESIZING: u64 = 3;

/// What an image is shared with nobody for.
const ALONE: &[u64] = &[WRITING, RESIZING];

/// Locked while somebody may write.
pub const WRITES: u64 = USED + WRITING;

/// Locked while somebody lets nobody else write.
pub const WRITES_NOT_SHARED: u64 = NOT_SHARED + WRITING;

/// Takes the locks of one who reads, and `writes` or not, beside whom nobody else writes or resizes the image, as for a VM's disk. False
/// where somebody is in the way; what was taken until then goes with the open file.
///
/// # Errors
/// What fcntl(2) says.
pub fn take(image: BorrowedFd<'_>, writes: bool) -> io::Result<bool> {
    for at in both((USED, uses(writes)), (NOT_SHARED, ALONE)) {
        if !ofd::try_lock(image, byte(at), Lock::Read)? {
            return Ok(false);
        }
    }
    is_free(image, writes)
}

/// Whether [`take`] would find nobody in the way now. It takes nothing, and a descriptor that is open for reading will do.
///
/// # Errors
/// What fcntl(2) says.
pub fn is_free(image: BorrowedFd<'_>, writes: bool) -> io::Result<bool> {
    for at in both((NOT_SHARED, uses(writes)), (USED, ALONE)) {
        if ofd::conflict(image, byte(at), Lock::Write)?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn uses(writes: bool) -> &'static [u64] {
    if writes { &[READING, WRITING] } else { &[READING] }
}

fn both(one: (u64, &'static [u64]), other: (u64, &'static [u64])) -> impl Iterator<Item = u64> {
    [one, other].into_iter().flat_map(|(base, all)| all.iter().map(move |n| base + n))
}

/// One byte of a file.
pub fn byte(offset: u64) -> ByteRange {
    ByteRange::at(offset, 1).expect("one byte is not empty")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn there_is_one_writer_or_several_readers() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = || File::options().read(true).write(true).open(file.path()).expect("the file");
        let take = |file: &File, writes| take(file.as_fd(), writes).expect("locks");
        let (one, two) = (open(), open());
        assert!(take(&one, false) && take(&two, false), "two readers");
        let writer = open();
        let reader = File::open(file.path()).expect("the file");
        let is_free = |writes| is_free(reader.as_fd(), writes).expect("looked");
        assert!(!is_free(true) && is_free(false));
        assert!(!take(&writer, true));
        drop((one, two, writer));
        let (writer, late) = (open(), open());
        assert!(is_free(true) && take(&writer, true) && !is_free(false));
        assert!(!take(&late, true) && !take(&late, false));
        drop((writer, late));
        assert!(take(&open(), true));
    }
}
