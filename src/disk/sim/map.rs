//! What FIEMAP answers.

use std::collections::BTreeMap;

use super::inode::{BlockKind, Mapped};
use super::world::World;
use crate::extent::{Extent, ExtentFlags};
use crate::range::ByteRange;

impl World {
    /// The whole map of a file: contiguous blocks merged, LAST on the last. Ends on a block, also where the file does not.
    pub(super) fn extents(&self, ino: u64) -> Vec<Extent> {
        let block = self.block();
        let shared = self.shared_addresses();
        let mut merged: Vec<Extent> = Vec::new();
        for (index, mapped) in self.shown(ino) {
            let is_shared = mapped.is_some_and(|m| shared.get(&m.address).is_some_and(|n| *n > 1));
            let (physical, flags) = self.report(mapped, is_shared);
            let logical = ByteRange::at(index * block, block).expect("a block is not empty");
            match merged.last_mut() {
                Some(last)
                    if last.logical.end() == logical.start()
                        && last.flags == flags
                        && mapped.is_some_and(|m| m.kind != BlockKind::Encoded)
                        && last.physical + last.logical.len() == physical =>
                {
                    last.logical = ByteRange::new(last.logical.start(), logical.end()).expect("not empty");
                }
                _ => merged.push(Extent { logical, physical, flags }),
            }
        }
        if let Some(last) = merged.last_mut() {
            last.flags = last.flags.with(ExtentFlags::LAST);
        }
        merged
    }

    /// The extents, some of them reported as two: the contract does not say that an answer is merged.
    pub(super) fn split_extents(&mut self, whole: Vec<Extent>) -> Vec<Extent> {
        let block = self.block();
        let mut split = Vec::with_capacity(whole.len());
        for extent in whole {
            let blocks = extent.logical.len() / block;
            if blocks < 2 || !self.rng.per_mille(self.faults.split_extents) {
                split.push(extent);
                continue;
            }
            let at = extent.logical.start() + (1 + self.rng.below(blocks - 1)) * block;
            let (Some(low), Some(high)) = extent.logical.split(at) else { unreachable!("the middle is inside") };
            let unlast = ExtentFlags::from_bits(extent.flags.bits() & !ExtentFlags::LAST.bits());
            split.push(Extent { logical: low, flags: unlast, ..extent });
            split.push(Extent { logical: high, physical: extent.physical + low.len(), ..extent });
        }
        split
    }

    /// The blocks as the map shows them: what is not flushed shows what was there before, or that nothing is allocated.
    fn shown(&self, ino: u64) -> BTreeMap<u64, Option<Mapped>> {
        let inode = self.inode(ino);
        let mut shown: BTreeMap<u64, Option<Mapped>> =
            inode.now.blocks.iter().map(|(index, mapped)| (*index, Some(*mapped))).collect();
        shown.extend(inode.stale.iter().map(|(index, old)| (*index, *old)));
        shown
    }

    /// How many files have each address, as far as anybody can still reach them.
    fn shared_addresses(&self) -> BTreeMap<u64, u32> {
        let mut users = BTreeMap::new();
        for inode in self.inodes.values().filter(|i| i.live()) {
            for address in inode.shown_addresses() {
                *users.entry(address).or_insert(0) += 1;
            }
        }
        users
    }

    fn report(&self, mapped: Option<Mapped>, is_shared: bool) -> (u64, ExtentFlags) {
        let Some(Mapped { address, kind }) = mapped else {
            return (0, ExtentFlags::DELALLOC.with(ExtentFlags::UNKNOWN));
        };
        let shared = if is_shared { ExtentFlags::SHARED } else { ExtentFlags::default() };
        match kind {
            BlockKind::Plain => (address, shared),
            BlockKind::Unwritten => (address, shared.with(ExtentFlags::UNWRITTEN)),
            BlockKind::Inline => (0, ExtentFlags::DATA_INLINE.with(ExtentFlags::NOT_ALIGNED)),
            // The start of the encoded extent, which several blocks with different content have in common.
            BlockKind::Encoded => {
                (address / (4 * self.block()) * (4 * self.block()), shared.with(ExtentFlags::ENCODED))
            }
        }
    }
}
