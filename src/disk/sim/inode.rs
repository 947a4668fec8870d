//! A file: what the kernel has of it, what is durable, and the operations between the two.

use std::collections::{BTreeMap, BTreeSet};

/// What a mapped block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BlockKind {
    /// Data at an address of its own.
    Plain,
    /// Preallocated: reads as zeros, becomes a hole in a clone.
    Unwritten,
    /// In the metadata; a clone copies it.
    Inline,
    /// Compressed, say: reported at an address that it has in common with others.
    Encoded,
}

/// Where a block of a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mapped {
    pub(super) address: u64,
    pub(super) kind: BlockKind,
}

/// All that a sync makes durable.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct State {
    pub(super) size: u64,
    /// By number of the block in the file; what is not here is a hole.
    pub(super) blocks: BTreeMap<u64, Mapped>,
    pub(super) record: Option<Vec<u8>>,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) no_cow: bool,
}

/// One change that a crash keeps or loses, independently of the others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Op {
    /// A block is mapped (or a hole). `written` ones can be torn; cloned ones are there or not.
    Map { index: u64, to: Option<Mapped>, written: bool },
    /// The file is at least this long: a write or a clone past its end.
    Grow(u64),
    /// The size is set; the block that the new end lies in, with zeros past it.
    Resize { size: u64, tail: Option<Mapped> },
    /// The record attribute.
    Record(Option<Vec<u8>>),
    /// The permission bits.
    Mode(u32),
    /// The owner.
    Owner(u32, u32),
    /// `chattr +C`.
    NoCow(bool),
}

impl Op {
    /// Whether fdatasync covers it.
    fn is_data(&self) -> bool {
        matches!(self, Self::Map { .. } | Self::Grow(_) | Self::Resize { .. })
    }

    /// Does it.
    pub(super) fn apply(&self, state: &mut State, block: u64) {
        match self {
            Self::Map { index, to: Some(to), .. } => drop(state.blocks.insert(*index, *to)),
            Self::Map { index, to: None, .. } => drop(state.blocks.remove(index)),
            Self::Grow(size) => state.size = state.size.max(*size),
            Self::Resize { size, tail } => {
                state.size = *size;
                state.drop_past_end(block);
                if let Some(tail) = tail {
                    state.blocks.insert(size / block, *tail);
                }
            }
            Self::Record(record) => state.record.clone_from(record),
            Self::Mode(mode) => state.mode = *mode,
            Self::Owner(uid, gid) => state.owner = (*uid, *gid),
            Self::NoCow(on) => state.no_cow = *on,
        }
    }
}

impl State {
    /// Unmaps what lies wholly past the end.
    pub(super) fn drop_past_end(&mut self, block: u64) {
        let past = self.size.div_ceil(block);
        self.blocks.split_off(&past);
    }
}

/// Change and modification time, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Times {
    pub(super) changed: i128,
    pub(super) modified: i128,
}

/// A file, whether or not it has a name.
#[derive(Clone)]
pub(super) struct Inode {
    pub(super) generation: u32,
    pub(super) now: State,
    pub(super) durable: State,
    pub(super) pending: Vec<Op>,
    /// What the map shows instead of the truth until a flush: the old block, or `None` for one not allocated yet.
    pub(super) stale: BTreeMap<u64, Option<Mapped>>,
    pub(super) times: Times,
    pub(super) durable_times: Times,
    pub(super) nlink: u64,
    /// Open descriptors, and the ones among them that have the lock and the lease.
    pub(super) open: BTreeSet<u64>,
    pub(super) lock: Option<u64>,
    pub(super) lease: Option<u64>,
}

impl Inode {
    /// An empty file with one name, of mode 0600.
    pub(super) fn new(generation: u32) -> Self {
        let state = State { mode: 0o600, ..State::default() };
        Self {
            generation,
            now: state.clone(),
            durable: state,
            pending: Vec::new(),
            stale: BTreeMap::new(),
            times: Times::default(),
            durable_times: Times::default(),
            nlink: 1,
            open: BTreeSet::new(),
            lock: None,
            lease: None,
        }
    }

    /// Does `op` in the kernel; whether it lasts is for a sync to say.
    pub(super) fn make(&mut self, op: Op, block: u64) {
        op.apply(&mut self.now, block);
        self.pending.push(op);
    }

    /// Whether anything can still reach it.
    pub(super) fn live(&self) -> bool {
        self.nlink > 0 || !self.open.is_empty()
    }

    /// Makes what is pending durable, the attributes only where asked.
    pub(super) fn sync(&mut self, attributes: bool, block: u64) {
        let (done, left) = self.pending.drain(..).partition(|op| attributes || op.is_data());
        let done: Vec<Op> = done;
        self.pending = left;
        done.iter().for_each(|op| op.apply(&mut self.durable, block));
        self.durable.drop_past_end(block);
        self.durable_times = self.times;
        self.stale.clear();
    }

    /// Addresses that the kernel has, a durable map has, or an operation in between may bring back.
    pub(super) fn addresses(&self) -> impl Iterator<Item = u64> {
        let pending = self.pending.iter().filter_map(|op| match op {
            Op::Map { to, .. } => *to,
            Op::Resize { tail, .. } => *tail,
            _ => None,
        });
        let mapped = self.now.blocks.values().chain(self.durable.blocks.values()).copied();
        mapped.chain(pending).map(|m| m.address)
    }

    /// Addresses that its map shows or has: what makes another file's block there a shared one.
    pub(super) fn shown_addresses(&self) -> BTreeSet<u64> {
        self.now.blocks.values().chain(self.stale.values().flatten()).map(|m| m.address).collect()
    }

    /// Nobody has it open any more.
    pub(super) fn close_all(&mut self) {
        self.open.clear();
        self.lock = None;
        self.lease = None;
    }
}
