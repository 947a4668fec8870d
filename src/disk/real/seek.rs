//! A block map where the file system has none of its own: addresses are unknown, and holes are holes where lseek(2) can be believed.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};

use crate::extent::{Extent, ExtentFlags};
use crate::range::ByteRange;

/// Whether a file system's holes are believed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Holes {
    /// Its own page cache says where they are.
    True,
    /// Anybody's: a server's may be those of an XFS that skipped data (KERNEL.md, SEEK_DATA), and all is read.
    Unknown,
}

impl Holes {
    /// Of this file's; true of tmpfs alone.
    pub(super) fn of(file: &File) -> Self {
        match fstatfs(file) {
            Ok(facts) if facts.filesystem_type() == TMPFS_MAGIC => Self::True,
            _ => Self::Unknown,
        }
    }

    /// As [`crate::disk::DiskFile::map`], of a file whose position nobody needs.
    pub(super) fn walk(self, file: &File, range: ByteRange, max: usize, into: &mut Vec<Extent>) -> io::Result<()> {
        match self {
            Self::True => walk(file, range, max, into),
            Self::Unknown => {
                let size = ByteRange::new(range.start(), range.end().min(file.metadata()?.len()));
                into.extend(size.map(|logical| Extent { logical, physical: 0, flags: ExtentFlags::UNKNOWN }));
                Ok(())
            }
        }
    }
}

fn walk(file: &File, range: ByteRange, max: usize, into: &mut Vec<Extent>) -> io::Result<()> {
    let mut at = range.start();
    for _ in 0..max {
        let Some(data) = seek(file, at, Whence::SeekData)?.filter(|data| *data < range.end()) else { break };
        // None is left where it was cut off meanwhile.
        let Some(hole) = seek(file, data, Whence::SeekHole)? else { break };
        let Some(logical) = ByteRange::new(data.max(range.start()), hole.min(range.end())) else { break };
        into.push(Extent { logical, physical: 0, flags: ExtentFlags::UNKNOWN });
        at = logical.end();
        if at >= range.end() {
            break;
        }
    }
    Ok(())
}

fn seek(file: &File, from: u64, whence: Whence) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    match lseek(file, from, whence) {
        Ok(at) => Ok(Some(at.cast_unsigned())),
        Err(Errno::ENXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn where_holes_are_not_believed_all_is_data() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("sparse");
        let mut into = Vec::new();
        let range = |from, to| ByteRange::new(from, to).expect("not empty");
        Holes::Unknown.walk(&file, range(4096, 2 << 20), 9, &mut into).expect("told");
        Holes::Unknown.walk(&file, range(1 << 20, 2 << 20), 9, &mut into).expect("told");
        assert_eq!(into.iter().map(|it| it.logical).collect::<Vec<_>>(), [range(4096, 1 << 20)]);
        assert_eq!(into[0].flags, ExtentFlags::UNKNOWN);
    }

    #[test]
    fn data_is_told_and_holes_are_not() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(8 << 20).expect("sparse");
        for at in [1 << 20, 5 << 20] {
            file.write_all_at(&[1; 1 << 20], at).expect("written");
        }
        let map = |from, to, max| {
            let mut into = Vec::new();
            walk(&file, ByteRange::new(from, to).expect("not empty"), max, &mut into).expect("told");
            into.iter().map(|it| (it.logical.start(), it.logical.end())).collect::<Vec<_>>()
        };
        let (first, second) = ((1 << 20, 2 << 20), (5 << 20, 6 << 20));
        assert_eq!(map(0, 8 << 20, 9), [first, second]);
        assert_eq!(map(0, 8 << 20, 1), [first]);
        assert_eq!(map((1 << 20) + 7, (5 << 20) + 1, 9), [((1 << 20) + 7, 2 << 20), (5 << 20, (5 << 20) + 1)]);
        assert_eq!(map(6 << 20, 8 << 20, 9), []);
        assert_eq!(map(8 << 20, 9 << 20, 9), []);
    }
}
