//! The simulation's only source of chance: SplitMix64, so that a seed is a run.

/// A generator of numbers; a copy of it goes on as the original would.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    /// The generator of a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not zero. The bias of the remainder does not matter at these sizes.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0);
        self.next() % bound
    }

    /// True `p` times in a thousand.
    pub(super) fn per_mille(&mut self, p: u16) -> bool {
        assert!(p <= 1000);
        p > 0 && self.below(1000) < u64::from(p)
    }

    /// True every other time.
    pub(super) fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    /// Sixteen bytes.
    pub(super) fn id(&mut self) -> [u8; 16] {
        let both = u128::from(self.next()) << 64 | u128::from(self.next());
        both.to_le_bytes()
    }
}

/// SplitMix64's finisher: every bit of the answer hangs on every bit of the question.
pub(super) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
