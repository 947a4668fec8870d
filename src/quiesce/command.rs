//! A command of the user's, run by a shell in a process group of its own, with a deadline.
//!
//! One that fails or is late is killed with its group, and is waited for until it is gone: what comes after it must not
//! be overtaken. One that succeeds may leave processes running (a session that holds a database's lock, say). Its
//! output is read as long as it runs, for the error; only the end of it is kept.
//!
//! A command that freezes must not outlive who waits for it, and freeze behind the thaw. It is begun once it can be found
//! ([`GATE`]), so that whoever inherits it can end it ([`end_freezes`]).

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, ErrorKind, PipeReader, Read, Write};
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

use crate::children;
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

/// What a shell does before the command that freezes: it waits until somebody waits for it. By then it leads its group, in the
/// session of who has started it, and the leader of a group cannot leave that: so it is found ([`end_freezes`]).
const GATE: &str = "read -r go && exec /bin/sh -c \"$0\" </dev/null";

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
    end(Running::start(command).map_err(not_started)?, deadline)
}

/// Runs a command that freezes to its end, as [`run`].
///
/// # Errors
/// As [`run`].
pub fn run_freeze(command: &OsStr, deadline: Deadline) -> Result<(), Fault> {
    end(Running::start_freeze(command).map_err(not_started)?, deadline)
}

fn not_started(error: io::Error) -> Fault {
    Fault { why: Why::NotStarted(error), said: String::new(), stuck: false }
}

fn end(mut running: Running, deadline: Deadline) -> Result<(), Fault> {
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
        Self::spawn(Command::new("/bin/sh").arg("-c").arg(command).stdin(Stdio::null()))
    }

    fn start_freeze(command: &OsStr) -> io::Result<Self> {
        let (gate, mut opener) = io::pipe()?;
        let running = Self::spawn(Command::new("/bin/sh").args(["-c", GATE]).arg(command).stdin(gate))?;
        // One that has ended already is found to have failed. Who dies before this leaves a closed pipe, and nothing is begun.
        let _ = opener.write_all(b"go\n");
        Ok(running)
    }

    fn spawn(shell: &mut Command) -> io::Result<Self> {
        let (output, input) = io::pipe()?;
        let flags = OFlag::from_bits_retain(fcntl(&output, FcntlArg::F_GETFL)?);
        fcntl(&output, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        shell.process_group(0).stdout(input.try_clone()?).stderr(input);
        Ok(Self { child: children::spawn(shell)?, output: Some(output), said: Vec::new() })
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
        if !kill_group(self.id()) {
            return None;
        }
        // For the error only.
        let _ = self.read();
        self.child.wait().ok()
    }
}

/// Kills the process group of a child that leads it, and waits until it is gone; false where it does not go. The child is left
/// to be waited for: so long nobody else gets its number.
fn kill_group(leader: Pid) -> bool {
    // ESRCH: all of it has gone already.
    let _ = killpg(leader, Signal::SIGKILL);
    let deadline = Deadline::within(DYING);
    let ended = children::ended(leader, DYING).is_ok_and(|status| status.is_some());
    while ended && children::group_lives(leader) {
        if deadline.passed() {
            return false;
        }
        deadline.pause(LOOK);
    }
    ended
}

/// Ends the commands, with all that they have started, whom this process has inherited from one that has died, which had this
/// session ([`children::inherit`]): none of them freezes after this. What one that succeeded has left running is left alone. One that was
/// thawing is ended as well, since it looks the same: a thaw has to follow in any case.
///
/// # Errors
/// Failed where something of one does not die.
pub fn end_freezes(session: Pid) -> crate::error::Result<()> {
    // All are told, whatever one of them does.
    let open = children::all().into_iter().filter(|child| child.session == session && is_open(child));
    let stuck: Vec<_> = open.map(|child| child.pid).filter(|pid| !kill_group(*pid)).collect();
    children::reap_inherited();
    match stuck.first() {
        None => Ok(()),
        Some(pid) => {
            let what =
                format!("something of the freeze command (process group {pid}) does not die, and may yet freeze");
            let hint = "see what it waits for (/proc/PID/stack); when it is gone, thaw by hand";
            Err(Error::new(Kind::Failed, what, hint))
        }
    }
}

/// Whether a child is a command that has not succeeded.
fn is_open(child: &children::Child) -> bool {
    let ended = || children::ended(child.pid, Duration::ZERO);
    child.group == child.pid && matches!(ended(), Ok(status) if !matches!(status, Some(WaitStatus::Exited(_, 0))))
}
