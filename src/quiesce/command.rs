//! A command of the user's, run by a shell in a process group of its own, with a deadline.
//!
//! One that fails or is late is killed with its group, and is waited for until it is gone: what comes after it must not
//! be overtaken. One that succeeds may leave processes running (a session that holds a database's lock, say). Its
//! output is read as long as it runs, for the error; only the end of it is kept.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::error::{Error, Kind};
use crate::qemu::wire::{Deadline, excerpt};

/// Bytes of output that are kept, the last ones: no more than an excerpt shows.
const KEPT: usize = 400;
/// Bytes read before the clock is looked at again.
const MOST_AT_ONCE: usize = 1 << 20;
/// How often it is looked whether the command has ended while it says nothing.
const LOOK: Duration = Duration::from_millis(10);
/// How long what was killed may take to be gone.
const DYING: Duration = Duration::from_secs(10);
/// How often a command that must succeed is tried, and the first pause; it doubles.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// Why a command did not do what it should.
#[derive(Debug)]
pub struct Fault {
    why: Why,
    /// The end of its output.
    said: String,
    /// Whether something of it would not die.
    stuck: bool,
}

#[derive(Debug)]
enum Why {
    NotStarted(io::Error),
    NotWatched(io::Error),
    Ended(ExitStatus),
    Late,
}

impl Fault {
    /// Whether it may have done something.
    pub fn started(&self) -> bool {
        !matches!(self.why, Why::NotStarted(_))
    }

    /// As an error about the command that freezes, or thaws.
    pub fn told(self, kind: Kind, which: &str, command: &OsStr) -> Error {
        let what = format!("the {which} command ({}) {self}", excerpt(&command.to_string_lossy()));
        let hint = match (which, self.stuck) {
            (_, true) => "a process of it hangs in the kernel: see what it waits for (/proc/PID/stack)",
            ("thaw", _) => "what it thaws may be frozen: thaw it by hand, and try the command in a shell",
            _ => "try the command in a shell; its exit status must be 0",
        };
        match self.why {
            Why::NotStarted(e) | Why::NotWatched(e) => Error::io(kind, what, hint, e),
            Why::Ended(_) | Why::Late => Error::new(kind, what, hint),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Why::NotStarted(_) => write!(f, "cannot be started")?,
            Why::NotWatched(_) => write!(f, "cannot be watched and was killed")?,
            Why::Ended(status) => write!(f, "failed with {status}")?,
            Why::Late => write!(f, "did not end in time and was killed")?,
        }
        if self.stuck {
            write!(f, ", and something of it does not die")?;
        }
        if self.said.is_empty() { write!(f, "; it said nothing") } else { write!(f, "; it said: {}", self.said) }
    }
}

/// Runs a command until it succeeds, a few times, and says how many.
///
/// # Errors
/// The last try's.
pub fn insist(command: &OsStr, deadline: Deadline) -> Result<u32, Fault> {
    let (mut nth, mut pause) = (1, PAUSE);
    loop {
        match run(command, deadline) {
            Ok(()) => return Ok(nth),
            Err(fault) if nth == TRIES || deadline.passed() => return Err(fault),
            Err(_) => deadline.pause(pause),
        }
        nth += 1;
        pause *= 2;
    }
}

/// Runs a command to its end.
///
/// # Errors
/// Where it cannot be started, fails, or is not done in time. Nothing of its process group is left then, but what
/// [`Fault`] says is stuck.
pub fn run(command: &OsStr, deadline: Deadline) -> Result<(), Fault> {
    let not_started = |e| Fault { why: Why::NotStarted(e), said: String::new(), stuck: false };
    let mut running = Running::start(command).map_err(not_started)?;
    let seen = running.watch(deadline);
    if matches!(seen, Ok(Some(true))) {
        // It has ended: this does not wait.
        let _ = running.child.wait();
        return Ok(());
    }
    let gone = running.kill();
    let why = match (seen, gone) {
        (Err(e), _) => Why::NotWatched(e),
        (Ok(Some(_)), Some(status)) => Why::Ended(status),
        (Ok(_), _) => Why::Late,
    };
    let said = excerpt(String::from_utf8_lossy(&running.said).trim());
    Err(Fault { why, said, stuck: gone.is_none() })
}

struct Running {
    /// Leads its process group. It is not waited for before its group was killed: so long nobody else gets its number.
    child: Child,
    /// None once nobody can write to it any more.
    output: Option<PipeReader>,
    /// The end of what it wrote.
    said: Vec<u8>,
}

impl Running {
    fn start(command: &OsStr) -> io::Result<Self> {
        let (output, input) = io::pipe()?;
        let flags = OFlag::from_bits_retain(fcntl(&output, FcntlArg::F_GETFL)?);
        fcntl(&output, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(command).process_group(0).stdin(Stdio::null());
        shell.stdout(input.try_clone()?).stderr(input);
        Ok(Self { child: shell.spawn()?, output: Some(output), said: Vec::new() })
    }

    fn id(&self) -> Pid {
        // The kernel gives no pid that does not fit.
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// Waits until it has ended, and says whether with success; `None` where the deadline came first.
    fn watch(&mut self, deadline: Deadline) -> io::Result<Option<bool>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        loop {
            let status = waitid(Id::Pid(self.id()), flags)?;
            // Read after that look, so that everything it wrote before its end is read.
            self.read()?;
            match status {
                WaitStatus::StillAlive => {}
                ended => return Ok(Some(matches!(ended, WaitStatus::Exited(_, 0)))),
            }
            let Ok(left) = deadline.left() else { return Ok(None) };
            self.wait_for_output(left.min(LOOK))?;
        }
    }

    fn wait_for_output(&self, time: Duration) -> io::Result<()> {
        let Some(output) = &self.output else {
            // It has closed its output, which most do by ending.
            std::thread::sleep(time.min(Duration::from_millis(1)));
            return Ok(());
        };
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Reads what there is, and keeps the end of it.
    fn read(&mut self) -> io::Result<()> {
        let mut piece = [0; 8 << 10];
        for _ in 0..MOST_AT_ONCE / piece.len() {
            let Some(output) = &mut self.output else { break };
            match output.read(&mut piece) {
                Ok(0) => self.output = None,
                Ok(got) => {
                    self.said.extend_from_slice(&piece[..got]);
                    self.said.drain(..self.said.len().saturating_sub(KEPT));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Kills the process group and waits until it is gone; `None` where it does not go.
    fn kill(&mut self) -> Option<ExitStatus> {
        let group = self.id();
        // ESRCH: all of it has gone already.
        let _ = killpg(group, Signal::SIGKILL);
        let deadline = Deadline::within(DYING);
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if !deadline.passed() => deadline.pause(LOOK),
                _ => return None,
            }
        };
        while lives(group) {
            if deadline.passed() {
                return None;
            }
            deadline.pause(LOOK);
        }
        // For the error only.
        let _ = self.read();
        Some(status)
    }
}

/// Whether a process of this group has not ended. Those that have, and whose parent does not care, are no matter.
fn lives(group: Pid) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    let stats = entries.flatten().filter_map(|entry| fs::read(entry.path().join("stat")).ok());
    stats.into_iter().any(|stat| lives_in(&stat, group))
}

/// The same of one process, by its stat file: `PID (NAME) STATE PARENT GROUP ...`, where the name may hold anything.
fn lives_in(stat: &[u8], group: Pid) -> bool {
    let Some(name_end) = stat.iter().rposition(|b| *b == b')') else { return false };
    let fields = String::from_utf8_lossy(&stat[name_end + 1..]);
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next();
    fields.nth(1).and_then(|field| field.parse().ok()) == Some(group.as_raw()) && !matches!(state, Some("Z" | "X"))
}

#[cfg(test)]
mod tests {
    use super::{Pid, lives_in};

    #[test]
    fn who_lives_is_read_from_stat() {
        let check = |stat: &str, expect| assert_eq!(lives_in(stat.as_bytes(), Pid::from_raw(7)), expect, "{stat}");
        check("9 (sleep) S 1 7 7 0 -1", true);
        check("9 (a) S 1 8) D 3 7 7 0 -1", true);
        check("9 (sleep) Z 1 7 7 0 -1", false);
        check("7 (sleep) S 1 8 7 0 -1", false);
        check("", false);
    }
}
