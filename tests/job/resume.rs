//! Killed at any instant or told to stop, a job goes on to the same point in time without doing finished work again, or says
//! why it cannot; DST is complete or not there; two jobs do not meet.

use std::fs;
use std::os::unix::fs::FileExt;

use nix::sys::signal::Signal;
use rclone_img::disk::Disk;
use rclone_img::disk::real::RealDisk;
use serde_json::Value;

use crate::support::{
    BLOCK, Job, Random, Sandbox, assert_same, difference, fragmented, noise, on_both, roomy, rounds, slowly, until,
    writer,
};

const MIB: u64 = 1 << 20;
const LONG: u64 = 1024 * MIB;

/// A long job on `a.img` that has begun to clone.
fn begun(s: &Sandbox, len: u64) -> Job {
    roomy(&s.path("a.img"), len);
    let mut job = s.start(&slowly(&["snapshot", "a.img", "a.snap"]));
    assert!(job.wait_for("progress"));
    job
}

/// A job that was told to stop, with a checkpoint.
fn interrupted(s: &Sandbox, len: u64, signal: Signal) {
    let job = begun(s, len);
    job.signal(signal);
    let ended = job.end();
    assert_eq!(ended.code, Some(4), "{:?} {signal}: {}", s.fs, ended.stderr);
    let last = ended.events.last().expect("an end");
    assert_eq!((&last["event"], &last["exit"]), (&"failed".into(), &4.into()), "{last}");
    assert!(last["hint"].as_str().is_some_and(|h| h.contains("resume")), "{last}");
    assert!(!s.path("a.snap").exists());
}

fn state(s: &Sandbox, code: i32, name: &str) -> Value {
    s.exits(code, &["status", "--json", name]).remove(0)
}

fn last(mut events: Vec<Value>) -> Value {
    events.pop().expect("an end")
}

#[test]
fn killed_at_any_instant_a_job_comes_to_its_end_with_the_images_bytes() {
    let random = Random::seeded("killed_at_any_instant_a_job_comes_to_its_end_with_the_images_bytes");
    on_both(|s| {
        fragmented(&s.path("a.img"), 4000);
        for round in 0..rounds(60) {
            let mut kills = 0;
            loop {
                let resume = kills > 0 && random.below(2) == 0;
                let args = if resume { vec!["resume", "a.snap"] } else { slowly(&["snapshot", "a.img", "a.snap"]) };
                let mut job = s.start(&args);
                match random.below(4) {
                    0 => {}
                    // There is nothing to be resumed where the last one was killed too early.
                    1 => drop(until(|| {
                        s.path("a.snap.journal").exists() || s.path("a.snap").exists() || job.has_ended()
                    })),
                    2 => drop(job.wait_for("started")),
                    _ => drop(job.wait_for("progress")),
                }
                (0..random.below(1 << random.below(24))).for_each(|_| std::hint::spin_loop());
                job.kill();
                kills += 1;
                let why = format!("{:?} round {round}, kill {kills} of {args:?}", s.fs);
                if s.path("a.snap").exists() {
                    assert_eq!(difference(&s.path("a.img"), &s.path("a.snap")), None, "{why}");
                    break;
                }
                if kills < 4 {
                    continue;
                }
                // Enough: to the end, by resume where it can, else by the same command.
                let out = s.run(&["resume", "--json", "a.snap"]);
                if out.status.code() != Some(0) {
                    assert!(matches!(out.status.code(), Some(3 | 6)), "{why}: {out:?}");
                    let end = last(s.exits(0, &slowly(&["snapshot", "--json", "a.img", "a.snap"])));
                    assert_eq!(end["new_t0"], false, "{why}: the image did not change: {end}");
                }
                break;
            }
            // A kill after the rename leaves the journal: the next command of any kind clears it up.
            let _ = s.run(&["resume", "-q", "a.snap"]);
            assert_eq!(difference(&s.path("a.img"), &s.path("a.snap")), None, "{:?} round {round}", s.fs);
            s.no_sidecars("a.snap");
            assert_eq!(state(s, 0, "a.snap")["state"], "finished");
            fs::remove_file(s.path("a.snap")).expect("removed");
        }
    });
}

#[test]
fn told_to_stop_a_job_leaves_a_checkpoint_and_resume_does_not_do_it_again() {
    on_both(|s| {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            interrupted(s, LONG, signal);
            let status = state(s, 4, "a.snap");
            assert_eq!((&status["state"], &status["bytes"]), (&"interrupted".into(), &LONG.into()), "{status}");
            let done = status["done_bytes"].as_u64().expect("a number");
            let end = last(s.exits(0, &slowly(&["snapshot", "--json", "a.img", "a.snap"])));
            assert_eq!((&end["t0"], &end["job"], &end["new_t0"]), (&status["t0"], &status["job"], &false.into()));
            let calls = end["calls"].as_u64().expect("a number");
            assert!(calls <= (LONG - done) / BLOCK, "{calls} calls for what {done} bytes left of {LONG}");
            assert_same(&s.path("a.img"), &s.path("a.snap"));
            s.no_sidecars("a.snap");
            fs::remove_file(s.path("a.snap")).expect("removed");
        }
    });
}

#[test]
fn what_was_claimed_before_a_kill_is_not_cloned_again() {
    on_both(|s| {
        // Claims are made in batches; a shorter job may end before the first, on a fast machine one of 1 GiB.
        let longest = 4 * LONG;
        let job = begun(s, longest);
        let claimed = || {
            let told = state_of(s);
            assert_ne!(told["state"], "finished", "the job ended before anything was claimed");
            told["done_bytes"].as_u64().is_some_and(|b| b > 0)
        };
        assert!(until(claimed), "nothing is claimed while the job runs");
        job.kill();
        let done = state(s, 4, "a.snap")["done_bytes"].as_u64().expect("a number");
        let end = last(s.exits(0, &slowly(&["snapshot", "--json", "a.img", "a.snap"])));
        let calls = end["calls"].as_u64().expect("a number");
        assert!(done > 0 && calls <= (longest - done) / BLOCK, "{:?}: {done} claimed, {end}", s.fs);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    });
}

/// What status says now, whatever it exits with.
fn state_of(s: &Sandbox) -> Value {
    let out = s.run(&["status", "--json", "a.snap"]);
    serde_json::from_slice(&out.stdout).unwrap_or(Value::Null)
}

#[test]
fn restart_throws_the_work_away_and_starts_over() {
    on_both(|s| {
        interrupted(s, LONG, Signal::SIGINT);
        let old = state(s, 4, "a.snap");
        let end = last(s.exits(0, &["snapshot", "--restart", "--json", "a.img", "a.snap"]));
        assert_ne!(end["job"], old["job"]);
        assert_eq!(end["new_t0"], false, "{end}");
        assert_same(&s.path("a.img"), &s.path("a.snap"));
        s.no_sidecars("a.snap");
    });
}

/// After `between` the point in time is lost: resume says so, and snapshot takes a new one.
fn check_lost(s: &Sandbox, needle: &str, between: impl Fn()) {
    interrupted(s, LONG, Signal::SIGTERM);
    between();
    let failed = last(s.exits(6, &["resume", "--json", "a.snap"]));
    let error = failed["error"].as_str().expect("words");
    assert!(error.contains("lost") && error.contains(needle), "{:?}: no {needle:?} in {error}", s.fs);
    assert!(!s.path("a.snap").exists());
    let end = last(s.exits(0, &["snapshot", "--json", "a.img", "a.snap"]));
    assert_eq!(end["new_t0"], true, "{:?} {needle}: {end}", s.fs);
    assert_same(&s.path("a.img"), &s.path("a.snap"));
    s.no_sidecars("a.snap");
    fs::remove_file(s.path("a.snap")).expect("removed");
}

#[test]
fn another_mount_of_the_file_system_loses_the_point_in_time() {
    on_both(|s| {
        check_lost(s, "mounted", || {
            s.unmount();
            s.mount();
        });
    });
}

#[test]
fn an_image_that_changed_between_loses_the_point_in_time() {
    on_both(|s| {
        let image = s.path("a.img");
        check_lost(s, "changed", || writer(&image).write_all_at(b"x", 100).expect("written"));
        check_lost(s, "resized", || writer(&image).set_len(300 * MIB).expect("grown"));
        check_lost(s, "resized", || writer(&image).set_len(100 * MIB + 1).expect("truncated"));
        check_lost(s, "replaced", || {
            roomy(&s.path("new"), 256 * MIB);
            fs::rename(s.path("new"), &image).expect("replaced");
        });
    });
}

#[test]
fn an_image_that_is_gone_is_told_and_its_job_can_be_aborted() {
    on_both(|s| {
        interrupted(s, LONG, Signal::SIGTERM);
        fs::remove_file(s.path("a.img")).expect("removed");
        s.exits(6, &["resume", "a.snap"]);
        s.exits(3, &["snapshot", "a.img", "a.snap"]);
        s.exits(0, &["abort", "-q", "a.snap"]);
        assert!(s.listing().is_empty(), "{:?}", s.listing());
    });
}

#[test]
fn a_second_job_on_the_same_snapshot_or_image_is_told_that_another_has_it() {
    on_both(|s| {
        noise(&s.path("b.img"), MIB);
        roomy(&s.path("a.img"), 16 * MIB);
        // The job that has the snapshot waits for its turn, so that it does not end before it was asked for seven times.
        let other = RealDisk::open_dir(&s.dir()).expect("the directory");
        assert!(other.take_turn());
        let mut job = s.start(&["snapshot", "--consistency", "frozen", "a.img", "a.snap"]);
        assert!(job.wait_for("progress"), "{:?}", s.fs);
        s.exits(5, &["snapshot", "a.img", "a.snap"]);
        s.exits(5, &["snapshot", "a.img", "b.snap"]);
        s.exits(5, &["resume", "a.snap"]);
        s.exits(5, &["snapshot", "--restart", "a.img", "a.snap"]);
        s.exits(5, &["snapshot", "--force", "a.img", "a.snap"]);
        s.exits(5, &["snapshot", "--restart", "b.img", "a.snap"]);
        s.exits(5, &["snapshot", "b.img", "a.snap"]);
        other.end_turn();
        let ended = job.end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
        s.no_sidecars("b.snap");
    });
}

#[test]
fn wait_waits_for_the_other_job() {
    on_both(|s| {
        let job = begun(s, LONG);
        s.exits(0, &["snapshot", "-q", "--wait", "2m", "a.img", "b.snap"]);
        assert_eq!(job.end().code, Some(0));
        assert_same(&s.path("a.snap"), &s.path("b.snap"));
        fs::remove_file(s.path("a.snap")).expect("removed");
        let job = begun(s, LONG);
        // The other one has made it by then, and it is not ours to replace.
        s.exits(3, &["snapshot", "--wait", "2m", "a.img", "a.snap"]);
        assert_eq!(job.end().code, Some(0));
        fs::remove_file(s.path("a.snap")).expect("removed");
        let first = begun(s, LONG);
        let waiting = s.start(&["snapshot", "--wait", "1h", "a.img", "c.snap"]);
        assert!(until(|| waiting.catches(Signal::SIGTERM)));
        drop(first);
        assert_eq!(waiting.end().code, Some(0), "the other job's end, even by a kill, is waited for");
    });
}

#[test]
fn abort_removes_all_that_a_job_made_and_nothing_else() {
    on_both(|s| {
        interrupted(s, LONG, Signal::SIGINT);
        let mut before = s.listing();
        before.retain(|name, _| name == b"a.img");
        s.exits(0, &["abort", "-q", "a.snap"]);
        assert_eq!(s.listing(), before);
        s.exits(3, &["abort", "a.snap"]);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        s.exits(3, &["abort", "--force", "a.snap"]);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    });
}

#[test]
fn abort_stops_a_live_job_first() {
    on_both(|s| {
        let job = begun(s, LONG);
        s.exits(0, &["abort", "-q", "a.snap"]);
        let ended = job.end();
        assert_eq!(ended.code, Some(4), "{:?}: {}", s.fs, ended.stderr);
        s.no_sidecars("a.snap");
        assert!(!s.path("a.snap").exists());
        // Nothing of the job holds the image any more.
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
    });
}

#[test]
fn status_of_a_live_job_takes_no_lock_and_disturbs_nothing() {
    on_both(|s| {
        let mut job = begun(s, LONG);
        let pid = job.pid();
        let status = s.run(&["status", "--json", "a.snap"]);
        let told: Value = serde_json::from_slice(&status.stdout).expect("JSON");
        assert_eq!((&told["state"], &told["pid"]), (&"running".into(), &pid.into()), "{told}");
        let looked = (0..20).map(|_| s.run(&["status", "."]).status.code()).collect::<Vec<_>>();
        assert!(job.wait_for("finished"), "{looked:?}");
        assert_eq!(job.end().code, Some(0));
        assert_eq!(status.status.code(), Some(0), "--help: 0 for what is running");
    });
}

#[test]
fn status_tells_every_state_by_its_code() {
    on_both(|s| {
        interrupted(s, LONG, Signal::SIGINT);
        assert_eq!(state(s, 4, ".")["state"], "interrupted");
        fs::copy(s.path("a.snap.journal"), s.path("kept")).expect("a copy");
        fs::write(s.path("a.snap.journal"), [7; 20000]).expect("written");
        assert_eq!(state(s, 6, "a.snap")["state"], "unreadable");
        fs::write(s.path("a.snap.journal"), fs::read(s.path("kept")).expect("kept")).expect("written");
        s.exits(0, &["resume", "-q", "a.snap"]);
        assert_eq!(state(s, 0, "a.snap")["state"], "finished");
        assert!(s.exits(0, &["status", "--json", "."]).is_empty());
    });
}

#[test]
fn a_file_that_appears_at_the_snapshots_name_is_not_replaced() {
    on_both(|s| {
        let job = begun(s, LONG);
        fs::write(s.path("a.snap"), "somebody's").expect("a file");
        let ended = job.end();
        assert_eq!(ended.code, Some(1), "{:?}: {}", s.fs, ended.stderr);
        assert_eq!(fs::read_to_string(s.path("a.snap")).expect("there"), "somebody's");
        s.exits(1, &["resume", "a.snap"]);
        fs::rename(s.path("a.snap"), s.path("away")).expect("moved");
        s.exits(0, &["resume", "-q", "a.snap"]);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
        s.no_sidecars("a.snap");
    });
}

#[test]
fn a_file_that_appeared_at_the_snapshots_name_is_replaced_by_force_alone() {
    on_both(|s| {
        roomy(&s.path("a.img"), 16 * MIB);
        for complete in [false, true] {
            let other = RealDisk::open_dir(&s.dir()).expect("the directory");
            assert!(other.take_turn());
            let mut job = s.start(&["snapshot", "--consistency", "frozen", "a.img", "a.snap"]);
            assert!(job.wait_for("progress"), "{:?}", s.fs);
            std::os::unix::fs::symlink("elsewhere", s.path("a.snap")).expect("a link");
            let code = if complete {
                other.end_turn();
                1
            } else {
                job.signal(Signal::SIGTERM);
                4
            };
            assert_eq!(job.end().code, Some(code), "{:?}", s.fs);
            drop(other);
            s.exits(3, &["snapshot", "-q", "--force", "a.img", "a.snap"]);
            fs::remove_file(s.path("a.snap")).expect("removed");
            fs::write(s.path("a.snap"), b"precious").expect("written");
            let refused = s.run(&["snapshot", "-q", "a.img", "a.snap"]);
            assert!(!refused.status.success(), "{:?} {refused:?}", s.fs);
            assert_eq!(fs::read(s.path("a.snap")).expect("there"), b"precious", "{:?}", s.fs);
            s.exits(0, &["snapshot", "-q", "--force", "a.img", "a.snap"]);
            assert_same(&s.path("a.img"), &s.path("a.snap"));
            s.no_sidecars("a.snap");
            fs::remove_file(s.path("a.snap")).expect("removed");
        }
    });
}
