//! A guest that is frozen for the moment of T0: it is thawed once T0 is set, and whatever becomes of the job's processes. On
//! real XFS and Btrfs.

use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support;
use crate::support::agent::{Agent, Does, ends_well, is_thawed, running, start, text, with};
use crate::support::{Armed, Family, Sandbox, on_both, rounds, slowly, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const GUARD: [&str; 2] = ["--consistency", "guard"];

#[test]
fn a_guest_is_frozen_for_t0_and_thawed_long_before_the_job_ends() {
    on_both(|s| {
        let (_armed, guest) = running(s);
        let agent = Agent::new(|_, _| Does::Well);
        let socket = text(&agent.path());
        let args = slowly(&["snapshot", "--qga", &socket, "vm.img", "vm.snap"]);
        let mut job = s.start(&args);
        assert!(job.wait_for("started"), "{}", job.end().stderr);
        assert!(until(|| is_thawed(&agent)), "{:?}", s.fs);
        assert!(s.path("vm.snap.journal").exists(), "{:?}: the job has ended, which shows nothing", s.fs);
        assert_eq!(agent.read(), ["status", "freeze", "thaw"], "{:?}", s.fs);
        let end = job.end();
        assert_eq!(end.code, Some(0), "{}", end.stderr);
        let finished = end.events.last().expect("events");
        assert_eq!(finished["quiesced"], true, "{finished}");
        assert!(finished["frozen_ms"].is_u64() && finished["thawed"] == true, "{finished}");
        assert_eq!(s.exits(0, &["status", "--json", "vm.snap"])[0]["quiesced"], true, "{:?}", s.fs);
        ends_well(guest);
    });
}

#[test]
fn a_single_call_is_frozen_until_it_ends() {
    on_both(|s| {
        support::noise(&s.path("vm.img"), 1 << 20);
        let _writer = support::writer(&s.path("vm.img"));
        let agent = Agent::new(|_, _| Does::Well);
        let finished = s.exits(0, &with(&agent, &["--consistency", "atomic"]));
        assert_eq!(finished.last().expect("finished")["quiesced"], true, "{:?}", s.fs);
        assert_eq!(agent.read(), ["status", "freeze", "thaw"], "{:?}", s.fs);
    });
}

#[test]
fn where_nobody_writes_nobody_is_frozen() {
    on_both(|s| {
        support::noise(&s.path("vm.img"), 1 << 20);
        let agent = Agent::new(|_, _| Does::Well);
        let events = s.exits(0, &with(&agent, &[]));
        assert!(events.iter().any(|e| e["event"] == "warning"), "{events:?}");
        assert_eq!((agent.read().len(), &events.last().expect("finished")["quiesced"]), (0, &false.into()));
    });
}

/// What can be known beforehand is known before anybody is frozen.
#[test]
fn a_job_that_is_refused_has_frozen_nobody() {
    on_both(|s| {
        support::noise(&s.path("vm.img"), 1 << 20);
        let agent = Agent::new(|_, _| Does::Well);
        let unseen = support::writer(&s.path("vm.img"));
        s.exits(3, &with(&agent, &GUARD));
        drop(unseen);
        let _armed = Armed::directory(&s.dir());
        let _seen = support::writer(&s.path("vm.img"));
        fs::write(s.path("vm.snap"), "somebody's").expect("a file");
        s.exits(3, &with(&agent, &GUARD));
        fs::remove_file(s.path("vm.snap")).expect("removed");
        s.exits(3, &with(&agent, &["--consistency", "guard", "--min-free", "99%"]));
        assert_eq!(agent.read().len(), 0, "{:?}", s.fs);
        s.exits(0, &with(&agent, &GUARD));
    });
}

/// `asked` is what the agent is asked in the end, where it was asked to freeze.
fn without_a_freeze(s: &Sandbox, does: fn(&str, usize) -> Does, asked: &[&str]) {
    let (_armed, guest) = running(s);
    for required in [false, true] {
        let agent = Agent::new(does);
        let mut args = with(&agent, &["--consistency", "guard", "--freeze-timeout", "3s"]);
        if required {
            args.push("--require-freeze".into());
            let before = s.listing();
            s.exits(3, &args);
            assert_eq!(s.listing().len(), before.len(), "{:?}: what was refused leaves nothing", s.fs);
        } else {
            let events = s.exits(0, &args);
            assert_eq!(events.last().expect("finished")["quiesced"], false);
            let told = events.iter().any(|e| e["event"] == "warning" && e["message"].to_string().contains("frozen"));
            assert!(told, "{events:?}");
            fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        }
        assert_eq!(agent.read(), asked, "{:?}", s.fs);
        assert!(is_thawed(&agent), "{:?}", s.fs);
    }
    ends_well(guest);
}

#[test]
fn an_agent_that_does_not_answer_at_all_is_not_asked_to_freeze() {
    on_both(|s| without_a_freeze(s, |_, _| Does::Nothing, &[]));
}

#[test]
fn a_freeze_that_is_not_answered_in_time_is_thawed_when_it_comes() {
    let late = |name: &str, _| if name == "freeze" { Does::Later } else { Does::Well };
    on_both(|s| without_a_freeze(s, late, &["status", "freeze", "thaw"]));
}

fn send(to: Vec<Pid>, signal: Signal) {
    for pid in to {
        // It may have ended by itself.
        let _ = kill(pid, signal);
    }
}

/// Who ends the job, and how, at the moment at which the agent reads a command.
fn at_each_step(victims: fn(&Family) -> Vec<Pid>, signal: Signal) {
    on_both(|s| {
        let (_armed, guest) = running(s);
        for step in ["status", "freeze", "thaw"] {
            for round in 0..rounds(5) {
                let what = format!("{:?} {signal} at {step}, round {round}", s.fs);
                let family: Arc<Mutex<Option<Family>>> = Arc::default();
                let known = Arc::clone(&family);
                let agent = Agent::new(move |name, nth| {
                    if (name, nth) == (step, 1) {
                        assert!(until(|| known.lock().expect("no panic").is_some()));
                        let family = known.lock().expect("no panic").expect("known");
                        send(victims(&family), signal);
                        // What was stopped or killed is so before the answer.
                        thread::sleep(Duration::from_millis(20));
                    }
                    Does::Well
                });
                let job = start(s, &agent, &["--consistency", "guard", "--freeze-timeout", "2s"]);
                let processes = Family::of(&job);
                *family.lock().expect("no panic") = Some(processes);
                assert!(until(|| agent.read().contains(&step)), "{what}");
                assert!(until(|| is_thawed(&agent)), "{what}: {:?}", agent.read());
                if signal == Signal::SIGSTOP {
                    send(victims(&processes), Signal::SIGCONT);
                }
                let end = job.end();
                assert!(until(|| processes.is_gone()), "{what}");
                assert!(is_thawed(&agent), "{what}: {:?}", agent.read());
                println!("{what}: exit {:?}, asked {:?}", end.code, agent.read());
                guest.runs_on();
                match end.code {
                    Some(0) => fs::remove_file(s.path("vm.snap")).expect("the snapshot"),
                    _ => assert!(!s.path("vm.snap").exists(), "{what}: {}", end.stderr),
                }
                s.run(&["abort", "-q", "vm.snap"]);
            }
        }
        ends_well(guest);
    });
}

#[test]
fn the_worker_is_killed() {
    at_each_step(|family| vec![family.worker], Signal::SIGKILL);
}

#[test]
fn the_worker_is_stopped() {
    at_each_step(|family| vec![family.worker], Signal::SIGSTOP);
}

#[test]
fn worker_and_supervisor_are_killed_at_once() {
    at_each_step(|family| vec![family.worker, family.supervisor], Signal::SIGKILL);
}

#[test]
fn the_supervisor_alone_is_killed() {
    at_each_step(|family| vec![family.supervisor], Signal::SIGKILL);
}

#[test]
fn what_the_user_started_is_killed() {
    at_each_step(|family| vec![family.front], Signal::SIGKILL);
}

#[test]
fn the_user_interrupts() {
    at_each_step(|family| vec![family.front], Signal::SIGINT);
}

/// What is waited for longest is an answer to a freeze.
#[test]
fn the_user_interrupts_a_freeze_that_takes_long() {
    on_both(|s| {
        let (_armed, guest) = running(s);
        let agent = Agent::new(|name, _| if name == "freeze" { Does::Later } else { Does::Well });
        let job = start(s, &agent, &["--consistency", "guard", "--freeze-timeout", "10m"]);
        assert!(until(|| agent.read().contains(&"freeze")), "{:?}", s.fs);
        job.signal(Signal::SIGTERM);
        let ended = job.end();
        assert_eq!(ended.code, Some(4), "{:?}: {}", s.fs, ended.stderr);
        assert!(ended.stderr.contains("told to stop") && ended.stderr.contains("hint: "), "{}", ended.stderr);
        assert!(is_thawed(&agent), "{:?}: {:?}", s.fs, agent.read());
        s.no_sidecars("vm.snap");
        ends_well(guest);
    });
}

/// The processes that the worker has started, the freezer among them.
fn children(of: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().expect("a pid"))).collect()
}

#[test]
fn the_freezer_itself_is_killed() {
    at_each_step(
        |family| children(family.worker).into_iter().filter(|pid| *pid != family.supervisor).collect(),
        Signal::SIGKILL,
    );
}

#[test]
fn a_worker_that_panics_after_t0_has_the_guest_thawed() {
    on_both(|s| {
        let (_armed, guest) = running(s);
        for fault in ["panic:1", "EIO:1"] {
            let agent = Agent::new(|_, _| Does::Well);
            let out = s.command(&with(&agent, &GUARD)).env("REFLINK_IMG_FAULT", fault).output().expect("it starts");
            assert!(!out.status.success());
            assert!(until(|| is_thawed(&agent)), "{:?} {fault}: {:?}", s.fs, agent.read());
            s.run(&["abort", "-q", "vm.snap"]);
        }
        ends_well(guest);
    });
}

#[test]
fn commands_freeze_and_thaw_also_when_the_worker_is_killed_between() {
    on_both(|s| {
        let (_armed, guest) = running(s);
        let state = s.outside("state");
        let frozen = || fs::read_to_string(&state).unwrap_or_default();
        let shown = state.display();
        let thaw = format!("echo thawed > {shown}");
        let run = |freeze: &str| {
            let args =
                ["snapshot", "vm.img", "vm.snap", "--json", "--consistency", "guard", "--freeze", freeze, "--thaw"];
            s.run(&args.iter().copied().chain([&thaw[..]]).collect::<Vec<_>>())
        };
        let fared = s.outside("fared");
        let well = run(&format!("echo frozen > {shown}; (nice; cat /proc/self/oom_score_adj) > {}", fared.display()));
        assert_eq!(well.status.code(), Some(0), "{well:?}");
        let events = support::events(&String::from_utf8_lossy(&well.stdout));
        assert_eq!((frozen().trim(), &events.last().expect("finished")["quiesced"]), ("thawed", &true.into()));
        let fared = fs::read_to_string(&fared).expect("how urgent, and how dear, a command is");
        assert_eq!(
            fared, "0\n0\n",
            "what the job has for the guest's sake is no command's, nor of what it leaves running"
        );
        fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        // The shell's parent is the freezer, and that one's the worker.
        let killed = run(&format!("echo frozen > {shown}; kill -9 $(cut -d' ' -f4 /proc/$PPID/stat)"));
        assert_eq!(killed.status.code(), Some(6), "{killed:?}");
        assert!(until(|| frozen().trim() == "thawed"), "{:?}: {}", s.fs, frozen());
        assert!(!s.path("vm.snap").exists());
        ends_well(guest);
    });
}

/// The snapshot is as good as any; that the guest may be frozen is said whatever was asked for, once in the middle and at the end.
#[test]
fn a_thaw_that_failed_is_the_last_word_and_in_every_report() {
    on_both(|s| {
        let (_armed, guest) = running(s);
        let metrics = s.outside("vm.prom");
        let args =
            ["snapshot", "--metrics", &text(&metrics), "--freeze", "true", "--thaw", "exit 3", "vm.img", "vm.snap"];
        for (how, times) in [("-q", 1), ("--json", 1)] {
            let out = s.run(&args.iter().copied().chain([how]).collect::<Vec<_>>());
            let stderr = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(0), "{:?}: {stderr}", s.fs);
            assert_eq!(stderr.matches("FROZEN").count(), times, "{:?}: {stderr}", s.fs);
            assert!(stderr.lines().last().is_some_and(|line| line.starts_with("WARNING: ")), "{:?}: {stderr}", s.fs);
            assert_eq!(stderr.lines().count(), times, "{:?}: told once: {stderr}", s.fs);
            if how == "--json" {
                let events = support::events(&String::from_utf8_lossy(&out.stdout));
                let finished = events.last().expect("finished");
                assert_eq!((&finished["thawed"], &finished["quiesced"]), (&false.into(), &false.into()), "{finished}");
                assert!(events.iter().any(|e| e["event"] == "warning" && e["message"].to_string().contains("FROZEN")));
            }
            let told = fs::read_to_string(&metrics).expect("the metrics");
            let failed = told.lines().find(|line| line.starts_with("reflink_img_thaw_failed"));
            assert!(failed.is_some_and(|line| line.ends_with(" 1")), "{told}");
            fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        }
        ends_well(guest);
    });
}

/// Nobody is left of the job who could say so, and it is said all the same.
#[test]
fn a_thaw_that_failed_is_in_every_report_also_when_the_worker_was_killed() {
    on_both(|s| {
        let (_armed, guest) = running(s);
        let metrics = s.outside("vm.prom");
        // The shell's parent is the freezer, and that one's the worker.
        let kills = "kill -9 $(cut -d' ' -f4 /proc/$PPID/stat)";
        for freeze in [kills.to_owned(), format!("{kills}; exit 1")] {
            let args = ["snapshot", "--json", "--consistency", "guard", "--metrics", &text(&metrics), "--freeze"];
            let more = [&freeze[..], "--thaw", "exit 3", "vm.img", "vm.snap"];
            let out = s.run(&args.into_iter().chain(more).collect::<Vec<_>>());
            let stderr = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(6), "{:?}: {stderr}", s.fs);
            assert!(stderr.lines().any(|line| line.starts_with("WARNING: ")), "{:?}: {stderr}", s.fs);
            let events = support::events(&String::from_utf8_lossy(&out.stdout));
            let failed = events.last().expect("failed");
            assert_eq!((&failed["event"], &failed["thawed"]), (&"failed".into(), &false.into()), "{failed}");
            let told = fs::read_to_string(&metrics).expect("the metrics");
            let failed = told.lines().find(|line| line.starts_with("reflink_img_thaw_failed"));
            assert!(failed.is_some_and(|line| line.ends_with(" 1")), "{told}");
        }
        ends_well(guest);
    });
}
