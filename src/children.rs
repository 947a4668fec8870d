//! The processes that this one has to wait for: its children, and what those leave behind when they die.
//!
//! A process that nobody has waited for keeps its number, so that a child can be named by it as long as its parent does not
//! wait: nothing here can hit a stranger that has got the number since. What waits here leaves the process to be waited for.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// How often it is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(5);

/// A child.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Child {
    /// Its number, which nobody else gets before it is waited for.
    pub pid: Pid,
    /// The name of its program, or the one that it has given itself. It keeps it when it has ended.
    pub name: String,
    /// Its process group.
    pub group: Pid,
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

/// A stat file: `PID (NAME) STATE PARENT GROUP ...`, where the name may hold anything.
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
    let child = Child { pid: number, name, group: pid(fields.next()?)?, stopped };
    Some(Stat { child, parent, lives })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_stat_file_is_read_whatever_the_name_is() {
        let check = |stat: &str, expect: Option<(i32, &str, i32, i32, bool, bool)>| {
            let read = parse(stat.as_bytes());
            let read = read.as_ref().map(|s| {
                let Child { pid, name, group, stopped } = &s.child;
                (pid.as_raw(), &name[..], s.parent.as_raw(), group.as_raw(), s.lives, *stopped)
            });
            assert_eq!(read, expect, "{stat}");
        };
        check("9 (sleep) S 1 7 7 0 -1", Some((9, "sleep", 1, 7, true, false)));
        check("9 (a) S 1 8) D 3 7 7 0 -1", Some((9, "a) S 1 8", 3, 7, true, false)));
        check("9 (sleep) Z 1 7 7 0 -1", Some((9, "sleep", 1, 7, false, false)));
        check("9 (sleep) T 1 7 7 0 -1", Some((9, "sleep", 1, 7, true, true)));
        check("9 (sleep) S 1", None);
        check("", None);
    }

    #[test]
    fn a_child_that_has_ended_is_one_until_it_is_waited_for() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = Pid::from_raw(child.id() as i32);
        let there = || all().into_iter().any(|child| child.pid == pid && child.name == "sleep");
        assert!(there());
        assert_eq!(ended(pid, Duration::from_millis(1)).expect("a child"), None);
        let killed = Some(WaitStatus::Signaled(pid, Signal::SIGKILL, false));
        for _ in 0..2 {
            assert_eq!(end(pid, Duration::from_secs(600)).expect("a child"), killed);
        }
        assert!(there());
        child.wait().expect("its end");
        assert!(!there());
        assert!(end(pid, Duration::ZERO).is_err() && ended(pid, Duration::ZERO).is_err());
    }
}
