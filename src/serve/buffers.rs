//! Memory for the data of requests: aligned as direct I/O wants it, with room for a reply's head before it, so that nothing is copied; and kept,
//! for fresh pages cost more than a copy.
//!
//! There are small ones, which a request of a few blocks touches a page or two of, and large ones, of which each connection has at most as
//! many as the sum of its requests allows ([`super::session`]): two at any time, and 16 more for all of them together.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Where data begins: at a block that direct I/O takes.
pub const BLOCK: usize = 4096;

/// The most data of a small one.
pub const SMALL: usize = 128 << 10;

/// The most data of a large one.
pub const LARGE: usize = 1 << 20;

/// The longest head.
const HEAD: usize = 64;

/// How many of the small ones are kept, for all connections.
const KEPT_SMALL: usize = 64;

/// How many of the large ones.
const KEPT_LARGE: usize = 32;

/// How many bytes of requests there may be at a time beyond what is their connections' own.
const LENT: usize = 16 * LARGE;

/// A piece of memory.
pub struct Buffer {
    bytes: Vec<u8>,
    /// Where its data begins, at a block's boundary.
    from: usize,
}

impl Buffer {
    fn new(data: usize) -> Self {
        // Not touched by this: the kernel has the pages when they are used.
        let bytes = vec![0; data + 2 * BLOCK];
        let boundary = bytes.as_ptr().align_offset(BLOCK);
        let from = if boundary < HEAD { boundary + BLOCK } else { boundary };
        Self { bytes, from }
    }

    fn capacity(&self) -> usize {
        if self.bytes.len() > SMALL + 2 * BLOCK { LARGE } else { SMALL }
    }

    /// The first bytes of its data.
    pub fn data(&mut self, length: usize) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + length]
    }

    /// The same to be read.
    pub fn filled(&self, length: usize) -> &[u8] {
        &self.bytes[self.from..self.from + length]
    }

    /// A head, of at most 64 bytes, and so much data behind it.
    pub fn behind(&mut self, head: &[u8], length: usize) -> &[u8] {
        let start = self.from - head.len();
        self.bytes[start..self.from].copy_from_slice(head);
        &self.bytes[start..self.from + length]
    }
}

/// Those that nobody uses at the moment.
#[derive(Default)]
pub struct Buffers {
    small: Mutex<Vec<Buffer>>,
    large: Mutex<Vec<Buffer>>,
    /// Bytes of requests that wait, beyond what is their connections' own.
    lent: AtomicUsize,
}

impl Buffers {
    /// One for so much data, at most [`LARGE`]. What it has is anything.
    pub fn take(&self, data: usize) -> Buffer {
        let (class, size) = if data <= SMALL { (&self.small, SMALL) } else { (&self.large, LARGE) };
        let kept = class.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Buffer::new(size))
    }

    /// Counts so many bytes of requests beyond what is their connection's own; false where all have as many as there may be.
    pub fn lend(&self, bytes: usize) -> bool {
        let more = |lent: usize| Some(lent + bytes).filter(|lent| *lent <= LENT);
        self.lent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// They wait no more.
    pub fn take_back(&self, bytes: usize) {
        self.lent.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// It is not used any more.
    pub fn give(&self, buffer: Buffer) {
        let (class, most) = match buffer.capacity() {
            SMALL => (&self.small, KEPT_SMALL),
            _ => (&self.large, KEPT_LARGE),
        };
        let mut kept = class.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < most {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_aligned_and_a_head_is_right_before_it() {
        let buffers = Buffers::default();
        for size in [0, 1, SMALL, SMALL + 1, LARGE] {
            let mut buffer = buffers.take(size);
            assert_eq!(buffer.data(size).as_ptr().align_offset(BLOCK), 0);
            buffer.data(size).fill(7);
            let whole = buffer.behind(&[1; HEAD], size);
            assert!(
                whole.len() == HEAD + size && whole[..HEAD] == [1; HEAD] && whole[HEAD..].iter().all(|it| *it == 7)
            );
            buffers.give(buffer);
        }
    }

    #[test]
    fn they_are_used_again_and_not_all_are_kept() {
        let buffers = Buffers::default();
        let all: Vec<_> = (0..100).map(|_| buffers.take(LARGE)).collect();
        let first = all[0].bytes.as_ptr();
        all.into_iter().rev().for_each(|it| buffers.give(it));
        assert_eq!(buffers.large.lock().expect("nobody panics").len(), KEPT_LARGE);
        let small = buffers.take(1);
        buffers.give(small);
        assert!(buffers.take(LARGE).bytes.as_ptr() != first && buffers.small.lock().expect("nobody panics").len() == 1);
    }
}
