//! Images in small pieces: what a database or a busy guest makes of a sparse file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;

use crate::{run, setup};

/// The size of a piece, and of every timed access.
pub const BLOCK: u64 = 4096;

/// A size as typed on the command line: `512M`, `4GiB`, `1073741824`.
pub fn size(text: &str) -> Result<u64, String> {
    let bytes = parse_size::Config::new().with_binary().parse_size(text).map_err(|error| error.to_string())?;
    // A smaller image is cloned before anything can be seen, a larger one fits no machine that runs this.
    if !(16 << 20..=64 << 30).contains(&bytes) {
        return Err("must be between 16M and 64G".to_owned());
    }
    Ok(bytes / BLOCK * BLOCK)
}

/// Makes a sparse file of `bytes` and writes every block of it once, in random order, past the page cache: nearly every block is
/// an extent of its own.
pub fn make(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(bytes).with_context(|| format!("size {}", path.display()))?;
    if setup::has("fio") {
        return fio(path, bytes, bytes);
    }
    scatter(path, bytes, bytes / BLOCK)
}

/// Rewrites one block in a hundred, at random.
pub fn rewrite_one_percent(path: &Path, bytes: u64) -> Result<()> {
    fio(path, bytes, (bytes / 100 / BLOCK).max(1) * BLOCK)
}

fn fio(path: &Path, bytes: u64, written: u64) -> Result<()> {
    let name = path.to_str().context("the path is not UTF-8")?.replace(':', "\\:");
    // A preallocated file would be one extent, and a second process would outlive the killed first.
    let fixed = "--name=scatter --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=32 --fallocate=none \
                 --thread --randrepeat=0 --end_fsync=1 --output-format=terse";
    run::checked(Command::new("fio").args(fixed.split_whitespace()).args([
        format!("--filename={name}"),
        format!("--size={bytes}"),
        format!("--io_size={written}"),
    ]))?;
    Ok(())
}

/// What fio does, for who does not have it.
fn scatter(path: &Path, bytes: u64, count: u64) -> Result<()> {
    let file = direct(path, true)?;
    let mut order: Vec<u64> = (0..bytes / BLOCK).collect();
    let mut random = Random::new();
    let mut buffer = Aligned::new();
    for index in 0..count.min(bytes / BLOCK) as usize {
        let left = (order.len() - index) as u64;
        order.swap(index, index + random.below(left) as usize);
        buffer.block().fill(random.below(256) as u8);
        file.write_all_at(buffer.block(), order[index] * BLOCK)
            .with_context(|| format!("write to {}", path.display()))?;
    }
    file.sync_all().with_context(|| format!("sync {}", path.display()))
}

/// Opens a file for reading, or for writing too, past the page cache.
pub fn direct(path: &Path, write: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)
        .with_context(|| format!("open {} with O_DIRECT", path.display()))
}

/// How many extents a file has, if filefrag is there to tell.
pub fn extents(path: &Path) -> Option<u64> {
    let outcome = run::checked(Command::new("filefrag").arg(path)).ok()?;
    outcome.stdout.trim_end().rsplit(": ").next()?.split(' ').next()?.parse().ok()
}

/// Compares two files byte by byte.
pub fn require_equal(one: &Path, other: &Path) -> Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (a, b) = (open(one)?, open(other)?);
    let size = a.metadata()?.len();
    if b.metadata()?.len() != size {
        bail!("{} and {} differ in size", one.display(), other.display());
    }
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < size {
        let length = (size - at).min(1 << 20) as usize;
        a.read_exact_at(&mut x[..length], at).with_context(|| format!("read {}", one.display()))?;
        b.read_exact_at(&mut y[..length], at).with_context(|| format!("read {}", other.display()))?;
        if x[..length] != y[..length] {
            bail!("{} and {} differ in the MiB at {at}", one.display(), other.display());
        }
        at += length as u64;
    }
    Ok(())
}

/// A block of memory that O_DIRECT accepts.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// All zeros.
    pub fn new() -> Self {
        let memory = vec![0; 2 * BLOCK as usize];
        let start = memory.as_ptr().align_offset(BLOCK as usize);
        Self { memory, start }
    }

    /// The block.
    pub fn block(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BLOCK as usize]
    }
}

/// Numbers without a pattern (xorshift64*), for choosing places in a file.
pub struct Random(u64);

impl Random {
    /// Begins where the clock stands.
    pub fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(now.as_nanos() as u64 | 1)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Sandbox;

    #[test]
    fn sizes_are_binary_and_bounded() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert!(size("1").unwrap_err().contains("16M"));
        assert!(size("3X").is_err());
    }

    #[test]
    fn one_flipped_byte_is_a_difference() {
        let sandbox = Sandbox::inside(&std::env::temp_dir()).unwrap();
        let (one, other) = (sandbox.path().join("one"), sandbox.path().join("other"));
        let mut bytes = vec![7; (1 << 20) + 5];
        std::fs::write(&one, &bytes).unwrap();
        std::fs::write(&other, &bytes).unwrap();
        require_equal(&one, &other).unwrap();
        *bytes.last_mut().unwrap() = 8;
        std::fs::write(&other, &bytes).unwrap();
        assert!(require_equal(&one, &other).is_err());
    }
}
