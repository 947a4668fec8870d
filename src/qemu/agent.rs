//! The QEMU guest agent: freezing and thawing the guest's file systems.
//!
//! The agent reads one stream of bytes, whoever writes them: commands that an earlier client sent are done first, and
//! their answers come to whoever is connected by then. So each client says first `guest-sync-delimited` with a number
//! of its own: the byte 0xFF makes the agent forget half a command, and everything before a 0xFF and that number is
//! somebody else's answer.
//!
//! **Freezing** is only asked of an agent that has just answered, so a dead one never finds a freeze in its queue when
//! it comes back. One that answers and then stops may still freeze later. **Thawing** wins over that by the order of
//! the stream: it is sent at once, behind whatever is queued, without waiting for an answer to the greeting, and only
//! its own answer counts as thawed. By then the agent has done everything that was asked before: no freeze is left to
//! come. It is asked again and again until the deadline, on the same connection while that lives (QEMU drops what it
//! has not read from one that is closed), on a new one where it broke. Thawing a guest that is not frozen does nothing.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::wire::{Answer, Deadline, Refusal, Wire};

/// Stands before the answer to `guest-sync-delimited`, and before the command.
const SENTINEL: u8 = 0xff;
/// How long one request for thawing is waited for before it is repeated, at most.
const REPEAT: Duration = Duration::from_secs(2);
/// The first pause before another connection; it doubles up to a second.
const PAUSE: Duration = Duration::from_millis(50);

/// How often the agent may refuse to thaw before it is believed.
const MOST_REFUSALS: u32 = 5;

/// Why the agent did not do something.
#[derive(Debug)]
pub enum Fault {
    /// The socket is not there, broke, or nothing answered in time. What was asked may be done later.
    Lost(io::Error),
    /// The agent refused, or failed.
    Refused(Refusal),
}

/// What is known of a thawed guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thawed {
    /// How many file systems the agent thawed: none means that they were not frozen any more. `None` where an earlier
    /// request may have thawed them, and its answer is lost.
    pub count: Option<u64>,
}

/// An agent that has answered.
#[derive(Debug)]
pub struct Agent {
    wire: Wire,
}

impl Agent {
    /// Connects, and waits for the agent's answer.
    ///
    /// # Errors
    /// `TimedOut` where none comes: the guest has no agent running, or another client (libvirt, for its own domains)
    /// has the socket. What connect(2) says.
    pub fn connect(path: &Path, deadline: Deadline) -> io::Result<Self> {
        let mut wire = Wire::connect(path, deadline)?;
        let number = number();
        wire.send(&greeting(number), deadline)?;
        greeted(&mut wire, &[number], deadline)?;
        Ok(Self { wire })
    }

    /// Freezes the guest's file systems and says how many are frozen now.
    ///
    /// # Errors
    /// [`Fault::Refused`]: the agent has thawed those that it had frozen. [`Fault::Lost`]: it may freeze yet.
    pub fn freeze(&mut self, deadline: Deadline) -> Result<u64, Fault> {
        count(&self.ask("guest-fsfreeze-freeze", deadline)?)
    }

    /// Whether the guest's file systems are frozen.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn is_frozen(&mut self, deadline: Deadline) -> Result<bool, Fault> {
        match self.ask("guest-fsfreeze-status", deadline)?.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(odd("whether the guest is frozen")),
        }
    }

    fn ask(&mut self, command: &str, deadline: Deadline) -> Result<Value, Fault> {
        self.wire.send(&request(command), deadline).map_err(Fault::Lost)?;
        answer(&mut self.wire, deadline)
    }
}

/// Thaws the guest's file systems, however often that must be asked before the deadline.
///
/// # Errors
/// What the last try said: the guest may be frozen.
pub fn thaw(path: &Path, deadline: Deadline) -> Result<Thawed, Fault> {
    let mut thaw = Thaw { path, wire: None, numbers: Vec::new(), first: None };
    let mut pause = PAUSE;
    let mut refusals = 0;
    let repeat = deadline.left().unwrap_or_default() / 4;
    loop {
        let fault = match thaw.ask(deadline.at_most(repeat.min(REPEAT))) {
            Ok(thawed) => return Ok(thawed),
            Err(fault) => fault,
        };
        refusals += u32::from(matches!(fault, Fault::Refused(_)));
        if deadline.passed() || refusals == MOST_REFUSALS {
            return Err(fault);
        }
        if !matches!(&fault, Fault::Lost(e) if e.kind() == ErrorKind::TimedOut) {
            deadline.pause(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}

struct Thaw<'a> {
    path: &'a Path,
    wire: Option<Wire>,
    /// The greetings that were sent on this connection; an answer to any of them will do.
    numbers: Vec<i64>,
    /// The greeting before the first of all requests: that one's answer tells whether the guest was frozen until then.
    first: Option<i64>,
}

impl Thaw<'_> {
    fn ask(&mut self, deadline: Deadline) -> Result<Thawed, Fault> {
        let result = self.try_ask(deadline);
        match &result {
            // It may be answered yet: the connection is kept.
            Err(Fault::Lost(e)) if e.kind() == ErrorKind::TimedOut => {}
            _ => self.wire = None,
        }
        result
    }

    fn try_ask(&mut self, deadline: Deadline) -> Result<Thawed, Fault> {
        let wire = match &mut self.wire {
            Some(wire) => wire,
            none => {
                self.numbers.clear();
                none.insert(Wire::connect(self.path, deadline).map_err(Fault::Lost)?)
            }
        };
        let number = number();
        self.numbers.push(number);
        let mut text = greeting(number);
        text.extend(request("guest-fsfreeze-thaw"));
        let first = *self.first.get_or_insert(number);
        wire.send(&text, deadline).map_err(Fault::Lost)?;
        let answered = greeted(wire, &self.numbers, deadline).map_err(Fault::Lost)?;
        let count = count(&answer(wire, deadline)?)?;
        Ok(Thawed { count: (answered == first || count > 0).then_some(count) })
    }
}

/// A number that no other client takes, exact also where numbers are floating.
fn number() -> i64 {
    i64::try_from(Uuid::new_v4().as_u64_pair().0 >> 11).unwrap_or_default()
}

fn greeting(number: i64) -> Vec<u8> {
    let command = json!({"execute": "guest-sync-delimited", "arguments": {"id": number}});
    [&[SENTINEL], command.to_string().as_bytes(), b"\n"].concat()
}

fn request(command: &str) -> Vec<u8> {
    format!("{}\n", json!({"execute": command})).into_bytes()
}

/// Reads up to the answer to one of these greetings, and says to which.
fn greeted(wire: &mut Wire, numbers: &[i64], deadline: Deadline) -> io::Result<i64> {
    loop {
        wire.skip_past(SENTINEL, deadline)?;
        let line = wire.line(deadline)?;
        // Somebody else's answer can be cut off in the middle, and no JSON.
        let last = line.rsplit(|b| *b == SENTINEL).next().unwrap_or_default();
        let told = serde_json::from_slice::<Value>(last).ok();
        let told = told.as_ref().and_then(|told| told.get("return")?.as_i64());
        if let Some(number) = told.filter(|told| numbers.contains(told)) {
            return Ok(number);
        }
    }
}

fn answer(wire: &mut Wire, deadline: Deadline) -> Result<Value, Fault> {
    let object = wire.value(deadline).map_err(Fault::Lost)?;
    match Answer::read(&object) {
        Some(Answer::Return(value)) => Ok(value),
        Some(Answer::Refusal(refusal)) => Err(Fault::Refused(refusal)),
        None => Err(odd("anything that is an answer")),
    }
}

fn count(value: &Value) -> Result<u64, Fault> {
    value.as_u64().ok_or_else(|| odd("how many file systems"))
}

fn odd(what: &str) -> Fault {
    Fault::Lost(io::Error::new(ErrorKind::InvalidData, format!("the agent did not say {what}")))
}
