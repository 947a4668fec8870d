//! Child processes. Each runs in a process group of its own and is on a list, so that an interrupted verb can end what
//! it started, all of it and nothing else.

use std::ffi::OsStr;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::setup;

mod background;

pub use background::Background;

struct Children {
    /// Set once, by an interruption: nothing is started any more.
    stopping: bool,
    running: Vec<Pid>,
}

static CHILDREN: Mutex<Children> = Mutex::new(Children { stopping: false, running: Vec::new() });

fn children() -> MutexGuard<'static, Children> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a child left.
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed, where it was asked to be kept.
    pub stdout: String,
    /// What it complained of, where it was asked to be kept.
    pub stderr: String,
    /// From its start to its end.
    pub took: Duration,
}

/// A child on the list. Dropped, it is killed.
struct Running {
    child: Child,
    pid: Pid,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        if let Ok(path) = std::env::join_paths(setup::search_path()) {
            command.env("PATH", path);
        }
        command.process_group(0);
        let mut children = children();
        if children.stopping {
            bail!("interrupted before {}", words(command));
        }
        let child = command.spawn().with_context(|| format!("start {}", words(command)))?;
        let pid = Pid::from_raw(child.id().cast_signed());
        children.running.push(pid);
        Ok(Self { child, pid })
    }

    /// Waits for the end without reaping: the process id stays the child's until it is off the list.
    fn ended(&self) -> Result<()> {
        loop {
            match waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => bail!("wait for process {}: {errno}", self.pid),
            }
        }
    }

    fn reap(&mut self) -> Result<ExitStatus> {
        let mut children = children();
        children.running.retain(|pid| *pid != self.pid);
        self.child.wait().context("wait for a child")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let listed = children().running.contains(&self.pid);
        if listed {
            let _ = killpg(self.pid, Signal::SIGKILL);
            let _ = self.reap();
        }
    }
}

/// Kills every child's process group and refuses new ones.
pub fn stop_all() {
    let mut children = children();
    children.stopping = true;
    for pid in &children.running {
        let _ = killpg(*pid, Signal::SIGKILL);
    }
}

/// Never returns once [`stop_all`] was called.
pub fn park_if_stopping() {
    while children().stopping {
        thread::park();
    }
}

/// Runs a command with this process's own output, to its end.
pub fn attached(command: &mut Command) -> Result<ExitStatus> {
    let mut running = Running::start(command)?;
    running.ended()?;
    running.reap()
}

/// Runs a command and keeps what it says; an exit other than 0 is an error that quotes it.
pub fn checked(command: &mut Command) -> Result<Outcome> {
    let outcome = watched(command, |_| ControlFlow::Break(()))?;
    require_success(command, outcome)
}

/// Runs a command and keeps what it says. Meanwhile calls `look` with its process id every few milliseconds, until
/// that breaks off.
pub fn watched(command: &mut Command, look: impl FnMut(Pid) -> ControlFlow<()> + Send) -> Result<Outcome> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut running = Running::start(command)?;
    let mut out = running.child.stdout.take();
    let mut err = running.child.stderr.take();
    let ended = &AtomicBool::new(false);
    let (stdout, stderr, took) = thread::scope(|scope| {
        let stdout = scope.spawn(|| text(out.as_mut()));
        let stderr = scope.spawn(|| text(err.as_mut()));
        let pid = running.pid;
        scope.spawn(move || look_until(ended, pid, look));
        let waited = running.ended();
        let took = started.elapsed();
        ended.store(true, Ordering::Release);
        waited.map(|()| (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default(), took))
    })?;
    Ok(Outcome { status: running.reap()?, stdout, stderr, took })
}

fn look_until(ended: &AtomicBool, pid: Pid, mut look: impl FnMut(Pid) -> ControlFlow<()>) {
    while !ended.load(Ordering::Acquire) {
        if look(pid).is_break() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn text(from: Option<&mut impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What was read before an error is still worth showing.
        let _ = from.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Makes an exit other than 0 an error that quotes what the command said.
pub fn require_success(command: &Command, outcome: Outcome) -> Result<Outcome> {
    if outcome.status.success() {
        return Ok(outcome);
    }
    let said = if outcome.stderr.trim().is_empty() { outcome.stdout.trim() } else { outcome.stderr.trim() };
    match outcome.status.signal() {
        Some(signal) => bail!("{} was ended by signal {signal}: {said}", words(command)),
        None => bail!("{} failed ({}): {said}", words(command), outcome.status),
    }
}

/// A command as one would type it, for messages.
pub fn words(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_larger_than_a_pipe_is_kept_whole() {
        let outcome = checked(Command::new("head").args(["-c", "300000", "/dev/zero"])).unwrap();
        assert_eq!(outcome.stdout.len(), 300_000);
    }

    #[test]
    fn a_failure_quotes_the_command_and_its_complaint() {
        let error = checked(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"])).err().unwrap().to_string();
        assert!(error.contains("sh -c") && error.contains("no luck") && error.contains('3'), "{error}");
    }

    #[test]
    fn the_watcher_may_kill_what_it_watches() {
        let outcome = watched(Command::new("sleep").arg("60"), |pid| {
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            ControlFlow::Break(())
        })
        .unwrap();
        assert_eq!(outcome.status.signal(), Some(9));
    }
}
