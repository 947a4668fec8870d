//! The whole simulated machine: names, files, device, clock, chance, and the count of steps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::Setup;
use super::faults::Faults;
use super::inode::{BlockKind, Inode, Mapped, Op, Times};
use super::rng::Rng;
use super::store::Store;
use crate::disk::{FsKind, Stat};

/// The error of the operation that the machine stopped at, and of every one after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimCrash;

impl SimCrash {
    /// Whether an error is this one.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|e| e.is::<Self>())
    }
}

impl fmt::Display for SimCrash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated machine stopped here")
    }
}

impl std::error::Error for SimCrash {}

impl From<SimCrash> for io::Error {
    fn from(stop: SimCrash) -> Self {
        Self::other(stop)
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It is done.
    Go,
    /// It fails, with its first part done where it has parts.
    Fail(i32),
    /// The machine stops in it: all, nothing or a part is done.
    Stop,
}

impl Fate {
    /// The result of the call.
    pub(super) fn result(self) -> io::Result<()> {
        match self {
            Self::Go => Ok(()),
            Self::Fail(errno) => Err(io::Error::from_raw_os_error(errno)),
            Self::Stop => Err(SimCrash.into()),
        }
    }
}

/// A change of the directory that a crash keeps or loses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NameOp {
    Create { name: OsString, ino: u64 },
    Rename { from: OsString, to: OsString, ino: u64, replace: bool },
    Unlink { name: OsString, ino: u64 },
}

/// How many operations [`World::trace`] remembers.
const TRACE: usize = 512;

/// The wall clock at the start: 2026-01-01T00:00:00Z.
const START_NS: i128 = 1_767_225_600_000_000_000;

#[derive(Clone)]
pub(super) struct World {
    pub(super) kind: FsKind,
    pub(super) uuid: [u8; 16],
    pub(super) faults: Faults,
    pub(super) rng: Rng,
    pub(super) store: Store,
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) names: BTreeMap<OsString, u64>,
    pub(super) durable_names: BTreeMap<OsString, u64>,
    pub(super) name_ops: Vec<NameOp>,
    pub(super) next_ino: u64,
    pub(super) next_open: u64,
    pub(super) boot_id: [u8; 16],
    pub(super) mount_instance: u64,
    pub(super) dev: u64,
    pub(super) pid: u32,
    /// The wall clock; may be set at will.
    pub(super) now_ns: i128,
    /// What has been waited in all.
    pub(super) clock: Duration,
    /// The file times' clock: every change of a file has a later one.
    pub(super) tick: i128,
    /// Whether another job has the turn; where nobody said so it has at the first question of each three.
    pub(super) others_turn: Option<bool>,
    pub(super) turn_questions: u64,
    pub(super) steps: u64,
    pub(super) stop_at: Option<u64>,
    pub(super) stopped: bool,
    pub(super) trace: VecDeque<String>,
}

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        let mut rng = Rng::new(setup.seed);
        Self {
            kind: setup.kind,
            uuid: rng.id(),
            boot_id: rng.id(),
            faults: setup.faults,
            rng,
            store: Store::new(setup.block),
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_ops: Vec::new(),
            others_turn: None,
            turn_questions: 0,
            next_ino: 128,
            next_open: 3,
            mount_instance: 1,
            dev: 7,
            pid: 1000,
            now_ns: START_NS,
            tick: START_NS,
            clock: Duration::ZERO,
            steps: 0,
            stop_at: None,
            stopped: false,
            trace: VecDeque::new(),
        }
    }

    /// Every call begins here: after the stop nothing happens any more.
    pub(super) fn alive(&self) -> io::Result<()> {
        if self.stopped { Err(SimCrash.into()) } else { Ok(()) }
    }

    /// Counts a step and decides what becomes of it.
    pub(super) fn enter(&mut self, what: String, odds: &[(u16, i32)]) -> io::Result<Fate> {
        self.alive()?;
        assert!(self.stop_at.is_none_or(|at| at > self.steps), "step {} was to be the last", self.steps);
        self.steps += 1;
        self.now_ns += 1_000;
        // The dice are thrown before the stop is looked at, so that runs that stop and runs that do not agree up to it.
        let hit = odds.iter().find(|(p, _)| self.rng.per_mille(*p)).map(|(_, errno)| *errno);
        let fate = match hit {
            _ if self.stop_at == Some(self.steps) => Fate::Stop,
            Some(errno) => Fate::Fail(errno),
            None => Fate::Go,
        };
        self.stopped = fate == Fate::Stop;
        self.note(match fate {
            Fate::Go => format!("{:>5} {what}", self.steps),
            Fate::Fail(errno) => format!("{:>5} {what}: {}", self.steps, io::Error::from_raw_os_error(errno)),
            Fate::Stop => format!("{:>5} {what}: STOP", self.steps),
        });
        Ok(fate)
    }

    /// Counts a step that is done or not done, nothing between; says which, with the call's result.
    pub(super) fn enter_whole(&mut self, what: String, odds: &[(u16, i32)]) -> io::Result<(bool, io::Result<()>)> {
        let fate = self.enter(what, odds)?;
        let done = fate == Fate::Go || fate == Fate::Stop && self.rng.coin();
        Ok((done, fate.result()))
    }

    /// How many of `n` parts are done; a call that fails does not do all.
    pub(super) fn share(&mut self, fate: Fate, n: u64) -> u64 {
        match fate {
            Fate::Go => n,
            Fate::Fail(_) => self.rng.below(n.max(1)),
            Fate::Stop => self.rng.below(n + 1),
        }
    }

    pub(super) fn note(&mut self, what: String) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(what);
    }

    pub(super) fn block(&self) -> u64 {
        self.store.block()
    }

    pub(super) fn inode(&self, ino: u64) -> &Inode {
        self.inodes.get(&ino).expect("an open or named inode is there")
    }

    pub(super) fn inode_mut(&mut self, ino: u64) -> &mut Inode {
        self.inodes.get_mut(&ino).expect("an open or named inode is there")
    }

    /// Does `op` to a file, and says in its times that it changed.
    pub(super) fn make(&mut self, ino: u64, op: Op) {
        let block = self.block();
        self.inode_mut(ino).make(op, block);
    }

    /// A file changed; its content too, with `content`.
    pub(super) fn touch(&mut self, ino: u64, content: bool) {
        self.tick += 1_000_000;
        let tick = self.tick;
        let times = &mut self.inode_mut(ino).times;
        *times = Times { changed: tick, modified: if content { tick } else { times.modified } };
    }

    /// A new file; the name is the caller's business.
    pub(super) fn new_inode(&mut self) -> u64 {
        let ino = self.next_ino;
        self.next_ino += 1;
        let generation = self.rng.next() as u32 | 1;
        self.inodes.insert(ino, Inode::new(generation));
        self.touch(ino, true);
        ino
    }

    /// The bytes of a block of a file, zeros where nothing is written.
    pub(super) fn bytes(&self, mapped: Option<&Mapped>) -> Vec<u8> {
        match mapped {
            Some(m) if m.kind != BlockKind::Unwritten => self.store.bytes(m.address).to_vec(),
            _ => vec![0; self.block() as usize],
        }
    }

    /// A block with these bytes, at an address that chance decides.
    pub(super) fn allocate(&mut self, bytes: &[u8]) -> u64 {
        let gap = self.rng.per_mille(self.faults.fragment);
        self.store.allocate(Rc::from(bytes), gap)
    }

    /// The part of a file below its size.
    pub(super) fn read(&self, ino: u64, offset: u64, into: &mut [u8]) -> usize {
        let (block, now) = (self.block(), &self.inode(ino).now);
        let end = now.size.min(offset.saturating_add(into.len() as u64));
        let mut at = offset;
        while at < end {
            let bytes = self.bytes(now.blocks.get(&(at / block)));
            let (from, to) = ((at % block) as usize, (end - at / block * block).min(block) as usize);
            let done = (at - offset) as usize;
            into[done..done + to - from].copy_from_slice(&bytes[from..to]);
            at += (to - from) as u64;
        }
        end.saturating_sub(offset) as usize
    }

    pub(super) fn stat(&self, ino: u64) -> Stat {
        let inode = self.inode(ino);
        Stat {
            dev: self.dev,
            ino,
            generation: inode.generation,
            subvolume: if self.kind == FsKind::Btrfs { 5 } else { 0 },
            size: inode.now.size,
            ctime_ns: inode.times.changed,
            mtime_ns: inode.times.modified,
            mode: inode.now.mode,
            uid: inode.now.owner.0,
            gid: inode.now.owner.1,
            nlink: inode.nlink,
            regular: true,
        }
    }

    /// Forgets files that neither a name, nor a descriptor, nor a crash can bring back.
    pub(super) fn forget_dead(&mut self) {
        let mut reachable: BTreeSet<u64> = self.names.values().chain(self.durable_names.values()).copied().collect();
        reachable.extend(self.name_ops.iter().map(|op| match op {
            NameOp::Create { ino, .. } | NameOp::Rename { ino, .. } | NameOp::Unlink { ino, .. } => *ino,
        }));
        self.inodes.retain(|ino, inode| reachable.contains(ino) || !inode.open.is_empty());
    }

    /// What must always be true.
    pub(super) fn assert_sound(&self) {
        let block = self.block();
        for (ino, inode) in &self.inodes {
            let named = self.names.values().filter(|n| *n == ino).count() as u64;
            assert_eq!(inode.nlink, named, "inode {ino} has as many links as names");
            let past = inode.now.size.div_ceil(block);
            assert!(inode.now.blocks.keys().all(|i| *i < past), "inode {ino} maps a block past its end");
            assert!(inode.lock.iter().chain(&inode.lease).all(|o| inode.open.contains(o)), "a closed file has a lock");
            if let Some(tail) = inode.now.blocks.get(&(inode.now.size / block)) {
                let bytes = self.bytes(Some(tail));
                assert!(bytes[(inode.now.size % block) as usize..].iter().all(|b| *b == 0), "inode {ino}: dirty tail");
            }
        }
        assert!(self.names.values().all(|ino| self.inodes.contains_key(ino)));
    }
}
