//! An image past the page cache (O_DIRECT) as a [`Device`].
//!
//! The kernel wants whole blocks, from memory at a block's boundary. So data goes through memory of our own; a write that is not of whole
//! blocks goes through the page cache, with nobody else writing to them meanwhile, for a write of the same block past the cache would overtake it.
//! The kernel keeps the two in step: it writes back what a direct access touches, and forgets it where that is a write.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::stat::fstat;

use super::blocks::{Blocks, Held};
use super::buffers::{self, BLOCK, Buffers};
use super::device::{Device, Extents};
use super::disk::{Disk, leave_no_trace};

/// The most that goes through memory of ours at once.
const PIECE: usize = buffers::LARGE;

/// An image past the page cache.
pub struct Direct {
    /// The same file, through the page cache.
    disk: Disk,
    file: File,
    /// Held alone by who writes a part of a block, together by others.
    blocks: Blocks,
    /// For what is not of whole blocks.
    memory: Buffers,
}

impl Direct {
    /// The image of this path once more, past the page cache.
    ///
    /// # Errors
    /// EINVAL where the file system cannot, or not in blocks of 4 KiB; ESTALE where the path is another file now.
    pub fn new(disk: Disk, path: &Path, writes: bool) -> io::Result<Self> {
        let file = File::options().read(true).write(writes).custom_flags(libc::O_DIRECT).open(path)?;
        let identity = |fd: &dyn AsFd| fstat(fd.as_fd()).map(|stat| (stat.st_dev, stat.st_ino));
        if identity(&file)? != identity(&disk)? {
            return Err(nix::errno::Errno::ESTALE.into());
        }
        leave_no_trace(&file);
        let direct = Self { disk, file, blocks: Blocks::default(), memory: Buffers::default() };
        direct.with_memory(BLOCK, |memory| direct.file.read_at(memory, 0))?;
        Ok(direct)
    }

    /// Does something with memory at a block's boundary.
    fn with_memory<T>(&self, bytes: usize, then: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut memory = self.memory.take(bytes);
        let result = then(memory.data(bytes));
        self.memory.give(memory);
        result
    }

    fn read_piece(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let within = (offset % BLOCK as u64) as usize;
        let whole = (within + bytes.len()).next_multiple_of(BLOCK);
        self.with_memory(whole, |memory| {
            let mut have = 0;
            // The last block of the image may be cut short.
            while have < within + bytes.len() {
                match self.file.read_at(&mut memory[have..], offset - within as u64 + have as u64) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(got) => have += got,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            bytes.copy_from_slice(&memory[within..within + bytes.len()]);
            Ok(())
        })
    }

    /// The kernel writes zeroes to the blocks of which a range has a part, through the page cache; what lies between them is nobody's but the
    /// client's own to keep in order.
    fn parts(&self, offset: u64, length: u64) -> Held<'_> {
        let block = BLOCK as u64;
        let of = |at: u64| (!at.is_multiple_of(block)).then(|| whole(at, 1));
        self.blocks.take([of(offset), of(offset + length)].into_iter().flatten(), true)
    }

    fn write_piece(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with_memory(bytes.len(), |memory| {
            memory.copy_from_slice(bytes);
            self.file.write_all_at(memory, offset)
        })
    }
}

/// Whether the kernel takes this as it is: whole blocks, in memory as on the disk.
fn is_whole(bytes: &[u8], offset: u64) -> bool {
    bytes.as_ptr().align_offset(BLOCK) == 0 && bytes.len().is_multiple_of(BLOCK) && offset.is_multiple_of(BLOCK as u64)
}

/// The whole blocks that a range has a part of.
fn whole(offset: u64, length: u64) -> std::ops::Range<u64> {
    let block = BLOCK as u64;
    offset / block * block..(offset + length).next_multiple_of(block)
}

impl Device for Direct {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn has_memory(&self) -> bool {
        false
    }

    fn read_now(&self, _: &mut [u8], _: u64) -> bool {
        false
    }

    fn write_now(&self, _: &[u8], _: u64) -> bool {
        false
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        // The last block of the image may be cut short, and memory has room for the whole one.
        if is_whole(bytes, offset) {
            return self.file.read_exact_at(bytes, offset);
        }
        let mut at = offset;
        // A piece that is not of whole blocks makes two more of them.
        for piece in bytes.chunks_mut(PIECE - 2 * BLOCK) {
            self.read_piece(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !offset.is_multiple_of(BLOCK as u64) || !bytes.len().is_multiple_of(BLOCK) {
            let _alone = self.blocks.take([whole(offset, bytes.len() as u64)], true);
            return self.disk.write(bytes, offset);
        }
        let _together = self.blocks.take([whole(offset, bytes.len() as u64)], false);
        if is_whole(bytes, offset) {
            return self.file.write_all_at(bytes, offset);
        }
        let mut at = offset;
        for piece in bytes.chunks(PIECE) {
            self.write_piece(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        let _alone = self.parts(offset, length);
        self.disk.trim(offset, length)
    }

    fn zero(&self, offset: u64, length: u64, allocate: bool, fast: bool) -> io::Result<()> {
        let _alone = self.parts(offset, length);
        self.disk.zero(offset, length, allocate, fast)
    }

    fn cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn extents(&self, context: u32, offset: u64, length: u32, most: usize) -> io::Result<Extents> {
        self.disk.extents(context, offset, length, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 3 * PIECE + 1000;

    /// Random numbers, the same each time.
    fn next(seed: &mut u64) -> usize {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) as usize
    }

    #[test]
    fn any_range_is_what_was_written_last() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(SIZE as u64).expect("its size");
        let disk = Disk::new(file.reopen().expect("a descriptor")).expect("a disk");
        let direct = match Direct::new(disk, file.path(), true) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return eprintln!("skipped: no O_DIRECT here"),
            other => other.expect("past the page cache"),
        };
        let (mut model, mut seed) = (vec![0_u8; SIZE], 1);
        for n in 0..400 {
            let unit = if n % 2 == 0 { BLOCK } else { 1 };
            let from = next(&mut seed) % (SIZE / unit) * unit;
            let longest = if n % 10 == 0 { 2 * PIECE } else { 4 * BLOCK };
            let range = from..SIZE.min(from + (1 + next(&mut seed) % longest).next_multiple_of(unit));
            if next(&mut seed).is_multiple_of(2) {
                model[range.clone()].fill(n as u8);
                direct.write(&model[range.clone()], from as u64).expect("written");
            }
            let mut read = vec![0xAA; range.len()];
            direct.read(&mut read, from as u64).expect("read");
            assert!(read == model[range.clone()], "{range:?} after {n}");
        }
        direct.flush().expect("flushed");
        assert!(std::fs::read(file.path()).expect("the file") == model);
    }

    #[test]
    fn another_file_of_that_name_is_not_taken() {
        let [one, other] = [(); 2].map(|()| tempfile::NamedTempFile::new().expect("a file"));
        let disk = Disk::new(one.reopen().expect("a descriptor")).expect("a disk");
        assert!(Direct::new(disk, other.path(), true).is_err());
    }
}
