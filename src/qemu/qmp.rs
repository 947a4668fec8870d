//! QEMU's monitor (QMP): commands and their answers, one after the other.
//!
//! A monitor takes one client at a time. A second one may connect, and then waits for a greeting that does not come: so
//! every connection has a time limit, and its error says who the other client may be.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::wire::{Answer, Deadline, Refusal, Wire, excerpt};
use crate::error::{Error, Kind, Result};

/// How long a monitor may take to greet, and to accept the greeting's answer.
pub const GREETING: Duration = Duration::from_secs(2);

/// A monitor that has greeted and takes commands.
#[derive(Debug)]
pub struct Qmp {
    path: PathBuf,
    /// None once it broke, until the next command.
    wire: Option<Wire>,
    /// The number of the last command.
    last: u64,
}

/// Why a command was not done, or is not known to have been done.
#[derive(Debug)]
pub enum Fault {
    /// QEMU refused it: nothing was done.
    Refused(Refusal),
    /// No answer: it may have been done, or be done later.
    Unanswered(io::Error),
}

impl Qmp {
    /// Connects to the monitor's socket and negotiates.
    ///
    /// # Errors
    /// [`Kind::Refused`] where nobody listens there, no monitor answers within the time, or it is no monitor.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let shown = path.display();
        let wire = greeted(path, Deadline::within(limit)).map_err(|e| match e.kind() {
            ErrorKind::TimedOut => {
                let limit = limit.as_secs_f64();
                let what = format!(
                    "the monitor at '{shown}' does not answer within {limit} s: it takes one client at a time, and \
                     libvirt holds that of its own domains"
                );
                let hint = "close the other client, or give QEMU a second monitor: -qmp unix:PATH,server=on,wait=off";
                Error::new(Kind::Refused, what, hint)
            }
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                let hint = "check the path; QEMU makes the socket: -qmp unix:PATH,server=on,wait=off";
                Error::io(Kind::Refused, format!("no monitor listens at '{shown}'"), hint, e)
            }
            _ => {
                let hint = "give the socket of a QMP monitor: -qmp unix:PATH,server=on,wait=off";
                Error::io(Kind::Refused, format!("cannot talk to a monitor at '{shown}'"), hint, e)
            }
        })?;
        Ok(Self { path: path.to_owned(), wire: Some(wire), last: 0 })
    }

    /// Where its socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that listens at the socket: QEMU, unless somebody else made the socket for it.
    ///
    /// # Errors
    /// What getsockopt(2) says; `NotConnected` after the connection broke.
    pub fn listener(&self) -> io::Result<u32> {
        self.wire.as_ref().ok_or(ErrorKind::NotConnected)?.listener()
    }

    /// Runs a command and returns its answer.
    ///
    /// # Errors
    /// [`Kind::Failed`], with what QEMU said, or that it said nothing within the time.
    pub fn execute(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<Value> {
        self.ask(command, arguments, limit).map_err(|fault| fault.told(&self.path, command))
    }

    /// The same, with the two kinds of failure told apart. After a time-out the next command may be asked: QEMU does
    /// them in order, and answers that came too late are skipped. After the connection broke the next command makes a
    /// new one; QEMU has then finished what it was doing for the old one, and dropped what it had not begun.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn ask(&mut self, command: &str, arguments: Value, limit: Duration) -> std::result::Result<Value, Fault> {
        let deadline = Deadline::within(limit);
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => greeted(&self.path, deadline.at_most(GREETING)).map_err(Fault::Unanswered)?,
        };
        self.last += 1;
        let text = format!("{}\n", json!({"execute": command, "arguments": arguments, "id": self.last}));
        wire.send(text.as_bytes(), deadline).map_err(Fault::Unanswered)?;
        let answer = answer(&mut wire, self.last, deadline);
        if answer.as_ref().err().is_none_or(|e| e.kind() == ErrorKind::TimedOut) {
            self.wire = Some(wire);
        }
        match answer.map_err(Fault::Unanswered)? {
            Answer::Return(value) => Ok(value),
            Answer::Refusal(refusal) => Err(Fault::Refused(refusal)),
        }
    }
}

/// The answer to the command of this number.
fn answer(wire: &mut Wire, number: u64, deadline: Deadline) -> io::Result<Answer> {
    loop {
        let object = wire.value(deadline)?;
        // An answer without a number says that QEMU could not read what it was sent. An event has none either.
        let ours = object.get("id").is_none_or(|id| id.as_u64() == Some(number));
        if let Some(answer) = Answer::read(&object).filter(|_| ours) {
            return Ok(answer);
        }
    }
}

impl Fault {
    /// As an error, for a command that was asked at this monitor.
    pub fn told(self, path: &Path, command: &str) -> Error {
        let shown = path.display();
        match self {
            Fault::Refused(refusal) => {
                let what = format!("the monitor at '{shown}' refuses {command}: {refusal}");
                Error::new(Kind::Failed, what, "see what QEMU says")
            }
            Fault::Unanswered(e) => {
                let what = format!("the monitor at '{shown}' did not answer {command}");
                Error::io(Kind::Failed, what, "see whether QEMU still runs and is not stopped or overloaded", e)
            }
        }
    }
}

/// Connects and negotiates.
fn greeted(path: &Path, deadline: Deadline) -> io::Result<Wire> {
    let mut wire = Wire::connect(path, deadline)?;
    let greeting = wire.value(deadline)?;
    if greeting.get("QMP").is_none() {
        let what = format!("it says {} where a monitor greets", excerpt(&greeting.to_string()));
        return Err(io::Error::new(ErrorKind::InvalidData, what));
    }
    wire.send(b"{\"execute\": \"qmp_capabilities\"}\n", deadline)?;
    loop {
        match Answer::read(&wire.value(deadline)?) {
            Some(Answer::Return(_)) => return Ok(wire),
            Some(Answer::Refusal(refusal)) => return Err(io::Error::other(refusal.to_string())),
            None => {}
        }
    }
}
