//! Real XFS and Btrfs file systems on loop devices for the tests that need the kernel's answers.
//!
//! `RCLIMG_TEST_DIR` says where the loop files go, else the temporary directory. Without root or the mkfs tools a test is
//! skipped with a loud line; with `CI=true` it fails instead.

#![allow(dead_code)] // Each test binary uses its own part.

pub mod other;

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes below which mkfs.xfs refuses.
pub const LEAST: u64 = 300 << 20;

const PREFIX: &str = "reflink-img-test-";

/// Which file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsType {
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
}

impl FsType {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Xfs, Self::Btrfs];

    fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

/// A fresh file system, mounted for as long as this value lives.
pub struct Sandbox {
    /// Holds the loop file and the mount point.
    dir: PathBuf,
}

impl Sandbox {
    /// Makes and mounts a file system of `size` bytes; `None`, said loudly, where this machine cannot.
    ///
    /// # Panics
    /// Where it cannot and `CI=true`, or where mkfs or mount fails as root.
    pub fn new(kind: FsType, size: u64) -> Option<Self> {
        static LEFTOVERS: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        LEFTOVERS.call_once(remove_leftovers);

        let mkfs = format!("mkfs.{}", kind.name());
        if !nix::unistd::geteuid().is_root() {
            return skip("mounting a test file system needs root");
        }
        if Command::new(&mkfs).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return skip(&format!("{mkfs} is not installed"));
        }
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let sandbox = Self { dir: base().join(name) };
        fs::create_dir_all(sandbox.path()).expect("create the mount point");
        File::create(sandbox.loop_file()).and_then(|f| f.set_len(size)).expect("create the loop file");
        run(Command::new(&mkfs).arg("-q").arg(sandbox.loop_file()));
        sandbox.mount();
        Some(sandbox)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// Mounts it, after [`Sandbox::unmount`].
    pub fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.loop_file()).arg(self.path()));
    }

    /// Unmounts it; everything on it must be closed.
    pub fn unmount(&self) {
        let once = || Command::new("umount").arg(self.path()).stderr(Stdio::null()).status().expect("umount");
        // A process that another test is just starting has our descriptors until it has begun its program.
        assert!((0..1000).any(|_| once().success()), "{} stays busy", self.path().display());
    }

    fn loop_file(&self) -> PathBuf {
        self.dir.join("disk.img")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        dismantle(&self.dir);
    }
}

/// Runs a test on a fresh file system of each kind that this machine can make.
pub fn on_both(test: impl Fn(FsType, &Sandbox)) {
    for kind in FsType::ALL {
        if let Some(sandbox) = Sandbox::new(kind, LEAST) {
            test(kind, &sandbox);
        }
    }
}

/// Writes `blocks` blocks of 4 KiB (a power of two) past the page cache, in an order in which no block follows its
/// neighbour, so that few of them merge into one extent. Every block is filled with the low byte of its number.
pub fn make_fragmented(path: &Path, blocks: u64) {
    assert!(blocks.is_power_of_two(), "the order is a permutation of powers of two only");
    let file = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT).open(path);
    let file = file.expect("open for O_DIRECT");
    let mut buffer = vec![0_u8; 2 * 4096];
    let aligned = buffer.as_ptr().align_offset(4096);
    let mut block = 0;
    for _ in 0..blocks {
        // A linear congruential generator of full period: multiplier 1 mod 4, increment odd.
        block = (block * 1_664_525 + 1_013_904_223) % blocks;
        buffer[aligned..aligned + 4096].fill(block as u8);
        file.write_all_at(&buffer[aligned..aligned + 4096], block * 4096).expect("write a block");
    }
    file.sync_all().expect("fsync");
}

/// Syncs a file and counts its extents and those of them that are shared, by the fiemap crate: `(all, shared)`.
pub fn sync_counts(path: &Path) -> (usize, usize) {
    File::open(path).and_then(|f| f.sync_all()).expect("fsync");
    let extents: io::Result<Vec<_>> = fiemap::fiemap(path).expect("open").collect();
    let extents = extents.expect("fiemap");
    let shared = extents.iter().filter(|e| e.fe_flags.contains(fiemap::FiemapExtentFlags::SHARED)).count();
    (extents.len(), shared)
}

fn skip(why: &str) -> Option<Sandbox> {
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "on CI nothing may be skipped: {why}");
    eprintln!("SKIPPED: {why}");
    None
}

fn base() -> PathBuf {
    env::var_os("RCLIMG_TEST_DIR").map_or_else(env::temp_dir, PathBuf::from)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Takes away what test processes that were killed left behind.
fn remove_leftovers() {
    for entry in fs::read_dir(base()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.split('-').next());
        if pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            dismantle(&entry.path());
        }
    }
}

/// Unmounts, detaches and removes a sandbox's directory, as far as there is something.
fn dismantle(dir: &Path) {
    let quiet = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let mounted = dir.join("mnt");
    if !quiet(Command::new("umount").arg(&mounted)) {
        // Still in use, by a child that has not ended yet: gone when that is.
        quiet(Command::new("umount").arg("--lazy").arg(&mounted));
    }
    // The mount's own loop device goes with it; one that was set up but never mounted is left.
    let loops = Command::new("losetup").arg("--associated").arg(dir.join("disk.img")).output();
    let loops = loops.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    for device in loops.lines().filter_map(|line| line.split(':').next()) {
        quiet(Command::new("losetup").arg("--detach").arg(device));
    }
    if let Err(e) = fs::remove_dir_all(dir) {
        eprintln!("a test file system stays behind at {}: {e}", dir.display());
    }
}
