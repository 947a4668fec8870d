//! A disk whose bytes tell where they are from, which knows what it was given and what would survive a power cut.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use reflink_img_interleavings::serve::device::{Device, Extents};
use reflink_img_interleavings::serve::negotiation::{Exports, Offer};
use reflink_img_interleavings::serve::session::Shelf;
use reflink_img_interleavings::threads::{self, Mutex};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::yield_now;

pub const SIZE: u64 = 1 << 30;

/// From here on nothing can be read.
pub const BAD: u64 = SIZE / 2;

/// What is written is so far apart.
pub const SLOT: u64 = 4 << 20;

/// What the byte there reads.
pub fn byte(at: u64) -> u8 {
    (at / 512 + at % 251) as u8
}

#[derive(Default)]
pub struct Kept {
    /// The slots whose writes have returned.
    pub written: BTreeSet<u64>,
    /// Of those, the ones that a flush has made last.
    pub lasts: BTreeSet<u64>,
}

#[derive(Default)]
pub struct Disk {
    pub kept: Mutex<Kept>,
}

impl Disk {
    fn take(&self, bytes: &[u8], offset: u64) {
        let wrong = bytes.iter().zip(offset..).find(|(it, at)| **it != byte(*at));
        assert!(wrong.is_none(), "other bytes than the client's at {offset}");
        self.kept.lock().expect("what is kept").written.insert(offset / SLOT);
    }
}

/// Somebody else may have a turn, or several, and it may take long.
fn work() {
    for _ in 0..thread_rng().gen_range(0..3) {
        yield_now();
    }
    if thread_rng().gen_ratio(1, 8) {
        threads::pass(Duration::from_millis(1));
    }
}

fn fill(bytes: &mut [u8], offset: u64) {
    bytes.iter_mut().zip(offset..).for_each(|(it, at)| *it = byte(at));
}

impl Device for Disk {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_now(&self, bytes: &mut [u8], offset: u64) -> bool {
        work();
        let now = offset + (bytes.len() as u64) <= BAD && thread_rng().gen_bool(0.5);
        if now {
            fill(bytes, offset);
        }
        now
    }

    fn write_now(&self, bytes: &[u8], offset: u64) -> bool {
        work();
        let now = thread_rng().gen_bool(0.5);
        if now {
            self.take(bytes, offset);
        }
        now
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        work();
        if offset + bytes.len() as u64 > BAD {
            return Err(nix::errno::Errno::EIO.into());
        }
        fill(bytes, offset);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        work();
        self.take(bytes, offset);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let written = self.kept.lock().expect("what is kept").written.clone();
        work();
        self.kept.lock().expect("what is kept").lasts.extend(written);
        Ok(())
    }

    fn trim(&self, _: u64, _: u64) -> io::Result<()> {
        work();
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: bool, _: bool) -> io::Result<()> {
        work();
        Ok(())
    }

    fn cache(&self, _: u64, _: u64) -> io::Result<()> {
        work();
        Ok(())
    }

    fn extents(&self, _: u32, _: u64, length: u32, _: usize) -> io::Result<Extents> {
        Ok(vec![(length, 0)])
    }
}

/// An export of it.
pub struct One(pub Arc<Disk>);

impl Exports for One {
    fn all(&self) -> Vec<Offer> {
        let (name, description) = (b"disk".to_vec(), String::new());
        // The flags are there, and there is FLUSH, FUA, TRIM, WRITE_ZEROES, DF.
        vec![Offer { name, description, size: SIZE, flags: 0b1110_1101, block: 4096, contexts: Vec::new() }]
    }

    fn find(&self, _: &[u8]) -> Option<Offer> {
        self.all().pop()
    }
}

impl Shelf for One {
    fn open(&self, _: &Offer) -> io::Result<Option<Arc<dyn Device>>> {
        Ok(Some(Arc::clone(&self.0) as Arc<dyn Device>))
    }
}
