//! `restore` and what a person has done meanwhile: no word of it, followed to the letter, costs anybody a file.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;

use crate::restore::{killed, long};
use crate::support::{self, Fs, Sandbox, assert_same, must, noise, on_both, refused, roomy, slowly, writer};

/// What a command says, wherever it says it.
fn said(s: &Sandbox, args: &[&str]) -> String {
    let out = s.run(args);
    assert!(out.status.code().is_some_and(|code| code > 0), "{args:?}");
    [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
}

/// Follows the hint: from this word on to the end of the line, or to what follows the commands.
fn follow(s: &Sandbox, text: &str, from: &str) {
    let at = text.find(from).unwrap_or_else(|| panic!("no {from:?} in {text}"));
    let line = text[at..].lines().next().unwrap_or_default();
    let line = line.split([';', ',']).next().unwrap_or_default();
    let done = Command::new("sh").args(["-c", line]).current_dir(s.dir()).status().expect("sh");
    assert!(done.success(), "{line}");
}

#[test]
fn an_image_that_was_put_there_meanwhile_is_not_to_be_overwritten() {
    on_both(|s| {
        let ways =
            [&["status", "a.img"][..], &["resume", "a.img"], &["abort", "a.img"], &["restore", "a.snap", "a.img"]];
        for way in ways {
            long(s);
            killed(s, 1);
            fs::remove_file(s.path("a.img.restoring")).expect("removed");
            fs::write(s.path("a.img"), b"a good one").expect("put there");
            let text = said(s, way);
            assert!(text.contains("another") && !text.contains("cp "), "{:?} {way:?}: {text}", s.fs);
            follow(s, &text, "rm ");
            assert_eq!(s.run(&["status", "."]).status.code(), Some(0), "{:?} {way:?}", s.fs);
            assert_eq!(fs::read(s.path("a.img")).expect("there"), b"a good one");
            assert_eq!(s.listing().len(), 2, "{:?} {way:?}: {:?}", s.fs, s.listing());
            ["a.img", "a.snap"].iter().try_for_each(|it| fs::remove_file(s.path(it))).expect("removed");
        }
    });
}

#[test]
fn an_image_that_is_lost_can_be_had_again_and_be_written_to() {
    on_both(|s| {
        long(s);
        killed(s, 1);
        fs::remove_file(s.path("a.img.restoring")).expect("removed");
        let text = said(s, &["status", "a.img"]);
        follow(s, &text, "cp ");
        assert!(fs::read(s.path("a.img")).expect("there") == fs::read(s.path("a.snap")).expect("the snapshot"));
        assert_eq!(fs::metadata(s.path("a.img")).expect("there").permissions().mode() & 0o200, 0o200);
        // That one is another image than the one that was aside.
        follow(s, &said(s, &["resume", "a.img"]), "rm ");
        assert_eq!(s.listing().len(), 2);
    });
}

#[test]
fn a_mixture_that_was_renamed_can_be_renamed_back_to_the_letter() {
    on_both(|s| {
        long(s);
        killed(s, 1);
        let was = fs::metadata(s.path("a.img.restoring")).expect("there").ino();
        fs::rename(s.path("a.img.restoring"), s.path("a.img")).expect("renamed");
        let text = said(s, &["status", "a.img"]);
        assert!(!text.contains("cp ") && !text.contains("rm "), "{text}");
        follow(s, &text, "mv ");
        assert_eq!(fs::metadata(s.path("a.img.restoring")).expect("there").ino(), was);
        s.exits(0, &["resume", "-q", "a.img"]);
    });
}

/// No record tells of a file that is no snapshot, nor of a clone that stands in for one of another subvolume, whether it was changed.
#[test]
fn a_source_without_a_record_that_was_changed_is_not_taken_unasked() {
    on_both(|s| {
        let other = s.fs == Fs::Btrfs;
        for (clone, call) in [(false, 1), (true, 2)].into_iter().filter(|(clone, _)| !clone || other) {
            long(s);
            if clone {
                must("btrfs", &[&"subvolume", &"create", &s.path("other")]);
            }
            let from = if clone { "other/b.snap" } else { "b.img" };
            must("cp", &[&"--reflink=always", &s.path("a.snap"), &s.path(from)]);
            let job = s.start_with_fault(&format!("held:{call}"), &["restore", "--force", from, "a.img"]);
            assert!(support::until(|| s.path("held").exists() && !s.path("a.img").exists()));
            job.kill();
            fs::remove_file(s.path("held")).expect("gone");
            let source = s.path("a.img.restore-source");
            let modified = fs::metadata(&source).and_then(|it| it.modified()).expect("its time");
            writer(&source).write_all_at(b"changed", 0).expect("written");
            refused(s, "is not what it was when the restore began", &["resume", "a.img"]);
            // What is what it was is taken.
            let file = fs::File::options().write(true).open(&source).expect("open");
            file.set_modified(modified).expect("its time");
            drop(file);
            s.exits(0, &["resume", "-q", "a.img"]);
            assert_eq!(&fs::read(s.path("a.img")).expect("there")[..7], b"changed");
            ["a.img", "a.snap", from].iter().try_for_each(|it| fs::remove_file(s.path(it))).expect("removed");
        }
    });
}

/// What would keep the restore from its work is looked at before --keep-current makes a snapshot; what comes up later names that.
#[test]
fn a_restore_that_is_refused_leaves_nothing_that_it_is_refused_for_again() {
    on_both(|s| {
        noise(&s.path("a.img"), 1 << 20);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        writer(&s.path("a.img")).write_all_at(b"new", 0).expect("written");
        let restore = ["restore", "a.snap", "a.img", "--keep-current", "kept"];
        for name in ["a.img.restore-source", "a.img.restoring", "a.img.restored"] {
            fs::write(s.path(name), b"his").expect("a file");
            refused(s, "is in the way", &restore);
            fs::remove_file(s.path(name)).expect("still there");
        }
        let job = s.start_with_fault("held:1", &restore);
        assert!(support::until(|| s.path("held").exists()));
        fs::write(s.path("a.img.restore-source"), b"his").expect("a file");
        fs::remove_file(s.path("held")).expect("let go");
        let ended = job.end();
        assert_eq!(ended.code, Some(3), "{:?}: {}", s.fs, ended.stderr);
        assert!(s.path("kept").exists(), "{}", ended.stderr);
        fs::remove_file(s.path("a.img.restore-source")).expect("still there");
        follow(s, &ended.stderr, "rm ");
        s.exits(0, &restore);
        assert_eq!(s.listing().len(), 3);
    });
}

/// The other name leads to a mixture meanwhile, and to the snapshot's bytes in the end.
#[test]
fn an_image_with_two_names_keeps_both_where_that_is_forced() {
    on_both(|s| {
        for interrupted in [false, true] {
            long(s);
            fs::hard_link(s.path("a.img"), s.path("b.img")).expect("a link");
            let was = fs::metadata(s.path("a.img")).expect("there").ino();
            refused(s, "has 2 links", &["restore", "a.snap", "a.img"]);
            if interrupted {
                let job = s.start_with_fault("held:1", &["restore", "--force", "a.snap", "a.img"]);
                assert!(support::until(|| s.path("held").exists() && !s.path("a.img").exists()));
                job.kill();
                fs::remove_file(s.path("held")).expect("gone");
                assert_eq!(fs::metadata(s.path("b.img")).expect("there").ino(), was);
                s.exits(0, &["resume", "-q", "a.img"]);
            } else {
                s.exits(0, &["restore", "-q", "--force", "a.snap", "a.img"]);
            }
            for name in ["a.img", "b.img"] {
                let is = fs::metadata(s.path(name)).expect("there");
                assert_eq!((is.ino(), is.nlink()), (was, 2), "{:?} {name}", s.fs);
                assert_same(&s.path("a.snap"), &s.path(name));
            }
            assert_eq!(s.listing().len(), 3, "{:?}", s.fs);
            ["a.img", "b.img", "a.snap"].iter().try_for_each(|it| fs::remove_file(s.path(it))).expect("removed");
        }
    });
}

/// A job of the hold `frozen` has a lease on the image, which whoever asks for the image is not to break by asking.
#[test]
fn a_restore_that_is_refused_costs_no_job_its_instant() {
    on_both(|s| {
        // What is left takes longer than a writer is left waiting: then the job would end without it.
        roomy(&s.path("a.img"), 512 << 20);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        writer(&s.path("a.img")).write_all_at(b"new", 0).expect("written");
        let job = slowly(&["snapshot", "--consistency", "frozen", "a.img", "b.snap"]);
        let job = s.start_with_fault("held:1", &job);
        assert!(support::until(|| s.path("held").exists()));
        let out = s.run(&["restore", "a.snap", "a.img"]);
        assert_eq!(out.status.code(), Some(3), "{:?}", s.fs);
        fs::remove_file(s.path("held")).expect("let go");
        let ended = job.end();
        assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
        assert_same(&s.path("a.img"), &s.path("b.snap"));
        assert!(String::from_utf8_lossy(&out.stderr).contains("somebody has 'a.img' open"), "{:?}: {out:?}", s.fs);
        s.exits(0, &["restore", "-q", "a.snap", "a.img"]);
    });
}

/// The name may be the last that the snapshot has: what is there is not to be overwritten because somebody has it open.
#[test]
fn a_source_that_is_in_use_is_waited_for_and_one_that_is_missing_replaced() {
    on_both(|s| {
        long(s);
        killed(s, 1);
        let held = writer(&s.path("a.snap"));
        let text = said(s, &["resume", "a.img"]);
        assert!(text.contains("in use") && text.contains("then 'rclone-img resume a.img'"), "{:?}: {text}", s.fs);
        assert!(!text.contains("ln -f") && !text.contains("--force"), "{:?}: {text}", s.fs);
        drop(held);
        let source = s.path("a.img.restore-source");
        fs::remove_file(&source).expect("removed");
        std::os::unix::fs::symlink("a.snap", &source).expect("a link");
        let text = said(s, &["resume", "a.img"]);
        assert!(text.contains("is not a regular file"), "{:?}: {text}", s.fs);
        fs::remove_file(&source).expect("removed");
        let missing = said(s, &["resume", "a.img"]);
        for text in [text, missing] {
            let link = text.split('\'').find(|it| it.starts_with("ln -f SNAP ")).expect("what to do");
            let _ = fs::remove_file(&source);
            follow(s, &link.replace("SNAP", "a.snap"), "ln ");
        }
        s.exits(0, &["resume", "-q", "--force", "a.img"]);
        assert_same(&s.path("a.snap"), &s.path("a.img"));
        assert_eq!(s.listing().len(), 2, "{:?}: {:?}", s.fs, s.listing());
    });
}
