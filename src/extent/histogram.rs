//! The shape of a map in constant space: counts, a histogram of extent sizes, and a density strip.

use super::{Extent, ExtentFlags};

/// How many columns the density strip has.
pub const STRIP: usize = 64;

/// One class of the histogram: extents of at least `from` and less than twice that many bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class {
    /// The lower bound in bytes, a power of two.
    pub from: u64,
    /// How many extents.
    pub extents: u64,
    /// How many bytes they hold.
    pub bytes: u64,
}

/// What a walk over a file's map adds up to.
#[derive(Clone, Debug)]
pub struct Shape {
    size: u64,
    classes: [(u64, u64); 64],
    strip: [u64; STRIP],
    end: u64,
    /// All extents.
    pub extents: u64,
    /// Those that are shared with another file.
    pub shared_extents: u64,
    /// Bytes in shared extents.
    pub shared_bytes: u64,
    /// Bytes in all extents, unwritten ones left out.
    pub data_bytes: u64,
    /// Bytes in preallocated extents that were never written.
    pub unwritten_bytes: u64,
    /// Runs that no extent covers.
    pub holes: u64,
}

impl Shape {
    /// The shape of a file of `size` bytes before its first extent.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            classes: [(0, 0); 64],
            strip: [0; STRIP],
            end: 0,
            extents: 0,
            shared_extents: 0,
            shared_bytes: 0,
            data_bytes: 0,
            unwritten_bytes: 0,
            holes: 0,
        }
    }

    /// Adds the next extent, in the order of offsets.
    pub fn add(&mut self, extent: &Extent) {
        let len = extent.logical.len();
        self.extents += 1;
        if extent.flags.has(ExtentFlags::SHARED) {
            self.shared_extents += 1;
            self.shared_bytes += len;
        }
        if extent.flags.has(ExtentFlags::UNWRITTEN) {
            self.unwritten_bytes += len;
        } else {
            self.data_bytes += len;
        }
        let class = &mut self.classes[len.ilog2() as usize];
        class.0 += 1;
        class.1 += len;
        if let Some(column) = self.column(extent.logical.start()) {
            self.strip[column] += 1;
        }
        if extent.logical.start() > self.end && self.end < self.size {
            self.holes += 1;
        }
        self.end = self.end.max(extent.logical.end());
    }

    /// The whole file was seen: counts the hole at its end.
    #[must_use]
    pub fn finish(mut self) -> Self {
        if self.end < self.size {
            self.holes += 1;
            self.end = self.size;
        }
        self
    }

    /// The classes that have extents, smallest first.
    pub fn classes(&self) -> impl Iterator<Item = Class> + '_ {
        let classes = self.classes.iter().enumerate();
        classes.filter(|(_, c)| c.0 > 0).map(|(i, &(extents, bytes))| Class { from: 1 << i, extents, bytes })
    }

    /// How many extents begin in each of [`STRIP`] equal parts of the file.
    pub fn strip(&self) -> &[u64; STRIP] {
        &self.strip
    }

    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn column(&self, offset: u64) -> Option<usize> {
        if offset >= self.size {
            return None; // Preallocated past the end of the file.
        }
        Some((u128::from(offset) * STRIP as u128 / u128::from(self.size)) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::ByteRange;

    #[test]
    fn counts_holes_classes_and_columns() {
        let mut shape = Shape::new(64 * 4096);
        for (start, blocks, flags) in
            [(1, 1, ExtentFlags::SHARED), (2, 4, ExtentFlags::default()), (63, 1, ExtentFlags::UNWRITTEN)]
        {
            let logical = ByteRange::at(start * 4096, blocks * 4096).expect("not empty");
            shape.add(&Extent { logical, physical: 0, flags });
        }
        let shape = shape.finish();
        assert_eq!((shape.extents, shape.shared_extents, shape.holes), (3, 1, 2));
        assert_eq!((shape.shared_bytes, shape.data_bytes, shape.unwritten_bytes), (4096, 5 * 4096, 4096));
        let classes: Vec<(u64, u64)> = shape.classes().map(|c| (c.from, c.extents)).collect();
        assert_eq!(classes, [(4096, 2), (16384, 1)]);
        assert_eq!((shape.strip()[1], shape.strip()[2], shape.strip()[63], shape.strip()[0]), (1, 1, 1, 0));
    }

    #[test]
    fn an_empty_map_is_one_hole_and_an_empty_file_none() {
        assert_eq!(Shape::new(10).finish().holes, 1);
        assert_eq!(Shape::new(0).finish().holes, 0);
    }
}
