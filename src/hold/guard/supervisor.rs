//! The supervisor: a process of its own that lets the guests' accesses go on when the worker cannot.
//!
//! It has a duplicate of the worker's group, so that accesses keep waiting when the worker dies (the kernel would let them
//! pass unseen), and answers them itself, by their numbers in the worker. It has a session of its own, takes no signal that
//! can be blocked, and waits for nothing but the worker. The order of `release` is the one that was measured to work
//! (KERNEL.md): closing a duplicate alone releases nothing while a hung process has another.
//!
//! One that is stopped is of no use, and nobody is told. So it gives signs of life, without which the worker makes nobody wait;
//! and where the worker dies before it has missed them, who has inherited the supervisor ends it ([`outlived`]): with the last
//! descriptor of the group everybody goes on.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_name;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::setsid;

use super::pulse::Pulse;
use super::table::{self, Table};
use super::{link, raise};
use crate::children;
use crate::sys::fanotify::Group;
use crate::sys::process;

/// What the process calls itself: by that who inherits it knows it.
pub const NAME: &CStr = c"img-supervisor";

/// Looks at the table so often in a deadline.
const LOOKS: u32 = 20;

/// The bounds of the time between two looks.
const SHORTEST_LOOK: Duration = Duration::from_millis(5);
const LONGEST_LOOK: Duration = Duration::from_millis(50);

/// How long a killed worker is waited for: it may hang in the kernel for as long as it likes.
const DEATH: Duration = Duration::from_secs(5);

/// How a supervisor's work ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The worker ended with nobody waiting for it.
    WithTheWorker,
    /// The worker had to be replaced, for this reason: everybody was let go on.
    Released(String),
}

/// Looks after the worker at the other end of the socket until it has ended.
///
/// # Errors
/// What keeps the supervisor from taking up its work; the worker then marks nothing.
pub fn supervise(mut socket: UnixStream) -> io::Result<Ended> {
    SigSet::all().thread_block()?;
    // A session of its own: neither Ctrl-Z nor a signal to the process group of the worker reaches it.
    let _ = setsid();
    set_name(NAME)?;
    raise::process().and_then(|_| raise::answering_thread()).map_err(io::Error::other)?;
    let Some(charge) = link::take_charge(&socket)? else { return Ok(Ended::WithTheWorker) };
    let (group, table) = (Group::received(charge.group), Table::map(charge.table)?);
    link::ready(&mut socket)?;
    let why = watch(&charge.worker, &socket, &group, &table)?;
    Ok(match why {
        None => Ended::WithTheWorker,
        Some(why) => {
            release(&charge.worker, &group, &table);
            Ended::Released(why)
        }
    })
}

/// Waits until the worker has ended, or closed the socket, or somebody has waited too long for it; then says why.
fn watch(worker: &OwnedFd, socket: &UnixStream, group: &Group, table: &Table) -> io::Result<Option<String>> {
    let deadline = table.deadline();
    let look = (deadline / LOOKS).clamp(SHORTEST_LOOK, LONGEST_LOOK);
    let timeout = PollTimeout::try_from(look).unwrap_or(PollTimeout::ZERO);
    // Since when the worker has left events unread, and its last sign of life then.
    let mut unread: Option<(Duration, Duration)> = None;
    let mut pulse = Pulse::new(look, table::now());
    // By this process, which waits for no disk: a worker that hangs or is stopped would keep them awake for as long.
    let mut awake = None;
    loop {
        table.stand_by();
        let alive = table::now().saturating_sub(table.last_beat()) < deadline;
        awake = (table.is_watching() && alive).then(|| awake.unwrap_or_else(raise::Awake::request));
        if let Some(awake) = &mut awake {
            awake.look();
        }
        let ended = readable(worker, timeout)?;
        pulse.beat(table::now());
        if ended {
            return Ok(table.is_watching().then(|| "its worker has died".into()));
        }
        if !table.is_watching() {
            unread = None;
            pulse.emptied(table::now());
            if readable(socket, PollTimeout::ZERO)? {
                return Ok(None);
            }
            continue;
        }
        let now = table::now();
        // The worker was stopped as well, or it would not be watching any more.
        let stopped = pulse.stopped().filter(|time| *time > deadline);
        let waits = || Ok::<_, io::Error>(table.held().next().is_some() || readable(group, PollTimeout::ZERO)?);
        if let Some(time) = stopped
            && waits()?
        {
            return Ok(Some(format!("the program was stopped for {time:.1?}, with accesses to the image waiting")));
        }
        pulse.emptied(now);
        let longest = table.held().map(|(since, _)| now.saturating_sub(since)).max().unwrap_or_default();
        if longest >= deadline * 9 / 10 {
            return Ok(Some(format!("its worker left an access to the image unanswered for {longest:.1?}")));
        }
        let beat = table.last_beat();
        unread = match unread {
            _ if !readable(group, PollTimeout::ZERO)? => None,
            Some((since, then)) if then == beat => Some((since, then)),
            _ => Some((now, beat)),
        };
        // What has not been read yet has waited for up to a look already, and letting go takes a moment as well.
        let waited = unread.map_or(Duration::ZERO, |(since, _)| now.saturating_sub(since));
        if waited >= deadline * 3 / 4 {
            return Ok(Some(format!("its worker stood still, with accesses to the image waiting for {waited:.1?}")));
        }
    }
}

/// What has become of the supervisor of a worker that has died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outlived {
    /// It has let everybody go on, or there was none any more.
    Ended,
    /// It did not end by itself and was killed: everybody goes on.
    Killed,
    /// It does not end, and accesses may be waiting.
    Hangs(i32),
}

/// Waits until nobody can be waiting any more for a worker that has died, whose supervisor this process has inherited
/// ([`children::inherit`]); a supervisor that has not ended within this time is killed. That harms nobody: only who holds the
/// group keeps accesses waiting.
pub fn outlived(limit: Duration) -> Outlived {
    let name = NAME.to_string_lossy();
    let supervisors = children::all().into_iter().filter(|child| child.name == name).map(|child| child.pid);
    let mut became = supervisors.map(|pid| match children::ended(pid, limit) {
        Ok(None) => match children::end(pid, DEATH) {
            Ok(None) => Outlived::Hangs(pid.as_raw()),
            _ => Outlived::Killed,
        },
        _ => Outlived::Ended,
    });
    // One at most is alive.
    became.find(|became| *became != Outlived::Ended).unwrap_or(Outlived::Ended)
}

/// Lets everybody go on, whatever the worker does or does not do.
fn release(worker: &OwnedFd, group: &Group, table: &Table) {
    table.take_over();
    // First no new access waits; then what waits goes on.
    let _ = group.unmark_all();
    allow_all(group, table);
    let _ = process::signal(worker.as_fd(), Some(Signal::SIGKILL));
    let _ = readable(worker, PollTimeout::try_from(DEATH).unwrap_or(PollTimeout::ZERO));
    // What it may have read, or marked, between the two.
    let _ = group.unmark_all();
    allow_all(group, table);
}

fn allow_all(group: &Group, table: &Table) {
    while let Ok(Some(event)) = group.read() {
        let _ = group.allow(event.file.as_raw_fd());
    }
    // Two accesses can have one number: the worker's and, read here, ours.
    let allow = |number: i32| while group.allow(number).is_ok() {};
    table.held().for_each(|(_, number)| allow(number));
    // A worker that died between reading an event and entering it in the table has left no other trace.
    let numbers = i32::try_from(table.numbers()).unwrap_or(i32::MAX);
    (0..numbers).for_each(allow);
}

fn readable(fd: &impl AsFd, timeout: PollTimeout) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::Error::EINTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
