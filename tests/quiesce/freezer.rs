//! A freeze command that loses who waits for it: it is ended before the guest is thawed, so that nothing is frozen for good,
//! and the words about it are true. On real XFS and Btrfs.

use std::fs;
use std::path::PathBuf;

use crate::support;
use crate::support::{Armed, Ended, Family, Guest, Job, Sandbox, on_both, rounds, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A freeze that takes until it is told to go on, and files in which its commands say what they did.
struct Slow<'a> {
    s: &'a Sandbox,
    dir: PathBuf,
}

impl<'a> Slow<'a> {
    fn new(s: &'a Sandbox) -> Self {
        let dir = s.outside("commands");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).expect("a directory");
        Self { s, dir }
    }

    /// Starts a job and waits until its freeze command runs. `freeze` is what does it, in the function `slow` or around it.
    fn start(&self, freeze: &str) -> Job {
        let cd = format!("cd '{}'", self.dir.display());
        let slow = "slow() { while [ ! -e go ] && [ -e shell ]; do sleep 0.02; done; echo FROZEN > state; }";
        let freeze = format!("{cd}; {slow}; echo $PPID > freezer; echo $$ > new; mv new shell; {freeze}");
        let thaw = format!("{cd}; echo thawed > state; echo thawed >> thaws");
        let args = ["snapshot", "vm.img", "vm.snap", "--consistency", "guard", "--freeze", &freeze, "--thaw", &thaw];
        let job = self.s.start(&args);
        assert!(until(|| self.dir.join("shell").exists()), "{:?}: {}", self.s.fs, job.end().stderr);
        job
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default().trim().to_owned()
    }

    fn pid(&self, name: &str) -> Pid {
        Pid::from_raw(self.read(name).parse().expect("a pid"))
    }

    /// The freeze goes on, if it still can, and comes to its end.
    fn goes_on(&self) {
        fs::write(self.dir.join("go"), "").expect("a file");
        let group = self.pid("shell");
        // All of its group: the shell may be gone, and what it started not.
        assert!(until(|| !lives(group)), "{:?}: the freeze command does not end", self.s.fs);
    }
}

/// Whether a process of this group runs.
fn lives(group: Pid) -> bool {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.into_iter().any(|stat| {
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        fields.get(2) == Some(&&*group.to_string()) && fields[0] != "Z"
    })
}

fn send(pid: Pid, signal: Signal) {
    kill(pid, signal).unwrap_or_else(|e| panic!("{signal} to {pid}: {e}"));
}

/// Makes a fault while the freeze command runs. The guest is thawed when the job has ended, whatever the command does then.
fn fault(freeze: &str, act: impl Fn(&Family, Pid), check: impl Fn(&Sandbox, &Slow<'_>, &Ended)) {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        support::noise(&s.path("vm.img"), 16 << 20);
        let guest = Guest::start(&s.path("vm.img"));
        for round in 0..rounds(10) {
            let what = format!("{:?} {freeze:?}, round {round}", s.fs);
            let slow = Slow::new(s);
            let job = slow.start(freeze);
            let family = Family::of(&job);
            act(&family, slow.pid("freezer"));
            // A thaw that comes first is overtaken.
            assert!(until(|| slow.read("state") == "thawed"), "{what}");
            slow.goes_on();
            let ended = job.end();
            assert_eq!(slow.read("state"), "thawed", "{what}: {:?} {}", ended.code, ended.stderr);
            assert!(until(|| family.is_gone()), "{what}: processes are left");
            check(s, &slow, &ended);
            guest.runs_on();
            let _ = fs::remove_file(s.path("vm.snap"));
            s.run(&["abort", "-q", "vm.snap"]);
        }
        let felt = guest.stop();
        assert_eq!(felt.errors, [""; 0], "longest {:?}", felt.longest);
    });
}

/// The job goes on without a freeze, and thaws once more when it ends.
fn goes_on_unfrozen(s: &Sandbox, slow: &Slow<'_>, ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
    let told = ended.events.iter().any(|e| e["event"] == "warning" && e["message"].to_string().contains("thawed"));
    assert!(told, "{:?}: {:?}", s.fs, ended.events);
    assert_eq!(ended.events.last().expect("finished")["quiesced"], false, "{:?}", s.fs);
    assert_eq!(slow.read("thaws").lines().count(), 2, "{:?}", s.fs);
}

#[test]
fn the_freezer_is_killed_while_its_command_freezes() {
    fault("slow", |_, freezer| send(freezer, Signal::SIGKILL), goes_on_unfrozen);
}

#[test]
fn the_freezer_is_killed_while_something_that_its_command_started_freezes() {
    let act = |_: &Family, freezer| send(freezer, Signal::SIGKILL);
    fault("slow & wait; exit 0", act, goes_on_unfrozen);
}

fn both(family: &Family, freezer: Pid) {
    // Stopped first, so that neither sees the other go.
    send(freezer, Signal::SIGSTOP);
    send(family.worker, Signal::SIGKILL);
    send(freezer, Signal::SIGKILL);
}

fn thawed_by_the_last(s: &Sandbox, _: &Slow<'_>, ended: &Ended) {
    assert_eq!(ended.code, Some(6), "{:?}: {}", s.fs, ended.stderr);
    let told = ended.events.iter().any(|e| e["event"] == "warning" && e["message"].to_string().contains("thawed"));
    assert!(told, "{:?}: {:?}", s.fs, ended.events);
    assert!(!s.path("vm.snap").exists(), "{:?}", s.fs);
}

#[test]
fn freezer_and_worker_are_killed_while_a_command_freezes() {
    fault("slow", both, thawed_by_the_last);
}

#[test]
fn freezer_and_worker_are_killed_while_something_that_a_command_started_freezes() {
    fault("(slow; true); exit 0", both, thawed_by_the_last);
}

/// What a freeze leaves running may be what keeps it frozen; only the thaw ends it.
#[test]
fn what_a_freeze_left_running_is_left_alone_when_the_freezer_is_killed() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        support::noise(&s.path("vm.img"), 16 << 20);
        let guest = Guest::start(&s.path("vm.img"));
        let slow = Slow::new(s);
        let cd = format!("cd '{}'", slow.dir.display());
        let leave = "sleep 1000 > /dev/null 2>&1 & echo $! > one; setsid sleep 1000 > /dev/null 2>&1 & echo $! > two";
        // The first thaw ends the freezer.
        let kills = "if [ ! -e killed ]; then touch killed; kill -9 $PPID; exit; fi";
        let thaw = format!("{cd}; {kills}; kill -9 $(cat one) && kill -9 $(cat two) && echo thawed > state");
        let freeze = format!("{cd}; {leave}");
        let args = ["snapshot", "vm.img", "vm.snap", "--consistency", "guard", "--freeze", &freeze, "--thaw", &thaw];
        let ended = s.start(&args).end();
        assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
        assert!(slow.dir.join("killed").exists(), "{:?}: the freezer was not killed", s.fs);
        assert_eq!(slow.read("state"), "thawed", "{:?}: {:?}", s.fs, ended.events);
        let felt = guest.stop();
        assert_eq!(felt.errors, [""; 0], "longest {:?}", felt.longest);
    });
}

#[test]
fn the_freezer_is_stopped_while_its_command_freezes() {
    fault("slow", |_, freezer| send(freezer, Signal::SIGSTOP), goes_on_unfrozen);
}

/// A job with these commands, which run in one directory: the guest is thawed, and this is told of the freeze.
fn thaws(freeze: &str, thaw: &str, quiesced: bool) {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        support::noise(&s.path("vm.img"), 16 << 20);
        let guest = Guest::start(&s.path("vm.img"));
        let slow = Slow::new(s);
        let cd = format!("cd '{}'", slow.dir.display());
        let (freeze, thaw) = (format!("{cd}; {freeze}"), format!("{cd}; {thaw}"));
        let args = ["snapshot", "vm.img", "vm.snap", "--consistency", "guard", "--freeze", &freeze, "--thaw", &thaw];
        let ended = s.start(&args).end();
        assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
        assert_eq!(slow.read("state"), "thawed", "{:?}: {:?}", s.fs, ended.events);
        let finished = ended.events.last().expect("finished");
        assert_eq!((&finished["quiesced"], &finished["thawed"]), (&quiesced.into(), &true.into()), "{finished}");
        assert_eq!(guest.stop().errors, [""; 0]);
    });
}

/// Nobody else tells the freezer to go on, and it thaws no more.
#[test]
fn the_freezer_is_stopped_while_it_thaws() {
    let stops = "if [ ! -e stopped ]; then touch stopped; kill -STOP $PPID; exit; fi; echo thawed > state";
    thaws("echo FROZEN > state", stops, false);
}

/// As a thaw does that ends a session which holds a lock.
#[test]
fn a_thaw_waits_until_what_the_freeze_left_running_is_gone() {
    let leave = "sleep 1000 > /dev/null 2>&1 & echo $! > one; setsid sleep 1000 > /dev/null 2>&1 & echo $! > two";
    let wait = "for n in one two; do kill $(cat $n); while kill -0 $(cat $n); do sleep 0.05; done; done";
    thaws(leave, &format!("{wait}; echo thawed > state"), true);
}
