//! Places to make a mess in: private directories, and XFS and Btrfs on loop devices inside them.
//!
//! Nothing stays behind. A sandbox is removed when it is dropped; when the verb is interrupted, by the thread of
//! [`watch_signals`]; and when the verb was killed, by [`sweep`] at the start of the next. A directory is named
//! `reflink-img-WORD-PID-N`, and holds a file `owner` that its maker keeps locked: the kernel lets go of that lock
//! however the maker dies, so a leftover is told from a sandbox in use even where the process id was given out again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::fcntl::Flock;
use nix::sys::statvfs::statvfs;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::run;

mod leftovers;
mod quiet;

pub use leftovers::sweep;
pub use quiet::settle;

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;

/// What this process has made and not yet removed. Whoever holds the lock may make or remove.
static OURS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn ours() -> MutexGuard<'static, Vec<PathBuf>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A private directory, removed with everything in it and mounted under it.
pub struct Sandbox {
    path: PathBuf,
    _owner: Flock<File>,
}

impl Sandbox {
    /// Makes one in `base`.
    pub fn inside(base: &Path) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut ours = ours();
        let path = base.join(format!("{}xtask-{}-{number}", leftovers::PREFIX, std::process::id()));
        fs::create_dir(&path).with_context(|| format!("create the directory {}", path.display()))?;
        ours.push(path.clone());
        let owner = leftovers::own(&path)?;
        Ok(Self { path, _owner: owner })
    }

    /// Makes one where `bytes` fit: in memory if there is room for them twice over, else in the temporary directory.
    pub fn with_room(bytes: u64) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        if free(memory).is_ok_and(|free| free / 2 >= bytes) && available_memory() / 2 >= bytes {
            return Self::inside(memory);
        }
        let base = std::env::temp_dir();
        let free = free(&base)?;
        if free < bytes {
            bail!(
                "no room for {} MiB: neither in memory nor in {} ({} MiB free); set TMPDIR or ask for a smaller --size",
                bytes / MIB,
                base.display(),
                free / MIB
            );
        }
        eprintln!("note: too little memory for {} MiB, using {}", bytes / MIB, base.display());
        Self::inside(&base)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let mut ours = ours();
        match leftovers::remove(&self.path) {
            Ok(()) => ours.retain(|path| *path != self.path),
            Err(error) => eprintln!("warning: {error:#}; the next run tries again"),
        }
    }
}

/// A file system that can share blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// XFS with reflink=1.
    Xfs,
    /// Btrfs.
    Btrfs,
}

impl Kind {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Xfs, Self::Btrfs];

    /// The name to show.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xfs => "XFS",
            Self::Btrfs => "Btrfs",
        }
    }
}

/// A file system of one's own on a loop device.
pub struct LoopFs {
    sandbox: Sandbox,
}

impl LoopFs {
    /// Makes and mounts one of `bytes`. With `touched`, every page of the backing file is written first: the first touch of a
    /// page of memory can cost more than the work that is to be measured, and would fall on whoever comes first. Btrfs gets
    /// four times the room as a hole behind it: it promises metadata against space that is not allocated yet, and a file
    /// system without any spends most of a clone waiting for its own flushes, which no host's does.
    pub fn make(kind: Kind, bytes: u64, touched: bool) -> Result<Self> {
        // mkfs.xfs refuses less than 300 MiB.
        let bytes = bytes.max(512 * MIB);
        let sandbox = Sandbox::with_room(bytes)?;
        let backing = sandbox.path.join("backing");
        let file = File::create(&backing).with_context(|| format!("create {}", backing.display()))?;
        if touched {
            zeros(&file, bytes).with_context(|| format!("fill {}", backing.display()))?;
            if kind == Kind::Btrfs {
                file.set_len(bytes * 5).with_context(|| format!("size {}", backing.display()))?;
            }
        } else {
            file.set_len(bytes).with_context(|| format!("size {}", backing.display()))?;
        }
        drop(file);
        // Neither mkfs nor the mount may discard: that would give the touched pages back.
        let (mkfs, options) = match kind {
            Kind::Xfs => ("mkfs.xfs", ["-q", "-K", "-m", "reflink=1"].as_slice()),
            Kind::Btrfs => ("mkfs.btrfs", ["-q", "-K"].as_slice()),
        };
        run::checked(Command::new(mkfs).args(options).arg(&backing))?;
        let mount = sandbox.path.join("mnt");
        fs::create_dir(&mount).with_context(|| format!("create {}", mount.display()))?;
        run::checked(Command::new("mount").args(["-o", "loop,nodiscard"]).args([&backing, &mount]))
            .context("mount a loop device (this needs root, and a kernel with loop devices)")?;
        Ok(Self { sandbox })
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.sandbox.path.join("mnt")
    }
}

fn zeros(mut file: &File, bytes: u64) -> std::io::Result<()> {
    use std::io::Write;
    let block = vec![0; MIB as usize];
    for _ in 0..bytes / MIB {
        file.write_all(&block)?;
    }
    file.set_len(bytes)
}

/// Free bytes for this user where `path` is.
pub fn free(path: &Path) -> Result<u64> {
    let stat = statvfs(path).with_context(|| format!("ask for the free space of {}", path.display()))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// What the kernel thinks could be allocated without swapping; 0 if it does not say.
fn available_memory() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// Starts the thread that cleans up and ends the process at SIGINT, SIGTERM and SIGHUP.
pub fn watch_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("watch for signals")?;
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        run::stop_all();
        eprintln!("interrupted: cleaning up");
        // Held until the end: nothing new is made meanwhile.
        let ours = ours();
        for path in ours.iter() {
            if let Err(error) = leftovers::remove(path) {
                eprintln!("warning: {error:#}; the next run tries again");
            }
        }
        sweep(&[]);
        std::process::exit(128 + signal);
    });
    Ok(())
}
