//! Cutting a range into calls that are bounded in bytes and in extents.
//!
//! A file of 4 KiB blocks has at most one extent a block. So a call of no more blocks than the budget has extents is within
//! the budget whatever the map says, and needs no walk: with 11 us an extent (KERNEL.md) and a budget of 100 ms that is
//! 36 MiB. The map is walked only where it may allow a larger call, and not where the last walk showed that it will not:
//! on a dense map most calls are bounded by arithmetic alone, and one in [`BLIND_RUN`] looks again.

use std::collections::VecDeque;

use crate::extent::Extent;
use crate::range::{ByteRange, PowerOfTwo};

/// How many extents one walking call asks for: 256 to 1024 keep the inode's lock short (KERNEL.md, FIEMAP).
pub const WALK_BATCH: usize = 512;

/// How many calls go without a walk after one that found a dense map. A walk costs about a tenth of the clone that it
/// plans (1 us against 11 us an extent, KERNEL.md), so one in nine costs a hundredth.
pub const BLIND_RUN: u32 = 8;

/// A map is dense where its extents have this many blocks or fewer: a call bounded by arithmetic is then at least an eighth
/// of one bounded by the map, and the ~13 us that a call costs by itself (KERNEL.md) stay below a twentieth of it.
const DENSE_BLOCKS: u64 = 8;

/// What to do next for a range that is to be cloned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Ask for the map of this range, at most [`WALK_BATCH`] extents, and [`Planner::feed`] the answer.
    Walk(ByteRange),
    /// Clone this range, which is a prefix of the range asked about.
    Clone {
        /// What to clone.
        range: ByteRange,
        /// Its extents, where the map was walked.
        extents: Option<u64>,
    },
}

/// The part of the source's map that was walked and not used yet.
pub struct Planner {
    block: PowerOfTwo,
    /// Where extents of the window end, in order.
    ends: VecDeque<u64>,
    /// What the window covers: up to here the map is known.
    window: Option<ByteRange>,
    blind: u32,
}

impl Planner {
    /// A planner for a file system of this block size that has walked nothing.
    pub fn new(block: PowerOfTwo) -> Self {
        Self { block, ends: VecDeque::new(), window: None, blind: 0 }
    }

    /// The next step towards cloning `open`, of which no call may have more than `budget` extents.
    ///
    /// `open` is at most `--chunk` bytes long; the caller sees to that.
    pub fn step(&mut self, open: ByteRange, budget: u64) -> Step {
        let budget = budget.max(1);
        let bound = budget.saturating_mul(self.block.get());
        if open.len() <= bound {
            return Step::Clone { range: open, extents: self.take(open) };
        }
        if self.blind > 0 {
            self.blind -= 1;
            return self.cut(open, self.block.align_down(open.start().saturating_add(bound)), None);
        }
        self.forget_before(open.start());
        let known = self.window.map_or(open.start(), |w| w.end());
        let have = self.ends.len() as u64;
        if have < budget && known < open.end() {
            let rest = ByteRange::new(known, open.end()).expect("known lies before the end");
            return Step::Walk(rest);
        }
        self.clone_known(open, budget, known)
    }

    /// Takes what the map has in `range`, as asked for by [`Step::Walk`]. Fewer than [`WALK_BATCH`] extents mean that the
    /// range has no more.
    pub fn feed(&mut self, range: ByteRange, extents: &[Extent]) {
        let full = extents.len() >= WALK_BATCH;
        let mut known = range.start();
        // An extent that the last answer was cut within goes on here: it is one extent, not two.
        if extents.first().is_some_and(|e| e.logical.start() < known) && self.ends.back() == Some(&known) {
            self.ends.pop_back();
        }
        for extent in extents {
            let end = extent.logical.end().min(range.end());
            // An answer that goes backwards is no knowledge; it is left out rather than believed.
            if end > known {
                self.ends.push_back(end);
                known = end;
            }
        }
        // A full batch that brought nothing new would be asked for again and again.
        let known = if full && known > range.start() { known } else { range.end() };
        let start = self.window.map_or(range.start(), |w| w.start());
        self.window = ByteRange::new(start, known);
    }

    fn clone_known(&mut self, open: ByteRange, budget: u64, known: u64) -> Step {
        let last = usize::try_from(budget).map_or(usize::MAX, |b| b - 1);
        let inside = self.ends.partition_point(|&end| end < open.end());
        let end = match self.ends.get(last) {
            Some(&end) if inside > last => end,
            _ => known.min(open.end()),
        };
        let count = self.ends.partition_point(|&e| e <= end) as u64;
        let blocks = (end - open.start()) / self.block.get();
        if count >= budget && blocks <= count.saturating_mul(DENSE_BLOCKS) {
            self.blind = BLIND_RUN;
            self.ends.clear();
            self.window = None;
        }
        // An extent that ends within a block (an answer that cannot be right) must not make a range that cannot be cloned.
        let cut = if end >= open.end() { open.end() } else { self.block.align_down(end) };
        self.cut(open, cut, Some(count))
    }

    fn cut(&mut self, open: ByteRange, at: u64, extents: Option<u64>) -> Step {
        let at = at.max(open.start() + self.block.get());
        let range = open.split(at).0.unwrap_or(open);
        Step::Clone { range, extents }
    }

    /// How many extents of a range are known, where the window covers it.
    fn take(&mut self, range: ByteRange) -> Option<u64> {
        self.forget_before(range.start());
        let covered = self.window.is_some_and(|w| w.start() <= range.start() && range.end() <= w.end());
        let count = self.ends.partition_point(|&end| end < range.end()) as u64;
        covered.then_some(count + u64::from((count as usize) < self.ends.len()))
    }

    fn forget_before(&mut self, offset: u64) {
        while self.ends.front().is_some_and(|&end| end <= offset) {
            self.ends.pop_front();
        }
        match self.window {
            Some(window) if window.start() <= offset && offset < window.end() => {
                self.window = ByteRange::new(offset, window.end());
            }
            _ => {
                self.ends.clear();
                self.window = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::ExtentFlags;

    const BLOCK: u64 = 4096;

    /// A map as block counts of its extents, without holes.
    struct Map(Vec<u64>);

    impl Map {
        fn size(&self) -> u64 {
            self.0.iter().sum::<u64>() * BLOCK
        }

        fn within(&self, range: ByteRange) -> Vec<Extent> {
            let mut at = 0;
            let mut found = Vec::new();
            for blocks in &self.0 {
                let logical = ByteRange::at(at, blocks * BLOCK).expect("not empty");
                at = logical.end();
                if logical.intersect(range).is_some() && found.len() < WALK_BATCH {
                    found.push(Extent { logical, physical: at * 7, flags: ExtentFlags::default() });
                }
            }
            found
        }

        fn count(&self, range: ByteRange) -> u64 {
            let mut at = 0;
            let ranges = self.0.iter().map(|blocks| {
                let logical = ByteRange::at(at, blocks * BLOCK).expect("not empty");
                at = logical.end();
                logical
            });
            ranges.filter(|l| l.intersect(range).is_some()).count() as u64
        }
    }

    /// Plans the whole map; the calls' ranges and how many walks it took.
    fn plan(map: &Map, chunk: u64, budget: u64) -> (Vec<ByteRange>, u32) {
        let mut planner = Planner::new(PowerOfTwo::new(BLOCK).expect("a power of two"));
        let (mut calls, mut walks, mut at) = (Vec::new(), 0, 0);
        while let Some(open) = ByteRange::new(at, map.size().min(at + chunk)) {
            match planner.step(open, budget) {
                Step::Walk(range) => {
                    walks += 1;
                    planner.feed(range, &map.within(range));
                }
                Step::Clone { range, extents } => {
                    assert_eq!(range.start(), at);
                    assert!(range.len() <= chunk);
                    let truth = map.count(range);
                    assert!(truth <= budget, "{truth} extents in {range:?}, budget {budget}");
                    assert!(extents.is_none_or(|e| e == truth), "said {extents:?}, has {truth}");
                    calls.push(range);
                    at = range.end();
                }
            }
        }
        (calls, walks)
    }

    #[test]
    fn a_huge_extent_followed_by_many_small_ones_stays_within_the_budget() {
        let mut blocks = vec![262_144];
        blocks.extend([1; 20_000]);
        let (calls, _) = plan(&Map(blocks), 64 << 20, 400);
        assert!(calls.len() >= 16 + 50);
    }

    #[test]
    fn no_walk_where_arithmetic_bounds_the_call() {
        let (calls, walks) = plan(&Map(vec![1; 40_000]), 64 << 20, 20_000);
        assert_eq!((calls.len(), walks), (3, 0));
    }

    #[test]
    fn a_dense_map_is_hardly_walked_and_a_sparse_one_gives_large_calls() {
        let (calls, walks) = plan(&Map(vec![1; 36_000]), 64 << 20, 400);
        assert_eq!(calls.len(), 90);
        assert!(walks <= 22, "{walks}");
        let (calls, _) = plan(&Map(vec![4096; 64]), 64 << 20, 400);
        assert_eq!(calls.len(), 16);
    }

    #[test]
    fn random_maps_are_covered_within_bytes_and_extents() {
        let mut state = 7_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..60 {
            let blocks = (0..2_000).map(|_| if random(4) == 0 { 1 + random(300) } else { 1 }).collect();
            let budget = 1 + random(900);
            plan(&Map(blocks), (1 + random(5_000)) * BLOCK, budget);
        }
    }

    #[test]
    fn an_answer_without_progress_does_not_loop() {
        let mut planner = Planner::new(PowerOfTwo::new(BLOCK).expect("a power of two"));
        let open = ByteRange::new(0, 1 << 20).expect("not empty");
        let Step::Walk(range) = planner.step(open, 4) else { panic!("a walk was due") };
        let nonsense =
            Extent { logical: ByteRange::new(0, 1).expect("not empty"), physical: 0, flags: ExtentFlags::default() };
        planner.feed(range, &vec![nonsense; WALK_BATCH]);
        let mut rounds = 0;
        while let Step::Walk(range) = planner.step(open, 4) {
            planner.feed(range, &vec![nonsense; WALK_BATCH]);
            rounds += 1;
            assert!(rounds < 3);
        }
    }
}
