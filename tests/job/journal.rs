//! The files beside a snapshot: a journal that is torn, damaged, foreign or of a later version, and strangers at its name and
//! at the partial file's, are refused in words, never followed, waited for or removed.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::{Random, Sandbox, assert_same, identity, noise, on_both, refused, roomy, slowly};
use rclone_img::journal::format::{LOG, SLOT};

const MIB: u64 = 1 << 20;

#[test]
fn what_stands_at_the_names_of_partial_and_journal_is_never_followed_nor_waited_for() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        fs::write(s.path("target"), "mine").expect("a file");
        for name in ["x.partial", "x.journal"] {
            let path = s.path(name);
            for what in ["file", "link", "dangling", "fifo", "dir"] {
                match what {
                    "file" => fs::write(&path, "not a journal, not a clone").expect("a file"),
                    "link" => symlink("target", &path).expect("a link"),
                    "dangling" => symlink("created", &path).expect("a link"),
                    "fifo" => mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("a FIFO"),
                    _ => fs::create_dir(&path).expect("a directory"),
                }
                eprintln!("{:?}: a {what} at {name}", s.fs);
                refused(s, "", &["snapshot", "a.img", "x"]);
                refused(s, "", &["snapshot", "--restart", "a.img", "x"]);
                for args in
                    [&["resume", "x"][..], &["abort", "x"], &["abort", "--force", "x"], &["status", "x"], &["status"]]
                {
                    let (before, out) = (s.listing(), s.run(args));
                    assert!(out.status.code().is_some(), "{:?} {args:?} hangs on a {what} at {name}", s.fs);
                    assert_eq!(s.listing(), before, "{:?} {args:?} with a {what} at {name}", s.fs);
                }
                let out = s.run(&["snapshot", "--force", "a.img", "x"]);
                assert!(matches!(out.status.code(), Some(0 | 1 | 3)), "{:?} a {what} at {name}: {out:?}", s.fs);
                if out.status.success() {
                    assert_same(&s.path("a.img"), &s.path("x"));
                    fs::remove_file(s.path("x")).expect("removed");
                }
                assert_eq!(fs::read_to_string(s.path("target")).expect("there"), "mine", "a {what} at {name}");
                assert!(!s.path("created").exists());
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
            }
        }
    });
}

#[test]
fn force_replaces_an_orphaned_partial_file() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        fs::write(s.path("x.partial"), "of a journal that is lost").expect("a file");
        refused(s, "--force", &["snapshot", "a.img", "x"]);
        s.exits(0, &["snapshot", "-q", "--force", "a.img", "x"]);
        assert_same(&s.path("a.img"), &s.path("x"));
        s.no_sidecars("x");
    });
}

/// A journal and a partial file of a job that was killed.
fn interrupted(s: &Sandbox) -> Vec<u8> {
    roomy(&s.path("a.img"), 256 * MIB);
    let mut job = s.start(&slowly(&["snapshot", "a.img", "a.snap"]));
    assert!(job.wait_for("progress"));
    job.kill();
    fs::read(s.path("a.snap.journal")).expect("a journal")
}

#[test]
fn a_journal_that_cannot_be_used_is_refused_in_words_by_every_verb() {
    on_both(|s| {
        let journal = interrupted(s);
        let mut future = journal.clone();
        for slot in [0, SLOT] {
            future[slot + 8] = 99;
            future[slot + 12..slot + 16].fill(0);
            let crc = crc32c::crc32c(&future[slot..slot + SLOT]);
            future[slot + 12..slot + 16].copy_from_slice(&crc.to_le_bytes());
        }
        let mut damaged = journal.clone();
        (damaged[40], damaged[SLOT + 40]) = (damaged[40] ^ 1, damaged[SLOT + 40] ^ 1);
        let foreign = Random::new(9).bytes(journal.len());
        for (bytes, what, removable) in
            [(&future, "version", false), (&damaged, "damaged", true), (&foreign, "", false)]
        {
            fs::write(s.path("a.snap.journal"), bytes).expect("written");
            let partial = identity(&s.path("a.snap.partial"));
            refused(s, what, &["snapshot", "a.img", "a.snap"]);
            refused(s, what, &["resume", "a.snap"]);
            refused(s, what, &["abort", "a.snap"]);
            assert_eq!(s.exits(6, &["status", "--json", "a.snap"])[0]["state"], "unreadable");
            let code = s.run(&["abort", "--force", "a.snap"]).status.code();
            assert_eq!(code, Some(if removable { 0 } else { 3 }), "{:?} {what}", s.fs);
            if !removable {
                assert_eq!(fs::read(s.path("a.snap.journal")).expect("there"), *bytes);
                assert_eq!(identity(&s.path("a.snap.partial")), partial);
            } else {
                s.no_sidecars("a.snap");
                interrupted(s);
            }
        }
    });
}

#[test]
fn a_torn_tail_of_the_journal_costs_no_more_than_its_claims() {
    on_both(|s| {
        let journal = interrupted(s);
        assert!(journal.len() >= LOG, "{}", journal.len());
        // One slot damaged, the log torn in the middle of a record, garbage behind it.
        let mut torn = journal.clone();
        torn[100] ^= 0xFF;
        torn.truncate(journal.len().saturating_sub(13).max(LOG));
        torn.extend(Random::new(5).bytes(100));
        fs::write(s.path("a.snap.journal"), torn).expect("written");
        s.exits(0, &["resume", "-q", "a.snap"]);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
        s.no_sidecars("a.snap");
    });
}

#[test]
fn the_journal_of_another_image_is_left_alone() {
    on_both(|s| {
        interrupted(s);
        noise(&s.path("b.img"), MIB);
        refused(s, "another image", &["snapshot", "b.img", "a.snap"]);
        s.exits(0, &["resume", "-q", "a.snap"]);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    });
}
