//! Files that kernel tests make, change and compare; what they need to be replayed.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use fiemap::{Fiemap, FiemapExtentFlags, FiemapFlags};

use rclone_img::sys::lease::{self, Lease};

use super::{BLOCK, until};

/// A random generator that can be replayed (splitmix64).
pub struct Random(Cell<u64>);

impl Random {
    /// From `REFLINK_IMG_SEED`, else from the date. Printed, so that a failure can be replayed.
    pub fn seeded(test: &str) -> Self {
        let today = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let given = std::env::var("REFLINK_IMG_SEED").ok().map(|s| s.parse().expect("REFLINK_IMG_SEED is a number"));
        let seed = given.unwrap_or(today.as_secs() / 86400);
        eprintln!("{test}: REFLINK_IMG_SEED={seed}");
        Self::new(seed)
    }

    pub fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    pub fn next(&self) -> u64 {
        self.0.set(self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15));
        let mut z = self.0.get();
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// How often, out of the full count: a fifth without `REFLINK_IMG_SOAK=1`.
pub fn rounds(full: u32) -> u32 {
    runs((full / 5).max(1), full)
}

/// How often: the full count with `REFLINK_IMG_SOAK=1`.
pub fn runs(few: u32, full: u32) -> u32 {
    if std::env::var("REFLINK_IMG_SOAK").is_ok_and(|v| v == "1") { full } else { few }
}

/// Opens for writing, without truncation.
pub fn writer(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Waits until nobody has a file open for writing. A process that another test starts has for a moment, until it is another program, what this
/// one has open in that moment.
pub fn nobody_writes(path: &Path) {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let taken = || match lease::take(file.as_fd(), Lease::Read) {
        Err(e) => e.raw_os_error() != Some(libc::EAGAIN),
        Ok(()) => lease::release(file.as_fd()).is_ok(),
    };
    assert!(until(taken), "{}: somebody has it open for writing", path.display());
}

/// Waits until nobody but this process has a file open, and this one not in another way, as [`nobody_writes`].
pub fn nobody_has(path: &Path) {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let alone = || lease::take(file.as_fd(), Lease::Write).and_then(|()| lease::release(file.as_fd())).is_ok();
    assert!(until(alone), "{}: somebody has it open", path.display());
}

/// A file with these bytes on the disk, which nobody has open for writing any more.
pub fn written(path: &Path, bytes: impl AsRef<[u8]>) {
    synced(path, bytes);
    nobody_writes(path);
}

fn synced(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).and_then(|()| File::open(path)?.sync_all()).expect("a file");
}

/// A dense file of noise.
pub fn noise(path: &Path, len: u64) {
    written(path, bytes(len));
}

/// The same, where somebody has it open and keeps it so.
pub fn noise_in_use(path: &Path, len: u64) {
    synced(path, bytes(len));
}

fn bytes(len: u64) -> Vec<u8> {
    Random::new(len ^ 7).bytes(len as usize)
}

/// A file of `blocks` data blocks, each an extent of its own with a hole behind it.
pub fn fragmented(path: &Path, blocks: u64) {
    let file = File::create(path).expect("a file");
    let random = Random::new(blocks);
    for i in 0..blocks {
        file.write_all_at(&random.bytes(BLOCK as usize), i * 2 * BLOCK).expect("written");
    }
    file.set_len(blocks * 2 * BLOCK).and_then(|()| file.sync_all()).expect("synced");
    drop(file);
    nobody_writes(path);
}

/// A file of so many bytes with little in it, whose job is long with [`SLOW`].
pub fn roomy(path: &Path, len: u64) {
    let file = File::create(path).expect("a file");
    file.set_len(len).expect("its size");
    let random = Random::new(len);
    for i in 0..64 {
        file.write_all_at(&random.bytes(BLOCK as usize), i * (len / 64) / BLOCK * BLOCK).expect("written");
    }
    file.sync_all().expect("synced");
    drop(file);
    nobody_writes(path);
}

/// Flags that make many small calls, so that a job lasts.
pub const SLOW: [&str; 6] = ["--latency", "1ms", "--chunk", "4K", "--cluster", "4K"];

/// Arguments with [`SLOW`] behind them.
pub fn slowly<'a>(args: &[&'a str]) -> Vec<&'a str> {
    args.iter().chain(&SLOW).copied().collect()
}

/// Flags of a job that must succeed, however long this machine stands still in the middle of it: by default it gives up before a guest has waited
/// for a second.
pub const PATIENT: [&str; 2] = ["--guest-deadline", "10s"];

/// As [`slowly`], for a job that must succeed.
pub fn patiently<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [slowly(args), PATIENT.to_vec()].concat()
}

/// Panics where two files differ.
pub fn assert_same(a: &Path, b: &Path) {
    if let Some(at) = difference(a, b) {
        panic!("{} and {} differ at {at}", a.display(), b.display());
    }
}

/// Where two files differ first.
pub fn difference(a: &Path, b: &Path) -> Option<u64> {
    let open = |p: &Path| File::open(p).unwrap_or_else(|e| panic!("{}: {e}", p.display()));
    let (mut a, mut b) = (open(a), open(b));
    let (len_a, len_b) = (a.metadata().expect("metadata").len(), b.metadata().expect("metadata").len());
    if len_a != len_b {
        return Some(len_a.min(len_b));
    }
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..len_a).step_by(1 << 20) {
        let len = (len_a - at).min(1 << 20) as usize;
        a.read_exact(&mut one[..len]).expect("read");
        b.read_exact(&mut other[..len]).expect("read");
        if one[..len] != other[..len] {
            return Some(at + (0..len).find(|&i| one[i] != other[i]).expect("a difference") as u64);
        }
    }
    None
}

/// Where a file's written data lies: (offset, address, length), neighbours joined. Data without an address is left out.
pub fn addresses(path: &Path) -> Vec<(u64, u64, u64)> {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut list: Vec<(u64, u64, u64)> = Vec::new();
    for extent in Fiemap::with_flags(file, FiemapFlags::SYNC) {
        let e = extent.expect("FIEMAP");
        if e.fe_flags.intersects(FiemapExtentFlags::UNWRITTEN | FiemapExtentFlags::DATA_INLINE) {
            continue;
        }
        match list.last_mut() {
            Some((at, address, len)) if *at + *len == e.fe_logical && *address + *len == e.fe_physical => {
                *len += e.fe_length;
            }
            _ => list.push((e.fe_logical, e.fe_physical, e.fe_length)),
        }
    }
    list
}

/// Whether FIEMAP says this of some extent of a file.
pub fn has_extent(path: &Path, flag: FiemapExtentFlags) -> bool {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Fiemap::with_flags(file, FiemapFlags::SYNC).any(|extent| extent.expect("FIEMAP").fe_flags.contains(flag))
}

/// Where a file's image is on disk, as `struct stat` tells of what must not change: inode, size, mode, kind.
pub fn identity(path: &Path) -> (u64, u64, u32, bool) {
    let m = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (m.ino(), m.len(), m.mode(), m.file_type().is_fifo())
}
