//! `rotate` where something is in its way: snapshots in use, files that cannot be removed, runs that were killed, clocks that were wrong.

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use jiff::Zoned;
use serde_json::Value;

use support::rotating::{MIB, PATTERN, age, begin, newest, record, rotate, running, snaps};
use support::{LoopDevice, Random, Sandbox, assert_same, must, noise, on_both, until, writer};

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
        assert!(snaps(s).is_superset(&BTreeSet::from([read, written, mounted])) && snaps(s).len() == 4);
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
        let [old, new] = taken(s);
        let aside = s.path("snaps").join(format!("{old}.removing"));
        fs::rename(s.path("snaps").join(&old), &aside).expect("renamed");
        writer(&aside).write_all_at(b"a guest", 0).expect("written");
        rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
        assert_eq!(snaps(s), BTreeSet::from([old.clone(), new]));
        assert!(fs::read(s.path("snaps").join(&old)).expect("there").starts_with(b"a guest"));
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
        rotate(s, 0, &["--keep-last", "1"]);
        assert_eq!(snaps(s).len(), 1, "{:?}", snaps(s));
        assert_same(&s.path("a.img"), &s.path("snaps").join(newest(s)));
        // One that cannot goes before: it has what space it has, and nobody can use it.
        killed(s);
        fs::File::options().append(true).open(s.path("a.img")).and_then(|it| it.set_len(5 * MIB)).expect("resized");
        rotate(s, 3, &["--keep-last", "1", "--min-free", "99%"]);
        assert_eq!(snaps(s).len(), 1, "{:?}", snaps(s));
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
            assert!(snaps(s).len() == 2 && snaps(s).contains(&good), "{:?}", snaps(s));
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
