//! How much a file has allocated, without waiting for its disk.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::stat::fstat;

/// What a file had when it was last asked.
#[derive(Default)]
pub struct Allocated {
    bytes: AtomicU64,
    asked: AtomicBool,
}

impl Allocated {
    /// Asks, which a disk may have to be waited for: but for the first one who asks, nobody waits, and what it said last counts.
    pub fn ask(&self, file: &impl AsFd) {
        if self.asked.swap(true, Ordering::Relaxed) {
            return;
        }
        let blocks = fstat(file).map_or(0, |stat| stat.st_blocks.cast_unsigned());
        self.bytes.store(blocks * 512, Ordering::Relaxed);
        self.asked.store(false, Ordering::Relaxed);
    }

    /// In bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
