//! A guest in a process of its own, all of whose writes are known: the workspace's program `reflink-img-guest`.
//!
//! Cargo gives an integration test the programs of its own package only. So the first test that wants a guest asks cargo to
//! build it, which takes no time where it is built already, and cargo says where it is. `REFLINK_IMG_GUEST` names another one.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reflink_img_guest::log::History;
use reflink_img_guest::sys::uring::Uring;
use reflink_img_guest::verify::{Verdict, verify};
use serde_json::Value;

use super::{skipped, until};

/// A guest that writes stamps to its disks. Dropped, it is killed.
pub struct Stamper {
    child: Child,
    lines: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Stamper {
    /// Starts `reflink-img-guest stamp --log LOG ARGS` and waits until it is about to write.
    pub fn start(log: &Path, args: &[impl AsRef<OsStr>]) -> Self {
        Self::spawn(Command::new(program()).arg("stamp").arg("--log").arg(log).args(args), log)
    }

    /// As [`Stamper::start`], by a command of one's own.
    pub fn spawn(command: &mut Command, log: &Path) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the guest starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut stamper = Self { child, lines, log: log.to_owned() };
        assert_eq!(stamper.line(), "ready", "the guest's first word");
        stamper
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has begun so many more operations than now.
    pub fn goes_on(&self, operations: usize) {
        let begun = || History::read(&self.log).expect("a log").records.len();
        let enough = begun() + operations;
        assert!(until(|| begun() >= enough), "the guest does not go on");
    }

    /// Closes its standard input and waits for its end: what it felt. An I/O error is the test's failure.
    pub fn stop(mut self) -> Value {
        drop(self.child.stdin.take());
        let felt: Value = serde_json::from_str(&self.line()).expect("JSON");
        let status = self.child.wait().expect("its end");
        assert!(status.success() && felt["errors"] == 0, "{status}: {felt}");
        felt
    }

    /// Ends it at once, with SIGKILL.
    pub fn kill(mut self) {
        kill(Pid::from_raw(self.pid() as i32), Signal::SIGKILL).expect("a signal");
        self.child.wait().expect("its end");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }
}

impl Drop for Stamper {
    fn drop(&mut self) {
        // It has ended already where its test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The modes of the guest; without io_uring where the system forbids it.
pub fn modes(dir: &Path) -> Vec<&'static str> {
    let mut modes = vec!["buffered", "direct", "libaio", "punch", "uring", "uring-fixed", "mix", "mix-open"];
    let file = File::open(dir).expect("the directory");
    if let Err(error) = Uring::new(file, 1, 4096, false) {
        skipped(&format!("io_uring: {error}"));
        modes.truncate(4);
    }
    modes
}

/// Any instant, as the range in which T0 is looked for.
pub const ANY_TIME: RangeInclusive<u64> = 0..=u64::MAX;

/// Whether these are of one instant of what the log's writer wrote, that one being in a range of the clock's nanoseconds.
pub fn judged(snapshots: &[&Path], log: &Path, range: RangeInclusive<u64>) -> Verdict {
    let snapshots: Vec<PathBuf> = snapshots.iter().map(|path| path.to_path_buf()).collect();
    verify(&snapshots, log, range).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Panics where these are not of one such instant.
pub fn assert_one_instant(snapshots: &[&Path], log: &Path, range: RangeInclusive<u64>) -> Verdict {
    let verdict = judged(snapshots, log, range);
    assert!(verdict.good, "{snapshots:?}: {}", verdict.json());
    verdict
}

/// The program.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| std::env::var_os("REFLINK_IMG_GUEST").map_or_else(build, PathBuf::from))
}

/// Built as the tests are: without the network, and for release where they are.
fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let mut command = Command::new(cargo);
    command.args(["build", "--offline", "--quiet", "--package", "reflink-img-guest", "--message-format", "json"]);
    command.args(["--profile", profile]).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    let out = command.stderr(Stdio::inherit()).output().expect("cargo starts");
    assert!(out.status.success(), "the guest does not build");
    let messages = String::from_utf8_lossy(&out.stdout);
    let mut paths = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let ours = message["reason"] == "compiler-artifact" && message["target"]["name"] == "reflink-img-guest";
        message["executable"].as_str().filter(|_| ours).map(PathBuf::from)
    });
    paths.next_back().expect("cargo says where the guest is")
}
