//! `rotate` where something is in its way: snapshots in use, files that cannot be removed, runs that were killed, clocks that were wrong.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, chown};

use jiff::Zoned;
use serde_json::{Value, json};

use crate::support::rotating::{MIB, PATTERN, age, begin, newest, record, rotate, running, snaps};
use crate::support::{LoopDevice, Random, Sandbox, assert_same, must, noise, on_both, until, writer};

/// So many snapshots, the oldest first.
fn taken<const N: usize>(s: &Sandbox) -> [String; N] {
    for _ in 0..N {
        rotate(s, 0, &["--keep-last", "99"]);
    }
    snaps(s).into_iter().collect::<Vec<_>>().try_into().expect("all of them")
}

fn of(told: &[Value], event: &str) -> Vec<Value> {
    told.iter().filter(|it| it["event"] == event).cloned().collect()
}

/// A guest that runs from a snapshot would write to a file that is gone with its last descriptor.
#[test]
fn a_snapshot_that_somebody_has_open_is_left_for_the_next_run() {
    on_both(|s| {
        begin(s);
        let [read, written, mounted, _] = taken(s);
        let path = |name: &str| s.path("snaps").join(name);
        let held = (File::open(path(&read)).expect("open"), writer(&path(&written)));
        let device = LoopDevice::on(&path(&mounted), false);
        // A second name may be one that goes, as a restore's.
        fs::hard_link(path(&written), s.path("a.img.restore-source")).expect("a link");
        let all = snaps(s);
        let plan = rotate(s, 0, &["--prune-only", "--keep-last", "1", "--dry-run"]);
        assert!(plan.iter().all(|it| it["what"] == "keep"), "{plan:?}");
        assert_eq!(of(&plan, "plan").iter().filter(|it| it["reasons"][0] == "in-use").count(), 3, "{plan:?}");
        let told = rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
        assert_eq!(snaps(s), all, "{:?}", s.fs);
        let pruned = told.last().expect("an end");
        assert_eq!((&pruned["in_use"], &pruned["removed"]), (&3.into(), &0.into()), "{told:?}");
        assert_eq!(of(&told, "kept-in-use").len(), 3, "{told:?}");
        // For people as well, and for those whom cron writes to.
        let out = s.run(&["rotate", "-q", PATTERN, "--prune-only", "--keep-last", "1"]);
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(text.contains("in use") && text.contains(&written), "{text}");
        // None of these is made the new one either, and none of them keeps it from being taken.
        rotate(s, 0, &["--keep-last", "1", "--recycle"]);
        // The one that nobody has open is left for the next run to be made the new one.
        assert!(snaps(s).is_superset(&BTreeSet::from([read, written, mounted])) && snaps(s).len() == 5);
        drop((held, device));
        // The kernel lets go of a loop device's file in its own time.
        let gone = || {
            rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
            snaps(s).len() == 1
        };
        assert!(until(gone), "{:?}: {:?}", s.fs, snaps(s));
        assert_same(&s.path("a.img"), &path(&newest(s)));
    });
}

/// Somebody had it open when it lost its name, and has written to it since: it is no snapshot any more, and nobody else's to remove.
#[test]
fn what_somebody_has_written_to_has_its_name_again() {
    on_both(|s| {
        begin(s);
        let [old, second, new] = taken(s);
        // Within what it was, and behind its end.
        for (name, at) in [(&old, 0), (&second, 4 * MIB)] {
            let aside = s.path("snaps").join(format!("{name}.removing"));
            fs::rename(s.path("snaps").join(name), &aside).expect("renamed");
            writer(&aside).write_all_at(b"a guest", at).expect("written");
        }
        rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
        assert_eq!(snaps(s), BTreeSet::from([old.clone(), second.clone(), new]));
        assert!(fs::read(s.path("snaps").join(&old)).expect("there").starts_with(b"a guest"));
        assert!(fs::read(s.path("snaps").join(&second)).expect("there").ends_with(b"a guest"));
    });
}

/// As a run that was killed leaves it.
#[test]
fn what_was_about_to_be_removed_is_not_while_somebody_has_it_open() {
    on_both(|s| {
        begin(s);
        let [old, new] = taken(s);
        let aside = format!("{old}.removing");
        fs::rename(s.path("snaps").join(&old), s.path("snaps").join(&aside)).expect("renamed");
        let held = File::open(s.path("snaps").join(&aside)).expect("open");
        let told = rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
        assert_eq!(snaps(s), BTreeSet::from([aside, new.clone()]));
        assert_eq!(told.last().expect("an end")["in_use"], 1, "{told:?}");
        assert_eq!(held.metadata().expect("its size").len(), 4 * MIB);
        drop(held);
        // A process that another test starts may have it open for a moment more.
        let gone = || {
            rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
            snaps(s) == BTreeSet::from([new.clone()])
        };
        assert!(until(gone), "{:?}: {:?}", s.fs, snaps(s));
    });
}

/// A job of this image that was killed, and whose T0 still holds.
fn killed(s: &Sandbox) -> String {
    killed_as(s, "snaps/a-20200101T000000.000000000+0000.snap".to_owned())
}

fn killed_as(s: &Sandbox, name: String) -> String {
    let job = s.start_with_fault("held:10", &["snapshot", "--chunk", "64K", "a.img", &name]);
    assert!(until(|| s.path("held").exists()));
    job.kill();
    fs::remove_file(s.path("held")).expect("let go");
    s.exits(4, &["status", &name]);
    name
}

#[test]
fn what_can_be_resumed_is_not_thrown_away_before_there_is_a_new_one() {
    on_both(|s| {
        begin(s);
        let name = killed(s);
        // Refused: nothing is touched.
        rotate(s, 3, &["--keep-last", "1", "--min-free", "99%"]);
        s.exits(0, &["resume", &name]);
        assert_same(&s.path("a.img"), &s.path(&name));
        fs::remove_file(s.path(&name)).expect("removed");
        killed(s);
        let before = s.listing();
        let plan = rotate(s, 0, &["--keep-last", "1", "--dry-run"]);
        assert!(plan.iter().any(|it| it["what"] == "abort" && it["dst"] == name.as_str()), "{plan:?}");
        assert_eq!(s.listing(), before);
        let out = s.run(&["rotate", PATTERN, "--keep-last", "1"]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && said.contains("taken back") && !said.contains(" or "), "{said}");
        assert_eq!(snaps(s).len(), 1, "{:?}", snaps(s));
        assert_same(&s.path("a.img"), &s.path("snaps").join(newest(s)));
        // One that cannot goes before: it has what space it has, and nobody can use it.
        killed(s);
        fs::File::options().append(true).open(s.path("a.img")).and_then(|it| it.set_len(5 * MIB)).expect("resized");
        rotate(s, 3, &["--keep-last", "1", "--min-free", "99%"]);
        assert_eq!(snaps(s).len(), 1, "{:?}", snaps(s));
    });
}

/// Killed before it had begun anything.
#[test]
fn a_journal_that_was_never_completed_does_not_stay() {
    on_both(|s| {
        begin(s);
        for (day, bytes) in [(1, &b""[..]), (2, b"RFLKIMGJ"), (3, &[0; 8])] {
            fs::write(s.path(format!("snaps/a-2020010{day}T000000.000000000+0000.snap.journal")), bytes)
                .expect("a file");
        }
        rotate(s, 0, &["--keep-last", "1"]);
        assert_eq!(snaps(s).len(), 1, "{:?}", snaps(s));
    });
}

/// With its attributes, and with the same inode number: whoever copies a whole directory to another file system gets that.
#[test]
fn a_copy_on_another_file_system_is_no_snapshot() {
    on_both(|s| {
        begin(s);
        let all = taken::<2>(s);
        let alone = PATTERN.split_once('=').expect("a pattern").1;
        let told = |field: &str, other: fn(&Value) -> Value| {
            for name in &all {
                let path = s.path("snaps").join(name);
                let bytes = xattr::get(&path, "user.reflink-img").expect("read").expect("there");
                let mut record: Value = serde_json::from_slice(&bytes).expect("JSON");
                record[field] = other(&record[field]);
                xattr::set(&path, "user.reflink-img", record.to_string().as_bytes()).expect("root may");
                let listed = s.exits(0, &["list", "--json", path.to_str().expect("text")]);
                assert_eq!(listed[0]["state"], "copy", "{:?} {field}: {listed:?}", s.fs);
                s.exits(0, &["rotate", "--prune-only", alone, "--keep-last", "1"]);
                assert_eq!(snaps(s).len(), 2, "{:?} {field}", s.fs);
                xattr::set(&path, "user.reflink-img", &bytes).expect("root may");
            }
        };
        told("fs", |_| "00000000-0000-4000-8000-000000000001".into());
        // The number of a file that was removed is another one's.
        told("generation", |was| (was.as_u64().unwrap_or(0) + 1).into());
        // Those of before that say nothing of it are what they were.
        for name in &all {
            let path = s.path("snaps").join(name);
            let bytes = xattr::get(&path, "user.reflink-img").expect("read").expect("there");
            let mut record: Value = serde_json::from_slice(&bytes).expect("JSON");
            record.as_object_mut().expect("an object").remove("generation");
            xattr::set(&path, "user.reflink-img", record.to_string().as_bytes()).expect("root may");
        }
        s.exits(0, &["rotate", "--prune-only", alone, "--keep-last", "1"]);
        assert_eq!(snaps(s).len(), 1, "{:?}", s.fs);
    });
}

/// A pattern with no more than the day in it, say, and the second run of a day.
#[test]
fn a_run_that_has_the_name_of_what_can_be_resumed_goes_on_with_it() {
    on_both(|s| {
        begin(s);
        let name = killed_as(s, format!("snaps/a-{}.snap", Zoned::now().year()));
        let told = s.exits(0, &["rotate", "--json", "a.img=snaps/a-%Y.snap", "--keep-last", "1"]);
        assert!(told.iter().any(|it| it["new_t0"] == false), "{told:?}");
        assert_eq!(snaps(s).len(), 1, "{:?}", snaps(s));
        assert_same(&s.path("a.img"), &s.path(&name));
    });
}

/// The process that refreshes goes on alone, and nobody is left to give the snapshot its new name.
#[test]
fn killed_while_an_old_one_is_recycled_the_next_run_gives_it_its_name() {
    on_both(|s| {
        begin(s);
        let dir = s.path("snaps");
        for fault in ["held:0", "held:1"] {
            let [old, kept] = taken(s);
            let was = fs::metadata(dir.join(&old)).expect("there").ino();
            let id = record(s, &old).job;
            let bytes = Random::seeded(fault).bytes(MIB as usize);
            writer(&s.path("a.img")).write_all_at(&bytes, MIB).expect("written");
            let mut job = s.command(&["rotate", PATTERN, "--keep-last", "1", "--recycle", "-q"]);
            let mut job = job.env("REFLINK_IMG_FAULT", fault).spawn().expect("started");
            assert!(until(|| s.path("held").exists()));
            job.kill().and_then(|()| job.wait()).expect("killed");
            // A run in between finds nothing to be ended.
            rotate(s, 0, &["--prune-only", "--keep-last", "9"]);
            fs::remove_file(s.path("held")).expect("let go");
            assert!(until(|| running(s).is_empty()));
            assert!(snaps(s).contains(&old) && record(s, &old).job != id, "{:?} {fault}: {:?}", s.fs, snaps(s));
            rotate(s, 0, &["--prune-only", "--keep-last", "9"]);
            let names = snaps(s);
            assert!(names.len() == 2 && !names.contains(&old) && names.contains(&kept), "{:?}: {names:?}", s.fs);
            assert_eq!(fs::metadata(dir.join(newest(s))).expect("there").ino(), was);
            assert_same(&s.path("a.img"), &dir.join(newest(s)));
            names.iter().for_each(|name| fs::remove_file(dir.join(name)).expect("removed"));
        }
    });
}

/// The promise of a run that was killed is not for what somebody else makes of the snapshot.
#[test]
fn what_is_refreshed_by_hand_keeps_its_name() {
    on_both(|s| {
        begin(s);
        let [old, _] = taken(s);
        let later = "2999-01-01T00:00:00Z";
        let promise = json!({"v": 1, "was": record(s, &old).job, "name": "a-20200101T000000.000000000+0000.snap", "until": later});
        let path = s.path("snaps").join(&old);
        xattr::set(&path, "user.reflink-img.name", promise.to_string().as_bytes()).expect("root may");
        let before = snaps(s);
        // What touches nothing keeps the promise, too.
        s.exits(0, &["snapshot", "-q", "--refresh", "--dry-run", "a.img", path.to_str().expect("text")]);
        assert!(xattr::get(&path, "user.reflink-img.name").expect("read").is_some());
        s.exits(0, &["snapshot", "-q", "--refresh", "a.img", path.to_str().expect("text")]);
        rotate(s, 0, &["--keep-last", "9", "--prune-only"]);
        assert_eq!(snaps(s), before, "{:?}", s.fs);
    });
}

/// Whoever has given his own snapshot a name of another time has meant it.
#[test]
fn what_rotate_has_not_recycled_keeps_its_name() {
    on_both(|s| {
        begin(s);
        let mine = "a-20200101T000000.000000000+0000.snap";
        s.exits(0, &["snapshot", "-q", "a.img", &format!("snaps/{mine}")]);
        rotate(s, 0, &["--keep-last", "3", "--recycle"]);
        rotate(s, 0, &["--keep-last", "3", "--prune-only"]);
        assert!(snaps(s).len() == 2 && snaps(s).contains(mine), "{:?}", snaps(s));
    });
}

/// What is another user's is not refreshed, nor is what somebody has opened: snapshots are taken all the same.
#[test]
fn where_no_old_one_can_be_recycled_a_new_one_is_made() {
    on_both(|s| {
        begin(s);
        chown(s.path("a.img"), Some(1000), Some(1000)).expect("chown");
        for _ in 0..3 {
            rotate(s, 0, &["--keep-last", "1", "--recycle"]);
        }
        chown(s.path("a.img"), Some(1001), Some(1001)).expect("chown");
        let newest = || snaps(s).into_iter().next_back().expect("a snapshot");
        for _ in 0..3 {
            let before = newest();
            let plan = rotate(s, 0, &["--keep-last", "1", "--recycle", "--dry-run"]);
            rotate(s, 0, &["--keep-last", "1", "--recycle"]);
            assert_ne!(newest(), before, "{:?}: {plan:?}", s.fs);
        }
        assert_eq!(snaps(s).len(), 2, "{:?}: {:?}", s.fs, snaps(s));
    });
}

/// One that is damaged would be chosen again by each run that comes.
#[test]
fn where_an_old_one_fails_to_become_the_new_one_a_new_one_is_made() {
    on_both(|s| {
        begin(s);
        // So many pieces that differ, and are cloned one by one; a new file takes fewer calls.
        let change = |byte: u8| {
            let image = writer(&s.path("a.img"));
            (0..64).for_each(|nth| image.write_all_at(&[byte; 100], nth * (64 << 10)).expect("written"));
            image.sync_all().expect("synced");
        };
        let run = |fault: &str, more: &[&str]| {
            let mut command = s.command(&[&["rotate", PATTERN, "--keep-last", "1", "--recycle"], more].concat());
            let out = command.env("REFLINK_IMG_FAULT", fault).output().expect("started");
            (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
        };
        for (nth, (fault, code)) in (1..).zip([("EIO:20", 6), ("ENOMEM:20", 1)]) {
            let [old, _] = taken(s);
            change(nth);
            // Where a guest is frozen its state is what counts, and that is told by who has frozen it.
            let freezes = ["--freeze", "true", "--thaw", "true"];
            let (ended, said) = run(fault, &freezes);
            assert!(ended == Some(code) && !said.contains("a new one is made"), "{:?} {fault}: {ended:?} {said}", s.fs);
            let left = |name: &str| name.ends_with(".partial") && name.starts_with(&old);
            assert!(snaps(s).iter().any(|name| left(name)), "{:?} {fault}: {:?}", s.fs, snaps(s));
            rotate(s, 0, &["--keep-last", "2"]);
            rotate(s, 0, &["--keep-last", "2"]);
            change(nth + 10);
            let before = newest(s);
            let (ended, said) = run(fault, &[]);
            assert!(ended == Some(0) && said.contains("a new one is made"), "{:?} {fault}: {ended:?} {said}", s.fs);
            let made = snaps(s).into_iter().rfind(|name| name.ends_with(".snap")).expect("a new one");
            assert!(made > before, "{:?} {fault}: {:?}", s.fs, snaps(s));
            assert_same(&s.path("a.img"), &s.path("snaps").join(&made));
            // The next run takes back what is left, and nothing has a name that is another one's.
            let out = s.run(&["rotate", PATTERN, "--keep-last", "1"]);
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(
                out.status.success() && said.contains("taken back") && !said.contains("cannot"),
                "{:?}: {said}",
                s.fs
            );
            assert_eq!(snaps(s).len(), 1, "{:?} {fault}: {:?}", s.fs, snaps(s));
            fs::remove_file(s.path("snaps").join(newest(s))).expect("removed");
        }
    });
}

#[test]
fn one_that_cannot_be_removed_does_not_keep_the_others() {
    on_both(|s| {
        begin(s);
        noise(&s.path("b.img"), MIB);
        let pair = "b.img=snaps/b-%Y%m%dT%H%M%S%.9f%z.snap";
        for _ in 0..4 {
            rotate(s, 0, &[pair, "--keep-last", "9"]);
        }
        let stuck = snaps(s).into_iter().nth(1).expect("a snapshot");
        must("chattr", &[&"+i", &s.path("snaps").join(&stuck)]);
        let run = s.run(&["rotate", "--json", "--prune-only", PATTERN, pair, "--keep-last", "1"]);
        must("chattr", &[&"-i", &s.path("snaps").join(&stuck)]);
        let stderr = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&stuck) && stderr.contains("hint: "), "{stderr}");
        let left = snaps(s);
        assert!(left.len() == 3 && left.contains(&stuck), "{:?}: {left:?}", s.fs);
        let told: Vec<Value> = String::from_utf8_lossy(&run.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let failed: Vec<_> = of(&told, "pruned").iter().map(|it| it["failed"].clone()).collect();
        assert_eq!(failed, [1, 0], "{told:?}");
        rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
        assert!(!snaps(s).contains(&stuck));
    });
}

/// A clock that was wrong is not guessed at: it is told.
#[test]
fn snapshots_of_the_future_are_told() {
    on_both(|s| {
        begin(s);
        let [first, _] = taken(s);
        age(s, &first, -400);
        let plan = rotate(s, 0, &["--prune-only", "--keep-last", "1", "--dry-run"]);
        let future: Vec<_> = plan.iter().filter(|it| it["reasons"][0] == "of-the-future").collect();
        assert!(future.len() == 1 && future[0]["what"] == "keep", "{plan:?}");
        let told = rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
        assert_eq!(told.last().expect("an end")["of_the_future"], 1, "{told:?}");
        let out = s.run(&["rotate", PATTERN, "--prune-only", "--keep-last", "1"]);
        assert!(String::from_utf8_lossy(&out.stderr).contains("in the future"), "{out:?}");
        assert_eq!(snaps(s).len(), 2);
    });
}

/// What is not of one instant takes the place of nothing that is, and what is foretold is what comes.
#[test]
fn the_newest_good_one_stays_whatever_is_taken_after_it() {
    on_both(|s| {
        begin(s);
        let [old, good] = taken(s);
        let none = ["--consistency", "none", "--keep-last", "1"];
        let plan = rotate(s, 0, &[&none[..], &["--dry-run"]].concat());
        let foretold = |what: &str| -> Vec<String> {
            let those = plan.iter().filter(|it| it["what"] == what);
            those.map(|it| it["dst"].as_str().expect("text").rsplit('/').next().expect("a name").to_owned()).collect()
        };
        assert_eq!((foretold("keep"), foretold("remove")), (vec![good.clone()], vec![old]), "{plan:?}");
        rotate(s, 0, &none);
        assert!(snaps(s).len() == 2 && snaps(s).contains(&good), "{:?}", snaps(s));
        // Torn ones are recycled, the good one is not.
        for _ in 0..3 {
            rotate(s, 0, &[&none[..], &["--recycle"]].concat());
            assert!(snaps(s).len() == 3 && snaps(s).contains(&good), "{:?}", snaps(s));
        }
        rotate(s, 0, &["--keep-daily", "1", "--prune-only"]);
        assert!(snaps(s).contains(&good));
    });
}

/// On the backup's host there is no image that could be named.
#[test]
fn several_lineages_under_one_pattern_are_told_apart() {
    on_both(|s| {
        fs::create_dir(s.path("snaps")).expect("a directory");
        noise(&s.path("x.img"), MIB);
        for day in 1..=3 {
            let snap = format!("x.{day}");
            s.exits(0, &["snapshot", "-q", "x.img", &snap]);
            s.exits(0, &["send", "-q", &snap, "-o", "d"]);
            s.exits(0, &["receive", "-q", "d", "-o", &format!("snaps/2020-01-0{day}.snap")]);
            fs::remove_file(s.path("d")).expect("removed");
        }
        let out = s.run(&["rotate", "--prune-only", "snaps/%F.snap", "--keep-last", "1"]);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(3), "{stderr}");
        for needle in ["2020-01-01.snap", "2020-01-02.snap", "2020-01-03.snap", "another directory"] {
            assert!(stderr.contains(needle), "no {needle} in {stderr}");
        }
        // And so it goes on.
        fs::create_dir(s.path("old")).expect("a directory");
        for day in 1..=2 {
            let name = format!("2020-01-0{day}.snap");
            fs::rename(s.path("snaps").join(&name), s.path("old").join(&name)).expect("moved");
        }
        s.exits(0, &["rotate", "--prune-only", "snaps/%F.snap", "--keep-last", "1"]);
    });
}

/// What is rolled back to it would be a mixture for ever.
#[test]
fn the_source_of_a_restore_is_there_to_its_end() {
    on_both(|s| {
        begin(s);
        let [old, _] = taken(s);
        writer(&s.path("a.img")).write_all_at(&Random::new(1).bytes(2 * MIB as usize), 0).expect("written");
        let bytes = fs::read(s.path("snaps").join(&old)).expect("the snapshot");
        let job = s.start_with_fault("held:1", &["restore", &format!("snaps/{old}"), "a.img"]);
        assert!(until(|| s.path("held").exists()));
        let pattern = PATTERN.split_once('=').expect("a pattern").1;
        let told = s.exits(0, &["rotate", "--json", "--prune-only", pattern, "--keep-last", "1"]);
        assert_eq!(told.last().expect("an end")["in_use"], 1, "{told:?}");
        fs::remove_file(s.path("held")).expect("let go");
        let ended = job.end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(fs::read(s.path("a.img")).expect("the image") == bytes);
    });
}
