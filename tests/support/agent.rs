//! A guest agent as the real one: it reads one stream, takes one client at a time, and does what it read in order, whether
//! or not the client that asked is still there.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rclone_img::quiesce::Method;
use serde_json::{Value, json};

use super::{Armed, Guest as RunningGuest, Job, Sandbox, noise};

/// What an agent does with a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Does {
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
pub struct Guest {
    pub frozen: bool,
    /// A freeze that was asked for and is not done.
    pub later: bool,
    /// How many file systems it has.
    pub mounts: u64,
    /// What it read, without the greetings.
    pub read: Vec<&'static str>,
}

pub struct Agent {
    guest: Arc<Mutex<Guest>>,
    dir: tempfile::TempDir,
}

impl Agent {
    /// An agent that does this with the nth (from 1) command of a name.
    pub fn new(does: impl FnMut(&str, usize) -> Does + Send + 'static) -> Self {
        Self::saying(b"", does)
    }

    /// One that has something left to say when a client comes.
    pub fn saying(stale: &'static [u8], mut does: impl FnMut(&str, usize) -> Does + Send + 'static) -> Self {
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

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    pub fn method(&self) -> Method {
        Method::Agent(self.path())
    }

    pub fn guest<T>(&self, look: impl FnOnce(&mut Guest) -> T) -> T {
        look(&mut self.guest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn read(&self) -> Vec<&'static str> {
        self.guest(|guest| guest.read.clone())
    }
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

pub fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// A running guest's image, of which a job made [`slowly`] takes a few seconds.
pub fn running(s: &Sandbox) -> (Armed, RunningGuest) {
    let armed = Armed::directory(&s.dir());
    noise(&s.path("vm.img"), 16 << 20);
    let guest = RunningGuest::start(&s.path("vm.img"));
    (armed, guest)
}

pub fn ends_well(guest: RunningGuest) {
    let felt = guest.stop();
    assert_eq!(felt.errors, [""; 0], "longest {:?}", felt.longest);
}

pub fn is_thawed(agent: &Agent) -> bool {
    let asked = agent.read();
    let thawed = asked.last() == Some(&"thaw") || !asked.contains(&"freeze");
    thawed && agent.guest(|guest| !guest.frozen && !guest.later)
}

/// The agent's socket in a command line, with what follows.
pub fn with(agent: &Agent, more: &[&str]) -> Vec<String> {
    let socket = text(&agent.path());
    let args = ["snapshot", "vm.img", "vm.snap", "--json", "--qga", &socket];
    args.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
}

/// Starts a job with that agent.
pub fn start(s: &Sandbox, agent: &Agent, more: &[&str]) -> Job {
    let socket = text(&agent.path());
    s.start(&[&["snapshot", "vm.img", "vm.snap", "--qga", &socket], more].concat())
}
