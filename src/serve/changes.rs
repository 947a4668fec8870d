//! What differs between a point in time and an earlier snapshot, by their block maps, as a metadata context (`qemu:dirty-bitmap:NAME`).
//!
//! It is found out when it is asked for, so that it needs no upkeep and outlives every process: the same blocks are the same bytes. What the
//! maps do not prove counts as changed, and so does everything where they cannot be read or the snapshot is gone: a client reads too much
//! then, and never too little.

use std::sync::OnceLock;

use super::device::Extents;
use super::finished::Finder;
use crate::disk::real::RealFile;
use crate::engine::compare::compare;
use crate::range::ByteRange;

/// The namespace of the contexts, as QEMU has it.
pub const NAMESPACE: &str = "qemu:dirty-bitmap:";

/// `NBD_STATE_DIRTY`.
pub const DIRTY: u32 = 1;

/// How much is compared at a time: it bounds the list of differences, at most one a block.
const STEP: u64 = 64 << 20;

/// An earlier snapshot, by its name.
pub struct Base {
    name: String,
    finder: Finder,
    /// Opened when it is first asked for.
    file: OnceLock<Option<RealFile>>,
}

impl Base {
    /// One of those that a finder finds.
    pub fn new(name: String, finder: Finder) -> Self {
        Self { name, finder, file: OnceLock::new() }
    }

    /// What of a range of `of` differs, at most so many pieces, from its beginning on. The range is of at most 4 GiB.
    pub fn changes(&self, of: &RealFile, range: ByteRange, most: usize) -> Extents {
        let mut all = Extents::new();
        let mut rest = Some(range);
        while let Some(left) = rest.filter(|_| all.len() < most) {
            let (step, later) = left.split(left.start() + STEP);
            let step = step.expect("the beginning of a range");
            for (end, flags) in self.step(of, step) {
                let from = range.start() + all.iter().map(|(length, _)| u64::from(*length)).sum::<u64>();
                push(&mut all, (end - from) as u32, flags);
            }
            rest = later;
        }
        all.truncate(most);
        all
    }

    /// Where the pieces of a step end, and what they are.
    fn step(&self, of: &RealFile, step: ByteRange) -> Vec<(u64, u32)> {
        let base = self.file.get_or_init(|| self.finder.find(&self.name).map(|it| RealFile::from(it.file)));
        let all = vec![(step.end(), DIRTY)];
        let Some(base) = base else { return all };
        let Ok(compared) = compare(of, base, step) else { return all };
        let (mut pieces, mut at) = (Vec::new(), step.start());
        for range in compared.differing {
            if range.start() > at {
                pieces.push((range.start(), 0));
            }
            pieces.push((range.end(), DIRTY));
            at = range.end();
        }
        if at < step.end() {
            pieces.push((step.end(), 0));
        }
        pieces
    }
}

/// Adds an extent, to the last one where they are alike.
pub fn push(extents: &mut Extents, length: u32, flags: u32) {
    match extents.last_mut() {
        Some((last, of)) if *of == flags => *last += length,
        _ => extents.push((length, flags)),
    }
}
