//! Two block maps side by side.

use std::collections::VecDeque;
use std::io;

use super::Span;
use super::still::of_old;
use crate::disk::DiskFile;
use crate::disk::blocks::same_addresses;
use crate::extent::delta::{Relation, Run, joined};
use crate::extent::lockstep::lockstep;
use crate::extent::segments::segments;
use crate::extent::walk::MapWalk;
use crate::plan::chunk::WALK_BATCH;
use crate::range::ByteRange;

/// How much is looked at before it is asked again whether extents are moved about: the most spans that are held are twice its blocks.
const STEP: u64 = 64 << 20;

/// How one file stands to another, range by range, over all that both have. Neighbours of which the same is true are joined.
pub fn spans<'a, F: DiskFile>(sides: Sides<'a, F>) -> impl Iterator<Item = io::Result<Span>> + use<'a, F> {
    joined(Steps { sides, at: 0, ready: VecDeque::new(), failed: false })
}

/// Two files, flushed, that nobody may write.
#[derive(Clone, Copy)]
pub struct Sides<'a, F> {
    /// The former.
    pub old: &'a F,
    /// The one that is described.
    pub new: &'a F,
    /// Bytes that both have.
    pub common: u64,
    /// Whether addresses of both mean the same blocks.
    pub comparable: bool,
}

/// Whether addresses of both files mean the same blocks.
///
/// # Errors
/// As [`same_addresses`]; `of_old` tells of which.
pub fn comparable<F: DiskFile>(old: &F, new: &F) -> io::Result<bool> {
    // What cannot be told of a file cannot be told of it by itself either.
    same_addresses(old, new).map_err(|e| if same_addresses(old, old).is_err() { of_old(e) } else { e })
}

struct Steps<'a, F> {
    sides: Sides<'a, F>,
    at: u64,
    ready: VecDeque<Span>,
    failed: bool,
}

impl<F: DiskFile> Iterator for Steps<'_, F> {
    type Item = io::Result<Span>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.failed {
            let step = ByteRange::new(self.at, self.sides.common.min(self.at.saturating_add(STEP)))?;
            self.at = step.end();
            if let Err(error) = self.sides.step(step, &mut self.ready) {
                self.failed = true;
                return Some(Err(error));
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

impl<F: DiskFile> Sides<'_, F> {
    fn step(&self, step: ByteRange, into: &mut VecDeque<Span>) -> io::Result<()> {
        let still = self.comparable && !self.new.relocating()?;
        self.walk(step, still, into)?;
        // The same address at two moments is the same content only if nothing was moved in between.
        if still && self.new.relocating()? {
            into.clear();
            self.walk(step, false, into)?;
        }
        Ok(())
    }

    fn walk(&self, step: ByteRange, comparable: bool, into: &mut VecDeque<Span>) -> io::Result<()> {
        let mut old = MapWalk::new(self.old, step, WALK_BATCH);
        let mut new = MapWalk::new(self.new, step, WALK_BATCH);
        let pairs = lockstep(
            segments(&mut old, step.start(), step.end()).map(|it| it.map_err(of_old)),
            segments(&mut new, step.start(), step.end()),
        );
        let runs = pairs.map(|pair| pair.map(|it| Run { range: it.range, what: Relation::of_still(&it, comparable) }));
        for run in joined(runs) {
            into.push_back(run?);
        }
        Ok(())
    }
}

/// What one file has from `from` on, where nothing is compared.
///
/// # Errors
/// What reading the map says.
pub fn rest<F: DiskFile>(new: &F, from: u64, size: u64) -> impl Iterator<Item = io::Result<Span>> + '_ {
    let range = ByteRange::new(from, size);
    let walk = range.map(|range| segments(MapWalk::new(new, range, WALK_BATCH), range.start(), range.end()));
    let runs = walk.into_iter().flatten().map(|segment| {
        let segment = segment?;
        let pair =
            crate::extent::lockstep::Pair { range: segment.range, left: segment.mapping, right: segment.mapping };
        let zero = Relation::of_still(&pair, false).zero;
        Ok(Run { range: segment.range, what: Relation { equal: false, zero } })
    });
    joined(runs)
}
