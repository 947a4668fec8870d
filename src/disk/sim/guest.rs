//! What the guest, another program, or the test itself does to the files: no step, never fails, goes on after the stop.

use std::cell::RefMut;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;

use super::dir::attach;
use super::inode::{BlockKind, Mapped, Op};
use super::world::World;
use super::{IMAGE, SimDisk, SimFile};
use crate::disk::Access;
use crate::range::ByteRange;

impl SimDisk {
    /// Makes a durable file with these bytes, and its name durable with all others.
    pub fn add_file(&self, name: impl AsRef<OsStr>, bytes: &[u8]) {
        let mut w = self.world.borrow_mut();
        let ino = w.add_name(name.as_ref());
        w.write(ino, 0, bytes);
        w.sync(ino, true);
        w.sync_names();
    }

    /// Makes the durable image [`IMAGE`] of `size` bytes: data at scattered addresses, holes and preallocated blocks.
    pub fn add_image(&self, size: u64) {
        let mut w = self.world.borrow_mut();
        let block = w.block();
        let ino = w.add_name(OsStr::new(IMAGE));
        w.resize(ino, size);
        for index in 0..size.div_ceil(block) {
            let len = block.min(size - index * block);
            match w.rng.below(20) {
                0..4 => {}
                4 => w.preallocate(ino, index),
                _ => {
                    let bytes: Vec<u8> = (0..len).map(|_| w.rng.next() as u8).collect();
                    w.write(ino, index * block, &bytes);
                }
            }
        }
        w.sync(ino, true);
        w.sync_names();
    }

    /// The image, open for reading.
    ///
    /// # Errors
    /// ENOENT without [`SimDisk::add_image`]; EAGAIN under somebody's lease.
    pub fn image(&self) -> io::Result<SimFile> {
        attach(&self.world, self.ino(OsStr::new(IMAGE))?, Access::Read)
    }

    /// Somebody is about to open a file: he counts as one who has it open, and has not come to the lease yet.
    pub fn count_opener(&self, name: &OsStr) {
        let (ino, mut w) = self.reach(name);
        let open = w.next_open;
        w.next_open += 1;
        w.inode_mut(ino).open.insert(open);
    }

    /// Somebody waits for the lease that a file has, or would not wait and is gone.
    pub fn break_lease(&self, name: &OsStr, waits: bool) {
        let (ino, mut w) = self.reach(name);
        w.inode_mut(ino).lease = None;
        drop(w);
        if waits {
            self.count_opener(name);
        }
    }

    /// Writes to a file from outside; not synced.
    pub fn guest_write(&self, name: impl AsRef<OsStr>, offset: u64, bytes: &[u8]) {
        let (ino, mut w) = self.reach(name.as_ref());
        w.note(format!("      guest writes {ino} at {offset}, {} bytes", bytes.len()));
        w.write(ino, offset, bytes);
    }

    /// Punches a hole, of whole blocks.
    pub fn guest_discard(&self, name: impl AsRef<OsStr>, range: ByteRange) {
        let (ino, mut w) = self.reach(name.as_ref());
        w.note(format!("      guest discards {ino} {range:?}"));
        for index in whole_blocks(range, w.block()) {
            w.inode_mut(ino).stale.remove(&index);
            w.make(ino, Op::Map { index, to: None, written: false });
        }
        w.touch(ino, true);
    }

    /// The guest's FLUSH: its data is durable.
    pub fn guest_flush(&self, name: impl AsRef<OsStr>) {
        let (ino, mut w) = self.reach(name.as_ref());
        w.note(format!("      guest flushes {ino}"));
        w.sync(ino, false);
    }

    /// Preallocates the holes in a range of whole blocks: they are mapped and read as zeros.
    pub fn preallocate(&self, name: impl AsRef<OsStr>, range: ByteRange) {
        let (ino, mut w) = self.reach(name.as_ref());
        for index in whole_blocks(range, w.block()) {
            if !w.inode(ino).now.blocks.contains_key(&index) {
                w.preallocate(ino, index);
            }
        }
    }

    /// Compresses, as it were: blocks of data in the range report an address that they have in common.
    pub fn encode(&self, name: impl AsRef<OsStr>, range: ByteRange) {
        self.set_kind(name.as_ref(), range, BlockKind::Encoded);
    }

    /// Moves blocks of data into the metadata: they have no address.
    pub fn inline(&self, name: impl AsRef<OsStr>, range: ByteRange) {
        self.set_kind(name.as_ref(), range, BlockKind::Inline);
    }

    /// All bytes of a file, `None` where there is no such name.
    pub fn content(&self, name: impl AsRef<OsStr>) -> Option<Vec<u8>> {
        let ino = self.ino(name.as_ref()).ok()?;
        let w = self.world.borrow();
        let mut bytes = vec![0; w.inode(ino).now.size as usize];
        let read = w.read(ino, 0, &mut bytes);
        assert_eq!(read, bytes.len());
        Some(bytes)
    }

    /// The names there are, sorted.
    pub fn names(&self) -> Vec<OsString> {
        self.world.borrow().names.keys().cloned().collect()
    }

    /// Whether two files are of one size and have every block of data from the same address; what was never written may
    /// be a hole in the one and preallocated in the other.
    pub fn shares_all_blocks(&self, a: impl AsRef<OsStr>, b: impl AsRef<OsStr>) -> bool {
        let (Ok(a), Ok(b)) = (self.ino(a.as_ref()), self.ino(b.as_ref())) else { return false };
        let w = self.world.borrow();
        let data = |ino| {
            let written = w.inode(ino).now.blocks.iter().filter(|(_, m)| m.kind != BlockKind::Unwritten);
            written.map(|(index, m)| (*index, m.address)).collect::<Vec<(u64, u64)>>()
        };
        w.inode(a).now.size == w.inode(b).now.size && data(a) == data(b)
    }

    fn reach(&self, name: &OsStr) -> (u64, RefMut<'_, World>) {
        let ino = self.ino(name).unwrap_or_else(|_| panic!("there is no {name:?}"));
        (ino, self.world.borrow_mut())
    }

    fn set_kind(&self, name: &OsStr, range: ByteRange, kind: BlockKind) {
        let (ino, mut w) = self.reach(name);
        for index in whole_blocks(range, w.block()) {
            let old = w.inode(ino).now.blocks.get(&index).copied();
            if let Some(old) = old.filter(|m| m.kind != BlockKind::Unwritten) {
                let bytes = w.bytes(Some(&old));
                let to = Some(Mapped { address: w.allocate(&bytes), kind });
                w.make(ino, Op::Map { index, to, written: false });
            }
        }
    }
}

fn whole_blocks(range: ByteRange, block: u64) -> Range<u64> {
    assert!(range.start().is_multiple_of(block) && range.end().is_multiple_of(block), "{range} is not of whole blocks");
    range.start() / block..range.end() / block
}

impl World {
    fn preallocate(&mut self, ino: u64, index: u64) {
        assert!(index * self.block() < self.inode(ino).now.size, "preallocation past the end is not modelled");
        let zeros = vec![0; self.block() as usize];
        let to = Some(Mapped { address: self.allocate(&zeros), kind: BlockKind::Unwritten });
        self.make(ino, Op::Map { index, to, written: false });
    }
}
