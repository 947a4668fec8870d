//! The processes that this one has to wait for: its children, and what those leave behind when they die.
//!
//! A process that nobody has waited for keeps its number, so that a child can be named by it as long as its parent does not
//! wait: nothing here can hit a stranger that has got the number since. What waits here leaves the process to be waited for.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::process::{self, Command};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// How often it is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(5);

/// How often it is looked whether an inherited process has ended, and how often where all of them have to be looked at for it.
const REAP: Duration = Duration::from_millis(50);
const REAP_ALL: Duration = Duration::from_millis(200);

/// Those that this process has started itself, and waits for by their numbers.
static OWN: Mutex<BTreeSet<Pid>> = Mutex::new(BTreeSet::new());

/// A child.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Child {
    /// Its number, which nobody else gets before it is waited for.
    pub pid: Pid,
    /// The name of its program, or the one that it has given itself. It keeps it when it has ended.
    pub name: String,
    /// Its process group.
    pub group: Pid,
    /// Its session.
    pub session: Pid,
    /// It does nothing until it is told to go on.
    pub stopped: bool,
}

/// From here on this process is the parent of what its descendants leave behind, and can wait for it.
///
/// # Errors
/// EINVAL on a kernel that is too old.
pub fn inherit() -> io::Result<()> {
    Ok(set_child_subreaper(true)?)
}

/// Starts a process that this one waits for itself.
///
/// # Errors
/// What starting it says.
pub fn spawn(command: &mut Command) -> io::Result<process::Child> {
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    own.extend(i32::try_from(child.id()).map(Pid::from_raw));
    Ok(child)
}

/// From here on a thread waits for what this process inherits ([`inherit`]), as init does: who waits for one of those to be gone
/// would still find its number.
pub fn reap_inherited() {
    static ONCE: Once = Once::new();
    let reap = || {
        loop {
            thread::sleep(reap());
        }
    };
    ONCE.call_once(|| drop(thread::Builder::new().name("reaps".into()).spawn(reap)));
}

/// Waits for those that have ended; when to look again.
fn reap() -> Duration {
    // Nobody is started meanwhile, and taken for inherited.
    let own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, flags).ok().and_then(|status| status.pid()) {
        None => REAP,
        Some(pid) if !own.contains(&pid) => {
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            Duration::ZERO
        }
        // It hides the others, and may stay as it is for long.
        Some(_) => {
            for child in all().into_iter().filter(|child| !own.contains(&child.pid)) {
                let _ = waitpid(child.pid, Some(WaitPidFlag::WNOHANG));
            }
            REAP_ALL
        }
    }
}

/// The children, those that have ended and were not waited for among them.
pub fn all() -> Vec<Child> {
    stats().filter(|stat| stat.parent == Pid::this()).map(|stat| stat.child).collect()
}

/// How a child has ended, if it has within this time.
///
/// # Errors
/// ECHILD where it is none, or was waited for.
pub fn ended(child: Pid, limit: Duration) -> io::Result<Option<WaitStatus>> {
    let until = Instant::now() + limit;
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::Pid(child), flags) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) if Instant::now() >= until => return Ok(None),
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => thread::sleep(LOOK.min(limit)),
            Ok(status) => return Ok(Some(status)),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Whether a child does nothing until it is told to go on (SIGSTOP, a debugger's stop excepted).
pub fn is_stopped(child: Pid) -> bool {
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    matches!(waitid(Id::Pid(child), flags), Ok(WaitStatus::Stopped(..)))
}

/// Ends a child at once, whatever it is at, also if it is stopped; how it has ended, if it has within this time.
///
/// # Errors
/// ECHILD where it is none, or was waited for.
pub fn end(child: Pid, limit: Duration) -> io::Result<Option<WaitStatus>> {
    // That it is a child must be known before it is named by its number.
    if let Some(status) = ended(child, Duration::ZERO)? {
        return Ok(Some(status));
    }
    let _ = kill(child, Signal::SIGKILL);
    ended(child, limit)
}

/// Whether a process of this group has not ended. Those that have, and whose parent does not care, are no matter.
pub fn group_lives(group: Pid) -> bool {
    stats().any(|stat| stat.child.group == group && stat.lives)
}

struct Stat {
    child: Child,
    parent: Pid,
    lives: bool,
}

fn stats() -> impl Iterator<Item = Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read(entry.path().join("stat")).ok()).filter_map(|stat| parse(&stat))
}

/// A stat file: `PID (NAME) STATE PARENT GROUP SESSION ...`, where the name may hold anything.
fn parse(stat: &[u8]) -> Option<Stat> {
    let (name, name_end) = (stat.iter().position(|b| *b == b'(')?, stat.iter().rposition(|b| *b == b')')?);
    let text = |range| Some(String::from_utf8_lossy(stat.get(range)?).into_owned());
    let pid = |text: &str| text.trim().parse().ok().map(Pid::from_raw);
    let rest = text(name_end + 1..stat.len())?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let (lives, stopped) = (!matches!(state, "Z" | "X"), matches!(state, "T" | "t"));
    let parent = pid(fields.next()?)?;
    let (number, name) = (pid(&text(0..name)?)?, text(name + 1..name_end)?);
    let child = Child { pid: number, name, group: pid(fields.next()?)?, session: pid(fields.next()?)?, stopped };
    Some(Stat { child, parent, lives })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_file_is_read_whatever_the_name_is() {
        type Fields<'a> = (i32, &'a str, i32, [i32; 2], bool, bool);
        let check = |stat: &str, expect: Option<Fields<'_>>| {
            let read = parse(stat.as_bytes());
            let read = read.as_ref().map(|s| {
                let Child { pid, name, group, session, stopped } = &s.child;
                (pid.as_raw(), &name[..], s.parent.as_raw(), [group, session].map(|it| it.as_raw()), s.lives, *stopped)
            });
            assert_eq!(read, expect, "{stat}");
        };
        check("9 (sleep) S 1 7 6 0 -1", Some((9, "sleep", 1, [7, 6], true, false)));
        check("9 (a) S 1 8) D 3 7 6 0 -1", Some((9, "a) S 1 8", 3, [7, 6], true, false)));
        check("9 (sleep) Z 1 7 6 0 -1", Some((9, "sleep", 1, [7, 6], false, false)));
        check("9 (sleep) T 1 7 6 0 -1", Some((9, "sleep", 1, [7, 6], true, true)));
        check("9 (sleep) S 1 7", None);
        check("", None);
    }

    #[test]
    fn a_child_that_has_ended_is_one_until_it_is_waited_for() {
        let mut child = spawn(Command::new("sleep").arg("1000")).expect("sleep");
        let pid = Pid::from_raw(child.id() as i32);
        let there = || all().into_iter().any(|child| child.pid == pid && child.name == "sleep");
        assert!(there());
        assert_eq!(ended(pid, Duration::from_millis(1)).expect("a child"), None);
        let killed = Some(WaitStatus::Signaled(pid, Signal::SIGKILL, false));
        assert!(!is_stopped(pid));
        kill(pid, Signal::SIGSTOP).expect("a signal");
        while !is_stopped(pid) {
            thread::sleep(LOOK);
        }
        for _ in 0..2 {
            assert_eq!(end(pid, Duration::from_secs(600)).expect("a child"), killed);
        }
        assert!(there());
        reap();
        assert!(there(), "who was started here is waited for here");
        child.wait().expect("its end");
        assert!(!there());
        assert!(end(pid, Duration::ZERO).is_err() && ended(pid, Duration::ZERO).is_err());
    }
}
