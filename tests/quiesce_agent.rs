//! Freezing and thawing by a guest agent that behaves, and by some that do not. Whatever a freeze does, a thaw comes
//! after it.
//!
//! The agent here is as the real one: it reads one stream, takes one client at a time, and does what it read in order,
//! whether or not the client that asked is still there.

mod support;

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rclone_img::error::{Error, Kind};
use rclone_img::quiesce::{Freeze, Method};
use serde_json::{Value, json};
use support::BOUND;

/// For a freeze that is not answered: long enough for the answers before it.
const NOT_LONG: Duration = Duration::from_secs(3);

/// What an agent does with a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Does {
    Well,
    /// Answers nothing, and has not done it either.
    Nothing,
    /// Answers nothing, and does it when it reads the next command.
    Later,
    Refuses,
    /// Does it, and closes the connection.
    HangsUp,
    /// Does it, and answers with a line that does not end.
    Rambles,
    /// Does it, and says what is no answer.
    Raves,
}

#[derive(Default)]
struct Guest {
    frozen: bool,
    /// A freeze that was asked for and is not done.
    later: bool,
    /// How many file systems it has.
    mounts: u64,
    /// What it read, without the greetings.
    read: Vec<&'static str>,
}

struct Agent {
    guest: Arc<Mutex<Guest>>,
    dir: tempfile::TempDir,
}

impl Agent {
    /// An agent that does this with the nth (from 1) command of a name.
    fn new(does: impl FnMut(&str, usize) -> Does + Send + 'static) -> Self {
        Self::saying(b"", does)
    }

    /// One that has something left to say when a client comes.
    fn saying(stale: &'static [u8], mut does: impl FnMut(&str, usize) -> Does + Send + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("agent")).expect("a socket");
        let guest = Arc::new(Mutex::new(Guest { mounts: 2, ..Guest::default() }));
        let shared = guest.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a client");
                // A client that goes away ends its session, and no more.
                let _ = stream.write_all(stale).and_then(|()| serve(&stream, &shared, &mut does));
            }
        });
        Self { guest, dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    fn method(&self) -> Method {
        Method::Agent(self.path())
    }

    fn guest<T>(&self, look: impl FnOnce(&mut Guest) -> T) -> T {
        look(&mut self.guest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read(&self) -> Vec<&'static str> {
        self.guest(|guest| guest.read.clone())
    }

    /// The freeze fails, and the guest is thawed by then.
    fn fails(&self, limit: Duration, needle: &str) {
        let error = Freeze::begin(&self.method(), limit, BOUND).expect_err("no freeze");
        told(&error, Kind::Failed, needle);
        assert_eq!(self.read().last(), Some(&"thaw"));
        assert!(self.guest(|guest| !guest.frozen && !guest.later));
    }
}

fn told(error: &Error, kind: Kind, needle: &str) {
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.to_string().contains(needle), "no {needle:?} in: {error}");
    assert!(!error.hint.is_empty());
}

fn serve(stream: &UnixStream, guest: &Mutex<Guest>, does: &mut impl FnMut(&str, usize) -> Does) -> io::Result<()> {
    let mut writer = stream;
    for line in BufReader::new(stream).split(b'\n') {
        let line = line?;
        // The byte 0xff makes it forget what it has read of a command.
        let start = line.iter().rposition(|b| *b == 0xff).map_or(0, |at| at + 1);
        let Ok(command) = serde_json::from_slice::<Value>(&line[start..]) else { continue };
        let name = match command["execute"].as_str() {
            Some("guest-sync-delimited") => "sync",
            Some("guest-fsfreeze-status") => "status",
            Some("guest-fsfreeze-freeze") => "freeze",
            Some("guest-fsfreeze-thaw") => "thaw",
            _ => "unknown",
        };
        let mut guest = guest.lock().unwrap_or_else(PoisonError::into_inner);
        guest.frozen |= std::mem::take(&mut guest.later);
        if name != "sync" {
            guest.read.push(name);
        }
        let nth = guest.read.iter().filter(|read| **read == name).count();
        let how = does(name, nth);
        if matches!(how, Does::Nothing | Does::Later) {
            guest.later = how == Does::Later;
            continue;
        }
        if how == Does::Refuses {
            writer.write_all(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no, thanks\"}}\n")?;
            continue;
        }
        let answer = match name {
            "sync" => {
                writer.write_all(&[0xff])?;
                command["arguments"]["id"].clone()
            }
            "status" => json!(if guest.frozen { "frozen" } else { "thawed" }),
            "freeze" => {
                guest.frozen = guest.mounts > 0;
                json!(guest.mounts)
            }
            "thaw" => json!(if std::mem::take(&mut guest.frozen) { guest.mounts } else { 0 }),
            _ => json!(null),
        };
        drop(guest);
        match how {
            Does::HangsUp => return Ok(()),
            Does::Rambles => (0..600).try_for_each(|_| writer.write_all(&[b'{'; 4096]))?,
            Does::Raves => writer.write_all(b"\x00}{ no\n")?,
            _ => writer.write_all(format!("{}\n", json!({"return": answer})).as_bytes())?,
        }
    }
    Ok(())
}

fn well(_: &str, _: usize) -> Does {
    Does::Well
}

/// Behaves but for the freeze.
fn freezing(how: Does) -> impl FnMut(&str, usize) -> Does + Send + 'static {
    move |name, _| if name == "freeze" { how } else { Does::Well }
}

#[test]
fn a_guest_is_frozen_and_thawed() {
    let agent = Agent::new(well);
    let method = agent.method();
    let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
    assert!(agent.guest(|guest| guest.frozen));
    assert!(freeze.end().expect("thawed").was_frozen);
    assert!(agent.guest(|guest| !guest.frozen));
    assert_eq!(agent.read(), ["status", "freeze", "thaw"]);
    // Thawing once more does nothing, and says that nothing was frozen.
    assert!(!method.thaw(BOUND).expect("thawed").was_frozen);
}

#[test]
fn a_freeze_that_is_dropped_is_thawed() {
    let agent = Agent::new(well);
    let method = agent.method();
    drop(Freeze::begin(&method, BOUND, BOUND).expect("frozen"));
    assert_eq!(agent.read(), ["status", "freeze", "thaw"]);
}

#[test]
fn answers_to_earlier_clients_are_skipped() {
    let stale =
        b"{\"return\": 3}\n{\"ret\xff{\"return\": 12345}\n\xffhalf\n{\"error\": {\"desc\": \"not yours\"}}\n\xff{\"re";
    let agent = Agent::saying(stale, well);
    let method = agent.method();
    let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
    assert!(freeze.end().expect("thawed").was_frozen);
}

#[test]
fn a_freeze_that_is_not_answered_is_thawed_also_when_it_comes_later() {
    Agent::new(freezing(Does::Nothing)).fails(NOT_LONG, "did not freeze the guest");
    Agent::new(freezing(Does::Later)).fails(NOT_LONG, "did not freeze the guest");
}

#[test]
fn a_freeze_that_fails_is_thawed() {
    Agent::new(freezing(Does::Refuses)).fails(BOUND, "did not freeze the guest: no, thanks");
    Agent::new(freezing(Does::HangsUp)).fails(BOUND, "did not freeze the guest: the other side closed");
    Agent::new(freezing(Does::Rambles)).fails(BOUND, "did not freeze the guest: a line of more than");
    Agent::new(freezing(Does::Raves)).fails(BOUND, "did not freeze the guest: not JSON");
    let empty = Agent::new(well);
    empty.guest(|guest| guest.mounts = 0);
    empty.fails(BOUND, "found no file system to freeze");
}

#[test]
fn a_dead_agent_is_not_asked_to_freeze() {
    let agent = Agent::new(|_, _| Does::Nothing);
    let method = agent.method();
    let limit = Duration::from_millis(300);
    let error = Freeze::begin(&method, limit, limit).expect_err("no answer");
    told(&error, Kind::Refused, "does not answer within 0.3 s");
    assert_eq!(agent.read(), Vec::<&str>::new(), "nothing that it would find when it wakes");
    // It is told to thaw all the same where somebody wants that, and it is said that it did not answer.
    let error = method.thaw(Duration::from_secs(1)).expect_err("no answer");
    told(&error, Kind::Failed, "did not thaw");
    assert!(support::until(|| agent.read().contains(&"thaw")));
    assert!(agent.read().iter().all(|read| *read == "thaw"));
}

#[test]
fn a_guest_that_somebody_else_froze_is_left_frozen() {
    let agent = Agent::new(well);
    agent.guest(|guest| guest.frozen = true);
    let error = Freeze::begin(&agent.method(), BOUND, BOUND).expect_err("frozen");
    told(&error, Kind::Refused, "is frozen already");
    assert_eq!(agent.read(), ["status"]);
    assert!(agent.guest(|guest| guest.frozen));
}

#[test]
fn thawing_is_asked_again_until_it_is_answered() {
    for how in [Does::Nothing, Does::HangsUp, Does::Refuses, Does::Raves, Does::Rambles] {
        let agent = Agent::new(move |name, nth| if name == "thaw" && nth < 3 { how } else { Does::Well });
        let method = agent.method();
        let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
        let ended = freeze.end().expect("thawed");
        assert!(agent.guest(|guest| !guest.frozen && guest.read.len() == 5), "{how:?}: {:?}", agent.read());
        // Where an earlier request had thawed it, nobody can say until when it was frozen.
        assert_eq!(ended.was_frozen, matches!(how, Does::Nothing | Does::Refuses), "{how:?}");
    }
}

#[test]
fn an_agent_that_refuses_to_thaw_is_believed_in_the_end() {
    let agent = Agent::new(|name, _| if name == "thaw" { Does::Refuses } else { Does::Well });
    let method = agent.method();
    let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
    told(&freeze.end().expect_err("still frozen"), Kind::Failed, "did not thaw: no, thanks");
    // A freeze that failed, and cannot be thawed either: both are told.
    let agent = Agent::new(|name, _| if name == "status" { Does::Well } else { Does::Refuses });
    agent.guest(|guest| guest.read.clear());
    let error = Freeze::begin(&agent.method(), NOT_LONG, NOT_LONG).expect_err("not even greeted");
    told(&error, Kind::Refused, "does not answer");
    let refuses = |name: &str, _| if matches!(name, "freeze" | "thaw") { Does::Refuses } else { Does::Well };
    let error = Freeze::begin(&Agent::new(refuses).method(), BOUND, BOUND).expect_err("neither");
    told(&error, Kind::Failed, "did not thaw: no, thanks, after the guest agent at");
}

#[test]
fn without_a_socket_nothing_is_begun() {
    let method = Method::Agent(Path::new("/nowhere/agent").into());
    told(&method.freeze(BOUND).expect_err("nobody"), Kind::Refused, "cannot talk to a guest agent at '/nowhere/agent'");
    let error = method.thaw(Duration::from_millis(200)).expect_err("nobody");
    told(&error, Kind::Failed, "did not thaw: ");
    let long = Method::Agent(PathBuf::from("/x".repeat(200)));
    told(&long.freeze(BOUND).expect_err("too long"), Kind::Refused, "cannot talk");
}
