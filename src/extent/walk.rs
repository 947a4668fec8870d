//! A file's map as an iterator, batch by batch, over anything that answers as FIEMAP does.

use std::io;

use super::Extent;
use crate::range::ByteRange;

/// What answers for a range's extents: see [`crate::disk::DiskFile::addresses`].
pub trait Maps {
    /// Appends the extents that touch `range`, in order, at most `max`; fewer mean that there are no more.
    ///
    /// # Errors
    /// What the kernel says.
    fn extents(&self, range: ByteRange, max: usize, into: &mut Vec<Extent>) -> io::Result<()>;
}

/// The extents that touch a range, in order. Holds one batch.
pub struct MapWalk<'a, F> {
    file: &'a F,
    rest: Option<ByteRange>,
    batch: Vec<Extent>,
    next: usize,
    max: usize,
    seen: u64,
}

impl<'a, F: Maps> MapWalk<'a, F> {
    /// A walk over `range` that asks for `max` extents at a time.
    pub fn new(file: &'a F, range: ByteRange, max: usize) -> Self {
        Self { file, rest: Some(range), batch: Vec::new(), next: 0, max: max.max(1), seen: 0 }
    }

    /// How many extents were handed out.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    fn refill(&mut self, range: ByteRange) -> io::Result<()> {
        self.batch.clear();
        self.next = 0;
        self.file.extents(range, self.max, &mut self.batch)?;
        let full = self.batch.len() >= self.max;
        let reached = self.batch.last().map_or(range.end(), |e| e.logical.end());
        // Insist on progress: an answer that does not get past its beginning would be asked for for ever.
        if full && reached <= range.start() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the block map does not advance"));
        }
        self.rest = if full { range.split(reached).1 } else { None };
        Ok(())
    }
}

impl<F: Maps> Iterator for MapWalk<'_, F> {
    type Item = io::Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next >= self.batch.len() {
            let range = self.rest.take()?;
            if let Err(error) = self.refill(range) {
                return Some(Err(error));
            }
        }
        let extent = self.batch[self.next];
        self.next += 1;
        self.seen += 1;
        Some(Ok(extent))
    }
}
