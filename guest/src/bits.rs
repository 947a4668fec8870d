//! A bit for each sector of an image.

/// So many bits, all 0 at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits(Vec<u64>);

impl Bits {
    /// Room for `count` bits.
    pub fn new(count: u64) -> Self {
        Self(vec![0; Self::words_for(count)])
    }

    /// From what [`Bits::words`] gave.
    pub fn from_words(words: Vec<u64>) -> Self {
        Self(words)
    }

    /// How many words hold `count` bits.
    pub fn words_for(count: u64) -> usize {
        count.div_ceil(64) as usize
    }

    /// The bits, 64 a word, the lowest first.
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// Sets a bit.
    pub fn set(&mut self, index: u64) {
        self.0[(index / 64) as usize] |= 1 << (index % 64);
    }

    /// Whether a bit is set; one out of range is not.
    pub fn get(&self, index: u64) -> bool {
        self.0.get((index / 64) as usize).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }
}
