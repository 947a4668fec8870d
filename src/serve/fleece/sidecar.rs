//! Where a fleece keeps what the guest overwrites: a file of the image's size, in which each cluster is at its own place.
//!
//! So a place that a reader has let go is never used for anything else, whoever still reads it.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::allocated::Allocated;
use super::format::State;
use super::map::Map;
use super::memory::Memory;
use crate::disk::DiskFile;
use crate::disk::real::RealFile;
use crate::range::{ByteRange, Geometry, PowerOfTwo};
use crate::serve::device::{Device, Extents};
use crate::serve::disk::Disk;

/// How long the writer waits after an error before it tries again; the piece stays where it is.
const AGAIN: Duration = Duration::from_secs(1);

/// How much is given back at a time.
const SLICE: u64 = 4 << 20;

/// A fleece's data.
pub struct Sidecar {
    data: Arc<RealFile>,
    disk: Disk,
    image: Arc<dyn Device>,
    image_map: Arc<RealFile>,
    geometry: Geometry,
    cluster: PowerOfTwo,
    map: Arc<Map>,
    memory: Memory,
    /// The most that it may have, in bytes.
    most: u64,
    durable: bool,
    clones: AtomicBool,
    copied: AtomicU64,
    allocated: Allocated,
    /// Of those who keep and those who let go.
    turn: Mutex<()>,
}

/// A piece in memory, and where it begins.
type Piece = (u64, Arc<Vec<u8>>);

/// What a sidecar is of.
pub struct Of {
    /// The image, for its bytes.
    pub image: Arc<dyn Device>,
    /// The same for clones of it.
    pub map: Arc<RealFile>,
    /// Its size, and its file system's block.
    pub geometry: Geometry,
}

impl Sidecar {
    /// In this file, which is of the image's size.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(file: std::fs::File, of: Of, map: Arc<Map>) -> io::Result<Self> {
        let header = map.header().clone();
        let cluster = PowerOfTwo::new(header.terms.cluster).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            data: Arc::new(RealFile::from(file.try_clone()?)),
            disk: Disk::new(file)?,
            image: of.image,
            image_map: of.map,
            geometry: of.geometry,
            cluster,
            map,
            memory: Memory::new(header.terms.ram),
            most: header.terms.max_sidecar,
            durable: header.terms.durable,
            clones: AtomicBool::new(true),
            copied: AtomicU64::new(0),
            allocated: Allocated::default(),
            turn: Mutex::new(()),
        })
    }

    /// Its file, for its block map.
    pub fn data(&self) -> &Arc<RealFile> {
        &self.data
    }

    /// What it has, on its disk as that was last asked and in memory, in bytes; and how much of it was ever copied.
    pub fn sizes(&self) -> (u64, u64) {
        (self.allocated.bytes() + self.memory.unwritten(), self.copied.load(Ordering::Relaxed))
    }

    /// Asks how much is allocated, which a disk may have to be waited for.
    pub fn ask_size(&self) {
        self.allocated.ask(&*self.data);
    }

    /// Keeps whole clusters of the image. `around` makes the clone call, with the writes of the guest held meanwhile; `wanted` says of a
    /// range whether nobody has let any of it go.
    ///
    /// # Errors
    /// ENOSPC at `--max-sidecar`; ETIMEDOUT where the memory has no room in time; the kernel's.
    pub fn keep(
        &self,
        range: ByteRange,
        patience: Duration,
        around: &dyn Fn(&mut dyn FnMut()),
        wanted: &dyn Fn(ByteRange) -> bool,
    ) -> io::Result<()> {
        self.ask_size();
        if self.sizes().0 + range.len() > self.most {
            return Err(Errno::ENOSPC.into());
        }
        if self.cloned(range, around, wanted)? {
            return Ok(());
        }
        for cluster in self.clusters(range) {
            if !self.cloned(cluster, around, wanted)? {
                self.copy(cluster, patience, wanted)?;
            }
        }
        Ok(())
    }

    /// The clusters of a range of whole ones.
    fn clusters(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + use<> {
        let (mut at, unit) = (range.start(), self.cluster.get());
        std::iter::from_fn(move || ByteRange::new(at, (at + unit).min(range.end())).inspect(|it| at = it.end()))
    }

    /// Clones whole clusters; false where that cannot be, or a part of them is not wanted any more.
    fn cloned(
        &self,
        range: ByteRange,
        around: &dyn Fn(&mut dyn FnMut()),
        wanted: &dyn Fn(ByteRange) -> bool,
    ) -> io::Result<bool> {
        let Some(clone) = self.geometry.cover(range).filter(|_| self.clones.load(Ordering::Relaxed)) else {
            return Ok(false);
        };
        // Who lets clusters go says so first and takes his turn then: what is kept here of them is removed by him.
        let _turn = self.turn();
        if !wanted(range) {
            return Ok(false);
        }
        let mut cloned = Ok(());
        around(&mut || cloned = self.data.clone_range(&self.image_map, clone).map(drop));
        match cloned.map_err(|e| e.raw_os_error()) {
            Ok(()) => return self.kept(range).map(|()| true),
            // Another file system, or one that cannot.
            Err(Some(libc::EXDEV | libc::EOPNOTSUPP | libc::ENOTTY)) => self.clones.store(false, Ordering::Relaxed),
            // What cannot be shared here and now is copied.
            Err(_) => {}
        }
        Ok(false)
    }

    /// Makes durable what was kept, before it is overwritten; then it counts as kept, but for what was let go meanwhile.
    ///
    /// # Errors
    /// The kernel's.
    pub fn commit(&self, ranges: &[ByteRange], wanted: &dyn Fn(ByteRange) -> bool) -> io::Result<()> {
        self.sync()?;
        {
            let _turn = self.turn();
            let clusters = ranges.iter().flat_map(|range| self.clusters(*range));
            clusters.filter(|it| wanted(*it)).try_for_each(|it| self.map.set(it, State::Kept))?;
        }
        self.map.sync()
    }

    /// A reader needs these whole clusters no more: from `released` on nobody reads them. Said in the map first, as what is kept is.
    ///
    /// # Errors
    /// The kernel's; nothing is changed then.
    pub fn release(&self, range: ByteRange, released: &dyn Fn()) -> io::Result<()> {
        let _turn = self.turn();
        self.map.set(range, State::Released)?;
        if self.durable {
            self.map.sync()?;
        }
        released();
        self.memory.forget(range);
        Ok(())
    }

    /// These whole clusters are as in the base: from `denied` on nobody reads them. Said in the map before anybody overwrites them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn deny(&self, ranges: &[ByteRange], denied: &dyn Fn(ByteRange)) -> io::Result<()> {
        for range in ranges {
            // Who keeps some of it now may read it after it was overwritten.
            let _turn = self.turn();
            self.map.set(*range, State::Denied)?;
            denied(*range);
            self.memory.forget(*range);
        }
        if self.durable && !ranges.is_empty() { self.map.sync() } else { Ok(()) }
    }

    /// Gives the room of what was released back, in slices: nobody waits for it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn punch(&self, range: ByteRange) -> io::Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let length = SLICE.min(range.end() - at);
            self.disk.trim(at, length)?;
            at += length;
        }
        Ok(())
    }

    /// It is lost: nobody reads it, and all of its room is given back, as far as the kernel will.
    pub fn give_back(&self) {
        self.memory.end();
        {
            let _turn = self.turn();
            self.memory.clear();
        }
        let _ = ByteRange::new(0, self.geometry.size).map(|all| self.punch(all));
    }

    /// Puts what is in memory on the disk, until [`Sidecar::end`], or until some of it is lost there: `lost` is told of that.
    pub fn write(&self, lost: &dyn Fn(&io::Error)) {
        while let Some(pieces) = self.memory.wait() {
            // Whoever keeps or lets go does not wait for this disk. What is let go meanwhile is written for nothing.
            let put = |(at, piece): &&(u64, Arc<Vec<u8>>)| {
                self.disk.write(piece, *at).inspect(|()| self.memory.written(*at)).is_ok()
            };
            let written: Vec<_> = pieces.iter().take_while(put).collect();
            // What the page cache has and the disk does not take is forgotten, without a word to those who read it: so it is read from memory
            // until the disk has it.
            if let Err(e) = self.sync() {
                self.memory.end();
                return lost(&e);
            }
            let settled = written.iter().all(|(at, piece)| self.settle(*at, piece.len() as u64).is_ok());
            if settled && written.len() == pieces.len() {
                continue;
            }
            if self.memory.is_over() {
                return;
            }
            // It is read from memory as well as from the disk; where that is full, what comes next cannot be kept.
            std::thread::sleep(AGAIN);
        }
    }

    /// A piece is on the disk: it is kept there from now on, if nobody has let it go.
    fn settle(&self, at: u64, length: u64) -> io::Result<()> {
        let _turn = self.turn();
        let range = ByteRange::at(at, length).filter(|_| self.memory.at(at).is_some());
        range.map_or(Ok(()), |it| self.map.set(it, State::Kept)).inspect(|()| self.memory.remove(at))
    }

    /// Everything that was written is on the disk.
    ///
    /// # Errors
    /// The kernel's, which tells it once; so every sync fails from then on.
    pub fn sync(&self) -> io::Result<()> {
        self.disk.flush()
    }

    /// Nothing more is kept: [`Sidecar::write`] ends when all is written, or cannot be.
    pub fn end(&self) {
        self.memory.end();
    }

    /// Whether all is in the file, and on its disk.
    pub fn is_written(&self) -> bool {
        self.memory.is_empty()
    }

    fn kept(&self, range: ByteRange) -> io::Result<()> {
        if self.durable { Ok(()) } else { self.map.set(range, State::Kept) }
    }

    fn copy(&self, cluster: ByteRange, patience: Duration, wanted: &dyn Fn(ByteRange) -> bool) -> io::Result<()> {
        let at = cluster.start();
        let mut bytes = vec![0; cluster.len() as usize];
        self.image.read(&mut bytes, at)?;
        // Whoever makes room has his turn meanwhile.
        if !self.durable && !self.memory.has_room(cluster.len(), patience) {
            return Err(Errno::ETIMEDOUT.into());
        }
        let _turn = self.turn();
        if !wanted(cluster) {
            return Ok(());
        }
        self.copied.fetch_add(cluster.len(), Ordering::Relaxed);
        if bytes.iter().all(|byte| *byte == 0) {
            // A clone that has failed may have put something there.
            self.disk.zero(at, cluster.len(), false, false)?;
            self.kept(cluster)
        } else if self.durable {
            self.disk.write(&bytes, at)
        } else {
            self.map.set(cluster, State::InMemory)?;
            self.memory.put(at, bytes);
            Ok(())
        }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pieces of a range: in memory from where on, or in the file until where.
    fn pieces(&self, offset: u64, end: u64) -> impl Iterator<Item = (ByteRange, Option<Piece>)> {
        let mut at = offset;
        std::iter::from_fn(move || {
            ByteRange::new(at, end)?;
            let (to, piece) = match self.memory.at(at) {
                Some((start, piece)) => (start + piece.len() as u64, Some((start, piece))),
                None => (self.memory.next(at).unwrap_or(end), None),
            };
            let range = ByteRange::new(at, to.min(end))?;
            at = range.end();
            Some((range, piece))
        })
    }
}

impl Device for Sidecar {
    fn size(&self) -> u64 {
        self.geometry.size
    }

    fn read_now(&self, bytes: &mut [u8], offset: u64) -> bool {
        self.is_written() && self.disk.read_now(bytes, offset)
    }

    fn write_now(&self, _: &[u8], _: u64) -> bool {
        false
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        for (range, piece) in self.pieces(offset, offset + bytes.len() as u64) {
            let into = &mut bytes[(range.start() - offset) as usize..][..range.len() as usize];
            match piece {
                Some((start, piece)) => into.copy_from_slice(&piece[(range.start() - start) as usize..][..into.len()]),
                None => self.disk.read(into, range.start())?,
            }
        }
        Ok(())
    }

    fn write(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(Errno::EPERM.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn trim(&self, _: u64, _: u64) -> io::Result<()> {
        Err(Errno::EPERM.into())
    }

    fn zero(&self, _: u64, _: u64, _: bool, _: bool) -> io::Result<()> {
        Err(Errno::EPERM.into())
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.disk.cache(offset, length)
    }

    fn extents(&self, context: u32, offset: u64, length: u32, most: usize) -> io::Result<Extents> {
        let mut extents = Extents::new();
        for (range, piece) in self.pieces(offset, offset + u64::from(length)) {
            match piece {
                Some(_) => extents.push((range.len() as u32, 0)),
                None => {
                    let found = self.disk.extents(context, range.start(), range.len() as u32, most - extents.len())?;
                    let whole = found.iter().map(|(length, _)| u64::from(*length)).sum::<u64>() == range.len();
                    extents.extend(found);
                    if !whole {
                        break;
                    }
                }
            }
            if extents.len() >= most {
                break;
            }
        }
        Ok(extents)
    }
}
