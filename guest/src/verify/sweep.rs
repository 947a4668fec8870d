//! The instant that the most intervals have in common.

use std::ops::RangeInclusive;

/// Intervals of time, each of another sector or of another time of the same one, both ends included.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    starts: Vec<u64>,
    ends: Vec<u64>,
}

/// What a [`Sweep`] has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Best {
    /// How many intervals have it.
    pub count: u64,
    /// The instants that so many have, from the first on; where that is not one stretch, the first.
    pub instants: RangeInclusive<u64>,
}

impl Sweep {
    /// Adds an interval.
    pub fn add(&mut self, interval: &RangeInclusive<u64>) {
        self.starts.push(*interval.start());
        self.ends.push(*interval.end());
    }

    /// The instants of `range` that the most intervals have.
    pub fn best(mut self, range: &RangeInclusive<u64>) -> Best {
        let clamped = self.starts.into_iter().zip(self.ends).filter_map(|(start, end)| {
            let (start, end) = (start.max(*range.start()), end.min(*range.end()));
            (start <= end).then_some((start, end))
        });
        (self.starts, self.ends) = clamped.unzip();
        self.starts.sort_unstable();
        self.ends.sort_unstable();
        let mut best = Best { count: 0, instants: range.clone() };
        let mut ended = 0;
        for (begun, start) in (1..).zip(&self.starts) {
            ended += self.ends[ended..].iter().take_while(|end| *end < start).count();
            let count = begun - ended as u64;
            if count > best.count {
                best = Best { count, instants: *start..=self.ends[ended] };
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(intervals: &[RangeInclusive<u64>], range: RangeInclusive<u64>) -> (u64, RangeInclusive<u64>) {
        let mut sweep = Sweep::default();
        intervals.iter().for_each(|it| sweep.add(it));
        let best = sweep.best(&range);
        (best.count, best.instants)
    }

    #[test]
    fn the_most_common_instants_are_found() {
        let all = 0..=u64::MAX;
        assert_eq!(best(&[], all.clone()), (0, all.clone()));
        assert_eq!(best(&[5..=9], all.clone()), (1, 5..=9));
        assert_eq!(best(&[0..=7, 5..=9, 6..=u64::MAX], all.clone()), (3, 6..=7));
        assert_eq!(best(&[0..=4, 5..=9], all.clone()), (1, 0..=4));
        assert_eq!(best(&[0..=5, 5..=9], all.clone()), (2, 5..=5));
        assert_eq!(best(&[0..=3, 2..=9, 8..=9, 9..=20], all), (3, 9..=9));
    }

    #[test]
    fn only_the_range_counts() {
        assert_eq!(best(&[0..=4, 2..=4, 8..=20], 5..=10), (1, 8..=10));
        assert_eq!(best(&[0..=4], 5..=10), (0, 5..=10));
    }
}
