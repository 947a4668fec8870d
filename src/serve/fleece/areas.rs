//! Which parts of a fleece may be read: those that differ from its base and that no reader has let go.

use std::sync::OnceLock;

use crate::cbw::Clusters;
use crate::range::{ByteRange, PowerOfTwo};

/// The parts that may not, by clusters.
pub struct Areas {
    size: u64,
    cluster: PowerOfTwo,
    /// As in the base: marked as done.
    same: Option<Clusters>,
    /// Let go: marked as done.
    released: OnceLock<Clusters>,
}

impl Areas {
    /// Of an image of so many bytes; all may be read. With a base some will not.
    pub fn new(size: u64, cluster: PowerOfTwo, has_base: bool) -> Self {
        let same = has_base.then(|| Clusters::new(size, cluster));
        Self { size, cluster, same, released: OnceLock::new() }
    }

    /// The whole clusters of a range.
    pub fn whole(&self, range: ByteRange) -> Option<ByteRange> {
        let end = if range.end() >= self.size { self.size } else { self.cluster.align_down(range.end()) };
        ByteRange::new(self.cluster.align_up(range.start()), end)
    }

    /// These whole clusters are as in the base.
    pub fn deny(&self, range: ByteRange) {
        if let Some(same) = &self.same {
            same.finish(range);
        }
    }

    /// These whole clusters were let go.
    pub fn release(&self, range: ByteRange) {
        self.released.get_or_init(|| Clusters::new(self.size, self.cluster)).finish(range);
    }

    /// Whether all of these whole clusters may be read: none was let go, and none is as in the base.
    pub fn is_wanted(&self, range: ByteRange) -> bool {
        self.readable(range) == range.len()
    }

    /// How much of the beginning of a range may be read.
    pub fn readable(&self, range: ByteRange) -> u64 {
        let bounds = [self.same.as_ref(), self.released.get()];
        let open = |clusters: &Clusters| match clusters.run(range) {
            (_, true) => 0,
            (run, false) => run.len(),
        };
        bounds.into_iter().flatten().map(open).min().unwrap_or(range.len())
    }

    /// The first part of a range that differs from the base, or does not, and whether it does.
    pub fn differs(&self, range: ByteRange) -> (ByteRange, bool) {
        self.same.as_ref().map_or((range, true), |same| {
            let (run, equal) = same.run(range);
            (run, !equal)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).expect("not empty")
    }

    #[test]
    fn what_is_denied_or_let_go_ends_what_may_be_read() {
        let unit = PowerOfTwo::new(4096).expect("a power of two");
        let areas = Areas::new(4096 * 10 + 5, unit, true);
        assert_eq!(areas.readable(range(0, 4096 * 10)), 4096 * 10);
        areas.deny(range(4096 * 4, 4096 * 5));
        areas.release(range(4096 * 2, 4096 * 3));
        assert_eq!(
            [0, 4096 * 2, 4096 * 3, 4096 * 4, 4096 * 5].map(|at| areas.readable(range(at, 4096 * 10))),
            [4096 * 2, 0, 4096, 0, 4096 * 5]
        );
        assert_eq!(
            areas.differs(range(4096 * 2, 4096 * 9)),
            (range(4096 * 2, 4096 * 4), true),
            "let go, and it differs"
        );
        assert_eq!(areas.differs(range(4096 * 4 + 1, 4096 * 9)), (range(4096 * 4 + 1, 4096 * 5), false));
        assert_eq!(areas.whole(range(1, 4096 * 3 - 1)), Some(range(4096, 4096 * 2)));
        assert_eq!(
            (areas.whole(range(1, 4096)), areas.whole(range(4096 * 10, 4096 * 10 + 5))),
            (None, Some(range(4096 * 10, 4096 * 10 + 5)))
        );
        let all = Areas::new(4096, unit, false);
        assert_eq!((all.readable(range(0, 4096)), all.differs(range(0, 9))), (4096, (range(0, 9), true)));
    }
}
