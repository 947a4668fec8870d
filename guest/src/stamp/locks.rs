//! The sectors of one image that have an operation under way. No sector has two, so the log's order is the order in which
//! writes reached it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A bit a sector, set while it is locked.
#[derive(Debug)]
pub struct Locks(Vec<AtomicU64>);

impl Locks {
    /// For so many sectors, all free.
    pub fn new(sectors: u64) -> Self {
        Self((0..sectors.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Locks all of a range of sectors, or none of it where one is locked.
    pub fn try_lock(&self, sectors: &Range<u64>) -> bool {
        for (index, mask) in words(sectors) {
            let before = self.0[index].fetch_or(mask, Ordering::Acquire);
            if before & mask != 0 {
                // What was locked before is another's and stays.
                self.0[index].fetch_and(!(mask & !before), Ordering::Release);
                let taken = words(sectors).take_while(|(earlier, _)| *earlier < index);
                taken.for_each(|(earlier, mask)| _ = self.0[earlier].fetch_and(!mask, Ordering::Release));
                return false;
            }
        }
        true
    }

    /// Frees a range that [`Locks::try_lock`] has locked.
    pub fn unlock(&self, sectors: &Range<u64>) {
        words(sectors).for_each(|(index, mask)| _ = self.0[index].fetch_and(!mask, Ordering::Release));
    }
}

/// The words that a range touches, each with the bits that are the range's.
fn words(sectors: &Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let Range { start, end } = *sectors;
    (start / 64..end.div_ceil(64)).map(move |word| {
        let low = start.saturating_sub(word * 64);
        let high = (end - word * 64).min(64);
        let mask = (u64::MAX >> (64 - (high - low))) << low;
        (word as usize, mask)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_exclude_each_other_and_leave_no_trace() {
        let locks = Locks::new(512);
        assert!(locks.try_lock(&(60..200)));
        for range in [0..61, 199..200, 100..110, 0..512, 130..300] {
            assert!(!locks.try_lock(&range), "{range:?}");
        }
        assert!(locks.try_lock(&(0..60)) && locks.try_lock(&(200..512)));
        locks.unlock(&(60..200));
        assert!(locks.try_lock(&(60..200)));
        for range in [0..60, 60..200, 200..512] {
            locks.unlock(&range);
        }
        assert!(locks.try_lock(&(0..512)));
    }

    #[test]
    fn masks_cover_the_range_and_no_more() {
        for (start, end) in [(0, 1), (0, 64), (63, 65), (5, 200), (64, 128), (100, 101)] {
            let bits: Vec<u64> = words(&(start..end))
                .flat_map(|(word, mask)| {
                    (0..64).filter(move |bit| mask >> bit & 1 == 1).map(move |bit| word as u64 * 64 + bit)
                })
                .collect();
            assert_eq!(bits, (start..end).collect::<Vec<u64>>());
        }
    }
}
