//! `--refresh`: an older snapshot becomes one of now, cloning only what differs, and never keeps a byte that was overwritten;
//! what is not provably ours to overwrite is refused; a refresh that was killed is put back, resumed or healed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use rclone_img::disk::Disk;
use rclone_img::disk::real::RealDisk;
use serde_json::Value;

use crate::support;
use crate::support::history::change;
use crate::support::{
    BLOCK, PROGRAM, Random, Sandbox, addresses, assert_same, difference, fragmented, identity, must, nobody_writes,
    noise, on_both, roomy, rounds, slowly, writer,
};

const MIB: u64 = 1 << 20;

fn refresh(s: &Sandbox) -> Value {
    let events = s.exits(0, &["snapshot", "--refresh", "--json", "a.img", "a.snap"]);
    s.no_sidecars("a.snap");
    events.last().expect("an end").clone()
}

fn skipped_bytes(finished: &Value) -> u64 {
    finished["skipped_bytes"].as_u64().expect("a number")
}

#[test]
fn a_refreshed_snapshot_is_the_image_after_any_changes() {
    let random = Random::seeded("a_refreshed_snapshot_is_the_image_after_any_changes");
    on_both(|s| {
        noise(&s.path("a.img"), 16 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        for round in 0..rounds(50) {
            let said = change(&s.path("a.img"), &random);
            let finished = refresh(s);
            let why = format!("{:?} round {round}: {said}; {finished}", s.fs);
            assert_eq!(difference(&s.path("a.img"), &s.path("a.snap")), None, "{why}");
            assert!(skipped_bytes(&finished) > 0, "{why}");
            assert_eq!(finished["copied_bytes"], 0, "{why}");
            assert_eq!(addresses(&s.path("a.img")), addresses(&s.path("a.snap")), "{why}");
            assert_eq!(s.exits(0, &["status", "--json", "a.snap"])[0]["state"], "finished", "{why}");
            assert_eq!(fs::metadata(s.path("a.snap")).expect("the snapshot").mode() & 0o222, 0, "{why}");
        }
    });
}

#[test]
fn what_was_overwritten_and_not_flushed_is_never_taken_for_shared() {
    let random = Random::seeded("what_was_overwritten_and_not_flushed_is_never_taken_for_shared");
    on_both(|s| {
        noise(&s.path("a.img"), 4 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        for round in 0..rounds(50) {
            let image = writer(&s.path("a.img"));
            for _ in 0..1 + random.below(40) {
                let at = random.below(4 * MIB / BLOCK - 4) * BLOCK + random.below(3) * 100;
                image.write_all_at(&random.bytes(1 + random.below(9000) as usize), at).expect("acknowledged");
            }
            drop(image);
            nobody_writes(&s.path("a.img"));
            refresh(s);
            assert_eq!(difference(&s.path("a.img"), &s.path("a.snap")), None, "{:?} round {round}", s.fs);
        }
    });
}

#[test]
fn a_refresh_of_what_did_not_change_clones_nothing_that_is_shared() {
    on_both(|s| {
        noise(&s.path("a.img"), 16 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let finished = refresh(s);
        assert_eq!((skipped_bytes(&finished), &finished["calls"]), (16 * MIB, &0.into()), "{:?} {finished}", s.fs);
        // One block rewritten is one block cloned.
        writer(&s.path("a.img")).write_all_at(&[7; BLOCK as usize], 5 * MIB).expect("written");
        let finished = refresh(s);
        assert!(skipped_bytes(&finished) >= 15 * MIB, "{:?} {finished}", s.fs);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    });
}

#[test]
fn growing_and_shrinking_to_any_size_is_followed() {
    on_both(|s| {
        noise(&s.path("a.img"), 2 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        for len in [2 * MIB + 1, 5 * MIB, 4097, 4096, 4095, 1, 3 * MIB + 511] {
            let image = writer(&s.path("a.img"));
            image.set_len(len).expect("resized");
            image.write_all_at(b"x", len - 1).expect("written");
            drop(image);
            nobody_writes(&s.path("a.img"));
            refresh(s);
            assert_eq!(difference(&s.path("a.img"), &s.path("a.snap")), None, "{:?} {len} bytes", s.fs);
        }
    });
}

#[test]
fn where_there_is_no_snapshot_yet_refresh_makes_one() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        refresh(s);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    });
}

/// A refresh is refused with words that have `needle`, and DST is untouched.
fn check_refused(s: &Sandbox, flags: &[&str], needle: &str) {
    let (listing, bytes) = (s.listing(), fs::read(s.path("a.snap")).expect("the snapshot"));
    let record = xattr::get(s.path("a.snap"), "user.reflink-img").expect("xattr");
    let out = s.run(&[&["snapshot", "--refresh"], flags, &["a.img", "a.snap"]].concat());
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{:?}: {stderr}", s.fs);
    assert!(stderr.contains(needle), "{:?}: no {needle:?} in {stderr}", s.fs);
    assert_eq!(s.listing(), listing, "{:?}", s.fs);
    assert!(fs::read(s.path("a.snap")).expect("the snapshot") == bytes, "{:?}", s.fs);
    assert_eq!(xattr::get(s.path("a.snap"), "user.reflink-img").expect("xattr"), record, "{:?}", s.fs);
}

#[test]
fn a_snapshot_that_somebody_reads_or_that_has_another_name_is_not_overwritten() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        writer(&s.path("a.img")).write_all_at(b"changed", 0).expect("written");
        let reader = File::open(s.path("a.snap")).expect("a reader");
        check_refused(s, &[], "open");
        check_refused(s, &["--force"], "open");
        drop(reader);
        fs::hard_link(s.path("a.snap"), s.path("second")).expect("a link");
        check_refused(s, &[], "link");
        check_refused(s, &["--force"], "link");
        fs::remove_file(s.path("second")).expect("removed");
        refresh(s);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    });
}

/// Whoever finds it by its name in the moment in which it is taken waits, and what he is let in on then is not changed under him.
#[test]
fn who_opens_it_in_the_moment_in_which_it_is_taken_reads_one_snapshot() {
    on_both(|s| {
        let mut found = 0;
        for _ in 0..rounds(20) * 5 {
            fs::write(s.path("a.img"), vec![b'A'; 4 << 20]).expect("written");
            nobody_writes(&s.path("a.img"));
            s.exits(0, &["snapshot", "-q", "--force", "a.img", "a.snap"]);
            fs::write(s.path("a.img"), vec![b'B'; 4 << 20]).expect("written");
            nobody_writes(&s.path("a.img"));
            let read = |file: &File, at| {
                let mut bytes = vec![0; 2 << 20];
                file.read_exact_at(&mut bytes, at).expect("read");
                bytes
            };
            let over = AtomicBool::new(false);
            let reader = std::thread::scope(|scope| {
                let reads = scope.spawn(|| {
                    let journal = s.path("a.snap.journal");
                    let is_there = || fs::metadata(&journal).is_ok_and(|it| it.len() > 0);
                    assert!(support::until(|| is_there() || over.load(Ordering::Acquire)), "{:?}", s.fs);
                    let file = File::open(s.path("a.snap")).ok()?;
                    let first = read(&file, 0);
                    Some((file, first))
                });
                let out = s.run(&["snapshot", "--refresh", "-q", "a.img", "a.snap"]);
                over.store(true, Ordering::Release);
                assert!(matches!(out.status.code(), Some(0 | 3)), "{:?}: {out:?}", s.fs);
                reads.join().expect("the reader")
            });
            let Some((reader, first)) = reader else { continue };
            found += 1;
            let bytes = [first, read(&reader, 2 << 20)].concat();
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{:?}: a mixture", s.fs);
            drop(reader);
            // And it is a snapshot still, or again.
            assert_eq!(s.exits(0, &["status", "--json", "a.snap"])[0]["state"], "finished", "{:?}", s.fs);
            s.no_sidecars("a.snap");
        }
        println!("{:?}: {found} readers let in", s.fs);
    });
}

/// Its own owner, who may not write to it, is given the permission for as long as it takes to open it.
#[test]
fn a_refresh_that_has_no_room_for_its_journal_leaves_the_snapshots_mode() {
    on_both(|s| {
        noise(&s.path("a.img"), 2 * BLOCK);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let before = identity(&s.path("a.snap"));
        // More than the image has, and less than a journal.
        let script = "trap '' XFSZ; exec prlimit --fsize=16384 setpriv --bounding-set=-dac_override \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", PROGRAM, "snapshot", "-q", "--refresh", "a.img", "a.snap"]);
        let out = command.current_dir(s.dir()).output().expect("sh");
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && stderr.contains("cannot write the journal"), "{:?}: {stderr}", s.fs);
        assert_eq!(identity(&s.path("a.snap")), before, "{:?}", s.fs);
        s.no_sidecars("a.snap");
        refresh(s);
    });
}

#[test]
fn what_is_not_provably_a_snapshot_is_overwritten_only_by_force() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        let forced = || {
            s.exits(0, &["snapshot", "-q", "--refresh", "--force", "a.img", "a.snap"]);
            assert_same(&s.path("a.img"), &s.path("a.snap"));
        };
        noise(&s.path("a.snap"), 2 * MIB);
        check_refused(s, &[], "no record");
        forced();
        writer(&s.path("a.snap")).write_all_at(b"changed", 5).expect("root may");
        check_refused(s, &[], "modified");
        forced();
        must("cp", &[&"-a", &s.path("a.snap"), &s.path("copied")]);
        fs::rename(s.path("copied"), s.path("a.snap")).expect("renamed");
        check_refused(s, &[], "copy");
        forced();
        xattr::set(s.path("a.snap"), "user.reflink-img", b"not JSON").expect("xattr");
        check_refused(s, &[], "no record");
        forced();
    });
}

/// An image, its snapshot, and the image changed since; `old` is the snapshot's content.
fn prepared(s: &Sandbox) {
    for name in ["a.img", "a.snap", "old"] {
        let _ = fs::remove_file(s.path(name));
    }
    roomy(&s.path("a.img"), 256 * MIB);
    s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
    must("cp", &[&"--reflink=always", &s.path("a.snap"), &s.path("old")]);
    let image = writer(&s.path("a.img"));
    for i in 0..100 {
        image.write_all_at(&Random::new(i).bytes(BLOCK as usize), i * 5 * MIB / 2).expect("written");
    }
    drop(image);
    nobody_writes(&s.path("a.img"));
}

#[test]
fn a_refresh_that_was_killed_is_resumed_to_the_same_point_in_time() {
    on_both(|s| {
        prepared(s);
        let mut job = s.start(&slowly(&["snapshot", "--refresh", "a.img", "a.snap"]));
        assert!(job.wait_for("progress"));
        let t0 = job.events[0]["t0"].clone();
        job.kill();
        assert!(!s.path("a.snap").exists(), "half a refresh is not a snapshot");
        assert_eq!(s.exits(4, &["status", "--json", "a.snap"])[0]["state"], "interrupted");
        let events = s.exits(0, &["resume", "--json", "a.snap"]);
        assert_eq!(events.last().expect("an end")["t0"], t0);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
        s.no_sidecars("a.snap");
    });
}

#[test]
fn a_refresh_that_was_killed_is_healed_after_the_image_changed_again() {
    on_both(|s| {
        prepared(s);
        let mut job = s.start(&slowly(&["snapshot", "--refresh", "a.img", "a.snap"]));
        assert!(job.wait_for("progress"));
        job.kill();
        writer(&s.path("a.img")).write_all_at(&[9; 9000], 3 * MIB).expect("written");
        s.exits(6, &["resume", "a.snap"]);
        let finished = refresh(s);
        assert_eq!(finished["new_t0"], true, "{finished}");
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    });
}

#[test]
fn killed_at_any_instant_a_refresh_is_put_back_whole_or_taken_away_whole() {
    let random = Random::seeded("killed_at_any_instant_a_refresh_is_put_back_whole_or_taken_away_whole");
    on_both(|s| {
        let mut seen = std::collections::BTreeMap::<String, u32>::new();
        for round in 0..rounds(60) {
            prepared(s);
            let job = s.start(&slowly(&["snapshot", "--refresh", "a.img", "a.snap"]));
            // Around the first clone, where the snapshot stops to be what it was.
            support::until(|| s.path("a.snap.journal").exists());
            (0..random.below(1 << random.below(24))).for_each(|_| std::hint::spin_loop());
            job.kill();
            let out = s.run(&["abort", "--json", "a.snap"]);
            let said: Value = serde_json::from_slice(&out.stdout).unwrap_or(Value::Null);
            let what = said["what"].as_str().unwrap_or("nothing to abort").to_owned();
            let why = format!("{:?} round {round}: {what} {out:?}", s.fs);
            *seen.entry(what.clone()).or_default() += 1;
            match what.as_str() {
                // Before the journal was complete nothing had been touched.
                "removed" if out.status.code() == Some(0) && s.path("a.snap").exists() => {
                    assert_eq!(difference(&s.path("old"), &s.path("a.snap")), None, "{why}");
                    assert_eq!(s.exits(0, &["status", "--json", "a.snap"])[0]["state"], "finished", "{why}");
                }
                "removed" if out.status.code() == Some(0) => {}
                "put-back" => {
                    assert_eq!(difference(&s.path("old"), &s.path("a.snap")), None, "{why}");
                    let state = s.exits(0, &["status", "--json", "a.snap"]);
                    assert_eq!(state[0]["state"], "finished", "{why}");
                }
                _ => {
                    // Killed before the journal was complete: the old snapshot is there; or after the end.
                    let finished = difference(&s.path("a.img"), &s.path("a.snap")).is_none();
                    assert!(finished || difference(&s.path("old"), &s.path("a.snap")).is_none(), "{why}");
                }
            }
            if out.status.code() == Some(0) {
                s.no_sidecars("a.snap");
            }
            refresh(s);
            assert_eq!(difference(&s.path("a.img"), &s.path("a.snap")), None, "{why}");
        }
        eprintln!("{:?}: {seen:?}", s.fs);
    });
}

#[test]
fn a_snapshot_of_another_image_can_be_refreshed_from_this_one() {
    on_both(|s| {
        fragmented(&s.path("b.img"), 500);
        noise(&s.path("a.img"), 3 * MIB + 5);
        s.exits(0, &["snapshot", "-q", "b.img", "a.snap"]);
        let out = s.run(&["snapshot", "-q", "--refresh", "a.img", "a.snap"]);
        // Allowed or refused, but never a mixture.
        match out.status.code() {
            Some(0) => assert_same(&s.path("a.img"), &s.path("a.snap")),
            code => {
                assert_eq!(code, Some(3), "{out:?}");
                assert_same(&s.path("b.img"), &s.path("a.snap"));
            }
        }
    });
}

/// A refresh that has T0 and has not cloned anything: it waits for its turn.
fn before_the_first_clone(s: &Sandbox) -> (RealDisk, support::Job) {
    let other = RealDisk::open_dir(&s.dir()).expect("the directory");
    assert!(other.take_turn());
    let mut job = s.start(&["snapshot", "--consistency", "frozen", "--refresh", "a.img", "a.snap"]);
    assert!(job.wait_for("progress"), "{:?}", s.fs);
    (other, job)
}

#[test]
fn a_refresh_that_has_cloned_nothing_is_put_back_whatever_ended_it() {
    on_both(|s| {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            prepared(s);
            let before = identity(&s.path("a.snap"));
            let (_other, job) = before_the_first_clone(s);
            job.signal(signal);
            job.end();
            assert_eq!(s.exits(0, &["abort", "--json", "a.snap"])[0]["what"], "put-back", "{:?} {signal}", s.fs);
            assert_eq!(identity(&s.path("a.snap")), before, "{:?} {signal}", s.fs);
            assert_same(&s.path("old"), &s.path("a.snap"));
            assert_eq!(s.exits(0, &["status", "--json", "a.snap"])[0]["state"], "finished", "{:?} {signal}", s.fs);
        }
    });
}

#[test]
fn a_snapshot_that_was_half_put_back_is_marked_and_closed_before_it_is_changed() {
    on_both(|s| {
        prepared(s);
        let record = xattr::get(s.path("a.snap"), "user.reflink-img").expect("xattr").expect("a record");
        before_the_first_clone(s).1.kill();
        // What an abort does before its rename.
        let partial = s.path("a.snap.partial");
        xattr::set(&partial, "user.reflink-img", &record).expect("xattr");
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o444)).expect("chmod");
        let other = RealDisk::open_dir(&s.dir()).expect("the directory");
        assert!(support::until(|| other.take_turn()));
        let mut job = s.start(&["resume", "a.snap"]);
        assert!(job.wait_for("progress"), "{:?}", s.fs);
        assert_eq!(fs::metadata(&partial).expect("there").mode() & 0o777, 0o600, "{:?}", s.fs);
        let now = xattr::get(&partial, "user.reflink-img").expect("xattr").expect("a record");
        assert!(String::from_utf8_lossy(&now).contains("in-progress"), "{:?}: {now:?}", s.fs);
        other.end_turn();
        assert_eq!(job.end().code, Some(0), "{:?}", s.fs);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    });
}
