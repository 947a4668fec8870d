//! Byte offsets and lengths as types, so that an empty or a misaligned range cannot be written down.
//!
//! Everything is in bytes from the start of the file. [`ByteRange`] is half-open and never empty; [`CloneRange`] is
//! one that FICLONERANGE accepts. Pure: no I/O.

use std::fmt;

/// A non-empty, half-open range of bytes: `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The range `start..end`, or `None` where it would be empty or backwards.
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// The range of `len` bytes at `start`, or `None` where `len` is zero or the end does not fit in 64 bits.
    pub fn at(start: u64, len: u64) -> Option<Self> {
        Self::new(start, start.checked_add(len)?)
    }

    /// The first byte's offset.
    pub fn start(self) -> u64 {
        self.start
    }

    /// The offset just past the last byte.
    pub fn end(self) -> u64 {
        self.end
    }

    /// The length in bytes; never zero.
    #[allow(clippy::len_without_is_empty)] // An empty range cannot exist.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// The bytes that both ranges have, if any.
    pub fn intersect(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Whether every byte of `other` is in this range.
    pub fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The part below `at` and the part from `at` on.
    pub fn split(self, at: u64) -> (Option<Self>, Option<Self>) {
        let at = at.clamp(self.start, self.end);
        (Self::new(self.start, at), Self::new(at, self.end))
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.start, self.end)
    }
}

/// A size in bytes that is a power of two: a file system's block, or a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PowerOfTwo(u64);

impl PowerOfTwo {
    /// `bytes` as a power of two, or `None` where it is not one.
    pub fn new(bytes: u64) -> Option<Self> {
        bytes.is_power_of_two().then_some(Self(bytes))
    }

    /// The greatest power of two that is not above `bytes`; 1 where there is none.
    pub fn at_most(bytes: u64) -> Self {
        Self(bytes.checked_ilog2().map_or(1, |exponent| 1 << exponent))
    }

    /// The size in bytes.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The greatest multiple not above `offset`.
    pub fn align_down(self, offset: u64) -> u64 {
        offset & !(self.0 - 1)
    }

    /// The least multiple not below `offset`, or `u64::MAX` rounded down where that does not fit.
    pub fn align_up(self, offset: u64) -> u64 {
        offset.checked_add(self.0 - 1).map_or(self.align_down(u64::MAX), |o| self.align_down(o))
    }
}

/// The size of an image in bytes and the block size of the file system that it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The image's size in bytes; need not be a multiple of the block.
    pub size: u64,
    /// The file system's block.
    pub block: PowerOfTwo,
}

impl Geometry {
    /// The smallest range of whole blocks (or up to the end of the file) that holds `range`; `None` where the range
    /// lies past the end of the file.
    pub fn cover(self, range: ByteRange) -> Option<CloneRange> {
        let start = self.block.align_down(range.start());
        let end = self.block.align_up(range.end()).min(self.size);
        ByteRange::new(start, end).map(CloneRange)
    }

    /// The whole file, or `None` where it is empty.
    pub fn whole(self) -> Option<CloneRange> {
        ByteRange::new(0, self.size).map(CloneRange)
    }
}

/// A range that FICLONERANGE accepts: it starts on a block, and ends on one or at the end of the file (ioctl_ficlonerange(2)).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CloneRange(ByteRange);

impl CloneRange {
    /// The bytes.
    pub fn bytes(self) -> ByteRange {
        self.0
    }

    /// The two halves at a block boundary, or `None` where the range is a single block.
    pub fn halves(self, block: PowerOfTwo) -> Option<(Self, Self)> {
        let middle = block.align_down(self.0.start() + self.0.len() / 2).max(self.0.start() + block.get());
        let (low, high) = self.0.split(middle);
        Some((Self(low?), Self(high?)))
    }
}

impl fmt::Debug for CloneRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for CloneRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(size: u64) -> Geometry {
        Geometry { size, block: PowerOfTwo::new(4096).expect("a power of two") }
    }

    #[test]
    fn an_empty_range_cannot_be_written_down() {
        assert_eq!(ByteRange::new(5, 5), None);
        assert_eq!(ByteRange::new(6, 5), None);
        assert_eq!(ByteRange::at(0, 0), None);
        assert_eq!(ByteRange::at(u64::MAX, 1), None);
    }

    #[test]
    fn cover_rounds_to_blocks_and_stops_at_the_end_of_the_file() {
        let check = |size, (start, end), expect: Option<(u64, u64)>| {
            let got = geometry(size).cover(ByteRange::new(start, end).expect("not empty"));
            assert_eq!(got.map(|r| (r.bytes().start(), r.bytes().end())), expect);
        };
        check(10_000, (1, 2), Some((0, 4096)));
        check(10_000, (4096, 8192), Some((4096, 8192)));
        check(10_000, (9_000, 20_000), Some((8192, 10_000)));
        check(10_000, (12_288, 20_000), None);
        check(1, (0, 1), Some((0, 1)));
    }

    #[test]
    fn halves_meet_at_a_block_and_a_single_block_has_none() {
        let block = PowerOfTwo::new(4096).expect("a power of two");
        let whole = geometry(10_000).whole().expect("not empty");
        let (low, high) = whole.halves(block).expect("three blocks");
        assert_eq!((low.bytes().end(), high.bytes().start(), high.bytes().end()), (4096, 4096, 10_000));
        assert!(geometry(4096).whole().expect("not empty").halves(block).is_none());
        assert!(geometry(7).whole().expect("not empty").halves(block).is_none());
        let two = geometry(4097).whole().expect("not empty").halves(block).expect("two blocks");
        assert_eq!(two.1.bytes().len(), 1);
    }
}
