//! Crashes: another machine, as this one would come up again. This one stays as it is, so one run can crash many ways.

use std::collections::BTreeSet;

use super::SimDisk;
use super::inode::{Inode, Mapped, Op, State};
use super::rng::{Rng, mix};
use super::store::torn;
use super::world::{NameOp, World};

impl SimDisk {
    /// The machine after a power cut, a reboot and a mount: of what was not synced, what this seed chooses.
    #[must_use]
    pub fn crash_power(&self, seed: u64) -> Self {
        let mut after = self.world.borrow().lose_power(seed);
        after.boot_id = after.rng.id();
        after.mount_instance += 1;
        after.dev += 1;
        Self::of(after)
    }

    /// A power cut that nothing tells: boot id, mount and device number are the same. No real machine does this; a claim
    /// that was made before the sync that it rests on is found out by it.
    #[must_use]
    pub fn crash_forgetful(&self, seed: u64) -> Self {
        Self::of(self.world.borrow().lose_power(seed))
    }

    /// The machine after SIGKILL of the process: all as the kernel had it, but nothing is open, locked or leased.
    #[must_use]
    pub fn crash_kill(&self) -> Self {
        let mut after = self.world.borrow().clone();
        after.restart();
        after.inodes.values_mut().for_each(Inode::close_all);
        after.forget_dead();
        Self::of(after)
    }
}

/// The chances with which one crash keeps what was not synced, in 250ths of a thousand.
fn density(rng: &mut Rng) -> u16 {
    rng.below(5) as u16 * 250
}

impl World {
    /// Another process, from step 0.
    fn restart(&mut self) {
        self.pid += 1;
        self.steps = 0;
        self.stop_at = None;
        self.stopped = false;
    }

    fn lose_power(&self, seed: u64) -> Self {
        let mut after = self.clone();
        let mut rng = Rng::new(mix(seed ^ 0x0070_6f77_6572));
        after.note(format!("      power cut, seed {seed}"));
        after.restart();
        after.store.cut_power(&mut rng);
        after.lose_names(&mut rng);
        let keep = density(&mut rng);
        let named: BTreeSet<u64> = after.names.values().copied().collect();
        after.inodes.retain(|ino, _| named.contains(ino));
        for ino in named {
            after.lose_ops(ino, keep, &mut rng);
        }
        let used = after.inodes.values().flat_map(Inode::addresses).collect();
        after.store.retain(&used);
        after.rng = rng;
        after
    }

    /// The durable names, with those of the later operations that chance keeps and that still mean something.
    fn lose_names(&mut self, rng: &mut Rng) {
        let mut names = self.durable_names.clone();
        let keep = density(rng);
        for op in std::mem::take(&mut self.name_ops) {
            if !rng.per_mille(keep) {
                continue;
            }
            match op {
                NameOp::Create { name, ino } => {
                    names.entry(name).or_insert(ino);
                }
                NameOp::Rename { from, to, ino, replace } => {
                    if names.get(&from) == Some(&ino) && (replace || !names.contains_key(&to)) {
                        names.remove(&from);
                        names.insert(to, ino);
                    }
                }
                NameOp::Unlink { name, ino } => {
                    if names.get(&name) == Some(&ino) {
                        names.remove(&name);
                    }
                }
            }
        }
        self.names = names.clone();
        self.durable_names = names;
    }

    /// The durable state of a file, with those of the later operations that chance keeps, whole or torn.
    fn lose_ops(&mut self, ino: u64, keep: u16, rng: &mut Rng) {
        let block = self.block();
        let inode = self.inode_mut(ino);
        let pending = std::mem::take(&mut inode.pending);
        let mut state = inode.durable.clone();
        for op in pending {
            if rng.per_mille(keep) {
                self.tear(op, &state, rng).apply(&mut state, block);
            }
        }
        state.drop_past_end(block);
        self.clear_tail(&mut state);
        let links = self.names.values().filter(|named| **named == ino).count() as u64;
        let inode = self.inode_mut(ino);
        inode.now = state.clone();
        inode.durable = state;
        inode.stale.clear();
        // XFS can bring back new data with an old change time (KERNEL.md, leases).
        inode.times = if rng.coin() { inode.times } else { inode.durable_times };
        inode.durable_times = inode.times;
        inode.nlink = links;
        inode.close_all();
    }

    /// A written block may be half the new one and half what was there.
    fn tear(&mut self, op: Op, state: &State, rng: &mut Rng) -> Op {
        match op {
            Op::Map { index, to: Some(to), written: true } if rng.below(3) == 0 => {
                let old = self.bytes(state.blocks.get(&index));
                let cut = rng.below(self.block() + 1) as usize;
                let bytes = torn(self.store.bytes(to.address), &old, cut);
                let to = Some(Mapped { address: self.store.allocate(bytes, true), ..to });
                Op::Map { index, to, written: true }
            }
            op => op,
        }
    }

    /// The kernel shows zeros past the end of a file, whatever is on the medium there.
    fn clear_tail(&mut self, state: &mut State) {
        let (block, size) = (self.block(), state.size);
        let Some(tail) = state.blocks.get_mut(&(size / block)) else { return };
        let mut bytes = self.store.bytes(tail.address).to_vec();
        bytes[(size % block) as usize..].fill(0);
        if bytes != self.store.bytes(tail.address) {
            tail.address = self.store.allocate(bytes.into(), true);
        }
    }
}
