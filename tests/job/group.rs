//! Several images, one T0: the program killed at any instant, and each state looked at, taken up and taken back by the name of one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::{
    Armed, Guest, Job, Random, SLOW, Sandbox, assert_same, difference, fragmented, must, on_both, roomy, rounds, until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// The members of a job in the tests of its states, each in a directory of its own; the first one leads.
const PAIRS: [&str; 2] = ["one/a.img=one/a.snap", "two/b.img=two/b.snap"];
const SNAPS: [&str; 2] = ["one/a.snap", "two/b.snap"];

fn images(s: &Sandbox, len: u64) {
    for (dir, image) in [("one", "one/a.img"), ("two", "two/b.img")] {
        fs::create_dir_all(s.path(dir)).expect("a directory");
        roomy(&s.path(image), len);
    }
}

fn snapshot<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ["snapshot"].iter().chain(&PAIRS).chain(more).copied().collect()
}

/// A job of both images that has begun to clone.
fn begun(s: &Sandbox) -> Job {
    begun_of(s, 128 * MIB)
}

/// The same, with images of this size each; nearly all of it holes.
fn begun_of(s: &Sandbox, size: u64) -> Job {
    images(s, size);
    let mut job = s.start(&snapshot(&SLOW));
    assert!(job.wait_for("progress"));
    job
}

fn state(s: &Sandbox, code: i32, name: &str) -> Value {
    s.exits(code, &["status", "--json", name]).pop().expect("an object")
}

fn whole(s: &Sandbox) {
    for (dir, image, snap) in [("one", "a.img", "a.snap"), ("two", "b.img", "b.snap")] {
        let dir = s.path(dir);
        assert_same(&dir.join(image), &dir.join(snap));
        let names = fs::read_dir(&dir).expect("a directory").count();
        assert_eq!(names, 2, "{:?}: something is left in {}", s.fs, dir.display());
    }
}

fn nothing(s: &Sandbox) {
    for dir in ["one", "two"] {
        assert_eq!(fs::read_dir(s.path(dir)).expect("a directory").count(), 1, "{:?}: something is left", s.fs);
    }
}

fn immutable(dir: &Path, on: bool) {
    must("chattr", &[&if on { "+i" } else { "-i" }, &dir]);
}

/// A job that is committed and cannot rename what is in this directory.
fn committed(s: &Sandbox, dir: &str) {
    let job = begun(s);
    immutable(&s.path(dir), true);
    let ended = job.end();
    assert_eq!(ended.code, Some(1), "{:?}: {}", s.fs, ended.stderr);
}

/// The leader's journal is written once more by whoever puts the snapshots into place, and its time is what a later file is known by.
#[test]
fn a_file_that_came_after_the_job_was_complete_is_not_replaced_at_the_second_try_either() {
    on_both(|s| {
        images(s, 128 * MIB);
        SNAPS.iter().for_each(|snap| fs::write(s.path(snap), b"to be replaced").expect("a file"));
        let mut job = s.start(&[&snapshot(&SLOW)[..], &["--force"]].concat());
        assert!(job.wait_for("progress"));
        immutable(&s.path("one"), true);
        assert_eq!(job.end().code, Some(1), "{:?}", s.fs);
        immutable(&s.path("one"), false);
        let journal = fs::metadata(s.path("one/a.snap.journal")).expect("there");
        // A change time is only as fine as the kernel's tick.
        assert!(until(|| {
            fs::write(s.path(SNAPS[0]), b"came later").expect("a file");
            let is = fs::metadata(s.path(SNAPS[0])).expect("there");
            (is.ctime(), is.ctime_nsec()) > (journal.mtime(), journal.mtime_nsec())
        }));
        for _ in 0..2 {
            s.exits(1, &["resume", "-q", SNAPS[0]]);
            assert_eq!(fs::read(s.path(SNAPS[0])).expect("still there"), b"came later", "{:?}", s.fs);
        }
        fs::remove_file(s.path(SNAPS[0])).expect("moved away");
        s.exits(0, &["resume", "-q", SNAPS[0]]);
        whole(s);
    });
}

#[test]
fn a_job_that_is_complete_is_put_into_place_by_the_name_of_any_of_its_snapshots() {
    on_both(|s| {
        // The leader is renamed last: with it fixed the other one is in place, with the other one fixed none is.
        for (fixed, pending, resumed) in
            [("one", &SNAPS[..1], SNAPS[0]), ("two", &SNAPS[..], SNAPS[0]), ("two", &SNAPS[..], SNAPS[1])]
        {
            committed(s, fixed);
            for snap in SNAPS {
                let complete = pending.contains(&snap);
                let told = state(s, if complete { 4 } else { 0 }, snap);
                assert_eq!(told["state"], if complete { "complete" } else { "finished" }, "{:?} {fixed}: {told}", s.fs);
            }
            for snap in pending {
                let aborted = s.run(&["abort", snap]);
                let stderr = String::from_utf8_lossy(&aborted.stderr);
                assert_eq!(aborted.status.code(), Some(3), "{:?} {fixed}: {stderr}", s.fs);
                assert!(stderr.contains("belong together") && stderr.contains("resume"), "{stderr}");
                s.exits(1, &["resume", snap]);
            }
            immutable(&s.path(fixed), false);
            s.exits(0, &["resume", "-q", resumed]);
            whole(s);
            for snap in SNAPS {
                fs::remove_file(s.path(snap)).expect("removed");
            }
        }
    });
}

#[test]
fn the_same_command_puts_a_complete_job_into_place_and_shows_no_older_instant_than_its_own() {
    on_both(|s| {
        committed(s, "two");
        immutable(&s.path("two"), false);
        let done = s.exits(0, &snapshot(&["--json"]));
        assert_eq!(done.last().expect("an end")["new_t0"], false, "{done:?}");
        whole(s);
        SNAPS.iter().for_each(|snap| fs::remove_file(s.path(snap)).expect("removed"));

        committed(s, "two");
        immutable(&s.path("two"), false);
        fs::write(s.path("one/a.img"), vec![7; 64 << 10]).expect("written");
        // What was complete is put into place, and is not what this command was to show.
        s.exits(3, &snapshot(&[]));
        assert!(SNAPS.iter().all(|snap| s.path(snap).exists()), "{:?}", s.fs);
        assert!(difference(&s.path("one/a.img"), &s.path("one/a.snap")).is_some());
        s.exits(0, &snapshot(&["--refresh", "-q"]));
        whole(s);
        SNAPS.iter().for_each(|snap| fs::remove_file(s.path(snap)).expect("removed"));
    });
}

#[test]
fn a_job_that_was_killed_has_lost_its_instant_and_is_taken_back_whole_or_taken_to_a_new_one() {
    on_both(|s| {
        for named in SNAPS {
            begun(s).kill();
            for snap in SNAPS {
                let told = state(s, 6, snap);
                assert!(told["reason"].as_str().is_some_and(|r| r.contains("several images")), "{told}");
                assert_eq!(told["with"].as_array().map(Vec::len), Some(1), "{told}");
                s.exits(6, &["resume", snap]);
            }
            let told = s.exits(0, &["abort", "--json", named]);
            assert_eq!(told.len(), 2, "{told:?}");
            assert!(told.iter().all(|t| t["what"] == "removed"), "{told:?}");
            nothing(s);
        }
        begun(s).kill();
        let done = s.exits(0, &snapshot(&["--json"]));
        let ends: Vec<_> = done.iter().filter(|e| e["event"] == "finished").collect();
        assert_eq!(ends.len(), 2, "{done:?}");
        assert!(ends.iter().all(|e| e["new_t0"] == true && e["t0"] == ends[0]["t0"]), "{done:?}");
        whole(s);
    });
}

#[test]
fn a_job_that_runs_is_seen_at_each_of_its_snapshots_and_an_abort_of_one_ends_it() {
    on_both(|s| {
        for named in SNAPS {
            // It must not come to its end before it is aborted, however slow the machine.
            let job = begun_of(s, 4096 * MIB);
            for snap in SNAPS {
                let told = state(s, 0, snap);
                assert_eq!((&told["state"], &told["pid"]), (&"running".into(), &job.pid().into()), "{told}");
                s.exits(5, &["resume", snap]);
            }
            s.exits(0, &["abort", "-q", named]);
            let end = job.end();
            assert_eq!(end.code, Some(6), "{:?}: {}", s.fs, end.stderr);
            assert!(end.stderr.contains("'rclone-img abort' has ended the job"), "{:?}: {}", s.fs, end.stderr);
            assert!(!end.stderr.contains("hint: "), "{:?}: nothing is left to go on with: {}", s.fs, end.stderr);
            nothing(s);
        }
    });
}

#[test]
fn where_a_file_system_is_not_mounted_nobody_guesses_what_became_of_the_job() {
    on_both(|s| {
        let Some(other) = Sandbox::new(s.fs) else { return };
        roomy(&s.path("a.img"), 128 * MIB);
        fs::create_dir(other.path("two")).expect("a directory");
        roomy(&other.path("two/b.img"), 128 * MIB);
        let b = other.path("two/b.img").display().to_string();
        let pair = format!("{b}={}", other.path("two/b.snap").display());
        // Either may lead.
        for pairs in [["a.img=a.snap", &pair], [&pair, "a.img=a.snap"]] {
            let args: Vec<&str> = ["snapshot"].iter().chain(&pairs).chain(&SLOW).copied().collect();
            let mut job = s.start(&args);
            assert!(job.wait_for("progress"));
            immutable(&other.path("two"), true);
            assert_eq!(job.end().code, Some(1));
            immutable(&other.path("two"), false);
            let pending = s.path("a.snap.journal").exists();
            other.unmount();
            let before = s.listing();
            if pending {
                for verb in [vec!["resume", "a.snap"], vec!["abort", "a.snap"], vec!["snapshot", "a.img", "a.snap"]] {
                    let out = s.run(&verb);
                    let stderr = String::from_utf8_lossy(&out.stderr);
                    assert_eq!(out.status.code(), Some(3), "{:?} {verb:?}: {stderr}", s.fs);
                    assert!(stderr.contains("b.snap") && stderr.contains("mount its file system"), "{stderr}");
                }
                s.exits(4, &["status", "a.snap"]);
            }
            assert_eq!(s.listing(), before);
            other.mount();
            s.exits(0, &["resume", "-q", other.path("two/b.snap").to_str().expect("UTF-8")]);
            assert_same(&s.path("a.img"), &s.path("a.snap"));
            assert_same(&other.path("two/b.img"), &other.path("two/b.snap"));
            s.no_sidecars("a.snap");
            fs::remove_file(s.path("a.snap")).expect("removed");
            fs::remove_file(other.path("two/b.snap")).expect("removed");
        }
    });
}

/// The images of the test below.
const THREE: [&str; 3] = ["a", "b", "c"];

fn in_place(s: &Sandbox) -> usize {
    THREE.iter().filter(|name| s.path(format!("{name}.snap")).exists()).count()
}

#[test]
fn killed_at_any_instant_all_snapshots_of_a_job_are_put_into_place_or_none() {
    let random = Random::seeded("killed_at_any_instant_all_snapshots_of_a_job_are_put_into_place_or_none");
    on_both(|s| {
        let armed = Armed::directory(&s.dir());
        for name in THREE {
            fragmented(&s.path(format!("{name}.img")), 300);
        }
        let pairs = THREE.map(|name| format!("{name}.img={name}.snap"));
        for round in 0..rounds(30) {
            let hold = ["frozen", "guard"][random.below(2) as usize];
            let guests: Vec<_> = match hold {
                "guard" => THREE.iter().map(|name| Guest::start(&s.path(format!("{name}.img")))).collect(),
                _ => Vec::new(),
            };
            let mut args = vec!["snapshot", "--consistency", hold];
            args.extend(pairs.iter().map(String::as_str));
            let mut job = s.start(&args);
            // Mostly about the end of the job, where snapshots are put into place.
            match random.below(4) {
                0 => drop(job.wait_for("started")),
                1 => drop(until(|| s.path("b.snap").exists() || !s.path("b.snap.journal").exists())),
                _ => drop(job.wait_for("progress")),
            }
            (0..random.below(1 << random.below(24))).for_each(|_| std::hint::spin_loop());
            job.kill();
            let felt: Vec<_> = guests.into_iter().map(Guest::stop).collect();
            assert!(felt.iter().all(|f| f.errors.is_empty()), "{:?} round {round}: {felt:?}", s.fs);

            let why = format!("{:?} round {round}, {hold}, {} in place after the kill", s.fs, in_place(s));
            let one = format!("{}.snap", THREE[random.below(3) as usize]);
            let verb = ["resume", "abort"][random.below(2) as usize];
            let half = (1..3).contains(&in_place(s));
            let out = s.run(&[verb, &one]);
            assert!(matches!(out.status.code(), Some(0 | 3 | 6)), "{why}, {verb} {one}: {out:?}");
            if half {
                let codes: Vec<_> =
                    THREE.iter().map(|n| s.run(&["resume", &format!("{n}.snap")]).status.code()).collect();
                assert_eq!(in_place(s), 3, "{why}, {codes:?}");
            }
            assert!(in_place(s) == 0 || in_place(s) == 3 || verb == "abort", "{why}, after {verb} {one}");
            let same: Vec<&str> = args.iter().copied().chain(["--refresh", "-q"]).collect();
            s.exits(0, &same);
            for name in THREE {
                let (image, snap) = (s.path(format!("{name}.img")), s.path(format!("{name}.snap")));
                assert_eq!(difference(&image, &snap), None, "{why}");
                s.no_sidecars(&format!("{name}.snap"));
                fs::remove_file(snap).expect("removed");
            }
        }
        drop(armed);
    });
}

#[test]
fn told_to_stop_a_job_of_several_images_ends_with_none_in_place() {
    on_both(|s| {
        let job = begun(s);
        job.signal(Signal::SIGTERM);
        let end = job.end();
        assert_eq!(end.code, Some(6), "{:?}: {}", s.fs, end.stderr);
        let told =
            "one/a.snap, two/b.snap: the job was told to stop; its point in time is lost, as always of several images";
        assert!(end.stderr.contains(told) && !end.stderr.contains("resume"), "{:?}: {}", s.fs, end.stderr);
        for snap in SNAPS {
            assert_eq!(state(s, 6, snap)["state"], "broken", "{:?}", s.fs);
        }
        assert!(SNAPS.iter().all(|snap| !s.path(snap).exists()));
        s.exits(6, &["resume", SNAPS[1]]);
        s.exits(0, &snapshot(&["-q"]));
        whole(s);
    });
}

#[test]
fn an_error_about_one_image_names_its_snapshot() {
    on_both(|s| {
        let told = |needle: &str| {
            let out = s.run(&snapshot(&[]));
            let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
            assert_eq!(out.status.code(), Some(3), "{:?}: {stderr}", s.fs);
            assert!(stderr.starts_with(&format!("rclone-img: {needle}")), "{:?}: no {needle:?} in {stderr}", s.fs);
        };
        images(s, MIB);
        // The first has unfinished work, the other one is complete: it is the other one that is in the way.
        fs::write(s.path(SNAPS[1]), "somebody's").expect("a file");
        told("two/b.snap: the snapshot exists already");
        fs::remove_file(s.path(SNAPS[1])).expect("removed");
        fs::remove_file(s.path("two/b.img")).expect("removed");
        told("two/b.snap: cannot open two/b.img");
        // Another file system cannot share its blocks.
        let Some(other) = Sandbox::new(s.fs) else { return };
        roomy(&other.path("b.img"), MIB);
        std::os::unix::fs::symlink(other.path("b.img"), s.path("two/b.img")).expect("a link");
        told("two/b.snap: ");
    });
}
