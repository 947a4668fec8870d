//! `restore`: after any history the image is the snapshot, and still the same file; killed at any instant there is the image as it was, or as
//! the snapshot is, or none.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::history::{change, image, on_every};
use crate::support::serving::{serve_at, stop};
use crate::support::{
    BLOCK, Fs, Job, PROGRAM, Random, Sandbox, assert_same, difference, fragmented, must, noise, on_both, refused,
    rounds, runs, writer,
};
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;

#[test]
fn after_any_history_the_image_is_the_snapshot_and_the_same_file() {
    let random = Random::seeded("after_any_history_the_image_is_the_snapshot_and_the_same_file");
    on_every(|s, kind| {
        image(&s.path("a.img"), 6 * MIB);
        must("setfattr", &[&"-n", &"user.label", &"-v", &"mine", &s.path("a.img")]);
        fs::set_permissions(s.path("a.img"), fs::Permissions::from_mode(0o640)).expect("a mode");
        let is = |s: &Sandbox| fs::metadata(s.path("a.img")).map(|it| (it.ino(), it.mode(), it.uid())).expect("there");
        let was = is(s);
        for round in 0..rounds(30) {
            s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
            let said: String = (0..3).map(|_| change(&s.path("a.img"), &random)).collect();
            let current = fs::read(s.path("a.img")).expect("the image");
            s.exits(0, &["restore", "-q", "a.snap", "a.img", "--keep-current", "kept"]);
            assert_eq!(difference(&s.path("a.snap"), &s.path("a.img")), None, "{kind} round {round}: {said}");
            assert!(fs::read(s.path("kept")).expect("kept") == current, "{kind} round {round}: {said}");
            assert_eq!(is(s), was);
            let label = must("getfattr", &[&"--only-values", &"-n", &"user.label", &s.path("a.img")]);
            assert_eq!((label.as_str(), s.listing().len()), ("mine", 3));
            fs::remove_file(s.path("a.snap")).and_then(|()| fs::remove_file(s.path("kept"))).expect("removed");
        }
    });
}

#[test]
fn only_what_differs_is_cloned() {
    on_both(|s| {
        noise(&s.path("a.img"), 16 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        writer(&s.path("a.img")).write_all_at(&[1; BLOCK as usize], 5 * MIB).expect("written");
        let told = s.exits(0, &["restore", "--json", "a.snap", "a.img"]).pop().expect("an end");
        assert_eq!(
            (&told["cloned_bytes"], &told["equal_bytes"]),
            (&BLOCK.into(), &(16 * MIB - BLOCK).into()),
            "{:?}",
            s.fs
        );
        assert_eq!((&told["what"], &told["copied_bytes"]), (&"restored".into(), &0.into()));
        assert_eq!(support::addresses(&s.path("a.img")), support::addresses(&s.path("a.snap")));
    });
}

#[test]
fn what_somebody_uses_or_what_is_of_another_image_is_refused() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        noise(&s.path("b.img"), MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let restore = ["restore", "a.snap", "a.img"];
        let reader = File::open(s.path("a.img")).expect("open");
        refused(s, "somebody has 'a.img' open", &restore);
        drop(reader);
        // The VM behind a server has the image as much as one that opens it.
        let server = serve_at(s, "a.sock", "writeback");
        refused(s, "'rclone-img serve' (pid", &["restore", "a.snap", "vm.img"]);
        stop(server);
        fs::rename(s.path("vm.img"), s.path("a.img")).expect("moved back");
        fs::hard_link(s.path("a.img"), s.path("c.img")).expect("a link");
        refused(s, "has 2 links", &restore);
        fs::remove_file(s.path("c.img")).expect("removed");
        refused(s, "another image", &["restore", "a.snap", "b.img"]);
        refused(s, "no finished snapshot", &["restore", "b.img", "a.img"]);
        refused(s, "the snapshot itself", &["restore", "a.snap", "a.snap"]);
        refused(s, "there is no nothing", &["restore", "a.snap", "nothing"]);
        refused(s, "is a finished snapshot and no image", &["restore", "--force", "b.img", "a.snap"]);
        s.exits(0, &["snapshot", "-q", "--consistency", "none", "a.img", "torn.snap"]);
        refused(s, "NOT A POINT IN TIME", &["restore", "torn.snap", "a.img"]);
        refused(s, "for --keep-current", &["restore", "a.snap", "a.img", "--keep-current", "torn.snap"]);
        fs::write(s.path("a.img.restore"), b"mine").expect("a file");
        refused(s, "in the way", &restore);
        let status = s.run(&["status", "--json", "."]);
        assert_eq!((status.status.code(), status.stdout.len()), (Some(0), 0));
        s.exits(3, &["resume", "a.img"]);
        assert_eq!(fs::read(s.path("a.img.restore")).expect("still there"), b"mine");
        fs::remove_file(s.path("a.img.restore")).expect("removed");
        s.exits(0, &["restore", "-q", "--force", "b.img", "a.img"]);
        assert_same(&s.path("b.img"), &s.path("a.img"));
    });
}

/// A million small differences, so that there is something to be killed in.
pub fn long(s: &Sandbox) {
    fragmented(&s.path("a.img"), 4000);
    s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
    let image = writer(&s.path("a.img"));
    for block in 0..8000 {
        if block % 3 > 0 {
            image.write_all_at(&[3; BLOCK as usize], block * BLOCK).expect("written");
        }
    }
    image.sync_all().expect("synced");
}

#[test]
fn killed_at_any_instant_there_is_no_mixture_and_resume_ends_it() {
    let random = Random::seeded("killed_at_any_instant_there_is_no_mixture_and_resume_ends_it");
    on_both(|s| {
        let mut ends = [0; 3];
        // As long as one takes here, and a little longer.
        long(s);
        let began = Instant::now();
        s.exits(0, &["restore", "-q", "a.snap", "a.img"]);
        let takes = began.elapsed() + began.elapsed() / 5;
        fs::remove_file(s.path("a.img")).and_then(|()| fs::remove_file(s.path("a.snap"))).expect("removed");
        for round in 0..runs(20, 100) {
            long(s);
            let was = fs::read(s.path("a.img")).expect("the image");
            let mut job = s.command(&["restore", "-q", "a.snap", "a.img"]).spawn().expect("started");
            thread::sleep(Duration::from_micros(random.below(takes.as_micros() as u64)));
            job.kill().and_then(|()| job.wait()).expect("killed");
            let becomes = fs::read(s.path("a.snap")).expect("the snapshot");
            let image = fs::read(s.path("a.img")).ok();
            assert!(
                image.as_ref().is_none_or(|it| *it == was || *it == becomes),
                "{:?} round {round}: a mixture",
                s.fs
            );
            let unfinished = s.listing().len() > 2;
            let begun = image.is_none();
            ends[usize::from(unfinished) + usize::from(begun)] += 1;
            if unfinished {
                let told = s.run(&["status", "--json", "."]);
                assert_eq!(told.status.code(), Some(4), "{:?} round {round}", s.fs);
                let resumed = s.exits(0, &["resume", "--json", "a.img"]).pop().expect("an end");
                if resumed["what"] == "untouched" {
                    s.exits(0, &["restore", "-q", "a.snap", "a.img"]);
                }
            } else if image == Some(was) {
                s.exits(0, &["restore", "-q", "a.snap", "a.img"]);
            }
            assert!(fs::read(s.path("a.img")).expect("there") == becomes, "{:?} round {round}", s.fs);
            assert_eq!(s.listing().len(), 2, "{:?} round {round}", s.fs);
            fs::remove_file(s.path("a.img")).and_then(|()| fs::remove_file(s.path("a.snap"))).expect("removed");
        }
        assert!(ends[2] > 0, "{:?}: none was killed in the middle: {ends:?}", s.fs);
    });
}

/// Starts a restore, and has it wait in this of its clone calls, of which it makes as many as this before there is no image: a trial, and one for
/// a snapshot that can have no second name.
pub fn held(s: &Sandbox, call: u32) -> Job {
    let job = s.start_with_fault(&format!("held:{call}"), &["restore", "a.snap", "a.img"]);
    assert!(support::until(|| s.path("held").exists()));
    assert!(!s.path("a.img").exists());
    job
}

/// The same, killed there.
pub fn killed(s: &Sandbox, call: u32) {
    held(s, call).kill();
    fs::remove_file(s.path("held")).expect("gone");
}

/// Whoever opens the image while it is rolled back waits for the snapshot's bytes, or is not let in.
#[test]
fn who_opens_the_image_meanwhile_has_no_mixture() {
    on_both(|s| {
        long(s);
        let job = held(s, 1);
        let open = |name: &str| File::options().read(true).custom_flags(libc::O_NONBLOCK).open(s.path(name));
        // Our own looks do not.
        s.exits(0, &["list", "--json", "."]);
        s.run(&["check", "."]);
        assert_eq!(open("a.img.restoring").err().and_then(|e| e.raw_os_error()), Some(libc::EAGAIN));
        let aside = s.path("a.img.restoring");
        let image = format!(":{} ", fs::metadata(&aside).expect("the image").ino());
        let waits = thread::spawn(move || fs::read(aside).expect("let in"));
        let is_waited_for = || {
            let locks = fs::read_to_string("/proc/locks").expect("locks");
            locks.lines().any(|lock| lock.contains("BREAKING") && lock.contains(&image))
        };
        assert!(support::until(is_waited_for), "{:?}", s.fs);
        fs::remove_file(s.path("held")).expect("let go");
        let ended = job.end();
        assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
        assert!(waits.join().expect("no panic") == fs::read(s.path("a.snap")).expect("the snapshot"));
        assert_same(&s.path("a.snap"), &s.path("a.img"));
    });
}

/// Somebody removes the snapshot while a restore of it is unfinished; on Btrfs also one of another subvolume, which has no second name there.
#[test]
fn who_removes_the_snapshot_meanwhile_takes_nothing_away() {
    on_both(|s| {
        for round in 0..2 {
            long(s);
            let becomes = fs::read(s.path("a.snap")).expect("the snapshot");
            if round == 1 && s.fs == Fs::Btrfs {
                must("btrfs", &[&"subvolume", &"create", &s.path("other")]);
                fs::remove_file(s.path("a.snap")).expect("removed");
                let image = fs::read(s.path("a.img")).expect("the image");
                fs::write(s.path("a.img"), &becomes).expect("as it was");
                s.exits(0, &["snapshot", "-q", "a.img", "other/a.snap"]);
                fs::write(s.path("a.img"), image).expect("as it is");
                std::os::unix::fs::symlink("other/a.snap", s.path("a.snap")).expect("a link");
            }
            let apart = round == 1 && s.fs == Fs::Btrfs;
            killed(s, 1 + u32::from(apart));
            let names = s.exits(0, &["list", "--json", "."]).len();
            assert_eq!(names, usize::from(!apart), "its second name is no snapshot of its own");
            let real = fs::canonicalize(s.path("a.snap")).expect("there");
            fs::remove_file(real).expect("removed");
            s.exits(0, &["resume", "-q", "a.img"]);
            assert!(fs::read(s.path("a.img")).expect("there") == becomes, "{:?}", s.fs);
            let _ = fs::remove_file(s.path("a.snap"));
            let left: Vec<_> = s.listing().into_keys().filter(|name| name.starts_with(b"a.img.")).collect();
            assert!(left.is_empty(), "{left:?}");
            fs::remove_file(s.path("a.img")).expect("removed");
        }
    });
}

/// An intent that somebody else has put there would have us read for him what he may not.
#[test]
fn nobodys_intent_but_ones_own_is_followed() {
    on_both(|s| {
        long(s);
        killed(s, 1);
        let intent = s.path("a.img.restore");
        chown(&intent, Some(65534), None).expect("root may");
        refused(s, "belongs to another user", &["resume", "a.img"]);
        refused(s, "belongs to another user", &["abort", "a.img"]);
        chown(&intent, Some(0), None).expect("root may");
        fs::set_permissions(&intent, fs::Permissions::from_mode(0o622)).expect("a mode");
        refused(s, "others may write to it", &["resume", "a.img"]);
        fs::set_permissions(&intent, fs::Permissions::from_mode(0o600)).expect("a mode");
        s.exits(0, &["resume", "-q", "a.img"]);
    });
}

/// A person gives the image its name again in the middle: it is not said to be as it was.
#[test]
fn a_mixture_that_was_renamed_is_told() {
    on_both(|s| {
        long(s);
        killed(s, 1);
        fs::rename(s.path("a.img.restoring"), s.path("a.img")).expect("renamed");
        let status = s.run(&["status", "a.img"]);
        let said = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(status.status.code() == Some(4) && said.contains("mixture"), "{said}");
        for args in [&["resume", "a.img"][..], &["abort", "a.img"], &["restore", "a.snap", "a.img"]] {
            refused(s, "a.img.restoring is gone", args);
        }
        fs::rename(s.path("a.img"), s.path("a.img.restoring")).expect("renamed");
        // What is none of ours tells nothing of it.
        fs::write(s.path("a.img.restored"), b"mine").expect("a file");
        assert_eq!(s.run(&["status", "a.img"]).status.code(), Some(4));
        fs::remove_file(s.path("a.img.restored")).expect("removed");
        s.exits(0, &["resume", "-q", "a.img"]);
        assert_same(&s.path("a.snap"), &s.path("a.img"));
    });
}

#[test]
fn other_names_of_the_image_and_names_that_are_needed_are_refused() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        for name in ["a.img.restore", "a.img.restored", "a.img.restoring", "./a.img.restore-source"] {
            refused(s, "itself needs", &["restore", "a.snap", "a.img", "--keep-current", name]);
        }
        // As into a container, with a space in its name.
        fs::write(s.path("b img"), b"").expect("a file");
        let in_container = |more: &str| {
            let script = format!("mount --bind a.img 'b img' && exec \"$0\" restore a.snap a.img {more}");
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-c", &script]).arg(PROGRAM).current_dir(s.dir());
            command.output().expect("unshare")
        };
        let said = in_container("");
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.code() == Some(3) && text.contains("is mounted at"), "{text}");
        let said = in_container("--force");
        assert_eq!(said.status.code(), Some(0), "{}", String::from_utf8_lossy(&said.stderr));
        // And in a container that is not one's own.
        let script = "mount --bind a.img 'b img' && touch ready && exec sleep 60";
        let mut container = Command::new("unshare");
        let mut container = container.args(["-m", "sh", "-c", script]).current_dir(s.dir()).spawn().expect("unshare");
        assert!(support::until(|| s.path("ready").exists()));
        refused(s, "is mounted at", &["restore", "a.snap", "a.img"]);
        container.kill().and_then(|()| container.wait()).expect("killed");
        s.exits(0, &["restore", "-q", "a.snap", "a.img"]);
    });
}

/// In a directory where another user may make files he may make such of these names, and says nothing by that.
#[test]
fn what_another_user_says_of_a_restore_means_nothing() {
    on_both(|s| {
        long(s);
        let becomes = fs::read(s.path("a.snap")).expect("the snapshot");
        killed(s, 1);
        let id = r#"{"ino":1,"generation":1,"subvolume":0}"#;
        let text = format!(
            r#"{{"begun":1,"v":1,"image":{id},"source":{id},"job":null,"snapshot":"x","snapshot_bytes":[120],"kept":null,"began":"2026-11-22T00:00:00Z"}}"#
        );
        let planted = s.path("a.img.restored");
        fs::write(&planted, &text).and_then(|()| chown(&planted, Some(65534), None)).expect("a file");
        for path in ["a.img", "."] {
            let status = s.run(&["status", "--json", path]);
            let said = String::from_utf8_lossy(&status.stdout).into_owned();
            assert!(status.status.code() == Some(4) && said.matches("restore-interrupted").count() == 1, "{said}");
        }
        refused(s, "interrupted", &["restore", "a.snap", "a.img"]);
        refused(s, "was not kept", &["abort", "a.img"]);
        s.exits(0, &["resume", "-q", "a.img"]);
        assert!(fs::read(s.path("a.img")).expect("there") == becomes, "{:?}", s.fs);
        // It was in the way, and is his.
        assert_eq!(fs::read(&planted).expect("still there"), text.as_bytes());
        assert_eq!(s.run(&["status", "."]).status.code(), Some(0));
        for verb in
            [&["resume", "a.img"][..], &["abort", "a.img"], &["status", "a.img"], &["restore", "a.snap", "a.img"]]
        {
            refused(s, "belongs to another user", verb);
        }
        fs::rename(&planted, s.path("a.img.restore")).expect("renamed");
        refused(s, "belongs to another user", &["restore", "a.snap", "a.img"]);
        // One's own that is about another file than the one that is aside.
        chown(s.path("a.img.restore"), Some(0), None).expect("root may");
        fs::rename(s.path("a.img"), s.path("a.img.restoring")).expect("renamed");
        refused(s, "is not the image that", &["resume", "a.img"]);
    });
}

/// Who opens the snapshot for writing waits as who opens the image does; where it was changed it is a person's word whether it is to be taken.
#[test]
fn who_writes_to_the_snapshot_meanwhile_waits() {
    on_both(|s| {
        long(s);
        let becomes = fs::read(s.path("a.snap")).expect("the snapshot");
        let job = held(s, 1);
        let snapshot = s.path("a.snap");
        let waits = thread::spawn(move || writer(&snapshot).write_all_at(b"changed", 0).expect("written"));
        thread::sleep(Duration::from_millis(100));
        fs::remove_file(s.path("held")).expect("let go");
        let ended = job.end();
        assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
        waits.join().expect("no panic");
        assert!(fs::read(s.path("a.img")).expect("there") == becomes);
        s.exits(2, &["resume", "--force", "a.img"]);
        fs::remove_file(s.path("a.snap")).and_then(|()| fs::remove_file(s.path("a.img"))).expect("removed");
        long(s);
        killed(s, 1);
        writer(&s.path("a.snap")).write_all_at(b"changed", 0).expect("written");
        refused(s, "resume --force a.img", &["resume", "a.img"]);
        s.exits(0, &["resume", "-q", "--force", "a.img"]);
        assert_same(&s.path("a.snap"), &s.path("a.img"));
        assert_eq!(s.listing().len(), 2);
    });
}

/// An owner without CAP_DAC_OVERRIDE is given the permission to write, for as long as it takes to open it.
#[test]
fn an_image_that_may_only_be_read_stays_so() {
    on_both(|s| {
        for name in ["a", "b"] {
            let [image, snapshot] = ["img", "snap"].map(|suffix| format!("{name}.{suffix}"));
            noise(&s.path(&image), MIB);
            s.exits(0, &["snapshot", "-q", &image, &snapshot]);
        }
        writer(&s.path("a.img")).write_all_at(b"new", 0).expect("written");
        fs::set_permissions(s.path("a.img"), fs::Permissions::from_mode(0o444)).expect("a mode");
        for (snapshot, code) in [("b.snap", 3), ("a.snap", 0)] {
            let line = ["--bounding-set=-dac_override", PROGRAM, "restore", "-q", snapshot, "a.img"];
            let said = Command::new("setpriv").args(line).current_dir(s.dir()).output().expect("setpriv");
            assert_eq!(said.status.code(), Some(code), "{}", String::from_utf8_lossy(&said.stderr));
            let mode = fs::metadata(s.path("a.img")).expect("there").mode() & 0o777;
            assert_eq!(mode, 0o444, "{:?} {snapshot}", s.fs);
        }
    });
}

#[test]
fn a_long_name_and_an_empty_intent_are_no_restore() {
    on_both(|s| {
        let long = "i".repeat(250);
        noise(&s.path(&long), MIB);
        s.exits(0, &["snapshot", "-q", &long, "a.snap"]);
        for verb in ["resume", "status", "abort"] {
            let said = s.run(&[verb, &long]);
            let text = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(!text.contains("cannot look at the image and what is beside it"), "{verb}: {text}");
        }
        fs::rename(s.path(&long), s.path("a.img")).expect("renamed");
        // Killed between making it and writing to it.
        let empty = || fs::write(s.path("a.img.restore"), b"").expect("a file");
        empty();
        assert_eq!(s.run(&["status", "a.img"]).status.code(), Some(4));
        let resumed = s.exits(0, &["resume", "--json", "a.img"]).pop().expect("an end");
        assert_eq!(resumed["what"], "untouched");
        empty();
        s.exits(0, &["restore", "-q", "a.snap", "a.img"]);
        fs::write(s.path("a.img.restoring"), b"mine").expect("a file");
        refused(s, "'a.img.restoring' is in the way", &["restore", "a.snap", "a.img"]);
        fs::remove_file(s.path("a.img.restoring")).expect("still there");
        assert_eq!(s.listing().len(), 2);
    });
}

/// On Btrfs a snapshot of another subvolume is cloned first: whoever stops that has the image as it was.
#[test]
fn one_that_is_stopped_before_it_has_begun_leaves_the_image() {
    on_both(|s| {
        if s.fs == Fs::Xfs {
            return;
        }
        must("btrfs", &[&"subvolume", &"create", &s.path("other")]);
        noise(&s.path("a.img"), 80 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "other/a.snap"]);
        writer(&s.path("a.img")).write_all_at(b"new", 0).expect("written");
        let is = fs::read(s.path("a.img")).expect("the image");
        let job = s.start_with_fault("held:1", &["restore", "other/a.snap", "a.img"]);
        assert!(support::until(|| s.path("held").exists()));
        job.signal(Signal::SIGINT);
        fs::remove_file(s.path("held")).expect("let go");
        let ended = job.end();
        assert!(ended.code.is_some_and(|code| code > 0), "{}", ended.stderr);
        assert!(fs::read(s.path("a.img")).expect("there") == is);
        assert_eq!(s.listing().len(), 2, "{:?}", s.listing());
    });
}

#[test]
fn somebody_elses_file_of_a_name_that_is_needed_stays() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        fs::write(s.path("mine"), b"mine").expect("a file");
        fs::hard_link(s.path("mine"), s.path("a.img.restore-source")).expect("a link");
        refused(s, "in the way", &["restore", "a.snap", "a.img"]);
        fs::remove_file(s.path("a.img.restore-source")).expect("still there");
        // What a restore has left that was cut off before it began is not.
        fs::hard_link(s.path("a.snap"), s.path("a.img.restore-source")).expect("a link");
        s.exits(0, &["restore", "-q", "a.snap", "a.img"]);
        assert_eq!(s.listing().len(), 3);
    });
}
