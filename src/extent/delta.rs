//! What two maps prove about the contents of two files: the same block at the same moment is the same content.
//!
//! This holds only where the image was flushed after T0 and before the comparison, and nobody may write the range
//! (DESIGN section 5); that is the caller's obligation. Everything that is not proved counts as different.

use super::ExtentFlags;
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

/// How the second of two files stands to the first in a range, by their maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relation {
    /// Proved to have the same bytes: the same blocks, or zeros in both.
    pub equal: bool,
    /// The second reads as zeros.
    pub zero: bool,
}

impl Relation {
    /// Of two files that were flushed and that nobody may write: then a hole, and what is unwritten, is zeros (KERNEL.md: without that
    /// it proves nothing). `comparable` says whether the addresses of both files mean the same blocks.
    pub fn of_still(pair: &Pair, comparable: bool) -> Self {
        let zero = |mapping| match mapping {
            Mapping::Hole => true,
            Mapping::Data { flags, .. } => flags.has(ExtentFlags::UNWRITTEN),
        };
        let (old, new) = (zero(pair.left), zero(pair.right));
        Self { equal: old && new || comparable && proves_equal(pair), zero: new }
    }
}

/// A range, and what is the same in all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run<K> {
    /// Where in both files.
    pub range: ByteRange,
    /// What.
    pub what: K,
}

/// Joins neighbours of which the same is true.
pub fn joined<I, K, E>(runs: I) -> Joined<I, K>
where
    I: Iterator<Item = Result<Run<K>, E>>,
    K: PartialEq,
{
    Joined { runs, ahead: None }
}

/// The iterator of [`joined`].
pub struct Joined<I, K> {
    runs: I,
    ahead: Option<Run<K>>,
}

impl<I, K, E> Iterator for Joined<I, K>
where
    I: Iterator<Item = Result<Run<K>, E>>,
    K: PartialEq,
{
    type Item = Result<Run<K>, E>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let next = match self.runs.next() {
                None => return self.ahead.take().map(Ok),
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(run)) => run,
            };
            match self.ahead.take() {
                Some(held) if held.what == next.what && held.range.end() == next.range.start() => {
                    let range = ByteRange::new(held.range.start(), next.range.end());
                    self.ahead = range.map(|range| Run { range, what: held.what });
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
        let runs = |what: fn(&Pair) -> bool| -> Vec<(u64, u64, bool)> {
            let runs = pairs.iter().map(|pair| Ok::<_, ()>(Run { range: pair.range, what: what(pair) }));
            joined(runs)
                .map(|run| run.map(|it| (it.range.start(), it.range.end(), it.what)).expect("no error"))
                .collect()
        };
        assert_eq!(runs(proves_equal), [(0, 2, true), (2, 4, false), (4, 5, true)]);
        assert_eq!(runs(|pair| Relation::of_still(pair, true).equal), [(0, 2, true), (2, 3, false), (3, 5, true)]);
    }

    #[test]
    fn zeros_are_equal_whatever_they_are_made_of_and_addresses_where_they_mean_the_same() {
        let (plain, unwritten) = (data(8, ExtentFlags::default()), data(8, ExtentFlags::UNWRITTEN));
        let inline = data(0, ExtentFlags::DATA_INLINE);
        let check = |old, new, comparable, equal, zero| {
            assert_eq!(
                Relation::of_still(&pair(0, 1, old, new), comparable),
                Relation { equal, zero },
                "{old:?} {new:?}"
            );
        };
        for zeros in [Mapping::Hole, unwritten] {
            check(zeros, Mapping::Hole, false, true, true);
            check(zeros, unwritten, true, true, true);
            check(plain, zeros, true, false, true);
            check(zeros, plain, true, false, false);
        }
        check(plain, plain, true, true, false);
        check(plain, plain, false, false, false);
        check(inline, inline, true, false, false);
    }
}
