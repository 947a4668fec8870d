//! What could not be cloned, in memory, until it is in the sidecar: a guest's write waits for a copy there and not for a disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pieces that begin at a cluster, none larger than one.
type Pieces = BTreeMap<u64, Arc<Vec<u8>>>;

/// The memory, of a bounded size.
pub struct Memory {
    held: Mutex<Held>,
    changed: Condvar,
    limit: u64,
}

#[derive(Default)]
struct Held {
    pieces: Pieces,
    bytes: u64,
    over: bool,
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

    /// Keeps a piece that begins here.
    pub fn put(&self, at: u64, piece: Vec<u8>) {
        let mut held = self.held();
        held.bytes += piece.len() as u64;
        held.pieces.insert(at, Arc::new(piece));
        self.changed.notify_all();
    }

    /// The piece that has the byte at `offset`, and where it begins.
    pub fn at(&self, offset: u64) -> Option<(u64, Arc<Vec<u8>>)> {
        let held = self.held();
        let (at, piece) = held.pieces.range(..=offset).next_back()?;
        (offset < at + piece.len() as u64).then(|| (*at, Arc::clone(piece)))
    }

    /// Where the first piece from `offset` on begins.
    pub fn next(&self, offset: u64) -> Option<u64> {
        self.held().pieces.range(offset..).next().map(|(at, _)| *at)
    }

    /// Waits for a piece that is to be written; none at the end, when all are.
    pub fn wait(&self) -> Option<(u64, Arc<Vec<u8>>)> {
        let mut held = self.held();
        loop {
            if let Some((at, piece)) = held.pieces.first_key_value() {
                return Some((*at, Arc::clone(piece)));
            }
            if held.over {
                return None;
            }
            held = self.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A piece is in the sidecar, or not wanted any more.
    pub fn remove(&self, at: u64) {
        let mut held = self.held();
        if let Some(piece) = held.pieces.remove(&at) {
            held.bytes -= piece.len() as u64;
        }
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

    /// Bytes in it.
    pub fn bytes(&self) -> u64 {
        self.held().bytes
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

    #[test]
    fn a_piece_is_found_by_any_of_its_bytes_until_it_is_written() {
        let memory = Memory::new(100);
        memory.put(4096, vec![7; 10]);
        memory.put(8192, vec![8; 10]);
        assert_eq!(memory.at(4105).map(|(at, piece)| (at, piece[0])), Some((4096, 7)));
        assert!(memory.at(4106).is_none() && memory.at(0).is_none());
        assert_eq!((memory.next(4097), memory.next(8193)), (Some(8192), None));
        memory.remove(4096);
        assert!(memory.at(4096).is_none());
        assert_eq!((memory.bytes(), memory.wait().map(|it| it.0)), (10, Some(8192)));
    }

    #[test]
    fn it_never_has_more_than_it_may() {
        let memory = Arc::new(Memory::new(10));
        assert!(memory.has_room(16, Duration::ZERO), "one there may always be");
        memory.put(0, vec![0; 16]);
        assert!(!memory.has_room(1, Duration::from_millis(1)));
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
        assert_eq!(memory.wait().map(|it| it.0), Some(16), "what is there is written first");
        memory.remove(16);
        assert!(memory.wait().is_none());
    }
}
