//! What is said of many durations.

/// A few figures of many durations, in nanoseconds; all 0 where there are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Percentiles {
    /// How many there are.
    pub count: u64,
    /// Half of them take no longer.
    pub median: u64,
    /// 99 in a hundred take no longer.
    pub p99: u64,
    /// 999 in a thousand take no longer.
    pub p999: u64,
    /// The longest.
    pub longest: u64,
}

impl Percentiles {
    /// Of `durations`, which it puts in order.
    pub fn of(mut durations: Vec<u64>) -> Self {
        durations.sort_unstable();
        let rank = |thousandths: usize| {
            let rank = (durations.len() * thousandths).div_ceil(1000);
            rank.checked_sub(1).map_or(0, |index| durations[index])
        };
        Self { count: durations.len() as u64, median: rank(500), p99: rank(990), p999: rank(999), longest: rank(1000) }
    }
}

/// Nanoseconds as milliseconds with three decimals, as the JSON lines have them.
pub fn ms(nanoseconds: u64) -> String {
    format!("{:.3}", nanoseconds as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::{Percentiles, ms};

    #[test]
    fn ranks_are_of_the_nearest() {
        let figures = Percentiles::of((1..=1000).rev().collect());
        assert_eq!(figures, Percentiles { count: 1000, median: 500, p99: 990, p999: 999, longest: 1000 });
        let one = Percentiles::of(vec![7]);
        assert_eq!(one, Percentiles { count: 1, median: 7, p99: 7, p999: 7, longest: 7 });
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
        assert_eq!(ms(1_234_567), "1.235");
    }
}
