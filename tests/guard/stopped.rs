//! Processes of a job that are stopped, which nobody is told of: the guest goes on, or the job says how long it may have
//! waited. On real XFS and Btrfs.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::support;
use crate::support::{Armed, Ended, Family, Guest, Sandbox, on_both, rounds, slowly, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn send(pid: Pid, signal: Signal) {
    kill(pid, signal).unwrap_or_else(|e| panic!("{signal} to {pid}: {e}"));
}

/// Makes a fault while a guest uses the image and a job clones it, and looks at how that ended. `deadline` is the guest's.
fn fault(deadline: &str, act: impl Fn(&Family, &Guest), check: impl Fn(&Sandbox, &Ended)) {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        // On a fast machine a job of 32 MiB is over before anybody has looked.
        support::noise(&s.path("vm.img"), 96 << 20);
        let guest = Guest::start(&s.path("vm.img"));
        for round in 0..rounds(10) {
            let what = format!("{:?} round {round}", s.fs);
            let args = ["snapshot", "vm.img", "vm.snap", "--guest-deadline", deadline];
            let mut job = s.start(&slowly(&args));
            assert!(job.wait_for("started"), "{what}: {}", job.end().stderr);
            let family = Family::of(&job);
            guest.runs_on();
            act(&family, &guest);
            let ended = job.end();
            // Nobody of the job is left to wake what was stopped.
            guest.runs_on();
            assert!(until(|| family.is_gone()), "{what}: processes are left");
            check(s, &ended);
            s.run(&["abort", "-q", "vm.snap"]);
            let _ = fs::remove_file(s.path("vm.snap"));
        }
        guest.stop().assert_unharmed(&format!("{:?} stopped", s.fs));
    });
}

fn broken(says: &str) -> impl Fn(&Sandbox, &Ended) {
    move |s, ended| {
        assert_eq!(ended.code, Some(6), "{:?}: {}", s.fs, ended.stderr);
        assert!(ended.stderr.contains(says), "{:?}: no {says:?} in {}", s.fs, ended.stderr);
        assert!(!s.path("vm.snap").exists(), "{:?}: a snapshot is in place", s.fs);
    }
}

#[test]
fn the_supervisor_is_stopped() {
    // Without somebody who would let it go on no guest is made to wait.
    let act = |f: &Family, _: &Guest| send(f.supervisor, Signal::SIGSTOP);
    fault("2s", act, broken("its supervisor"));
}

#[test]
fn the_supervisor_is_stopped_and_the_worker_killed() {
    let act = |f: &Family, guest: &Guest| {
        send(f.supervisor, Signal::SIGSTOP);
        send(f.worker, Signal::SIGKILL);
        guest.runs_on();
    };
    fault("1s", act, broken("went on"));
}

fn both(f: &Family, signal: Signal) {
    send(f.supervisor, signal);
    send(f.worker, signal);
}

/// As a frozen control group does it: nobody is there who could let the guest go on, and it is told afterwards.
#[test]
fn worker_and_supervisor_are_stopped_for_longer_than_a_guest_may_wait() {
    let act = |f: &Family, _: &Guest| {
        both(f, Signal::SIGSTOP);
        thread::sleep(Duration::from_millis(4000));
        both(f, Signal::SIGCONT);
    };
    fault("2s", act, broken("was stopped for "));
}

#[test]
fn worker_and_supervisor_are_killed_while_they_are_stopped() {
    let act = |f: &Family, guest: &Guest| {
        both(f, Signal::SIGSTOP);
        both(f, Signal::SIGKILL);
        guest.runs_on();
    };
    fault("1s", act, broken("went on"));
}

/// A shorter stop breaks nothing, and is not left out of what the guest waited.
#[test]
fn worker_and_supervisor_are_stopped_for_a_moment() {
    let stop = Duration::from_millis(400);
    let act = |f: &Family, _: &Guest| {
        both(f, Signal::SIGSTOP);
        thread::sleep(stop);
        both(f, Signal::SIGCONT);
    };
    fault("30s", act, |s, ended| {
        assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
        let finished = ended.events.last().expect("finished");
        let longest = finished["longest_guest_wait_ms"].as_f64().expect("a number");
        // The guest never rests for longer than a fraction of a millisecond, so that one access waited nearly all the time.
        assert!(longest > stop.as_secs_f64() * 1000.0 / 2.0, "{:?}: {finished}", s.fs);
    });
}
