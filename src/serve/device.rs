//! What a session asks of the disk behind an export.

use std::io;
use std::time::Duration;

/// Extents of a metadata context: how many bytes, and the context's flags.
pub type Extents = Vec<(u32, u32)>;

/// A disk, in bytes. All calls come from several threads at once, with ranges within [`Device::size`].
pub trait Device: Send + Sync {
    /// Its size.
    fn size(&self) -> u64;

    /// Whether anything of it can be in memory, so that it may be read or written without waiting.
    fn has_memory(&self) -> bool {
        true
    }

    /// Fills `bytes` from `offset` if that takes no waiting, and says whether it did; if not, they are anything.
    fn read_now(&self, bytes: &mut [u8], offset: u64) -> bool;

    /// Writes `bytes` at `offset` if that takes no waiting, as far as can be told, and says whether it did; if not, any part of them may be
    /// written.
    fn write_now(&self, bytes: &[u8], offset: u64) -> bool;

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// The kernel's.
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// The kernel's.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// The same for a part of a write that is too long to be in memory: its parts have waited this long for others than the disk, and the
    /// limit of one write is theirs together.
    ///
    /// # Errors
    /// As [`Device::write`].
    fn write_part(&self, bytes: &[u8], offset: u64, waited: &mut Duration) -> io::Result<()> {
        let _ = waited;
        self.write(bytes, offset)
    }

    /// Makes everything last for which a write has returned.
    ///
    /// # Errors
    /// The kernel's.
    fn flush(&self) -> io::Result<()>;

    /// Gives a range's blocks back, where that can be done; what it reads afterwards is zeroes or what it was.
    ///
    /// # Errors
    /// The kernel's.
    fn trim(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range zeroes, with blocks behind them if `allocate`.
    ///
    /// # Errors
    /// The kernel's; with `fast` EOPNOTSUPP where that would take as long as writing them.
    fn zero(&self, offset: u64, length: u64, allocate: bool, fast: bool) -> io::Result<()>;

    /// Reads a range ahead.
    ///
    /// # Errors
    /// The kernel's.
    fn cache(&self, offset: u64, length: u64) -> io::Result<()>;

    /// What is where in a range of at least a byte, in a context of the export: at least one extent, at most `most`, which begin at
    /// `offset`, follow one another and do not go beyond the range.
    ///
    /// # Errors
    /// The kernel's.
    fn extents(&self, context: u32, offset: u64, length: u32, most: usize) -> io::Result<Extents>;
}
