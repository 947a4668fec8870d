//! The ways a write reaches the kernel, seen as one: buffers that are filled, submitted, and told of when they are written.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::sys::aio::Aio;
use crate::sys::uring::Uring;

mod synchronous;

pub use synchronous::Synchronous;

/// An operation that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Whose buffer it used.
    pub slot: usize,
    /// The bytes done.
    pub result: io::Result<usize>,
}

/// A way to write to a file.
pub trait Engine: Send {
    /// How many operations can be under way.
    fn slots(&self) -> usize;

    /// A slot's buffer, to be filled.
    ///
    /// # Panics
    /// Where its write is under way.
    fn buffer(&mut self, slot: usize) -> &mut [u8];

    /// Submits a write of the first `length` bytes of a slot's buffer.
    ///
    /// # Errors
    /// Where it failed at once and is not under way.
    fn write(&mut self, slot: usize, offset: u64, length: usize) -> io::Result<()>;

    /// Waits until at least one of the submitted has ended, and adds what has ended to the list; at once where none is under
    /// way.
    ///
    /// # Errors
    /// Where waiting itself fails.
    fn wait(&mut self, list: &mut Vec<Ended>) -> io::Result<()>;
}

impl Engine for Aio {
    fn slots(&self) -> usize {
        self.slots()
    }

    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        self.buffer(slot)
    }

    fn write(&mut self, slot: usize, offset: u64, length: usize) -> io::Result<()> {
        self.write(slot, offset, length)
    }

    fn wait(&mut self, list: &mut Vec<Ended>) -> io::Result<()> {
        self.wait(|slot, result| list.push(Ended { slot, result }))
    }
}

impl Engine for Uring {
    fn slots(&self) -> usize {
        self.slots()
    }

    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        self.buffer(slot)
    }

    fn write(&mut self, slot: usize, offset: u64, length: usize) -> io::Result<()> {
        self.write(slot, offset, length)
    }

    fn wait(&mut self, list: &mut Vec<Ended>) -> io::Result<()> {
        self.wait(|slot, result| list.push(Ended { slot, result }))
    }
}

/// Makes a range of a file read as zeros and gives its blocks back (FALLOC_FL_PUNCH_HOLE).
///
/// # Errors
/// What fallocate(2) says.
pub fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file.as_fd(), flags, offset.cast_signed(), length.cast_signed())?)
}
