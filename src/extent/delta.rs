//! What two maps prove about the contents of two files: the same block at the same moment is the same content.
//!
//! This holds only where the image was flushed after T0 and before the comparison, and nobody may write the range
//! (DESIGN section 5); that is the caller's obligation. Everything that is not proved counts as different.

use super::lockstep::Pair;
use super::segments::Mapping;
use crate::range::ByteRange;

/// Whether the maps prove that both files have the same bytes in the pair's range.
///
/// Addresses and flags are compared. A hole is never a licence to skip: races have reported data as holes (KERNEL.md).
pub fn proves_equal(pair: &Pair) -> bool {
    match (pair.left, pair.right) {
        (Mapping::Data { physical: a, flags: f }, Mapping::Data { physical: b, flags: g }) => {
            a == b && f.comparable() && g.comparable() && f.agree(g)
        }
        _ => false,
    }
}

/// A piece of a comparison: equal by proof, or to be cloned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Where in both files.
    pub range: ByteRange,
    /// Whether the maps proved the contents equal.
    pub equal: bool,
}

/// Joins neighbouring pairs of the same verdict.
pub fn verdicts<I, E>(pairs: I) -> Verdicts<I>
where
    I: Iterator<Item = Result<Pair, E>>,
{
    Verdicts { pairs, ahead: None }
}

/// The iterator of [`verdicts`].
pub struct Verdicts<I> {
    pairs: I,
    ahead: Option<Verdict>,
}

impl<I, E> Iterator for Verdicts<I>
where
    I: Iterator<Item = Result<Pair, E>>,
{
    type Item = Result<Verdict, E>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let next = match self.pairs.next() {
                None => return self.ahead.take().map(Ok),
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(pair)) => Verdict { range: pair.range, equal: proves_equal(&pair) },
            };
            match self.ahead {
                Some(held) if held.equal == next.equal && held.range.end() == next.range.start() => {
                    let joined = ByteRange::new(held.range.start(), next.range.end());
                    self.ahead = joined.map(|range| Verdict { range, equal: held.equal });
                }
                Some(held) => {
                    self.ahead = Some(next);
                    return Some(Ok(held));
                }
                None => self.ahead = Some(next),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::ExtentFlags;

    fn data(physical: u64, flags: ExtentFlags) -> Mapping {
        Mapping::Data { physical, flags }
    }

    fn pair(start: u64, end: u64, left: Mapping, right: Mapping) -> Pair {
        Pair { range: ByteRange::new(start, end).expect("not empty"), left, right }
    }

    #[test]
    fn only_the_same_comparable_block_proves_anything() {
        let plain = ExtentFlags::SHARED;
        let equal = |l, r| proves_equal(&pair(0, 4096, l, r));
        assert!(equal(data(8, plain), data(8, plain)));
        assert!(equal(data(8, plain.with(ExtentFlags::LAST)), data(8, plain)));
        assert!(!equal(data(8, plain), data(9, plain)));
        assert!(!equal(data(8, plain), data(8, ExtentFlags::default())));
        assert!(!equal(Mapping::Hole, Mapping::Hole));
        assert!(!equal(data(8, plain), Mapping::Hole));
        for flag in [0x2, 0x4, 0x8, 0x80, 0x100, 0x200, 0x400, 0x800].map(ExtentFlags::from_bits) {
            assert!(!equal(data(8, plain.with(flag)), data(8, plain.with(flag))), "{flag:?} proves nothing");
        }
    }

    #[test]
    fn neighbours_of_one_verdict_are_joined() {
        let same = data(0, ExtentFlags::SHARED);
        let pairs = [
            pair(0, 1, same, same),
            pair(1, 2, same, same),
            pair(2, 3, Mapping::Hole, same),
            pair(3, 4, Mapping::Hole, Mapping::Hole),
            pair(4, 5, same, same),
        ];
        let got: Vec<(u64, u64, bool)> = verdicts(pairs.into_iter().map(Ok::<_, ()>))
            .map(|v| v.map(|v| (v.range.start(), v.range.end(), v.equal)).expect("no error"))
            .collect();
        assert_eq!(got, [(0, 2, true), (2, 4, false), (4, 5, true)]);
    }
}
