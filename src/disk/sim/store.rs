//! The device: blocks by their physical address, as the kernel has them and as the medium has them.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::rng::Rng;

#[derive(Clone)]
struct Block {
    now: Rc<[u8]>,
    /// Differs from `now` only after an overwrite in place that nobody synced.
    medium: Rc<[u8]>,
}

/// All allocated blocks. An address is given out once and never again.
#[derive(Clone)]
pub(super) struct Store {
    block: u64,
    next: u64,
    blocks: BTreeMap<u64, Block>,
}

impl Store {
    /// An empty device with this block size.
    pub(super) fn new(block: u64) -> Self {
        assert!(block.is_power_of_two() && block >= 16);
        // Address 0 is nobody's, so that a location that is not known cannot be taken for one that is.
        Self { block, next: 64, blocks: BTreeMap::new() }
    }

    /// The block size.
    pub(super) fn block(&self) -> u64 {
        self.block
    }

    /// A new block with these bytes; with `gap`, not next to the one before.
    pub(super) fn allocate(&mut self, bytes: Rc<[u8]>, gap: bool) -> u64 {
        assert_eq!(bytes.len() as u64, self.block);
        let address = (self.next + u64::from(gap)) * self.block;
        self.next += 1 + u64::from(gap);
        let clash = self.blocks.insert(address, Block { now: Rc::clone(&bytes), medium: bytes });
        assert!(clash.is_none(), "address {address} was given out twice");
        address
    }

    /// What a block reads as.
    pub(super) fn bytes(&self, address: u64) -> &[u8] {
        &self.blocks[&address].now
    }

    /// Overwrites in place; not on the medium yet.
    pub(super) fn overwrite(&mut self, address: u64, bytes: Rc<[u8]>) {
        assert_eq!(bytes.len() as u64, self.block);
        self.blocks.get_mut(&address).expect("an allocated block").now = bytes;
    }

    /// What the block reads as is on the medium.
    pub(super) fn persist(&mut self, address: u64) {
        let block = self.blocks.get_mut(&address).expect("an allocated block");
        block.medium = Rc::clone(&block.now);
    }

    /// A power cut: of every overwrite that was not synced all, nothing, or the first bytes are on the medium.
    pub(super) fn cut_power(&mut self, rng: &mut Rng) {
        for block in self.blocks.values_mut().filter(|b| b.now != b.medium) {
            let cut = match rng.below(3) {
                0 => 0,
                1 => self.block,
                _ => rng.below(self.block + 1),
            };
            block.medium = torn(&block.now, &block.medium, cut as usize);
            block.now = Rc::clone(&block.medium);
        }
    }

    /// Forgets all blocks but these.
    pub(super) fn retain(&mut self, used: &BTreeSet<u64>) {
        self.blocks.retain(|address, _| used.contains(address));
        assert_eq!(self.blocks.len(), used.len(), "a file maps a block that is not there");
    }
}

/// The first `cut` bytes of `new`, and the rest of `old`.
pub(super) fn torn(new: &[u8], old: &[u8], cut: usize) -> Rc<[u8]> {
    assert_eq!(new.len(), old.len());
    new[..cut].iter().chain(&old[cut..]).copied().collect()
}
