//! Lines of JSON over a Unix stream socket, as QEMU's monitor and its guest agent speak them. Everything has a deadline
//! and a bound: the other side may be busy, hung, or not what it should be.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
use serde_json::Value;

/// The longest line that is read, in bytes. QEMU tells less than 1 KiB of a block node.
pub const LONGEST_LINE: usize = 1 << 20;

/// How long to wait before asking again for a place in a socket's queue.
const QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// Characters of what somebody else said that are shown in an error.
const LONGEST_EXCERPT: usize = 500;

/// A point in time by which something must have happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// So long from now. A time that no clock can hold is a year.
    pub fn within(time: Duration) -> Self {
        let now = Instant::now();
        Self(now.checked_add(time).unwrap_or(now + Duration::from_secs(365 * 86_400)))
    }

    /// The earlier of this one and so long from now.
    #[must_use]
    pub fn at_most(self, time: Duration) -> Self {
        self.min(Self::within(time))
    }

    /// The time left, which is not zero.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] where it has passed.
    pub fn left(self) -> io::Result<Duration> {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.left().is_err()
    }

    /// Waits so long, but not beyond the deadline.
    pub fn pause(self, time: Duration) {
        thread::sleep(self.left().unwrap_or_default().min(time));
    }
}

/// What the other side says to a command.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// It did it.
    Return(Value),
    /// It refused, or failed.
    Refusal(Refusal),
}

/// An answer `{"error": {"class": ..., "desc": ...}}`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// `GenericError`, `CommandNotFound`, ...
    pub class: String,
    /// In words.
    pub desc: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", excerpt(self.desc.trim()))
    }
}

impl Answer {
    /// Reads an answer's object; `None` where it is none, such as an event.
    pub fn read(object: &Value) -> Option<Self> {
        if let Some(value) = object.get("return") {
            return Some(Self::Return(value.clone()));
        }
        let error = object.get("error")?;
        let text = |key| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self::Refusal(Refusal { class: text("class"), desc: text("desc") }))
    }
}

/// A connection. After an error other than [`ErrorKind::TimedOut`] it is of no more use.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    /// Read and not yet taken; at most a line and what came in the same piece.
    buffer: Vec<u8>,
}

impl Wire {
    /// Connects. A socket whose queue is full is waited for: QEMU's has room for one.
    ///
    /// # Errors
    /// What connect(2) says; `TimedOut` where the queue stays full; a path that is too long for a socket (107 bytes).
    pub fn connect(path: &Path, deadline: Deadline) -> io::Result<Self> {
        let address = UnixAddr::new(path)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        loop {
            match connect(socket.as_raw_fd(), &address) {
                Ok(()) => break,
                Err(Errno::EAGAIN | Errno::EINTR) => {
                    deadline.left()?;
                    deadline.pause(QUEUE_PAUSE);
                }
                Err(e) => return Err(e.into()),
            }
        }
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// The process that listens, as the kernel knows it (SO_PEERCRED): the one that called listen(2).
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn listener(&self) -> io::Result<u32> {
        let pid = getsockopt(&self.stream, sockopt::PeerCredentials)?.pid();
        u32::try_from(pid).map_err(|_| ErrorKind::NotFound.into())
    }

    /// Sends these bytes.
    ///
    /// # Errors
    /// `TimedOut`, when a part of them may have been sent; what send(2) says.
    pub fn send(&mut self, mut bytes: &[u8], deadline: Deadline) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(deadline.left()?))?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => bytes = &bytes[sent..],
                Err(e) => passing(e)?,
            }
        }
        Ok(())
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// `TimedOut`, after which one may ask again; `UnexpectedEof`; `InvalidData` where it is longer than
    /// [`LONGEST_LINE`]; what recv(2) says.
    pub fn line(&mut self, deadline: Deadline) -> io::Result<Vec<u8>> {
        let mut looked = 0;
        loop {
            if let Some(end) = self.buffer[looked..].iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=looked + end).collect();
                line.pop();
                return Ok(line);
            }
            looked = self.buffer.len();
            if looked > LONGEST_LINE {
                return Err(invalid(format!("a line of more than {LONGEST_LINE} bytes")));
            }
            self.fill(deadline)?;
        }
    }

    /// Throws away everything up to and with the next such byte.
    ///
    /// # Errors
    /// As [`Wire::line`], but there is no bound to what is thrown away but the deadline.
    pub fn skip_past(&mut self, byte: u8, deadline: Deadline) -> io::Result<()> {
        loop {
            if let Some(at) = self.buffer.iter().position(|b| *b == byte) {
                self.buffer.drain(..=at);
                return Ok(());
            }
            self.buffer.clear();
            self.fill(deadline)?;
        }
    }

    /// The next line, as JSON.
    ///
    /// # Errors
    /// As [`Wire::line`]; `InvalidData` where it is no JSON.
    pub fn value(&mut self, deadline: Deadline) -> io::Result<Value> {
        let line = self.line(deadline)?;
        let told = |e| invalid(format!("not JSON ({e}): {}", excerpt(&String::from_utf8_lossy(&line))));
        serde_json::from_slice(&line).map_err(told)
    }

    fn fill(&mut self, deadline: Deadline) -> io::Result<()> {
        let mut piece = [0; 16 << 10];
        loop {
            self.stream.set_read_timeout(Some(deadline.left()?))?;
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the other side closed the connection")),
                Ok(got) => {
                    self.buffer.extend_from_slice(&piece[..got]);
                    return Ok(());
                }
                Err(e) => passing(e)?,
            }
        }
    }
}

/// Errors after which one tries again: the deadline is looked at before each try.
fn passing(e: io::Error) -> io::Result<()> {
    if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) { Ok(()) } else { Err(e) }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// The beginning of what somebody else said, fit for one line of a message.
pub fn excerpt(text: &str) -> String {
    let mut shown: String = text.chars().take(LONGEST_EXCERPT).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST_EXCERPT).is_some() {
        shown.push_str("...");
    }
    // Quotes are harmless, and most of what is said has some.
    shown.replace("\\'", "'").replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use serde_json::json;

    use super::*;

    fn pair() -> (Wire, UnixStream) {
        let (stream, other) = UnixStream::pair().expect("a pair");
        (Wire { stream, buffer: Vec::new() }, other)
    }

    fn soon() -> Deadline {
        Deadline::within(Duration::from_secs(60))
    }

    fn kind<T: fmt::Debug>(result: io::Result<T>) -> ErrorKind {
        result.expect_err("an error").kind()
    }

    #[test]
    fn lines_come_one_by_one() {
        let (mut wire, mut other) = pair();
        other.write_all(b"{\"return\": {}}\r\nno json\nrest").expect("write");
        assert_eq!(wire.value(soon()).expect("a value"), json!({"return": {}}));
        assert_eq!(kind(wire.value(soon())), ErrorKind::InvalidData);
        assert_eq!(kind(wire.line(Deadline::within(Duration::from_millis(1)))), ErrorKind::TimedOut);
        other.write_all(b" of it\n").expect("write");
        assert_eq!(wire.line(soon()).expect("a line"), b"rest of it");
        drop(other);
        assert_eq!(kind(wire.line(soon())), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_line_has_a_bound_and_what_is_skipped_has_none() {
        let (mut wire, mut other) = pair();
        let flood = thread::spawn(move || {
            let piece = [b'x'; 4096];
            (0..2 * LONGEST_LINE / piece.len()).try_for_each(|_| other.write_all(&piece))?;
            other.write_all(b"\xff{}\n")?;
            (0..2 * LONGEST_LINE / piece.len()).try_for_each(|_| other.write_all(&piece))
        });
        wire.skip_past(0xff, soon()).expect("skipped");
        assert_eq!(wire.line(soon()).expect("a line"), b"{}");
        assert_eq!(kind(wire.line(soon())), ErrorKind::InvalidData);
        assert!(wire.buffer.len() < 2 * LONGEST_LINE);
        drop(wire);
        // It was still writing when nobody wanted more, or had just done.
        let _ = flood.join().expect("no panic");
    }

    #[test]
    fn answers_events_and_errors_are_told_apart() {
        let check = |object: Value, expect: Option<Answer>| assert_eq!(Answer::read(&object), expect);
        check(json!({"return": 3, "id": 1}), Some(Answer::Return(json!(3))));
        check(json!({"event": "STOP"}), None);
        let refusal = Refusal { class: "GenericError".into(), desc: "no\n".into() };
        check(json!({"error": {"class": "GenericError", "desc": "no\n"}}), Some(Answer::Refusal(refusal)));
        check(json!({"error": 7}), Some(Answer::Refusal(Refusal { class: String::new(), desc: String::new() })));
        check(json!([1]), None);
    }

    #[test]
    fn what_others_say_stays_on_its_line_and_short() {
        assert_eq!(excerpt("it's \"x\"\n\x1b[2J"), "it's \"x\"\\n\\u{1b}[2J");
        assert_eq!(excerpt(&"y".repeat(600)).len(), 503);
    }
}
