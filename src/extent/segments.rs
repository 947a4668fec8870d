//! A map without gaps: extents and the holes between them.

use super::{Extent, ExtentFlags};
use crate::range::ByteRange;

/// What a file has in a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// No extent: reads as zeros.
    Hole,
    /// Blocks from this address on.
    Data {
        /// The address of the first byte, as FIEMAP gives it.
        physical: u64,
        /// The extent's flags.
        flags: ExtentFlags,
    },
}

/// A range of a file and what is mapped there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where in the file.
    pub range: ByteRange,
    /// What is there.
    pub mapping: Mapping,
}

impl Segment {
    /// The part of the segment from `at` on; `None` where nothing is left. An extent's address moves along.
    pub fn from_offset(self, at: u64) -> Option<Self> {
        let (_, rest) = self.range.split(at);
        let range = rest?;
        let skipped = range.start() - self.range.start();
        let mapping = match self.mapping {
            Mapping::Hole => Mapping::Hole,
            // An encoded extent reports the start of the whole; moving along would make up an address.
            Mapping::Data { physical, flags } if flags.comparable() => {
                Mapping::Data { physical: physical.saturating_add(skipped), flags }
            }
            data => data,
        };
        Some(Self { range, mapping })
    }
}

/// Turns extents, in the order of their offsets, into segments that cover `from..to` without a gap.
///
/// Extents that overlap what was already covered are cut: FIEMAP gives one that begins before the offset asked for.
/// Errors from the source end the iteration after they were handed on.
pub fn segments<I, E>(extents: I, from: u64, to: u64) -> Segments<I>
where
    I: Iterator<Item = Result<Extent, E>>,
{
    Segments { extents, at: from, to, ahead: None, failed: false }
}

/// The iterator of [`segments`].
pub struct Segments<I> {
    extents: I,
    at: u64,
    to: u64,
    ahead: Option<Segment>,
    failed: bool,
}

impl<I, E> Iterator for Segments<I>
where
    I: Iterator<Item = Result<Extent, E>>,
{
    type Item = Result<Segment, E>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ahead.is_none() && !self.failed && self.at < self.to {
            match self.extents.next() {
                Some(Ok(extent)) => self.ahead = self.clip(extent),
                Some(Err(error)) => {
                    self.failed = true;
                    return Some(Err(error));
                }
                None => break,
            }
        }
        if self.failed {
            return None;
        }
        let end = self.ahead.map_or(self.to, |s| s.range.start());
        let segment = match ByteRange::new(self.at, end) {
            Some(range) => Segment { range, mapping: Mapping::Hole },
            None => self.ahead.take()?,
        };
        self.at = segment.range.end();
        Some(Ok(segment))
    }
}

impl<I> Segments<I> {
    fn clip(&self, extent: Extent) -> Option<Segment> {
        let mapping = Mapping::Data { physical: extent.physical, flags: extent.flags };
        let whole = Segment { range: extent.logical, mapping }.from_offset(self.at)?;
        let (below, _) = whole.range.split(self.to);
        Some(Segment { range: below?, mapping: whole.mapping })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, end: u64, physical: u64) -> Result<Extent, ()> {
        let logical = ByteRange::new(start, end).expect("not empty");
        Ok(Extent { logical, physical, flags: ExtentFlags::default() })
    }

    fn check(extents: Vec<Result<Extent, ()>>, from: u64, to: u64, expect: &str) {
        let got: Vec<String> = segments(extents.into_iter(), from, to)
            .map(|s| match s {
                Ok(Segment { range, mapping: Mapping::Hole }) => format!("{range:?} hole"),
                Ok(Segment { range, mapping: Mapping::Data { physical, .. } }) => format!("{range:?} @{physical}"),
                Err(()) => "error".into(),
            })
            .collect();
        assert_eq!(got.join(", "), expect);
    }

    #[test]
    fn gaps_become_holes_and_the_cover_is_whole() {
        check(vec![], 0, 10, "0..10 hole");
        check(vec![], 10, 10, "");
        check(vec![extent(2, 4, 100)], 0, 10, "0..2 hole, 2..4 @100, 4..10 hole");
        check(vec![extent(0, 4, 100), extent(4, 10, 50)], 0, 10, "0..4 @100, 4..10 @50");
    }

    #[test]
    fn extents_are_cut_to_what_was_asked_for() {
        check(vec![extent(0, 8, 100), extent(8, 20, 300)], 4, 12, "4..8 @104, 8..12 @300");
        check(vec![extent(0, 2, 100)], 4, 8, "4..8 hole");
        check(vec![extent(0, 6, 100), extent(4, 8, 300)], 0, 8, "0..6 @100, 6..8 @302");
        check(vec![extent(9, 12, 1)], 0, 8, "0..8 hole");
    }

    #[test]
    fn an_error_is_handed_on_and_ends_the_walk() {
        check(vec![extent(0, 2, 1), Err(()), extent(2, 4, 3)], 0, 8, "0..2 @1, error");
    }
}
