//! Real XFS and Btrfs on loop files, the program run on them, and the questions that kernel tests ask about files.
//!
//! Promises: a sandbox is unmounted and removed when it is dropped, and what a killed test process left is removed by the
//! next one. Without root or tools a test says `SKIPPED` loudly, and fails on CI. Nothing here sleeps for a fixed time and
//! hopes: [`until`] polls with a generous bound. `REFLINK_IMG_SEED` replays, `REFLINK_IMG_SOAK=1` takes the full counts.
#![allow(dead_code, unused_imports)]

pub mod agent;
mod armed;
mod device;
mod family;
mod files;
pub mod fleeces;
mod guest;
pub mod history;
mod job;
mod other;
mod qemu;
mod recording;
pub mod rotating;
pub mod serving;
mod stamper;
mod taken;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use armed::armed;
pub use device::{LoopDevice, turn};
pub use family::Family;
pub use files::{
    PATIENT, Random, SLOW, addresses, assert_same, difference, fragmented, has_extent, identity, nobody_has,
    nobody_writes, noise, noise_in_use, patiently, roomy, rounds, runs, slowly, writer, written,
};
pub use guest::{Armed, Felt, Guest};
pub use job::{Ended, Job};
pub use other::{Other, XfsIo, full_pipe};
pub use qemu::{Disk, QemuIo, Vm, Writers};
pub use recording::{Recording, Request};
pub use stamper::{ANY_TIME, Stamper, assert_one_instant, judged, modes};
pub use taken::{Taken, guard, is_met, with_us};

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_rclone-img");
/// The block of both file systems as mkfs makes them here.
pub const BLOCK: u64 = 4096;
/// How long anything may take before the test calls it hung: far longer than it takes on a slow machine.
pub const BOUND: Duration = Duration::from_secs(120);
const PREFIX: &str = "reflink-img-test-";

/// Which file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fs {
    Xfs,
    Btrfs,
}

/// A mounted file system of its own; [`Sandbox::path`] is a path in it.
pub struct Sandbox {
    pub fs: Fs,
    root: PathBuf,
    options: String,
}

/// Runs a test on both file systems, also on the second where it fails on the first.
pub fn on_both(test: impl Fn(&Sandbox)) {
    on_both_sized(512 << 20, test);
}

/// As [`on_both`], on file systems of so many bytes (XFS takes no less than 300 MiB).
pub fn on_both_sized(bytes: u64, test: impl Fn(&Sandbox)) {
    let fails = |fs: &Fs| match Sandbox::sized(*fs, bytes, "loop") {
        Some(sandbox) => catch_unwind(AssertUnwindSafe(|| test(&sandbox))).is_err(),
        None => false,
    };
    let failed: Vec<Fs> = [Fs::Xfs, Fs::Btrfs].into_iter().filter(fails).collect();
    assert!(failed.is_empty(), "failed on {failed:?}, see above");
}

/// Says loudly that something is not tested; a failure on CI.
pub fn skipped(what: &str) {
    eprintln!("SKIPPED: {what}");
    assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "skipped on CI: {what}");
}

/// Refused with exit 3 and words that have `needle`; the directory is as it was.
pub fn refused(s: &Sandbox, needle: &str, args: &[&str]) {
    let before = s.listing();
    let out = s.run(args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{:?} {args:?}: {stderr}", s.fs);
    assert!(stderr.contains(needle), "{:?} {args:?}: no {needle:?} in {stderr}", s.fs);
    assert!(stderr.contains("hint: "), "{:?} {args:?}: no hint in {stderr}", s.fs);
    assert_eq!(s.listing(), before, "{:?} {args:?}", s.fs);
}

/// Whether a command can be run; says loudly where not.
pub fn there(program: &str) -> bool {
    let there = has(program);
    if !there {
        skipped(&format!("{program} is not installed"));
    }
    there
}

/// Whether a command can be run.
pub fn has(tool: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", tool]).stdout(Stdio::null()).status();
    found.is_ok_and(|s| s.success())
}

/// Runs a command that must succeed; its standard output.
pub fn must(program: &str, args: &[&dyn AsRef<OsStr>]) -> String {
    let mut command = Command::new(program);
    command.args(args);
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

impl Sandbox {
    pub fn new(fs: Fs) -> Option<Self> {
        Self::sized(fs, 512 << 20, "loop")
    }

    /// A file system of so many bytes, with mount options.
    pub fn sized(fs: Fs, bytes: u64, options: &str) -> Option<Self> {
        Self::made(fs, &[], bytes, options)
    }

    /// An XFS with larger blocks than a page, where the kernel can have them (Linux 6.12).
    pub fn xfs_with_blocks(bytes: u64) -> Option<Self> {
        // The option is a default, and says that this kernel may not mount it.
        Self::made(Fs::Xfs, &["-b", &format!("size={bytes}")], 512 << 20, "loop,rw")
    }

    fn made(fs: Fs, how: &[&str], bytes: u64, options: &str) -> Option<Self> {
        static LEFTOVERS: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mkfs: &[&str] = match fs {
            Fs::Xfs => &["mkfs.xfs", "-q"],
            Fs::Btrfs => &["mkfs.btrfs", "-q"],
        };
        if !nix::unistd::geteuid().is_root() {
            skipped(&format!("{fs:?}: needs root to mount"));
            return None;
        }
        if let Some(tool) = [mkfs[0], "mount", "umount", "losetup"].iter().find(|t| !has(t)) {
            skipped(&format!("{fs:?}: {tool} is not installed"));
            return None;
        }
        LEFTOVERS.call_once(remove_leftovers);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir_all(root.join("mnt")).expect("a directory");
        let sandbox = Self { fs, root, options: options.to_owned() };
        File::create(sandbox.disk()).and_then(|f| f.set_len(bytes)).expect("a disk file");
        let disk = sandbox.disk();
        let mut args: Vec<&dyn AsRef<OsStr>> = vec![&mkfs[1]];
        args.extend(how.iter().map(|arg| arg as &dyn AsRef<OsStr>));
        args.push(&disk);
        must(mkfs[0], &args);
        if options != "loop" && !sandbox.try_mount() {
            // No set-up gives a kernel what it was built without, so this is no failure on CI either.
            eprintln!("SKIPPED: {fs:?}: this kernel does not mount it with {options}");
            return None;
        }
        if options == "loop" {
            sandbox.mount();
        }
        Some(sandbox)
    }

    fn disk(&self) -> PathBuf {
        self.root.join("disk")
    }

    /// The mount point.
    pub fn dir(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// A path in the file system.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir().join(name)
    }

    /// A directory on the host's file system, gone with the sandbox.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn mount(&self) {
        let _turn = turn();
        must("mount", &[&"-o", &self.options, &self.disk(), &self.dir()]);
    }

    fn try_mount(&self) -> bool {
        let _turn = turn();
        let mut mount = Command::new("mount");
        mount.args(["-o", &self.options]).args([self.disk(), self.dir()]).stdin(Stdio::null());
        mount.output().is_ok_and(|o| o.status.success())
    }

    pub fn unmount(&self) {
        let mut last = String::new();
        let done = || {
            let out = Command::new("umount").arg(self.dir()).output().expect("umount");
            last = String::from_utf8_lossy(&out.stderr).into_owned();
            out.status.success() || last.contains("not mounted")
        };
        assert!(until(done), "umount {}: {last}", self.dir().display());
    }

    /// The program, to be started in the file system's top directory.
    pub fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).current_dir(self.dir()).stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
        command
    }

    /// Runs the program to its end, in the file system's top directory.
    pub fn run(&self, args: &[impl AsRef<OsStr>]) -> Output {
        let mut command = assert_cmd::Command::from_std(self.command(args));
        command.timeout(BOUND).output().expect("the program starts")
    }

    /// Runs the program, which must end with this code; its standard output's objects, where those are JSON. A snapshot that must succeed may
    /// keep its guest waiting for as long as a machine may stand still.
    pub fn exits(&self, code: i32, args: &[impl AsRef<OsStr>]) -> Vec<Value> {
        let mut shown: Vec<_> = args.iter().map(|a| a.as_ref().to_owned()).collect();
        if code == 0 && shown[0] == "snapshot" && !shown.iter().any(|arg| arg == PATIENT[0]) {
            shown.splice(1..1, PATIENT.map(OsString::from));
        }
        let out = self.run(&shown);
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!stderr.contains("panicked"), "{:?} {shown:?} panicked: {stderr}", self.fs);
        let why = format!("{:?} {shown:?}: expected exit {code}, got {:?}\n{stderr}{stdout}", self.fs, out.status);
        assert_eq!(out.status.code(), Some(code), "{why}");
        events(&stdout)
    }

    /// Starts the program with `--json` and reads its events as they come.
    pub fn start(&self, args: &[impl AsRef<OsStr>]) -> Job {
        Job::spawn(self.command(args).arg("--json"))
    }

    /// As [`Sandbox::start`], with a fault of a debug build's clone calls (`src/disk/real/fault.rs`).
    pub fn start_with_fault(&self, fault: &str, args: &[impl AsRef<OsStr>]) -> Job {
        Job::spawn(self.command(args).arg("--json").env("REFLINK_IMG_FAULT", fault))
    }

    /// What is in the top directory: names with inode, size and mode.
    pub fn listing(&self) -> BTreeMap<Vec<u8>, (u64, u64, u32)> {
        let entries = fs::read_dir(self.dir()).expect("a directory");
        let look = |e: std::io::Result<fs::DirEntry>| {
            let e = e.expect("an entry");
            let m = fs::symlink_metadata(e.path()).expect("metadata");
            let size = if m.is_dir() { 0 } else { m.len() };
            (e.file_name().as_bytes().to_vec(), (m.ino(), size, m.mode()))
        };
        entries.map(look).collect()
    }

    /// Panics where a job left something of `dst`'s beside it.
    pub fn no_sidecars(&self, dst: &str) {
        for name in [format!("{dst}.partial"), format!("{dst}.journal")] {
            assert!(fs::symlink_metadata(self.path(&name)).is_err(), "{:?}: {name} was left", self.fs);
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        remove(&self.root);
    }
}

/// What test processes that are gone have left.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.split('-').next());
        if pid.is_some_and(|p| p.parse::<u32>().is_ok() && !Path::new("/proc").join(p).exists()) {
            remove(&entry.path());
        }
    }
}

fn remove(root: &Path) {
    let quiet = |program: &str, args: &[&OsStr]| {
        let out = Command::new(program).args(args).stdin(Stdio::null()).output();
        out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
    };
    let (mnt, disk) = (root.join("mnt"), root.join("disk"));
    let mounted = || {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounts.contains(&format!(" {} ", mnt.display()))
    };
    // Those of files within it, which would keep it busy.
    for line in quiet("losetup", &["-l", "-n", "-O", "NAME,BACK-FILE"].map(OsStr::new)).lines() {
        if let Some((device, _)) = line.split_once(' ').filter(|(_, file)| Path::new(file.trim()).starts_with(&mnt)) {
            quiet("losetup", &["-d".as_ref(), device.as_ref()]);
        }
    }
    let gone = until_within(Duration::from_secs(20), || {
        quiet("umount", &["-R".as_ref(), mnt.as_ref()]);
        !mounted()
    });
    if !gone {
        quiet("umount", &["-l".as_ref(), mnt.as_ref()]);
    }
    for line in quiet("losetup", &["-j".as_ref(), disk.as_ref()]).lines() {
        quiet("losetup", &["-d".as_ref(), line.split(':').next().unwrap_or_default().as_ref()]);
    }
    let _ = fs::remove_dir_all(root);
}

/// Polls until something is so; false where it was not within [`BOUND`].
pub fn until(ready: impl FnMut() -> bool) -> bool {
    until_within(BOUND, ready)
}

/// As [`until`], within another bound.
pub fn until_within(bound: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + bound;
    while !ready() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// The JSON objects of a text, one a line.
pub fn events(text: &str) -> Vec<Value> {
    text.lines().filter(|l| l.starts_with('{')).map(|l| serde_json::from_str(l).expect("JSON")).collect()
}
