//! `rotate`: what is kept is what the rules say, nothing is ever removed that is not ours and surplus, and whenever it is killed the newest
//! good snapshot is there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::{Timestamp, ToSpan, Zoned};
use rclone_img::rotate::policy::{Policy, Why};
use serde_json::{Value, json};

use crate::support;
use crate::support::rotating::{MIB, PATTERN, age, begin, newest, record, rotate, running, set_t0, snaps};
use crate::support::{BLOCK, Random, assert_same, fragmented, must, noise, on_both, refused, runs, there, writer};

#[test]
fn the_last_ones_are_kept_and_the_newest_is_the_image() {
    on_both(|s| {
        begin(s);
        let mut before = Vec::new();
        for round in 0..6 {
            writer(&s.path("a.img")).write_all_at(&[round; 100], u64::from(round) * BLOCK).expect("written");
            let told = rotate(s, 0, &["--keep-last", "3", "--latency", "5ms"]);
            before.push(newest(s));
            assert_same(&s.path("a.img"), &s.path("snaps").join(newest(s)));
            let pruned = told.last().expect("an end");
            assert_eq!((&pruned["event"], &pruned["kept"]), (&"pruned".into(), &(round + 1).min(3).into()), "{pruned}");
            assert_eq!(snaps(s).len(), usize::from(round + 1).min(3));
        }
        assert_eq!(snaps(s), before[3..].iter().cloned().collect());
        let listed = s.exits(0, &["list", "--json", "snaps"]);
        assert_eq!(listed.iter().filter(|it| it["state"] == "finished").count(), 3, "{listed:?}");
        assert!(listed[0]["own_bytes"].as_u64().is_some_and(|own| own < MIB), "{listed:?}");
    });
}

#[test]
fn what_is_not_a_snapshot_of_this_image_is_left_alone() {
    on_both(|s| {
        begin(s);
        rotate(s, 0, &["--keep-last", "1"]);
        let named = |n: u32| s.path("snaps").join(format!("a-2020010{n}T000000.000000000+0000.snap"));
        // A live disk that began as a copy of a snapshot, with its record.
        must("cp", &[&"-a", &s.path("snaps").join(newest(s)), &named(1)]);
        fs::write(named(2), b"mine").expect("a file");
        // One that was written to.
        s.exits(0, &["snapshot", "-q", "--writable", "a.img", named(3).to_str().expect("text")]);
        writer(&named(3)).write_all_at(b"x", 0).expect("written");
        // One of another image.
        noise(&s.path("b.img"), MIB);
        s.exits(0, &["snapshot", "-q", "b.img", named(4).to_str().expect("text")]);
        // One of another name.
        s.exits(0, &["snapshot", "-q", "a.img", "snaps/mine.snap"]);
        let before = snaps(s);
        let told = rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
        assert_eq!(snaps(s), before);
        assert_eq!(told.last().expect("an end")["of_other_images"], 1, "{told:?}");
        refused(
            s,
            "several images",
            &["rotate", "--prune-only", "snaps/a-%Y%m%dT%H%M%S%.9f%z.snap", "--keep-last", "1"],
        );
        let states: Vec<Value> =
            s.exits(0, &["list", "--json", "snaps"]).into_iter().map(|it| it["state"].clone()).collect();
        for state in ["finished", "copy", "modified"] {
            assert!(states.iter().any(|it| it == state), "{state}: {states:?}");
        }
    });
}

#[test]
fn what_would_remove_all_or_cannot_be_told_apart_is_no_command() {
    on_both(|s| {
        begin(s);
        for args in [
            &["rotate", PATTERN][..],
            &["rotate", PATTERN, "--keep-last", "0"],
            &["rotate", "a.img=snaps/a.snap", "--keep-last", "1"],
            &["rotate", "a.img", "--keep-last", "1"],
            &["rotate", "snaps/%F", "--keep-last", "1"],
            &["rotate", PATTERN, "--keep-last", "1", "--require-freeze"],
        ] {
            s.exits(2, args);
        }
        let dir = File::open(s.path("snaps")).expect("open");
        dir.lock().expect("nobody has it");
        rotate(s, 5, &["--keep-last", "1"]);
        // Who only looks neither has nor needs a turn.
        rotate(s, 0, &["--keep-last", "1", "--dry-run"]);
        // What another test starts has it open for a moment as well.
        dir.unlock().expect("unlocked");
        assert!(snaps(s).is_empty());
        rotate(s, 0, &["--keep-last", "1"]);
        let before = s.listing();
        let plan = rotate(s, 0, &["--keep-last", "1", "--dry-run"]);
        let what: Vec<&str> = plan.iter().map(|it| it["what"].as_str().expect("text")).collect();
        assert_eq!((what, s.listing()), (vec!["take", "remove"], before));
        // A snapshot that fails removes nothing, and its exit code is handed on.
        let held = writer(&s.path("a.img"));
        let before = snaps(s);
        rotate(s, 3, &["--keep-last", "1", "--consistency", "frozen"]);
        drop(held);
        assert_eq!(snaps(s), before);
    });
}

#[test]
fn one_that_is_surplus_is_recycled_and_no_other() {
    on_both(|s| {
        begin(s);
        let inode = |name: &str| fs::metadata(s.path("snaps").join(name)).expect("there").ino();
        for _ in 0..3 {
            rotate(s, 0, &["--keep-last", "3"]);
        }
        let [oldest, second, third] = snaps(s).into_iter().collect::<Vec<_>>().try_into().expect("three");
        // All three are wanted until there is a fourth: none may be overwritten before.
        rotate(s, 0, &["--keep-last", "3", "--recycle"]);
        assert!(snaps(s).contains(&third) && snaps(s).len() == 4, "{:?}", snaps(s));
        // With two wanted the two oldest are surplus, and the newer of them is more like the image.
        let was = inode(&second);
        writer(&s.path("a.img")).write_all_at(b"new", 9).expect("written");
        let told = rotate(s, 0, &["--keep-last", "2", "--recycle"]);
        assert!(
            told.iter().any(|it| it["skipped_bytes"].as_u64().is_some_and(|skipped| skipped > 3 * MIB)),
            "{told:?}"
        );
        assert_eq!((inode(&newest(s)), snaps(s).len()), (was, 3));
        assert!(!snaps(s).contains(&oldest));
        assert_same(&s.path("a.img"), &s.path("snaps").join(newest(s)));
        // And so it goes on: each run makes the one the new one that the run before has left for it.
        for _ in 0..2 {
            let plan = rotate(s, 0, &["--keep-last", "2", "--recycle", "--dry-run"]);
            let what: Vec<_> = plan.iter().map(|it| it["what"].as_str().expect("text")).collect();
            assert_eq!(
                (what, &plan[2]["reasons"][0]),
                (vec!["take", "keep", "keep", "recycle"], &"recycle-next".into()),
                "{plan:?}"
            );
            let left = inode(snaps(s).first().expect("the oldest"));
            rotate(s, 0, &["--keep-last", "2", "--recycle"]);
            assert_eq!((inode(&newest(s)), snaps(s).len()), (left, 3));
        }
        rotate(s, 0, &["--keep-last", "2", "--prune-only"]);
        assert_eq!(snaps(s).len(), 2);
    });
}

#[test]
fn all_disks_of_a_machine_are_one_set() {
    on_both(|s| {
        begin(s);
        noise(&s.path("b.img"), MIB);
        for _ in 0..3 {
            let more = ["b.img=snaps/b-%Y%m%dT%H%M%S%.9f%z.snap", "--keep-daily", "1", "--keep-last", "2"];
            rotate(s, 0, &more);
        }
        let names: Vec<String> = snaps(s).into_iter().collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!((&names[0][1..], &names[1][1..]), (&names[2][1..], &names[3][1..]));
        let t0 = |nth: usize| record(s, &names[nth]).t0;
        assert_eq!((t0(0), t0(1)), (t0(2), t0(3)), "{names:?}");
        assert!(t0(0) < t0(1), "{names:?}");
    });
}

#[test]
fn a_day_is_one_of_the_clock_on_the_wall() {
    on_both(|s| {
        begin(s);
        for _ in 0..2 {
            rotate(s, 0, &["--keep-last", "9"]);
        }
        // One day in Greenwich; where the clock is three hours ahead midnight is in between.
        for (name, t0) in snaps(s).iter().zip(["2020-01-10T20:30:00Z", "2020-01-10T21:30:00Z"]) {
            set_t0(s, name, t0.parse().expect("a time"));
        }
        let args = ["rotate", "--prune-only", "--dry-run", "--json", PATTERN, "--keep-daily", "9"];
        for (zone, older) in [("Etc/GMT-3", "daily"), ("UTC", "oldest-daily")] {
            let out = s.command(&args).env("TZ", zone).output().expect("started");
            let plan = support::events(&String::from_utf8_lossy(&out.stdout));
            let plan: Value = plan.iter().map(|it| json!([it["what"], it["reasons"]])).collect();
            assert_eq!(plan, json!([["keep", ["daily"]], ["keep", [older]]]), "{:?} {zone}: {out:?}", s.fs);
        }
    });
}

#[test]
fn a_full_file_system_is_emptied() {
    on_both(|s| {
        begin(s);
        for round in 0..4 {
            rotate(s, 0, &["--keep-last", "4"]);
            // What only this snapshot has.
            writer(&s.path("a.img")).write_all_at(&Random::new(round).bytes(4 * MIB as usize), 0).expect("written");
        }
        must("sync", &[]);
        // To the last byte.
        let _ = Command::new("dd").args(["if=/dev/zero", "bs=64k", "of=fill"]).current_dir(s.dir()).output();
        must("sync", &[]);
        rotate(s, 3, &["--keep-last", "2"]);
        assert_eq!(snaps(s).len(), 4);
        rotate(s, 0, &["--keep-last", "2", "--prune-only"]);
        assert_eq!(snaps(s).len(), 2);
    });
}

#[test]
fn a_clock_that_was_wrong_does_not_cost_the_new_snapshot() {
    on_both(|s| {
        begin(s);
        rotate(s, 0, &["--keep-last", "1"]);
        let future = newest(s);
        age(s, &future, -400);
        writer(&s.path("a.img")).write_all_at(b"new", 0).expect("written");
        rotate(s, 0, &["--keep-last", "1"]);
        rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
        let all = snaps(s);
        assert!(all.len() == 2 && all.contains(&future), "{all:?}");
        assert_same(&s.path("a.img"), &s.path("snaps").join(newest(s)));
    });
}

/// Whoever reads a snapshot that nobody else wants reads it to its end; then it goes.
#[test]
fn who_reads_a_snapshot_is_not_disturbed_by_its_removal() {
    on_both(|s| {
        begin(s);
        rotate(s, 0, &["--keep-last", "1"]);
        let (old, bytes) = (format!("snaps/{}", newest(s)), fs::read(s.path("a.img")).expect("the image"));
        let mut send =
            s.command(&["send", "-q", &old, "--bwlimit", "4M"]).stdout(Stdio::piped()).spawn().expect("started");
        let mut out = send.stdout.take().expect("a pipe");
        let mut stream = vec![0; 16];
        out.read_exact(&mut stream).expect("it has begun");
        for _ in 0..2 {
            rotate(s, 0, &["--keep-last", "1"]);
        }
        assert!(snaps(s).len() == 2 && s.path(&old).exists(), "{:?}", snaps(s));
        out.read_to_end(&mut stream).expect("to its end");
        assert!(send.wait().expect("its end").success(), "{:?}", s.fs);
        assert!(stream.len() > bytes.len() && stream.ends_with(b"e"));
        rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
        assert_eq!(snaps(s).len(), 1);
    });
}

/// Killed, or kept from its name, when all was done.
#[test]
fn a_snapshot_that_is_complete_is_put_into_place_and_not_thrown_away() {
    on_both(|s| {
        begin(s);
        let name = "snaps/a-20200101T000000.000000000+0000.snap";
        let job = s.start_with_fault("held:1", &["snapshot", "--chunk", "64K", "a.img", name]);
        assert!(support::until(|| s.path("held").exists()));
        fs::write(s.path(name), b"in the way").expect("a file");
        fs::remove_file(s.path("held")).expect("let go");
        assert_eq!(job.end().code, Some(1));
        fs::remove_file(s.path(name)).expect("out of the way");
        rotate(s, 0, &["--prune-only", "--keep-last", "3"]);
        assert_eq!(snaps(s).len(), 1);
        assert_same(&s.path("a.img"), &s.path(name));
    });
}

/// What is not of one instant is newer, and takes the place of nothing that is.
#[test]
fn a_torn_snapshot_costs_no_good_one() {
    on_both(|s| {
        begin(s);
        rotate(s, 0, &["--keep-last", "1"]);
        let good = newest(s);
        let torn = "a-29990101T000000.000000000+0000.snap";
        s.exits(0, &["snapshot", "-q", "--consistency", "none", "a.img", &format!("snaps/{torn}")]);
        rotate(s, 0, &["--prune-only", "--keep-last", "1"]);
        assert_eq!(snaps(s), [good, torn.to_owned()].into());
        rotate(s, 0, &["--keep-last", "1"]);
        assert!(snaps(s).len() == 1 && !snaps(s).contains(torn), "{:?}", snaps(s));
    });
}

/// A machine's job that was killed, before or when some of its disks were done.
#[test]
fn what_a_killed_run_has_left_of_several_disks_keeps_no_later_run_from_its_work() {
    on_both(|s| {
        begin(s);
        noise(&s.path("b.img"), 4 * MIB);
        let name = |disk: &str| format!("snaps/{disk}-20200101T000000.000000000+0000.snap");
        let sets = ["a", "b"].map(|disk| format!("{disk}.img={}", name(disk)));
        let again = ["b.img=snaps/b-%Y%m%dT%H%M%S%.9f%z.snap", "--keep-last", "1"];
        let left = || snaps(s).iter().filter(|it| !it.ends_with(".snap")).count();
        for call in ["held:10", "held:70"] {
            let job = s.start_with_fault(call, &["snapshot", "--chunk", "64K", &sets[0], &sets[1]]);
            assert!(support::until(|| s.path("held").exists()));
            let own = running(s);
            assert!(!own.is_empty());
            own.iter().for_each(|pid| drop(Command::new("kill").args(["-9", pid]).status()));
            drop(job);
            fs::remove_file(s.path("held")).expect("let go");
            assert!(support::until(|| running(s).is_empty()) && left() > 0, "{:?}", snaps(s));
            rotate(s, 0, &again);
            assert_eq!((snaps(s).len(), left()), (2, 0), "{:?} {call}: {:?}", s.fs, snaps(s));
            assert_same(&s.path("b.img"), &s.path("snaps").join(newest(s)));
        }
    });
}

#[test]
fn on_the_backups_host_too_nothing_of_another_machine_is_removed() {
    on_both(|s| {
        fs::create_dir(s.path("snaps")).expect("a directory");
        let prune = ["rotate", "--prune-only", "--json", "snaps/%F.snap", "--keep-last", "1"];
        for (machine, days) in [("a", [1, 2]), ("b", [3, 4])] {
            noise(&s.path("x.img"), MIB);
            let _ = fs::remove_file(s.path("x.img"))
                .and_then(|()| fs::write(s.path("x.img"), machine.repeat(MIB as usize)));
            for (nth, day) in days.iter().enumerate() {
                let snap = format!("{machine}.{nth}");
                s.exits(0, &["snapshot", "-q", "x.img", &snap]);
                let before = format!("{machine}.{}", nth.saturating_sub(1));
                let from: &[&str] = if nth > 0 { &["--from", &before] } else { &[] };
                s.exits(0, &[&["send", "-q", &snap, "-o", "d"], from].concat());
                let (new, base) = (format!("snaps/2020-01-0{day}.snap"), format!("snaps/2020-01-0{}.snap", day - 1));
                let base: &[&str] = if nth > 0 { &["--base", &base] } else { &[] };
                s.exits(0, &[&["receive", "-q", "d", "-o", &new], base].concat());
                fs::remove_file(s.path("d")).expect("removed");
                if machine == "a" && nth == 1 {
                    // Those of one machine are of one: the older goes.
                    must("cp", &[&"-a", &s.path("snaps"), &s.path("kept")]);
                    s.exits(0, &prune);
                    assert_eq!(snaps(s), BTreeSet::from(["2020-01-02.snap".to_owned()]), "{:?}", s.fs);
                }
            }
        }
        let before = snaps(s);
        s.exits(3, &prune);
        assert_eq!(snaps(s), before);
    });
}

#[test]
fn killed_at_any_instant_the_newest_good_one_is_there() {
    let random = Random::seeded("killed_at_any_instant_the_newest_good_one_is_there");
    on_both(|s| {
        fs::create_dir(s.path("snaps")).expect("a directory");
        fragmented(&s.path("a.img"), 3000);
        for days in [3, 2, 1] {
            rotate(s, 0, &["--keep-last", "9"]);
            age(s, &newest(s), days);
        }
        for round in 0..runs(20, 100) {
            let recycle: &[&str] = if round % 2 == 0 { &["--recycle"] } else { &[] };
            let args = [&["rotate", "-q", PATTERN, "--keep-last", "2", "--latency", "1ms"], recycle].concat();
            let mut job = s.command(&args).spawn().expect("started");
            thread::sleep(Duration::from_micros(random.below(150_000)));
            job.kill().and_then(|()| job.wait()).expect("killed");
            // The snapshot's own process ends by itself.
            assert!(
                support::until(|| s.run(&["status", "snaps"]).status.code() != Some(5) && running(s).is_empty()),
                "round {round}"
            );
            let good = s.exits(0, &["list", "--json", "snaps"]);
            let good = good.iter().filter(|it| it["state"] == "finished").count();
            assert!(good >= 2, "{:?} round {round}: {good} are left: {:?}", s.fs, snaps(s));
            if round % 4 == 3 {
                // The next run ends what was begun.
                rotate(s, 0, &["--keep-last", "2"]);
                assert_eq!(snaps(s).len(), 2, "{:?} round {round}: {:?}", s.fs, snaps(s));
                assert_same(&s.path("a.img"), &s.path("snaps").join(newest(s)));
                for (days, name) in (2..).zip(snaps(s).into_iter().rev()) {
                    age(s, &name, days);
                }
                rotate(s, 0, &["--keep-last", "9"]);
            }
        }
    });
}

/// restic's own rules on the same times.
#[test]
fn what_is_kept_is_what_restic_keeps() {
    if !there("restic") {
        return;
    }
    let random = Random::seeded("what_is_kept_is_what_restic_keeps");
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("file"), b"data").expect("a file");
    let restic = |args: &[&str]| {
        let mut command = Command::new("restic");
        command.args(["-q", "-r", "repo", "--no-cache"]).args(args).current_dir(dir.path()).env("RESTIC_PASSWORD", "x");
        let out = command.output().expect("restic");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    restic(&["init"]);
    let mut now: DateTime = "2024-12-20T21:17:00".parse().expect("a time");
    let mut times: Vec<DateTime> = Vec::new();
    for nth in 0..24 {
        // The oldest is the last of no period.
        let hours = [1, 5, 24, 24, 24, 200, 900][if nth == 1 { 0 } else { random.below(7) as usize }];
        now = now.checked_add(hours.hours()).expect("in range");
        restic(&["backup", "file", "--time", &now.strftime("%Y-%m-%d %H:%M:%S").to_string()]);
        times.insert(0, now);
    }
    // Since 0.16 it keeps the oldest as well, as long as a rule has counts left.
    let mut keeps_the_oldest = None;
    for round in 0..7 {
        // More than there are, in the first round.
        let counts: [u32; 6] = if round == 0 {
            [0, 0, 0, 0, 0, 99]
        } else {
            std::array::from_fn(|_| random.below(if round % 2 == 0 { 4 } else { 12 }) as u32)
        };
        let Some(policy) = Policy::new(counts) else { continue };
        let flags = ["last", "hourly", "daily", "weekly", "monthly", "yearly"];
        let flags = flags.iter().zip(counts).filter(|(_, count)| *count > 0);
        let flags: Vec<String> =
            flags.flat_map(|(name, count)| [format!("--keep-{name}"), count.to_string()]).collect();
        let args: Vec<&str> =
            ["forget", "--dry-run", "--json"].into_iter().chain(flags.iter().map(String::as_str)).collect();
        let told: Value = serde_json::from_str(restic(&args).lines().next().expect("a line")).expect("JSON");
        let kept: BTreeSet<DateTime> = told[0]["keep"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|it| {
                let text = it["time"].as_str().expect("a time");
                let at: Timestamp = text.parse().expect("a time");
                at.to_zoned(Zoned::now().time_zone().clone()).datetime()
            })
            .collect();
        let oldest = *keeps_the_oldest.get_or_insert_with(|| {
            let keeps = kept.contains(times.last().expect("there are some"));
            if !keeps {
                eprintln!(
                    "SKIPPED: this restic is older than 0.16: whether the oldest is kept as it does is not tested"
                );
            }
            keeps
        });
        let ours = policy.reasons(&times);
        let counts = |it: &[Why]| it.iter().any(|why| oldest || !why.oldest);
        let ours: BTreeSet<DateTime> = times.iter().zip(&ours).filter(|(_, it)| counts(it)).map(|it| *it.0).collect();
        assert_eq!(ours, kept, "{flags:?}");
    }
}
