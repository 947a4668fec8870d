//! Two maps side by side: the longest ranges in which neither of them changes.

use super::segments::{Mapping, Segment};
use crate::range::ByteRange;

/// A range in which each of two files has one mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pair {
    /// Where in both files.
    pub range: ByteRange,
    /// What the first has there.
    pub left: Mapping,
    /// What the second has there.
    pub right: Mapping,
}

/// Walks two gapless sequences of segments that begin at the same offset; ends where the shorter one does.
///
/// Nothing is held but the two segments at the current offset. An error of either side is handed on and ends the walk.
pub fn lockstep<L, R, E>(left: L, right: R) -> Lockstep<L, R>
where
    L: Iterator<Item = Result<Segment, E>>,
    R: Iterator<Item = Result<Segment, E>>,
{
    Lockstep { left, right, at_left: None, at_right: None, failed: false }
}

/// The iterator of [`lockstep`].
pub struct Lockstep<L, R> {
    left: L,
    right: R,
    at_left: Option<Segment>,
    at_right: Option<Segment>,
    failed: bool,
}

impl<L, R, E> Iterator for Lockstep<L, R>
where
    L: Iterator<Item = Result<Segment, E>>,
    R: Iterator<Item = Result<Segment, E>>,
{
    type Item = Result<Pair, E>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        match (refill(&mut self.at_left, &mut self.left), refill(&mut self.at_right, &mut self.right)) {
            (Err(error), _) | (_, Err(error)) => {
                self.failed = true;
                Some(Err(error))
            }
            (Ok(Some(left)), Ok(Some(right))) => {
                let range = left.range.intersect(right.range)?;
                self.at_left = left.from_offset(range.end());
                self.at_right = right.from_offset(range.end());
                Some(Ok(Pair { range, left: left.mapping, right: right.mapping }))
            }
            _ => None,
        }
    }
}

fn refill<E>(
    slot: &mut Option<Segment>,
    source: &mut impl Iterator<Item = Result<Segment, E>>,
) -> Result<Option<Segment>, E> {
    if slot.is_none() {
        *slot = source.next().transpose()?;
    }
    Ok(*slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::ExtentFlags;

    fn data(start: u64, end: u64, physical: u64) -> Result<Segment, ()> {
        let range = ByteRange::new(start, end).expect("not empty");
        Ok(Segment { range, mapping: Mapping::Data { physical, flags: ExtentFlags::default() } })
    }

    fn hole(start: u64, end: u64) -> Result<Segment, ()> {
        Ok(Segment { range: ByteRange::new(start, end).expect("not empty"), mapping: Mapping::Hole })
    }

    fn show(mapping: Mapping) -> String {
        match mapping {
            Mapping::Hole => "-".into(),
            Mapping::Data { physical, .. } => format!("@{physical}"),
        }
    }

    fn check(left: Vec<Result<Segment, ()>>, right: Vec<Result<Segment, ()>>, expect: &str) {
        let got: Vec<String> = lockstep(left.into_iter(), right.into_iter())
            .map(|p| p.map_or("error".into(), |p| format!("{:?} {}|{}", p.range, show(p.left), show(p.right))))
            .collect();
        assert_eq!(got.join(", "), expect);
    }

    #[test]
    fn ranges_are_cut_where_either_side_changes() {
        check(
            vec![data(0, 6, 100), hole(6, 10)],
            vec![hole(0, 2), data(2, 10, 50)],
            "0..2 @100|-, 2..6 @102|@50, 6..10 -|@54",
        );
    }

    #[test]
    fn the_shorter_side_ends_the_walk() {
        check(vec![data(0, 4, 1)], vec![data(0, 2, 9)], "0..2 @1|@9");
        check(vec![], vec![data(0, 2, 9)], "");
    }

    #[test]
    fn an_error_ends_the_walk() {
        check(vec![data(0, 4, 1), Err(())], vec![data(0, 9, 1)], "0..4 @1|@1, error");
    }
}
