//! What a guest felt while somebody made a snapshot: its accesses, reduced to the figures that are judged and drawn.

use std::ops::Range;

use reflink_img_guest::latency::{Accesses, Kind};
use reflink_img_guest::percentiles::Percentiles;
use serde_json::{Value, json};

/// What one point of the timeline stands for, in ns.
pub const SLOT: u64 = 50_000_000;

/// A guest that wants an access this often, in ns: what the accesses that a stall kept from being made count as.
const EVERY: u64 = 1_000_000;

/// The figures of a stretch of time, in ns.
#[derive(Clone, Debug, Default)]
pub struct Felt {
    /// Reads, writes and flushes, as they were measured.
    pub kinds: [Percentiles; 3],
    /// Reads and writes of a guest that has one of each every millisecond, whatever the last one took.
    pub every_ms: [Percentiles; 2],
    /// The longest access in each [`SLOT`].
    pub slots: Vec<u64>,
    /// Accesses that failed.
    pub errors: u64,
}

impl Felt {
    /// Of the accesses that were under way in `window`.
    pub fn of(accesses: &Accesses, window: &Range<u64>) -> Self {
        let slots = (window.end - window.start).div_ceil(SLOT).max(1) as usize;
        let even = window.start..window.start + slots as u64 * SLOT;
        let worst = Kind::ALL.map(|kind| accesses.worst(kind, &even, slots));
        let slots = (0..slots).map(|slot| worst.iter().map(|of_kind| of_kind[slot]).max().unwrap_or(0)).collect();
        Self {
            kinds: Kind::ALL.map(|kind| accesses.raw(kind, window)),
            every_ms: [Kind::Read, Kind::Write].map(|kind| accesses.felt_every(kind, window, EVERY)),
            slots,
            errors: Kind::ALL.iter().map(|kind| accesses.errors(*kind, window)).sum(),
        }
    }

    /// The longest access of any kind, in ms.
    pub fn longest_ms(&self) -> f64 {
        self.kinds.iter().map(|kind| ms(kind.longest)).fold(0.0, f64::max)
    }

    /// What 999 in a thousand reads, and as many writes, stay within, in ms. A flush is no access of 4 KiB, and there are ten a
    /// second: it counts among the longest.
    pub fn p999_ms(&self) -> f64 {
        ms(self.kinds[0].p999.max(self.kinds[1].p999))
    }

    /// What 99 in a hundred stay within, in ms.
    pub fn p99_ms(&self) -> f64 {
        ms(self.kinds[0].p99.max(self.kinds[1].p99))
    }

    /// As [`Felt::p999_ms`], for the guest that has an access every millisecond.
    pub fn every_ms_p999_ms(&self) -> f64 {
        ms(self.every_ms[0].p999.max(self.every_ms[1].p999))
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let of = |it: &Percentiles| {
            json!({
                "count": it.count, "median_ms": ms(it.median), "p99_ms": ms(it.p99), "p999_ms": ms(it.p999),
                "longest_ms": ms(it.longest),
            })
        };
        json!({
            "read": of(&self.kinds[0]), "write": of(&self.kinds[1]), "flush": of(&self.kinds[2]),
            "read_every_ms": of(&self.every_ms[0]), "write_every_ms": of(&self.every_ms[1]), "errors": self.errors,
        })
    }
}

/// The longest access of any kind that was under way in a part of the time, in ms.
pub fn longest_in(accesses: &Accesses, part: &Range<u64>) -> f64 {
    let longest = Kind::ALL.iter().flat_map(|kind| accesses.within(*kind, part)).map(|it| it.took()).max();
    ms(longest.unwrap_or(0))
}

/// Nanoseconds in milliseconds.
pub fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use reflink_img_guest::latency::Access;

    use super::*;

    #[test]
    fn a_stall_is_in_every_slot_that_it_lasts_through() {
        let at =
            |kind, start_ms: u64, took_ms: u64| Access::new(kind, start_ms * 1_000_000, took_ms * 1_000_000, false);
        let list = vec![at(Kind::Read, 0, 1), at(Kind::Write, 60, 120), at(Kind::Flush, 100, 30)];
        let accesses = Accesses { list, every: 0, flush_every: 100_000_000 };
        let felt = Felt::of(&accesses, &(0..220_000_000));
        let slots: Vec<u64> = felt.slots.iter().map(|ns| ns / 1_000_000).collect();
        assert_eq!(slots, [1, 120, 120, 120, 0]);
        assert_eq!(felt.longest_ms(), 120.0);
        assert_eq!(felt.every_ms[1].p999, 120_000_000);
        assert_eq!(longest_in(&accesses, &(0..50_000_000)), 1.0);
    }
}
