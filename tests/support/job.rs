//! The program as it runs beside a test: its events, its signals, its end.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde_json::Value;

/// A program that runs. Dropped, it is killed.
pub struct Job {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// What it has told.
    pub events: Vec<Value>,
}

/// How a program ended.
pub struct Ended {
    pub code: Option<i32>,
    pub events: Vec<Value>,
    pub stderr: String,
}

impl Job {
    /// Starts a command that tells events.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines, events: Vec::new() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads on until an event of this name; false where the program ended first.
    pub fn wait_for(&mut self, event: &str) -> bool {
        while self.line() {
            if self.events.last().is_some_and(|e| e["event"] == event) {
                return true;
            }
        }
        false
    }

    fn line(&mut self) -> bool {
        let mut line = String::new();
        let more = self.lines.read_line(&mut line).is_ok_and(|n| n > 0);
        self.events.extend(serde_json::from_str::<Value>(&line).ok());
        more
    }

    pub fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(Pid::from_raw(self.pid() as i32)), flags).expect("our child");
        status != WaitStatus::StillAlive
    }

    /// Whether it has got as far as to catch a signal.
    pub fn catches(&self, signal: Signal) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask >> (signal as i32 - 1) & 1 == 1)
    }

    pub fn signal(&self, signal: Signal) {
        // One that has ended is a zombie until it is waited for: the id is still its own.
        kill(Pid::from_raw(self.pid() as i32), signal).expect("a signal");
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        while self.line() {}
        let status = self.child.wait().expect("its end");
        let mut stderr = String::new();
        let _ = self.child.stderr.take().expect("piped").read_to_string(&mut stderr);
        assert!(!stderr.contains("panicked"), "{stderr}");
        Ended { code: status.code(), events: std::mem::take(&mut self.events), stderr }
    }

    /// Ends it at once, with SIGKILL.
    pub fn kill(self) {
        self.signal(Signal::SIGKILL);
        drop(self.end());
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
