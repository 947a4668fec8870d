//! What could not be cloned, in memory, until it is in the sidecar for good: a guest's write waits for a copy there and not for a disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::range::ByteRange;

/// A piece that begins at a cluster, and is no larger than one.
struct Piece {
    bytes: Arc<Vec<u8>>,
    /// It is in the sidecar as well, and may not be on its disk yet.
    written: bool,
}

/// The memory, of a bounded size.
pub struct Memory {
    held: Mutex<Held>,
    changed: Condvar,
    limit: u64,
}

#[derive(Default)]
struct Held {
    pieces: BTreeMap<u64, Piece>,
    bytes: u64,
    /// Those of them that are not written.
    unwritten: u64,
    over: bool,
}

impl Held {
    /// The piece that begins here is no more, and counts no more.
    fn forget(&mut self, at: u64) {
        if let Some(piece) = self.pieces.remove(&at) {
            let bytes = piece.bytes.len() as u64;
            self.bytes -= bytes;
            self.unwritten -= if piece.written { 0 } else { bytes };
        }
    }
}

impl Memory {
    /// None yet, and never more than so many bytes, or one piece.
    pub fn new(limit: u64) -> Self {
        Self { held: Mutex::default(), changed: Condvar::new(), limit }
    }

    /// Waits for room for so many bytes; false where none came to be in time. Whoever puts pieces here is one.
    pub fn has_room(&self, bytes: u64, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut held = self.held();
        while held.bytes > 0 && held.bytes + bytes > self.limit {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || held.over {
                return false;
            }
            held = self.changed.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Keeps a piece that begins here, in the place of one that does: where the guest's write was refused, and is made again.
    pub fn put(&self, at: u64, piece: Vec<u8>) {
        let mut held = self.held();
        held.forget(at);
        held.bytes += piece.len() as u64;
        held.unwritten += piece.len() as u64;
        held.pieces.insert(at, Piece { bytes: Arc::new(piece), written: false });
        self.changed.notify_all();
    }

    /// The piece that has the byte at `offset`, and where it begins.
    pub fn at(&self, offset: u64) -> Option<(u64, Arc<Vec<u8>>)> {
        let held = self.held();
        let (at, piece) = held.pieces.range(..=offset).next_back()?;
        (offset < at + piece.bytes.len() as u64).then(|| (*at, Arc::clone(&piece.bytes)))
    }

    /// Where the first piece from `offset` on begins.
    pub fn next(&self, offset: u64) -> Option<u64> {
        self.held().pieces.range(offset..).next().map(|(at, _)| *at)
    }

    /// Waits for pieces that are to be put on the disk; none at the end, when all are. They stay here until [`Memory::remove`], so not more
    /// than half of what there may be at once: the other half is for those who come meanwhile.
    pub fn wait(&self) -> Option<Vec<(u64, Arc<Vec<u8>>)>> {
        let mut held = self.held();
        while held.pieces.is_empty() {
            if held.over {
                return None;
            }
            held = self.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        let mut bytes = 0;
        let fits = |(_, piece): &(&u64, &Piece)| {
            let first = bytes == 0;
            bytes += piece.bytes.len() as u64;
            first || bytes <= self.limit / 2
        };
        Some(held.pieces.iter().take_while(fits).map(|(at, piece)| (*at, Arc::clone(&piece.bytes))).collect())
    }

    /// A piece is in the sidecar, and may not be on its disk yet.
    pub fn written(&self, at: u64) {
        let mut held = self.held();
        if let Some(piece) = held.pieces.get_mut(&at).filter(|piece| !piece.written) {
            piece.written = true;
            let bytes = piece.bytes.len() as u64;
            held.unwritten -= bytes;
        }
    }

    /// A piece is on the sidecar's disk, or not wanted any more.
    pub fn remove(&self, at: u64) {
        self.held().forget(at);
        self.changed.notify_all();
    }

    /// No piece that begins in this range is wanted any more.
    pub fn forget(&self, range: ByteRange) {
        let mut held = self.held();
        while let Some((at, _)) = held.pieces.range(range.start()..range.end()).next() {
            let at = *at;
            held.forget(at);
        }
        drop(held);
        self.changed.notify_all();
    }

    /// Nothing of it is wanted any more.
    pub fn clear(&self) {
        let mut held = self.held();
        (held.bytes, held.unwritten) = (0, 0);
        held.pieces.clear();
        self.changed.notify_all();
    }

    /// No more come.
    pub fn end(&self) {
        self.held().over = true;
        self.changed.notify_all();
    }

    /// Whether [`Memory::end`] was said.
    pub fn is_over(&self) -> bool {
        self.held().over
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.held().pieces.is_empty()
    }

    /// Bytes that are nowhere else.
    pub fn unwritten(&self) -> u64 {
        self.held().unwritten
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn waiting(memory: &Memory) -> Option<Vec<u64>> {
        memory.wait().map(|pieces| pieces.into_iter().map(|(at, _)| at).collect())
    }

    #[test]
    fn a_piece_is_found_by_any_of_its_bytes_until_it_is_on_the_disk() {
        let memory = Memory::new(100);
        memory.put(4096, vec![7; 10]);
        memory.put(8192, vec![8; 10]);
        assert_eq!(memory.at(4105).map(|(at, piece)| (at, piece[0])), Some((4096, 7)));
        assert!(memory.at(4106).is_none() && memory.at(0).is_none());
        assert_eq!((memory.next(4097), memory.next(8193)), (Some(8192), None));
        memory.written(4096);
        memory.written(4096);
        assert_eq!((memory.at(4096).is_some(), memory.unwritten()), (true, 10), "it is not on the disk yet");
        memory.remove(4096);
        assert!(memory.at(4096).is_none());
        assert_eq!((memory.unwritten(), waiting(&memory)), (10, Some(vec![8192])));
        memory.remove(8192);
        assert_eq!((memory.unwritten(), memory.is_empty()), (0, true));
    }

    #[test]
    fn it_never_has_more_than_it_may() {
        let memory = Arc::new(Memory::new(10));
        assert!(memory.has_room(16, Duration::ZERO), "one there may always be");
        memory.put(0, vec![0; 16]);
        memory.written(0);
        assert!(
            !memory.has_room(1, Duration::from_millis(1)),
            "what is written takes its room until it is on the disk"
        );
        let waits = thread::spawn({
            let memory = Arc::clone(&memory);
            move || {
                let room = memory.has_room(1, LONG);
                memory.put(16, vec![0; 1]);
                room
            }
        });
        memory.remove(0);
        assert!(waits.join().expect("no panic"));
        memory.end();
        assert_eq!(waiting(&memory), Some(vec![16]), "what is there is written first");
        memory.remove(16);
        assert!(memory.wait().is_none());
    }

    #[test]
    fn what_takes_the_place_of_another_piece_counts_once() {
        let memory = Memory::new(100);
        memory.put(0, vec![1; 60]);
        memory.put(0, vec![1; 50]);
        assert_eq!(memory.unwritten(), 50);
        memory.written(0);
        memory.put(0, vec![1; 40]);
        assert_eq!((memory.unwritten(), memory.has_room(60, Duration::ZERO)), (40, true));
        memory.remove(0);
        assert_eq!((memory.unwritten(), memory.has_room(100, Duration::ZERO)), (0, true));
    }

    #[test]
    fn half_of_it_goes_to_the_disk_at_once() {
        let memory = Memory::new(100);
        (0..10).for_each(|at| memory.put(at * 4096, vec![0; 10]));
        assert_eq!(waiting(&memory).map(|it| it.len()), Some(5));
        let memory = Memory::new(100);
        (0..2).for_each(|at| memory.put(at * 4096, vec![0; 60]));
        assert_eq!(waiting(&memory), Some(vec![0]), "one that is larger goes alone");
    }
}
