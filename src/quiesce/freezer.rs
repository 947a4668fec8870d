//! The freezer: a process of its own that freezes and thaws, so that a thaw arrives whatever becomes of the job.
//!
//! It has a session of its own and takes no signal that can be blocked. It thaws when it is told to, when the job's process
//! is gone (the socket is closed), and when it has heard nothing for too long. Should it be gone itself, the job's process
//! thaws. It is not the supervisor of the hold `guard`, which must be free to let accesses go on at any moment and waits
//! for nobody; and a job of another hold has none.
//!
//! Over the socket go an [`Order`], its numbers little-endian, and the answers, one JSON object a line.

use std::ffi::CStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_name;
use nix::sys::signal::SigSet;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};

use super::{Freeze, LONGEST, Method, command};
use crate::children;
use crate::error::{Error, Kind, Result};

/// The verb, not for users, that makes this program a freezer.
pub const FREEZER: &str = "__freezer";

/// What the process calls itself before it freezes anything: by that who inherits it knows it, also when it has ended.
pub const NAME: &CStr = c"img-freezer";

/// How long a thaw is tried for.
pub const THAW: Duration = Duration::from_secs(60);

/// What may be late beside what is waited for: the starting of processes on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

/// The most guests that one job freezes.
pub const MOST: usize = 64;

/// The job says that T0 is set.
const T0_IS_SET: u8 = b'T';

/// What to freeze.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// Each is frozen in this order, and thawed in the other.
    pub methods: Vec<Method>,
    /// How long a freeze may take, and how long it may last until T0 is set.
    pub limit: Duration,
}

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
    Error { refused: bool, what: String, hint: String },
}

impl Answer {
    fn error(error: &Error) -> Self {
        Answer::Error { refused: error.kind == Kind::Refused, what: error.to_string(), hint: error.hint.clone() }
    }
}

/// The job's end.
pub struct Freezer {
    order: Order,
    child: Child,
    /// None once the other end is known to be gone.
    socket: Option<BufReader<UnixStream>>,
    /// Whether a freeze was asked for that nobody has confirmed to be over.
    open: bool,
    /// Whether the process was gone before it said that everything is frozen.
    early: bool,
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
        let child = command.spawn().map_err(cannot)?;
        // The command has the other end of the socket.
        drop(command);
        ours.write_all(&bytes).map_err(cannot)?;
        Ok(Self { order, child, socket: Some(BufReader::new(ours)), open: true, early: false })
    }

    /// Waits until everything is frozen.
    ///
    /// # Errors
    /// Refused or failed with the reason; what was frozen is thawed by then, or the error says so.
    pub fn frozen(&mut self) -> Result<()> {
        match self.answer(self.order.longest()) {
            Some(Answer::Frozen) => Ok(()),
            Some(Answer::Error { refused, what, hint }) => {
                self.open = false;
                Err(Error::new(if refused { Kind::Refused } else { Kind::Failed }, what, hint))
            }
            Some(Answer::Thawed(_)) | None => {
                let ended = self.lost();
                self.early = true;
                self.thaw_here()?;
                ended?;
                let hint = "find out who ends processes here; the guest is thawed";
                Err(Error::new(Kind::Failed, "the process that froze is gone", hint))
            }
        }
    }

    /// Asks for the thaw, and waits for nothing: a guest that thaws may have to write first, and wait for the caller.
    pub fn thaw(&mut self) {
        let told = self.socket.as_mut().map(|socket| socket.get_mut().write_all(&[T0_IS_SET]));
        if !matches!(told, Some(Ok(()))) {
            // What it froze is frozen: no freeze command of it runs any more.
            let _ = self.lost();
            let methods = self.order.methods.clone();
            // `thawed` tries again where this cannot be had.
            let _ = thread::Builder::new().name("thaws".into()).spawn(move || thaw_all(&methods));
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
                let ended = self.lost();
                self.thaw_here().and(ended).map(|()| Quiescence { quiesced: false, frozen_ms: 0 })
            }
        };
        self.open = false;
        Some(known)
    }

    /// The next answer, if it comes in time.
    fn answer(&mut self, limit: Duration) -> Option<Answer> {
        let socket = self.socket.as_mut()?;
        if socket.buffer().is_empty() && !readable(socket.get_ref(), limit) {
            return None;
        }
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

    /// The process is of no use any more: neither it nor a command that it has begun must freeze after the thaw.
    fn lost(&mut self) -> Result<()> {
        self.socket = None;
        let _ = self.child.kill();
        // It is left to be waited for: should this process die before it has thawed, its heir sees what has happened.
        let _ = waitid(Id::Pid(Pid::from_raw(self.child.id() as i32)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        command::end_freezes()
    }

    fn thaw_here(&mut self) -> Result<()> {
        self.open = false;
        thaw_all(&self.order.methods)?;
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
    methods.iter().rev().map(|method| method.thaw(THAW).map(drop)).fold(Ok(()), Result::and)
}

/// The freezer's end: freezes and thaws as the job at the other end of the socket says, and without its word too.
///
/// # Errors
/// What kept it from being of use, nothing was frozen then; failed where a guest may still be frozen.
pub fn serve(socket: UnixStream) -> Result<()> {
    let cannot = |e: io::Error| Error::io(Kind::Failed, "cannot freeze", "run the same command again", e);
    SigSet::all().thread_block().map_err(|e| cannot(e.into()))?;
    // A session of its own: a shell that goes away takes it not along.
    let _ = setsid();
    set_name(NAME).map_err(|e| cannot(e.into()))?;
    let Some(order) = Order::read(&mut &socket).map_err(cannot)? else { return Ok(()) };
    let began = Instant::now();
    let mut frozen = Vec::new();
    for method in &order.methods {
        match Freeze::begin(method, order.limit, THAW) {
            Ok(freeze) => frozen.push(freeze),
            Err(error) => {
                let answer = Answer::error(&error);
                let thawed = end_all(frozen).map(drop);
                tell(&socket, &thawed.as_ref().map_or_else(Answer::error, |()| answer));
                return thawed;
            }
        }
    }
    tell(&socket, &Answer::Frozen);
    let asked = readable(&socket, order.limit) && (&socket).read(&mut [0]).is_ok_and(|bytes| bytes == 1);
    let thawed = end_all(frozen).map(|all_were| Quiescence {
        quiesced: asked && all_were,
        frozen_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    tell(&socket, &thawed.as_ref().map_or_else(Answer::error, |known| Answer::Thawed(*known)));
    thawed.map(drop)
}

/// Thaws all, whatever one of them says. Whether all are known to have been frozen.
fn end_all(frozen: Vec<Freeze<'_>>) -> Result<bool> {
    let ended: Vec<_> = frozen.into_iter().rev().map(Freeze::end).collect();
    ended.into_iter().try_fold(true, |all, one| Ok(all && one?.was_frozen))
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

impl Order {
    /// How long a freezer may take from the beginning to its last answer.
    pub fn longest(&self) -> Duration {
        let guests = u32::try_from(self.methods.len()).unwrap_or(u32::MAX);
        (self.limit + THAW) * guests + SLACK
    }

    /// The limit in milliseconds (8 bytes), the number of methods (4), and each with its length (4).
    fn to_bytes(&self) -> Result<Vec<u8>> {
        if self.methods.len() > MOST {
            let what = format!("more than {MOST} guests cannot be frozen for one job");
            return Err(Error::new(Kind::Usage, what, "use --freeze with a command that freezes them all"));
        }
        let mut bytes = u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX).to_le_bytes().to_vec();
        bytes.extend((self.methods.len() as u32).to_le_bytes());
        for method in &self.methods {
            let method = method.to_bytes()?;
            bytes.extend((method.len() as u32).to_le_bytes());
            bytes.extend(method);
        }
        Ok(bytes)
    }

    /// `None` where the other end is closed before the first byte.
    fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let mut limit = [0; 8];
        match from.read_exact(&mut limit) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let number = |from: &mut dyn Read, most: usize| {
            let mut bytes = [0; 4];
            from.read_exact(&mut bytes)?;
            let number = u32::from_le_bytes(bytes) as usize;
            if number <= most { Ok(number) } else { Err(malformed()) }
        };
        let mut methods = Vec::new();
        for _ in 0..number(from, MOST)? {
            let length = number(from, LONGEST)?;
            let mut bytes = vec![0; length];
            from.read_exact(&mut bytes)?;
            methods.push(Method::from_bytes(&bytes).map_err(|_| malformed())?);
        }
        Ok(Some(Self { methods, limit: Duration::from_millis(u64::from_le_bytes(limit)) }))
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Method, Order};

    #[test]
    fn an_order_comes_back_as_it_was_given() {
        let commands = Method::Commands { freeze: "true".into(), thaw: "echo thawed".into() };
        let order =
            Order { methods: vec![Method::Agent("/run/a".into()), commands], limit: Duration::from_millis(1500) };
        let bytes = order.to_bytes().expect("short");
        assert_eq!(Order::read(&mut &bytes[..]).expect("whole"), Some(order));
        assert_eq!(Order::read(&mut &bytes[..0]).expect("nothing"), None);
        for cut in 8..bytes.len() {
            assert!(Order::read(&mut &bytes[..cut]).is_err(), "{cut} bytes of it");
        }
        assert!(Order { methods: vec![Method::Agent("a".into()); 65], limit: Duration::ZERO }.to_bytes().is_err());
    }
}
