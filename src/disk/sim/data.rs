//! Writing and cloning, block by block.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::inode::{BlockKind, Mapped, Op};
use super::rng::mix;
use super::world::{Fate, World};
use crate::disk::CallCost;
use crate::range::{ByteRange, CloneRange};

impl World {
    /// Writes all of `bytes`, as the kernel does: a block at a time, and then the size.
    pub(super) fn write(&mut self, ino: u64, offset: u64, bytes: &[u8]) {
        let block = self.block();
        let end = offset.checked_add(bytes.len() as u64).expect("the end of a write fits");
        let mut at = offset;
        while at < end {
            let (index, from) = (at / block, (at % block) as usize);
            let n = (block - at % block).min(end - at);
            let mut whole = self.bytes(self.inode(ino).now.blocks.get(&index));
            let done = (at - offset) as usize;
            whole[from..from + n as usize].copy_from_slice(&bytes[done..done + n as usize]);
            // The size goes up with each block, so that the kernel's view never has a block past the end.
            self.make_grow(ino, at + n);
            self.write_block(ino, index, &whole);
            at += n;
        }
        self.touch(ino, true);
    }

    fn make_grow(&mut self, ino: u64, size: u64) {
        if size > self.inode(ino).now.size {
            self.make(ino, Op::Grow(size));
        }
    }

    fn write_block(&mut self, ino: u64, index: u64, bytes: &[u8]) {
        let old = self.inode(ino).now.blocks.get(&index).copied();
        if let Some(Mapped { address, kind: BlockKind::Plain }) = old
            && !self.is_shared(ino, address)
            && self.rng.per_mille(self.faults.in_place)
        {
            return self.store.overwrite(address, Rc::from(bytes));
        }
        let kind = if self.rng.per_mille(self.faults.encoded) { BlockKind::Encoded } else { BlockKind::Plain };
        let to = Some(Mapped { address: self.allocate(bytes), kind });
        if self.rng.per_mille(self.faults.stale_maps) {
            self.inode_mut(ino).stale.entry(index).or_insert(old);
        }
        self.make(ino, Op::Map { index, to, written: true });
    }

    /// Whether any other file, now or after a crash, has the block at `address`.
    fn is_shared(&self, ino: u64, address: u64) -> bool {
        self.inodes.iter().any(|(other, inode)| *other != ino && inode.addresses().any(|a| a == address))
    }

    /// Sets the size.
    pub(super) fn resize(&mut self, ino: u64, size: u64) {
        let (block, old) = (self.block(), self.inode(ino).now.size);
        let kept = (size % block) as usize;
        let mut tail = None;
        if let Some(mapped) = self.inode(ino).now.blocks.get(&(size / block)).copied()
            && size < old
            && kept > 0
            && mapped.kind != BlockKind::Unwritten
        {
            let mut bytes = self.bytes(Some(&mapped));
            bytes[kept..].fill(0);
            tail = Some(Mapped { address: self.allocate(&bytes), kind: BlockKind::Plain });
        }
        self.make(ino, Op::Resize { size, tail });
        self.inode_mut(ino).stale.split_off(&(size / block));
        self.touch(ino, true);
    }

    /// What ioctl_ficlonerange(2) demands; a call that it refuses is no step and touches nothing.
    pub(super) fn check_clone(&self, source: u64, target: u64, range: ByteRange) -> io::Result<()> {
        let (block, from, to) = (self.block(), &self.inode(source).now, &self.inode(target).now);
        let aligned_end = range.end().is_multiple_of(block);
        let refused = source == target
            || !range.start().is_multiple_of(block)
            || range.end() > from.size
            || (!aligned_end && range.end() != from.size)
            || (!aligned_end && range.end() != to.size)
            || from.no_cow != to.no_cow;
        if refused { Err(io::Error::from_raw_os_error(libc::EINVAL)) } else { Ok(()) }
    }

    /// One FICLONERANGE call.
    pub(super) fn clone_blocks(&mut self, source: u64, target: u64, range: CloneRange) -> io::Result<CallCost> {
        let (range, block) = (range.bytes(), self.block());
        self.check_clone(source, target, range)?;
        let faults = self.faults;
        let odds = [
            (faults.clone_enospc, libc::ENOSPC),
            (faults.clone_eintr, libc::EINTR),
            (faults.clone_einval, libc::EINVAL),
            (faults.clone_eio, libc::EIO),
        ];
        let fate = self.enter(format!("clone {source}->{target} {range:?}"), &odds)?;
        let (first, past) = (range.start() / block, range.end().div_ceil(block));
        let stop = first + self.share(fate, past - first);
        // Btrfs flushes all of the source; XFS what is cloned. The map tells the truth of it from here on.
        self.inode_mut(source).stale.clear();
        let mut result = fate.result();
        for index in first..stop {
            let from = self.inode(source).now.blocks.get(&index).copied();
            if from.is_some_and(|m| self.never_shares(m.address)) {
                // The machine's stop is the stronger answer.
                result = result.and(Err(io::Error::from_raw_os_error(libc::ENOSPC)));
                break;
            }
            self.make_grow(target, ((index + 1) * block).min(range.end()));
            self.clone_block(target, index, from);
        }
        if fate == Fate::Fail(libc::EIO) {
            self.lose_block(source, stop);
        }
        self.touch(target, true);
        let cpu = Duration::from_micros(3 + 11 * (stop - first));
        let wall = cpu + Duration::from_micros(self.rng.below(200));
        self.now_ns += wall.as_nanos() as i128;
        result.map(|()| CallCost { cpu, wall })
    }

    fn clone_block(&mut self, target: u64, index: u64, from: Option<Mapped>) {
        let to = match from {
            Some(m) if matches!(m.kind, BlockKind::Plain | BlockKind::Encoded) => Some(m),
            Some(Mapped { address, kind: BlockKind::Inline }) => {
                let bytes = self.store.bytes(address).to_vec();
                Some(Mapped { address: self.allocate(&bytes), kind: BlockKind::Inline })
            }
            _ => None,
        };
        self.inode_mut(target).stale.remove(&index);
        if to.is_some() || self.inode(target).now.blocks.contains_key(&index) {
            self.make(target, Op::Map { index, to, written: false });
        }
    }

    /// Whether the block is in a place where sharing is refused for good.
    fn never_shares(&self, address: u64) -> bool {
        mix(address ^ u64::from_le_bytes(self.uuid[..8].try_into().expect("eight bytes"))) % 1000
            < u64::from(self.faults.clone_never)
    }

    /// Writeback of a block failed: what it held is gone, here and on the medium, and it reads as zeros. A block that was
    /// not written since the last sync is not written back.
    fn lose_block(&mut self, ino: u64, index: u64) {
        let zeros = vec![0; self.block() as usize];
        let inode = self.inode(ino);
        let dirty = |op: &Op| matches!(op, Op::Map { index: i, written: true, .. } if *i == index);
        if !inode.now.blocks.contains_key(&index) || !inode.pending.iter().any(dirty) {
            return;
        }
        let lost = Mapped { address: self.allocate(&zeros), kind: BlockKind::Plain };
        let inode = self.inode_mut(ino);
        for blocks in [&mut inode.now.blocks, &mut inode.durable.blocks] {
            blocks.entry(index).and_modify(|m| *m = lost);
        }
        inode.pending.retain(|op| !matches!(op, Op::Map { index: i, .. } if *i == index));
        self.note(format!("      inode {ino} block {index} lost"));
    }

    /// fdatasync, or with `attributes` fsync.
    pub(super) fn sync(&mut self, ino: u64, attributes: bool) {
        let block = self.block();
        self.inode_mut(ino).sync(attributes, block);
        let addresses: Vec<u64> = self.inode(ino).durable.blocks.values().map(|m| m.address).collect();
        addresses.into_iter().for_each(|address| self.store.persist(address));
    }

    /// A sync that failed: some of what was written will never be on the medium, though it can still be read.
    pub(super) fn lose_writes(&mut self, ino: u64) {
        let mut rng = self.rng.clone();
        self.inode_mut(ino).pending.retain(|op| !matches!(op, Op::Map { written: true, .. }) || rng.coin());
        self.rng = rng;
    }
}
