//! The space that what is received may take: asked for before it is taken.

use std::io;
use std::os::fd::AsFd;

use nix::unistd::syncfs;

use super::receive::cannot;
use crate::disk::real::{NewFile, RealDisk};
use crate::disk::{DiskFile, FsKind};
use crate::error::Result;
use crate::range::ByteRange;

/// The most that is taken between two looks: other programs take of the same space.
const LOOK: u64 = 64 << 20;

/// What a byte takes that is written to a shared block, for a while at least: on XFS the extent size hint of its copy-on-write, which is so many
/// blocks where a file has none of its own (XFS_DEFAULT_COWEXTSZ_HINT).
const HINT: u64 = 32;
const LEAST: u64 = 128 << 10;

/// Asked how much more of a directory's file system may be taken, of which so much is needed now: refuses where it is not there.
pub type Ask<'a> = dyn FnMut(&RealDisk, u64) -> Result<u64> + 'a;

/// What may still be taken by a file whose ranges are written in ascending order.
pub struct Room<'a> {
    new: &'a NewFile,
    ask: &'a mut Ask<'a>,
    kind: FsKind,
    unit: u64,
    /// Of what the file system had when it was last asked with all written that was taken.
    left: u64,
    /// What was taken since the last look.
    taken: u64,
    /// What lies before is counted.
    counted: u64,
}

impl<'a> Room<'a> {
    /// Of this file; there is room as yet, or it is refused.
    ///
    /// # Errors
    /// Refused where there is no room; what fstatfs(2) says.
    pub fn new(new: &'a NewFile, ask: &'a mut Ask<'a>) -> Result<Self> {
        let fs = new.file().fs().map_err(cannot)?;
        let unit = match fs.kind {
            FsKind::Btrfs => fs.block.get(),
            _ => LEAST.max(HINT * fs.block.get()).max(new.file().cow_extent_size().map_err(cannot)?.into()),
        };
        let left = ask(new.dir(), 0)?;
        Ok(Self { new, ask, kind: fs.kind, unit, left, taken: 0, counted: 0 })
    }

    /// Asks without anything that is to be written.
    ///
    /// # Errors
    /// Refused where there is no room.
    pub fn look(&mut self) -> Result<()> {
        let now = (self.ask)(self.new.dir(), 0)?;
        self.left = self.left.min(now);
        Ok(())
    }

    /// Before a range is written.
    ///
    /// # Errors
    /// Refused where there is no room for it; what writing to the disk says.
    pub fn for_data(&mut self, range: ByteRange) -> Result<()> {
        let needed = self.units(range);
        if needed > self.left {
            // What was counted and not taken, and what was taken and not written, only the file system can tell.
            self.write()?;
            self.left = (self.ask)(self.new.dir(), needed)?;
            self.taken = 0;
        } else if self.taken + needed > LOOK {
            self.left = self.left.min((self.ask)(self.new.dir(), needed)?);
            self.taken = 0;
        }
        self.left -= needed;
        self.taken += needed;
        Ok(())
    }

    /// Before a range is punched out: what it has of blocks at its two ends is written.
    ///
    /// # Errors
    /// As for data.
    pub fn for_zeros(&mut self, range: ByteRange) -> Result<()> {
        for end in [range.start(), range.end() - 1] {
            ByteRange::at(end, 1).map_or(Ok(()), |byte| self.for_data(byte))?;
        }
        Ok(())
    }

    /// Has the file system know what was taken: Btrfs counts data that is written when it commits, and a file's fsync is no commit.
    fn write(&self) -> Result<()> {
        let written = match self.kind {
            FsKind::Btrfs => syncfs(self.new.file().as_fd()).map_err(io::Error::from),
            _ => self.new.file().sync_data(),
        };
        written.map_err(cannot)
    }

    /// What was counted from here on was not all.
    pub fn back_to(&mut self, offset: u64) {
        self.counted = self.counted.min(offset);
    }

    /// The bytes of the units that it touches, of those that are not counted yet.
    fn units(&mut self, range: ByteRange) -> u64 {
        let from = (range.start() / self.unit * self.unit).max(self.counted);
        let to = range.end().checked_next_multiple_of(self.unit).unwrap_or(u64::MAX);
        self.counted = self.counted.max(to);
        to.saturating_sub(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};

    #[test]
    fn each_unit_is_counted_once_and_nothing_is_taken_that_was_not_granted() {
        let dir = tempfile::tempdir().expect("a directory");
        let new = NewFile::at(&dir.path().join("new")).expect("nothing is there");
        let mut asked = Vec::new();
        let mut granted = [4 * LEAST, 2 * LEAST].into_iter();
        let mut ask = |_: &RealDisk, needed: u64| {
            asked.push(needed);
            granted.next().ok_or_else(|| Error::new(Kind::Refused, "no", "no"))
        };
        let mut room = Room::new(&new, &mut ask).expect("there is some");
        (room.kind, room.unit) = (FsKind::Other, LEAST);
        let range = |from: u64, to: u64| ByteRange::new(from, to).expect("not empty");
        room.for_data(range(1, 2)).expect("the first unit");
        room.for_data(range(2, LEAST + 1)).expect("the second");
        room.for_zeros(range(LEAST + 1, 9 * LEAST + 1)).expect("the tenth");
        room.for_data(range(20 * LEAST - 1, 20 * LEAST)).expect("all of it");
        room.for_zeros(range(30 * LEAST - 1, 31 * LEAST + 1)).expect("asked again, for both ends");
        room.for_data(range(40 * LEAST, 43 * LEAST)).expect_err("there is no more");
        assert_eq!(asked, [0, LEAST, 3 * LEAST]);
    }
}
