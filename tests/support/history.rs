//! Images that change as images do, and what is then where.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{BLOCK, Fs, Random, Sandbox, must, nobody_writes, written};

const MIB: u64 = 1 << 20;

/// Runs a test on file systems of every kind that files are kept in: XFS, Btrfs, Btrfs that compresses, and without copy-on-write.
pub fn on_every(test: impl Fn(&Sandbox, &str)) {
    for (fs, options, kind) in [
        (Fs::Xfs, "loop", "XFS"),
        (Fs::Btrfs, "loop", "Btrfs"),
        (Fs::Btrfs, "loop,compress-force=zstd", "compressed"),
        (Fs::Btrfs, "loop,nodatacow", "NOCOW"),
    ] {
        if let Some(sandbox) = Sandbox::sized(fs, 512 << 20, options) {
            test(&sandbox, kind);
        }
    }
}

/// An image to begin with: noise and what can be compressed by turns, on the disk. Btrfs compresses nothing that is written to a file after
/// a part of it was preallocated, so what shall be compressed comes first.
pub fn image(path: &Path, len: u64) {
    let mut bytes = Random::new(len ^ 7).bytes(len as usize);
    bytes.chunks_mut(256 << 10).step_by(2).for_each(|plain| plain.fill(b'a'));
    written(path, bytes);
}

/// Changes a few things in an image, in the ways that images change; what, in words.
pub fn change(path: &Path, random: &Random) -> String {
    let image = OpenOptions::new().write(true).open(path).expect("the image");
    let len = image.metadata().expect("metadata").len();
    let mut said = String::new();
    for _ in 0..1 + random.below(20) {
        let at = random.below(len);
        let bytes = 1 + random.below(100_000).min(len - at - 1).min(random.below(3) * 50_000);
        match random.below(10) {
            0 => {
                let (at, bytes) = (at.to_string(), bytes.to_string());
                must("fallocate", &[&"-p", &"-o", &at, &"-l", &bytes, &path]);
                said += &format!("punch {at}+{bytes}, ");
            }
            1 => {
                let (at, bytes) = (at.to_string(), bytes.to_string());
                must("fallocate", &[&"-z", &"-n", &"-o", &at, &"-l", &bytes, &path]);
                said += &format!("zero {at}+{bytes}, ");
            }
            2 if len > 8 * BLOCK => {
                let block = |random: &Random| random.below(len / BLOCK - 4) * BLOCK;
                let (from, to) = (block(random), block(random));
                if from.abs_diff(to) >= 4 * BLOCK {
                    let clone = format!("reflink {} {from} {to} {}", path.display(), 4 * BLOCK);
                    must("xfs_io", &[&"-c", &clone, &path]);
                    said += &format!("clone {from} to {to}, ");
                }
            }
            3 => {
                let (at, bytes) = (at.to_string(), bytes.to_string());
                must("fallocate", &[&"-n", &"-o", &at, &"-l", &bytes, &path]);
                said += &format!("preallocate {at}+{bytes}, ");
            }
            _ => {
                // Noise cannot be compressed, and a file system that would compress leaves it as it is.
                let (mut data, noise) = (random.bytes(bytes as usize), random.below(2) == 0);
                if !noise {
                    data.chunks_mut(BLOCK as usize).for_each(|block| block.fill(random.next() as u8));
                }
                let what = if noise { "noise" } else { "one byte a block" };
                image.write_all_at(&data, at).expect("written");
                said += &format!("write {what} {at}+{bytes}, ");
            }
        }
    }
    match random.below(4) {
        0 => {
            let to = len / 2 + random.below(len / 2) + 1;
            image.set_len(to).expect("truncated");
            said += &format!("truncate {to}");
        }
        1 => {
            let to = len + random.below(4 * MIB);
            image.set_len(to).expect("grown");
            image.write_all_at(b"end", to - 3).expect("written");
            said += &format!("grow {to}");
        }
        _ => {}
    }
    drop(image);
    nobody_writes(path);
    said
}

/// Clones some blocks of one file into another, half the time to the same place; which, in words.
pub fn copied(from: &Path, to: &Path, random: &Random) -> String {
    const BLOCKS: u64 = 16;
    let blocks = |path: &Path| fs::metadata(path).expect("metadata").len() / BLOCK;
    let places = blocks(from).min(blocks(to)) - BLOCKS;
    let (here, elsewhere) = (random.below(places) * BLOCK, random.below(places) * BLOCK);
    let there = if random.below(2) == 0 { here } else { elsewhere };
    let clone = format!("reflink {} {here} {there} {}", from.display(), BLOCKS * BLOCK);
    must("xfs_io", &[&"-c", &clone, &to]);
    format!("clone {here} of {} to {there} of {}", from.display(), to.display())
}
