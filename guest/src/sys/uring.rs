//! io_uring(7), through the `io-uring` crate.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};

use crate::pages::Pages;

/// Writes to one file, several at a time, each from a buffer of its own.
pub struct Uring {
    ring: IoUring,
    /// Nothing where the ring itself has the file.
    file: Option<File>,
    memory: Pages,
    size: usize,
    flying: Vec<bool>,
}

impl Uring {
    /// `slots` buffers of `size` bytes for writes to `file`. With `fixed` the kernel is given the file and the buffers
    /// once and for all: the file's descriptor is then closed, and only the ring has the file.
    ///
    /// # Errors
    /// What io_uring_setup(2) and io_uring_register(2) say: EPERM where the system forbids it.
    pub fn new(file: File, slots: usize, size: usize, fixed: bool) -> io::Result<Self> {
        let ring = IoUring::new(u32::try_from(slots).map_err(io::Error::other)?)?;
        let memory = Pages::new(slots * size);
        let flying = vec![false; slots];
        if fixed {
            ring.submitter().register_files(&[file.as_raw_fd()])?;
            let buffers: Vec<libc::iovec> = memory
                .bytes()
                .chunks_exact(size)
                .map(|buffer| libc::iovec { iov_base: buffer.as_ptr().cast_mut().cast(), iov_len: size })
                .collect();
            // SAFETY: the buffers are in `memory`, which is dropped after the ring has been emptied; the kernel reads from them
            // only, and only for the writes that are submitted.
            unsafe { ring.submitter().register_buffers(&buffers) }?;
            return Ok(Self { ring, file: None, memory, size, flying });
        }
        Ok(Self { ring, file: Some(file), memory, size, flying })
    }

    /// How many writes can be under way.
    pub fn slots(&self) -> usize {
        self.flying.len()
    }

    /// A slot's buffer.
    ///
    /// # Panics
    /// Where its write is under way.
    pub fn buffer(&mut self, slot: usize) -> &mut [u8] {
        assert!(!self.flying[slot], "a buffer that is being written from");
        let start = slot * self.size;
        &mut self.memory.bytes_mut()[start..start + self.size]
    }

    /// Submits a write of the first `length` bytes of a slot's buffer. Where the kernel does not take it, [`Uring::wait`] tries again
    /// and says why.
    ///
    /// # Errors
    /// Where the write cannot be put into words.
    ///
    /// # Panics
    /// Where the slot's write is under way, or `length` is more than the buffer.
    pub fn write(&mut self, slot: usize, offset: u64, length: usize) -> io::Result<()> {
        let buffer = self.buffer(slot)[..length].as_ptr();
        let bytes = u32::try_from(length).map_err(io::Error::other)?;
        let entry: Entry = match &self.file {
            Some(file) => opcode::Write::new(types::Fd(file.as_raw_fd()), buffer, bytes).offset(offset).build(),
            None => {
                let index = u16::try_from(slot).map_err(io::Error::other)?;
                opcode::WriteFixed::new(types::Fixed(0), buffer, bytes, index).offset(offset).build()
            }
        };
        // SAFETY: the buffer is ours until the ring has told of the write's end: `buffer` gives it to nobody while `flying`,
        // and drop ends all writes before the memory goes.
        unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) }.map_err(io::Error::other)?;
        self.flying[slot] = true;
        // It is in the queue: what is said now is said again by `wait`.
        let _ = self.ring.submit();
        Ok(())
    }

    /// Waits until at least one write has ended, and tells which, each with the bytes written. At once where none is under way.
    ///
    /// # Errors
    /// What io_uring_enter(2) says.
    pub fn wait(&mut self, mut ended: impl FnMut(usize, io::Result<usize>)) -> io::Result<()> {
        if !self.flying.contains(&true) {
            return Ok(());
        }
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(error) => return Err(error),
        }
        for event in self.ring.completion() {
            let slot = event.user_data() as usize;
            self.flying[slot] = false;
            let result = match event.result() {
                bytes @ 0.. => Ok(bytes as usize),
                error => Err(io::Error::from_raw_os_error(-error)),
            };
            ended(slot, result);
        }
        Ok(())
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.flying.contains(&true) {
            if self.wait(|_, _| {}).is_err() {
                // The kernel may still read from the buffers, so they stay.
                std::mem::forget(std::mem::replace(&mut self.memory, Pages::new(0)));
                return;
            }
        }
    }
}
