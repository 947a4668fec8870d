//! The freezer: a process of its own that freezes and thaws, so that a thaw arrives whatever becomes of the job.
//!
//! It has a session of its own and takes no signal that can be blocked. It thaws when it is told to, when the job's process
//! is gone (the socket is closed), and when it has heard nothing for too long. Should it be gone itself, the job's process
//! thaws. It is not the supervisor of the hold `guard`, which must be free to let accesses go on at any moment and waits
//! for nobody; and a job of another hold has none.
//!
//! Over the socket go an [`Order`] and the answers, one JSON object a line.

use std::ffi::CStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_name;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};

use super::order::Order;
use super::staggered::staggered;
use super::{Freeze, Method, NotFrozen, command};
use crate::children;
use crate::error::{Error, Kind, Result};

/// The verb, not for users, that makes this program a freezer.
pub const FREEZER: &str = "__freezer";

/// What the process calls itself before it freezes anything: by that who inherits it knows it, also when it has ended.
pub const NAME: &CStr = c"img-freezer";

/// How long a thaw is tried for.
pub const THAW: Duration = Duration::from_secs(60);

/// What may be late beside what is waited for: the starting of processes on a busy machine.
pub(super) const SLACK: Duration = Duration::from_secs(5);

/// The signals by which a process is ended or stopped from outside, but for those that nobody can keep off. They get a handler that
/// does nothing: what is blocked stays blocked in the user's commands, and one that means to end another could not.
const SURVIVED: [i32; 18] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGABRT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// How often it is looked whether the process is stopped, while it is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// How often it is looked whether the job is told to stop, while a freeze is waited for.
const STOPS: Duration = Duration::from_millis(500);

/// The job says that T0 is set.
const T0_IS_SET: u8 = b'T';

/// How a freeze ended that was confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Quiescence {
    /// Whether it is known that everything was frozen until T0.
    pub quiesced: bool,
    /// From the first request for a freeze to the answer to the last thaw, in milliseconds.
    pub frozen_ms: u64,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Frozen,
    Thawed(Quiescence),
    Error { refused: bool, still_frozen: bool, what: String, hint: String },
}

impl Answer {
    fn error(error: &Error, still_frozen: bool) -> Self {
        let refused = error.kind == Kind::Refused;
        Answer::Error { refused, still_frozen, what: error.to_string(), hint: error.hint.clone() }
    }
}

/// The job's end.
pub struct Freezer {
    order: Order,
    child: Child,
    started: Instant,
    /// None once the other end is known to be gone.
    socket: Option<BufReader<UnixStream>>,
    /// Whether a freeze was asked for that nobody has confirmed to be over.
    open: bool,
    /// Whether the process was gone before it said that everything is frozen.
    early: bool,
    /// The thaw of this process, where the other one is gone.
    thaws: Option<JoinHandle<Result<()>>>,
}

impl Freezer {
    /// Starts the process; nothing is frozen yet.
    ///
    /// # Errors
    /// Refused where there can be none; usage where the order is too long.
    pub fn start(order: Order) -> Result<Self> {
        let cannot = |e| {
            let hint = "check the limit of processes, and whether the program's file can still be run";
            Error::io(Kind::Refused, "cannot have a process that thaws, without which nothing is frozen", hint, e)
        };
        let bytes = order.to_bytes()?;
        // A freeze command that the process leaves behind must be ended here.
        children::inherit().map_err(cannot)?;
        let (mut ours, theirs) = UnixStream::pair().map_err(cannot)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(FREEZER).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        let child = children::spawn(&mut command).map_err(cannot)?;
        // The command has the other end of the socket.
        drop(command);
        ours.write_all(&bytes).map_err(cannot)?;
        let (socket, started) = (Some(BufReader::new(ours)), Instant::now());
        Ok(Self { order, child, started, socket, open: true, early: false, thaws: None })
    }

    /// Waits until everything is frozen, or the job is told to stop.
    ///
    /// # Errors
    /// Refused or failed with the reason; what was frozen is thawed by then, or may still be frozen, as it says.
    pub fn frozen(&mut self, stop: &dyn Fn() -> bool) -> std::result::Result<(), NotFrozen> {
        let until = Instant::now() + self.order.longest();
        let answer = loop {
            let left = until.saturating_duration_since(Instant::now());
            let answer = self.answer(left.min(STOPS));
            if answer.is_some() || self.socket.is_none() || left.is_zero() || stop() {
                break answer;
            }
        };
        match answer {
            Some(Answer::Frozen) => Ok(()),
            Some(Answer::Error { refused, still_frozen, what, hint }) => {
                self.open = false;
                let error = Error::new(if refused { Kind::Refused } else { Kind::Failed }, what, hint);
                Err(NotFrozen { error, still_frozen })
            }
            Some(Answer::Thawed(_)) | None => {
                self.early = true;
                Err(match self.thaw_here() {
                    Err(error) => NotFrozen { error, still_frozen: true },
                    Ok(()) => {
                        let hint = "find out who ends or stops processes here; the guest is thawed";
                        let error = Error::new(Kind::Failed, "the process that froze is gone", hint);
                        NotFrozen { error, still_frozen: false }
                    }
                })
            }
        }
    }

    /// Asks for the thaw, and waits for nothing: a guest that thaws may have to write first, and wait for the caller.
    pub fn thaw(&mut self) {
        let told = self.socket.as_mut().map(|socket| socket.get_mut().write_all(&[T0_IS_SET]));
        if !matches!(told, Some(Ok(()))) || self.is_stopped() {
            self.begin_to_thaw();
        }
    }

    /// How it ended, if that is known within this time.
    ///
    /// # Errors
    /// Failed where a guest may still be frozen; the hint says how to thaw it.
    pub fn thawed(&mut self, limit: Duration) -> Option<Result<Quiescence>> {
        let answer = match self.answer(limit) {
            None if self.socket.is_some() && limit < THAW => return None,
            answer => answer,
        };
        let known = match answer {
            Some(Answer::Thawed(known)) => Ok(known),
            Some(Answer::Error { what, hint, .. }) => Err(Error::new(Kind::Failed, what, hint)),
            Some(Answer::Frozen) | None => {
                self.begin_to_thaw();
                // The caller may be the one whom the guest waits for in the midst of its thaw.
                if limit < THAW && self.thaws.as_ref().is_some_and(|thaws| !thaws.is_finished()) {
                    return None;
                }
                let frozen_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.thaw_here().map(|()| Quiescence { quiesced: false, frozen_ms })
            }
        };
        self.open = false;
        Some(known)
    }

    /// The next answer, if it comes in time. There is none from a process that is stopped: nobody might tell it to go on.
    fn answer(&mut self, limit: Duration) -> Option<Answer> {
        let until = Instant::now() + limit;
        while self.socket.as_ref().is_some_and(|socket| socket.buffer().is_empty()) {
            if self.is_stopped() {
                self.socket = None;
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            if self.socket.as_ref().is_some_and(|socket| readable(socket.get_ref(), left.min(LOOK))) {
                break;
            }
            if left.is_zero() {
                return None;
            }
        }
        let socket = self.socket.as_mut()?;
        // An answer is a short line, written at once.
        let _ = socket.get_ref().set_read_timeout(Some(SLACK));
        let mut line = String::new();
        let read = socket.read_line(&mut line);
        let answer = read.ok().and_then(|_| serde_json::from_str(&line).ok());
        if answer.is_none() {
            self.socket = None;
        }
        answer
    }

    fn pid(&self) -> Pid {
        // The kernel gives no pid that does not fit.
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    fn is_stopped(&self) -> bool {
        children::is_stopped(self.pid())
    }

    /// The process is of no use any more: neither it nor a command that it has begun must freeze after the thaw, which is this
    /// process's from here on. It waits for nothing but for their ends.
    fn begin_to_thaw(&mut self) {
        if self.thaws.is_some() {
            return;
        }
        self.socket = None;
        let _ = self.child.kill();
        // It is left to be waited for: should this process die before it has thawed, its heir sees what has happened.
        let _ = waitid(Id::Pid(self.pid()), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let ended = command::end_freezes(self.pid());
        let methods = self.order.methods.clone();
        let thaw = move || thaw_all(&methods).and(ended);
        // Without a thread `thaw_here` does it.
        self.thaws = thread::Builder::new().name("thaws".into()).spawn(thaw).ok();
    }

    fn thaw_here(&mut self) -> Result<()> {
        self.begin_to_thaw();
        self.open = false;
        match self.thaws.take().map(JoinHandle::join) {
            Some(Ok(thawed)) => thawed?,
            _ => thaw_all(&self.order.methods)?,
        }
        let _ = self.child.wait();
        Ok(())
    }

    /// Thaws once more where a command was ended in the midst of freezing: what it has asked others to do may have been done
    /// since. An agent has done by now what it was asked before the thaw.
    ///
    /// # Errors
    /// As [`Freezer::thawed`].
    pub fn thaw_again(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.early) {
            return Ok(());
        }
        let commands = |method: &&Method| matches!(method, Method::Commands { .. });
        thaw_all(&self.order.methods.iter().filter(commands).cloned().collect::<Vec<_>>())
    }
}

impl Drop for Freezer {
    /// Has it thaw, and waits until it has: whoever ends the job after that can count on it.
    fn drop(&mut self) {
        if self.open {
            self.thaw();
            let _ = self.thawed(THAW + SLACK);
        }
        let _ = self.thaw_again();
        self.socket = None;
        let _ = self.child.wait();
    }
}

pub(super) fn thaw_all(methods: &[Method]) -> Result<()> {
    each_of(staggered(methods.iter().rev().collect(), |method| method.thaw(THAW))).map(drop)
}

/// The freezer's end: freezes and thaws as the job at the other end of the socket says, and without its word too.
///
/// # Errors
/// What kept it from being of use, nothing was frozen then; failed where a guest may still be frozen.
pub fn serve(socket: UnixStream) -> Result<()> {
    let cannot = |e: io::Error| Error::io(Kind::Failed, "cannot freeze", "run the same command again", e);
    for signal in SURVIVED {
        signal_hook::flag::register(signal, Arc::default()).map_err(cannot)?;
    }
    // A session of its own: a shell that goes away takes it not along.
    let _ = setsid();
    set_name(NAME).map_err(|e| cannot(e.into()))?;
    // What a freeze leaves running may be waited for by the thaw.
    children::inherit().map_err(cannot)?;
    children::reap_inherited();
    let Some(order) = Order::read(&mut &socket).map_err(cannot)? else { return Ok(()) };
    // Nobody stays frozen while the agent of another one, which is not there, is waited for.
    if order.methods.len() > 1
        && let Err(error) = order.methods.iter().try_for_each(|method| method.is_ready(order.limit))
    {
        tell(&socket, &Answer::error(&error, false));
        return Ok(());
    }
    let began = Instant::now();
    let mut frozen = Vec::new();
    for method in &order.methods {
        let (begun, result) = Freeze::attempt(method, order.limit, THAW);
        frozen.extend(begun);
        if let Err(error) = result {
            // With the others: those that are frozen do not wait for one whose agent has gone.
            let NotFrozen { error, still_frozen } = NotFrozen::after(error, end_all(frozen).map(drop));
            tell(&socket, &Answer::error(&error, still_frozen));
            return if still_frozen { Err(error) } else { Ok(()) };
        }
    }
    tell(&socket, &Answer::Frozen);
    let asked = readable(&socket, order.limit) && (&socket).read(&mut [0]).is_ok_and(|bytes| bytes == 1);
    let thawed = end_all(frozen).map(|all_were| Quiescence {
        quiesced: asked && all_were,
        frozen_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    tell(&socket, &thawed.as_ref().map_or_else(|e| Answer::error(e, true), |known| Answer::Thawed(*known)));
    thawed.map(drop)
}

/// Thaws all, whatever one of them says. Whether all are known to have been frozen.
fn end_all(frozen: Vec<Freeze<'_>>) -> Result<bool> {
    let ended = each_of(staggered(frozen.into_iter().rev().collect(), Freeze::end))?;
    Ok(ended.iter().all(|one| one.was_frozen))
}

/// All of them, or every error in one: what became of one guest says nothing of another.
fn each_of<T>(results: Vec<Result<T>>) -> Result<Vec<T>> {
    let (mut all, mut failed) = (Vec::new(), None);
    for result in results {
        match (result, &mut failed) {
            (Ok(one), _) => all.push(one),
            (Err(error), None) => failed = Some(error),
            (Err(error), Some(Error { what, hint, .. })) => {
                *what = format!("{what}; {error}");
                if *hint != error.hint {
                    *hint = format!("{hint}; {}", error.hint);
                }
            }
        }
    }
    failed.map_or(Ok(all), Err)
}

/// Who does not read it is gone.
fn tell(mut socket: &UnixStream, answer: &Answer) {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    let _ = socket.write_all(&line);
}

/// Whether there is something to be read within the time, if only the end.
fn readable(fd: &impl AsFd, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            Ok(0) if left > Duration::ZERO => {}
            other => return other.is_ok_and(|ready| ready > 0),
        }
    }
}
