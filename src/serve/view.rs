//! A point in time as a [`Device`] that can be read: while it is kept, and after that.
//!
//! What is not kept yet is still in the image, which is read without a lock: a write goes on only after what it overwrites was marked as kept,
//! so what was read is of T0 if it is not marked as kept afterwards. If it is, it is read once more from where it is kept. So no reader
//! waits for a guest's write, and no write for a reader; a reader reads twice at most.

#[cfg(test)]
pub(super) mod tests;

use std::io;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;

use super::changes::{Base, DIRTY, push};
use super::device::{Device, Extents};
use super::fleece::Fleece;
use super::gate::Point;
use crate::disk::DiskFile;
use crate::disk::real::RealFile;
use crate::range::ByteRange;

/// What has to be known of a point in time as long as not all of it is kept.
pub struct Making {
    /// The image, for its bytes.
    pub image: Arc<dyn Device>,
    /// The same for its block map.
    pub map: Arc<RealFile>,
    /// What is kept, and whether all is lost.
    pub point: Point,
    flushed: OnceLock<bool>,
}

impl Making {
    /// Of an image, in two ways, and what is known of the point.
    pub fn new(image: Arc<dyn Device>, map: Arc<RealFile>, point: Point) -> Self {
        Self { image, map, point, flushed: OnceLock::new() }
    }
}

/// A point in time.
pub struct View {
    /// Where it is kept.
    kept: Arc<dyn Device>,
    /// The same for its block map.
    map: Arc<RealFile>,
    making: Option<Making>,
    /// A part of it may not be read, and readers may let parts of it go.
    fleece: Option<Arc<Fleece>>,
    /// Those that can be asked for what has changed since, in the order of the contexts behind the first one.
    bases: Vec<Base>,
}

impl View {
    /// One that is finished, with `making` of `None`, or not yet.
    pub fn new(kept: Arc<dyn Device>, map: Arc<RealFile>, making: Option<Making>, bases: Vec<Base>) -> Self {
        Self { kept, map, making, bases, fleece: None }
    }

    /// A fleece, with the image for what it has not kept.
    pub fn of_fleece(fleece: Arc<Fleece>, image: Arc<dyn Device>, map: Arc<RealFile>, bases: Vec<Base>) -> Self {
        let making = Making::new(image, map, fleece.point().clone());
        let sidecar = fleece.sidecar();
        let (kept, map) = (Arc::clone(sidecar) as Arc<dyn Device>, Arc::clone(sidecar.data()));
        Self { kept, map, making: Some(making), bases, fleece: Some(fleece) }
    }

    /// Whether all of a range may be read; looked at before it is and afterwards, for a reader may have let it go.
    ///
    /// # Errors
    /// EPERM where a part may not be.
    fn may_read(&self, offset: u64, length: u64) -> io::Result<()> {
        let (mut at, end) = (offset, offset + length);
        while let Some((fleece, range)) = self.fleece.as_ref().zip(ByteRange::new(at, end)) {
            at += fleece.readable(range)?;
        }
        Ok(())
    }

    /// The pieces of a range that lie in one place, and whether they are kept.
    fn runs(&self, offset: u64, length: u64) -> impl Iterator<Item = (ByteRange, bool)> {
        let mut rest = ByteRange::at(offset, length);
        std::iter::from_fn(move || {
            let range = rest?;
            let (run, kept) = self.making.as_ref().map_or((range, true), |it| it.point.clusters.run(range));
            rest = range.split(run.end()).1;
            Some((run, kept))
        })
    }

    /// Whether a range of the image, just looked at, is still what it was at T0.
    ///
    /// # Errors
    /// EIO where the point in time is lost.
    fn holds(&self, range: ByteRange) -> io::Result<bool> {
        // What was looked at, was so before the states are (the write that may have come between has seen them first).
        fence(Ordering::SeqCst);
        let pending = self.making.as_ref().is_none_or(|it| it.point.clusters.run(range) == (range, false));
        self.whole().map(|()| pending)
    }

    /// # Errors
    /// EIO where the point in time is lost.
    fn whole(&self) -> io::Result<()> {
        match self.making.as_ref().and_then(|it| it.point.fate.lost()) {
            Some(why) => Err(io::Error::other(format!("this point in time is lost: {why}"))),
            None => Ok(()),
        }
    }

    /// Reads a range of the image that is not kept, as far as it is not kept by then; the rest from where it is kept.
    fn read_pending(&self, image: &dyn Device, bytes: &mut [u8], range: ByteRange) -> io::Result<()> {
        image.read(bytes, range.start())?;
        if self.holds(range)? {
            return Ok(());
        }
        for (run, _) in self.runs(range.start(), range.len()).filter(|(_, kept)| *kept) {
            let from = (run.start() - range.start()) as usize;
            self.kept.read(&mut bytes[from..from + run.len() as usize], run.start())?;
        }
        Ok(())
    }

    /// What is where in the first part of a range that is kept, or is not; of what is not, as far as it still is not afterwards: nothing,
    /// where its first cluster is kept by then. `maps` where block maps are compared, which show what is dirty only once it is written.
    fn piece(&self, range: ByteRange, kept: bool, maps: bool, ask: &Ask<'_>) -> io::Result<Extents> {
        if let Some(making) = self.making.as_ref().filter(|_| !kept) {
            if maps && !making.flush() {
                return Ok(vec![(range.len() as u32, DIRTY)]);
            }
            let mut extents = ask(&*making.image, &making.map, range)?;
            let pending = if self.holds(range)? { range.len() } else { self.pending(range) };
            cut(&mut extents, pending);
            return Ok(extents);
        }
        // What could not be cloned was copied, and may be dirty.
        if maps && self.making.is_some() && !flush(&self.map) {
            return Ok(vec![(range.len() as u32, DIRTY)]);
        }
        ask(&*self.kept, &self.map, range)
    }

    /// How much of the beginning of a range is not kept.
    fn pending(&self, range: ByteRange) -> u64 {
        let first = self.runs(range.start(), range.len()).next();
        first.filter(|(_, kept)| !kept).map_or(0, |(run, _)| run.len())
    }
}

/// Leaves of extents what is within so many bytes.
fn cut(extents: &mut Extents, bytes: u64) {
    let mut left = bytes;
    extents.retain_mut(|(length, _)| {
        *length = u64::from(*length).min(left) as u32;
        left -= u64::from(*length);
        *length > 0
    });
}

impl Making {
    /// The map shows everything that was written before T0: what is pending is not written to any more, so once is enough.
    fn flush(&self) -> bool {
        *self.flushed.get_or_init(|| flush(&self.map))
    }
}

/// Has a map show all that was written; whether it does.
fn flush(file: &RealFile) -> bool {
    let first = ByteRange::new(0, 1).expect("a byte");
    file.map(first, 1, true, &mut Vec::new()).is_ok()
}

/// What is asked of a file: its device, its map, and a range.
type Ask<'a> = dyn Fn(&dyn Device, &RealFile, ByteRange) -> io::Result<Extents> + 'a;

impl Device for View {
    fn size(&self) -> u64 {
        self.kept.size()
    }

    fn has_memory(&self) -> bool {
        self.kept.has_memory()
    }

    fn read_now(&self, bytes: &mut [u8], offset: u64) -> bool {
        let mut runs = self.runs(offset, bytes.len() as u64);
        let (Some((range, kept)), None) = (runs.next(), runs.next()) else { return false };
        let read = match self.making.as_ref().filter(|_| !kept) {
            None => self.kept.read_now(bytes, offset) && self.whole().is_ok(),
            Some(making) => making.image.read_now(bytes, offset) && self.holds(range).unwrap_or(false),
        };
        read && self.may_read(range.start(), range.len()).is_ok()
    }

    fn write_now(&self, _: &[u8], _: u64) -> bool {
        false
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.may_read(offset, bytes.len() as u64)?;
        for (run, kept) in self.runs(offset, bytes.len() as u64) {
            let from = (run.start() - offset) as usize;
            let bytes = &mut bytes[from..from + run.len() as usize];
            match self.making.as_ref().filter(|_| !kept) {
                None => self.kept.read(bytes, run.start())?,
                Some(making) => self.read_pending(&*making.image, bytes, run)?,
            }
        }
        self.whole()?;
        self.may_read(offset, bytes.len() as u64)
    }

    fn write(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(Errno::EPERM.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        let fleece = self.fleece.as_ref().ok_or(Errno::EPERM)?;
        ByteRange::at(offset, length).map_or(Ok(()), |range| fleece.release(range))
    }

    fn zero(&self, _: u64, _: u64, _: bool, _: bool) -> io::Result<()> {
        Err(Errno::EPERM.into())
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.kept.cache(offset, length)
    }

    fn extents(&self, context: u32, offset: u64, length: u32, most: usize) -> io::Result<Extents> {
        if let Some(fleece) = &self.fleece
            && let Some(range) = ByteRange::at(offset, u64::from(length))
        {
            if context > 0 && fleece.base().is_some() {
                return Ok(fleece.changes(range, most));
            }
            if context == 0 {
                let readable = fleece.readable(range)?;
                let mut extents = self.found(context, offset, readable as u32, most)?;
                // A reader may have let some of it go meanwhile.
                cut(&mut extents, fleece.readable(range)?);
                return Ok(extents);
            }
        }
        self.found(context, offset, length, most)
    }
}

impl View {
    /// What is where in a range that may be read.
    fn found(&self, context: u32, offset: u64, length: u32, most: usize) -> io::Result<Extents> {
        let allocation = |device: &dyn Device, _: &RealFile, range: ByteRange| {
            device.extents(0, range.start(), range.len() as u32, most)
        };
        let base = (context as usize).checked_sub(1).and_then(|nth| self.bases.get(nth));
        let changes = |_: &dyn Device, map: &RealFile, range: ByteRange| {
            Ok(base.map_or_else(|| vec![(range.len() as u32, DIRTY)], |base| base.changes(map, range, most)))
        };
        let ask: &Ask<'_> = if context == 0 { &allocation } else { &changes };
        let mut extents = Extents::new();
        let (mut at, end) = (offset, offset + u64::from(length));
        while extents.len() < most
            && let Some((run, kept)) = self.runs(at, end - at).next()
        {
            for (length, flags) in self.piece(run, kept, context > 0, ask)? {
                push(&mut extents, length, flags);
                at += u64::from(length);
            }
        }
        extents.truncate(most);
        self.whole().map(|()| extents)
    }
}
