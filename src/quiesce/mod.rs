//! Freezing what writes to an image, for the moment in which T0 is set, and thawing it, whatever happens in between.
//!
//! **A freeze that was begun is always followed by a thaw**, also where it failed or was not answered in time: it may
//! have frozen a part, and may be done later. So the thaw comes behind it and wins: with the agent by the order of its
//! stream (see [`crate::qemu::agent`]), with commands because the freeze command and everything it started in its
//! process group are gone before the thaw command starts. [`Freeze`] does that within one process. For the death of
//! that process somebody else holds the [`Method`] as bytes ([`Method::to_bytes`]) and thaws, after having ended the freeze
//! command that it has inherited ([`heir`]).
//!
//! **What cannot be promised.** An agent that answers and then stops, with a freeze in its queue, and does not come
//! back within the thaw's time: the error says so. Whoever kills all of the job's processes at once, as a service manager does that stops
//! a unit for longer than it has patience: nobody is left to thaw. What a freeze command hands to others to do (a process group of its
//! own, a daemon that it asks) and that freezes after the command has ended. A process that not even SIGKILL ends
//! within ten seconds, as one that hangs in the kernel.

mod bytes;
mod command;
pub mod freezer;
pub mod heir;
pub mod order;
mod staggered;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use bytes::{LONGEST, Malformed};

use crate::error::{Error, Kind, Result};
use crate::qemu::agent::{self, Agent, Fault};
use crate::qemu::wire::Deadline;

/// How an image's writer is frozen and thawed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Method {
    /// By the QEMU guest agent behind this socket.
    Agent(PathBuf),
    /// By commands, run with `/bin/sh -c`.
    Commands {
        /// Freezes. It may leave processes running, which must not hold on to its standard output.
        freeze: OsString,
        /// Thaws; also run after a freeze that failed, and may be run several times.
        thaw: OsString,
    },
}

/// How a freeze ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thawed {
    /// Whether it is known that everything was frozen until then. A Windows guest thaws itself after ten seconds, and
    /// somebody else may have thawed.
    pub was_frozen: bool,
}

impl Method {
    /// Freezes. After any other error than [`Kind::Refused`], [`Method::thaw`] must follow, as after success.
    ///
    /// # Errors
    /// [`Kind::Refused`]: no freeze was begun, and nothing may be thawed: the agent does not answer, or the guest is
    /// frozen already, by somebody who counts on it. [`Kind::Failed`]: it was begun, and what is frozen now is not
    /// known.
    pub fn freeze(&self, limit: Duration) -> Result<()> {
        let deadline = Deadline::within(limit);
        match self {
            Method::Agent(path) => freeze_guest(path, deadline, limit),
            Method::Commands { freeze, .. } => command::run_freeze(freeze, deadline).map_err(|fault| {
                let kind = if fault.started() { Kind::Failed } else { Kind::Refused };
                fault.told(kind, "freeze", freeze)
            }),
        }
    }

    /// Whether it can be frozen, as far as that is known without doing it.
    ///
    /// # Errors
    /// As those of [`Method::freeze`] with which no freeze was begun.
    pub fn is_ready(&self, limit: Duration) -> Result<()> {
        match self {
            Method::Agent(path) => ready(path, Deadline::within(limit), limit).map(drop),
            Method::Commands { .. } => Ok(()),
        }
    }

    /// Thaws, trying again within the time. Thawing what is not frozen does no harm.
    ///
    /// # Errors
    /// [`Kind::Failed`]: the guest may still be frozen; the hint says how to thaw it.
    pub fn thaw(&self, limit: Duration) -> Result<Thawed> {
        let deadline = Deadline::within(limit);
        match self {
            Method::Agent(path) => match agent::thaw(path, deadline) {
                Ok(thawed) => Ok(Thawed { was_frozen: thawed.count.is_some_and(|count| count > 0) }),
                Err(fault) => {
                    let hint = "its file systems may be frozen: thaw it with `virsh domfsthaw`, or reset it";
                    Err(told(
                        fault,
                        Kind::Failed,
                        format!("the guest agent at '{}' did not thaw", path.display()),
                        hint,
                    ))
                }
            },
            Method::Commands { thaw, .. } => match command::insist(thaw, deadline) {
                Ok(tries) => Ok(Thawed { was_frozen: tries == 1 }),
                Err(fault) => Err(fault.told(Kind::Failed, "thaw", thaw)),
            },
        }
    }
}

/// The agent of a guest that is not frozen.
fn ready(path: &Path, deadline: Deadline, limit: Duration) -> Result<Agent> {
    let shown = path.display();
    let mut agent = Agent::connect(path, deadline).map_err(|e| match e.kind() {
        ErrorKind::TimedOut => {
            let what = format!("the guest agent at '{shown}' does not answer within {} s", limit.as_secs_f64());
            let hint = "see that qemu-guest-agent runs in the guest; libvirt holds the agent's socket of its own \
                        domains: there use --freeze 'virsh domfsfreeze DOMAIN' --thaw 'virsh domfsthaw DOMAIN'";
            Error::new(Kind::Refused, what, hint)
        }
        _ => {
            let hint = "check the path; QEMU makes the socket: -chardev socket,path=PATH,server=on,wait=off,id=...";
            Error::io(Kind::Refused, format!("cannot talk to a guest agent at '{shown}'"), hint, e)
        }
    })?;
    let frozen = agent.is_frozen(deadline).map_err(|fault| {
        let what = format!("the guest agent at '{shown}' does not say whether the guest is frozen");
        told(fault, Kind::Refused, what, "see whether the agent may be asked for guest-fsfreeze-status")
    })?;
    if frozen {
        let hint = "wait for who froze it; if nobody did, thaw it: virsh domfsthaw, or guest-fsfreeze-thaw";
        return Err(Error::new(Kind::Refused, format!("the guest of the agent at '{shown}' is frozen already"), hint));
    }
    Ok(agent)
}

fn freeze_guest(path: &Path, deadline: Deadline, limit: Duration) -> Result<()> {
    let (shown, mut agent) = (path.display(), ready(path, deadline, limit)?);
    let hint = "see the guest's log; without a freeze the snapshot is as after a power cut, which journals survive";
    match agent.freeze(deadline) {
        Ok(0) => {
            let what = format!("the guest agent at '{shown}' found no file system to freeze");
            Err(Error::new(Kind::Failed, what, hint))
        }
        Ok(_) => Ok(()),
        Err(fault) => {
            Err(told(fault, Kind::Failed, format!("the guest agent at '{shown}' did not freeze the guest"), hint))
        }
    }
}

fn told(fault: Fault, kind: Kind, what: String, hint: &str) -> Error {
    match fault {
        Fault::Refused(refusal) => Error::new(kind, format!("{what}: {refusal}"), hint),
        Fault::Lost(e) => Error::io(kind, what, hint, e),
    }
}

/// What is frozen, until this is ended or dropped.
#[derive(Debug)]
pub struct Freeze<'a> {
    method: &'a Method,
    thaw_limit: Duration,
    since: Instant,
    ended: bool,
}

/// A freeze that there is not.
#[derive(Debug)]
pub struct NotFrozen {
    /// Why.
    pub error: Error,
    /// The thaw after it has failed as well, which the error says: **the guest may be frozen**.
    pub still_frozen: bool,
}

impl NotFrozen {
    /// For this reason, and after these thaws.
    pub fn after(error: Error, thawed: Result<()>) -> Self {
        match thawed {
            Ok(()) => Self { error, still_frozen: false },
            Err(thaw) => {
                let error = Error::new(error.kind, format!("{thaw}, after {error}"), thaw.hint);
                Self { error, still_frozen: true }
            }
        }
    }
}

/// A freeze that was ended in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// From the request for the freeze to the answer to the thaw, in milliseconds: the guest waited at most that long.
    pub frozen_ms: u64,
    /// Whether it is known that everything was frozen until the thaw.
    pub was_frozen: bool,
}

impl<'a> Freeze<'a> {
    /// Freezes within one time, to be thawed within another. What was begun and failed is thawed before this returns.
    ///
    /// # Errors
    /// As [`Method::freeze`], and whether the thaw after it failed as well.
    pub fn begin(method: &'a Method, limit: Duration, thaw_limit: Duration) -> std::result::Result<Self, NotFrozen> {
        let (begun, frozen) = Self::attempt(method, limit, thaw_limit);
        match (begun, frozen) {
            (Some(freeze), Ok(())) => Ok(freeze),
            (begun, frozen) => {
                let error = frozen.expect_err("what is frozen was begun");
                Err(NotFrozen::after(error, begun.map_or(Ok(()), |freeze| freeze.end().map(drop))))
            }
        }
    }

    /// As [`Freeze::begin`]: how it went, as [`Method::freeze`] says, and what was begun, if anything, which is the caller's to end.
    pub fn attempt(method: &'a Method, limit: Duration, thaw_limit: Duration) -> (Option<Self>, Result<()>) {
        let since = Instant::now();
        let frozen = method.freeze(limit);
        let begun = frozen.as_ref().err().is_none_or(|error| error.kind != Kind::Refused);
        // One that was made is ended, if only by being dropped.
        (begun.then(|| Self { method, thaw_limit, since, ended: false }), frozen)
    }

    /// How long it has lasted, in milliseconds.
    pub fn frozen_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Thaws.
    ///
    /// # Errors
    /// As [`Method::thaw`].
    pub fn end(mut self) -> Result<Ended> {
        self.ended = true;
        let thawed = self.method.thaw(self.thaw_limit)?;
        Ok(Ended { frozen_ms: self.frozen_ms(), was_frozen: thawed.was_frozen })
    }
}

impl Drop for Freeze<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // The job has failed for another reason, which is told; whoever wants this one's errors calls `end`.
            let _ = self.method.thaw(self.thaw_limit);
        }
    }
}
