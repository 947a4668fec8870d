//! A disk whose writes go through a [`Gate`].

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::device::{Device, Extents};
use super::gate::{Gate, Passing};
use crate::range::ByteRange;

/// How much of a discard, or of zeroes, goes through the gate at once: who writes beside it waits for no more to be kept first.
const PART: u64 = 4 << 20;

/// A disk behind a gate.
pub struct Filtered {
    disk: Arc<dyn Device>,
    gate: Arc<Gate>,
    /// Where reads go while a clone call runs, if not to the disk: on Btrfs a direct one would wait for the call (KERNEL.md).
    meanwhile: Option<Arc<dyn Device>>,
}

impl Filtered {
    /// This disk, behind this gate.
    pub fn new(disk: Arc<dyn Device>, gate: Arc<Gate>, meanwhile: Option<Arc<dyn Device>>) -> Self {
        Self { disk, gate, meanwhile }
    }

    fn reads(&self) -> &dyn Device {
        self.meanwhile.as_deref().filter(|_| self.gate.is_calling()).unwrap_or(&*self.disk)
    }

    /// Waits until a range may be changed; nothing to wait for where there is none of it.
    fn enter(&self, offset: u64, length: u64) -> io::Result<Option<Passing<'_>>> {
        self.enter_with(offset, length, &mut Duration::default())
    }

    fn enter_with(&self, offset: u64, length: u64, waited: &mut Duration) -> io::Result<Option<Passing<'_>>> {
        ByteRange::at(offset, length).map(|range| self.gate.enter_with(range, waited)).transpose()
    }
}

impl Device for Filtered {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn has_memory(&self) -> bool {
        self.disk.has_memory()
    }

    fn read_now(&self, bytes: &mut [u8], offset: u64) -> bool {
        self.disk.read_now(bytes, offset)
    }

    fn write_now(&self, bytes: &[u8], offset: u64) -> bool {
        let range = ByteRange::at(offset, bytes.len() as u64);
        range.is_some_and(|range| self.gate.try_enter(range).is_some_and(|_on| self.disk.write_now(bytes, offset)))
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads().read(bytes, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let _on = self.enter(offset, bytes.len() as u64)?;
        self.disk.write(bytes, offset)
    }

    fn write_part(&self, bytes: &[u8], offset: u64, waited: &mut Duration) -> io::Result<()> {
        let _on = self.enter_with(offset, bytes.len() as u64, waited)?;
        self.disk.write(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut waited = Duration::default();
        for part in parts(offset, length) {
            // Advice: what would have to wait for longer than a write may stays as it is, and so does what comes after it.
            let Some(_on) = self.gate.enter_in_time(part, &mut waited)? else { break };
            self.disk.trim(part.start(), part.len())?;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, allocate: bool, fast: bool) -> io::Result<()> {
        // Of gigabytes it takes long whatever is kept of them: each part may wait as long as a write.
        parts(offset, length).try_for_each(|part| {
            let _on = self.gate.enter(part)?;
            self.disk.zero(part.start(), part.len(), allocate, fast)
        })
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.disk.cache(offset, length)
    }

    fn extents(&self, context: u32, offset: u64, length: u32, most: usize) -> io::Result<Extents> {
        self.disk.extents(context, offset, length, most)
    }
}

/// What goes through the gate at once, in its order.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = ByteRange> {
    let mut rest = ByteRange::at(offset, length);
    std::iter::from_fn(move || {
        let left = rest?;
        let (part, later) = left.split((left.start() / PART + 1) * PART);
        rest = later;
        part
    })
}
