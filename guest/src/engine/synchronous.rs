//! One pwrite(2) at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Ended, Engine};
use crate::pages::Pages;

/// Writes to one file, one at a time, each over when it is submitted.
#[derive(Debug)]
pub struct Synchronous {
    file: File,
    buffer: Pages,
    /// Whether a write has ended only when it is on the disk.
    durable: bool,
    ended: Option<Ended>,
}

impl Synchronous {
    /// Writes of at most `size` bytes.
    pub fn new(file: File, size: usize) -> Self {
        Self { file, buffer: Pages::new(size), durable: false, ended: None }
    }

    /// As [`Synchronous::new`], with an fdatasync(2) that belongs to each write.
    pub fn durable(file: File, size: usize) -> Self {
        Self { durable: true, ..Self::new(file, size) }
    }
}

impl Engine for Synchronous {
    fn slots(&self) -> usize {
        1
    }

    fn buffer(&mut self, _slot: usize) -> &mut [u8] {
        self.buffer.bytes_mut()
    }

    fn write(&mut self, slot: usize, offset: u64, length: usize) -> io::Result<()> {
        let written = self.file.write_all_at(&self.buffer.bytes()[..length], offset);
        let synced = written.and_then(|()| if self.durable { self.file.sync_data() } else { Ok(()) });
        self.ended = Some(Ended { slot, result: synced.map(|()| length) });
        Ok(())
    }

    fn wait(&mut self, list: &mut Vec<Ended>) -> io::Result<()> {
        list.extend(self.ended.take());
        Ok(())
    }
}
