//! A restore that is taken back: the image is again what `--keep-current` has kept, and whoever goes on is told so.

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use crate::restore::long;
use crate::support::{Random, Sandbox, noise, on_both, refused, writer, written};

const MIB: u64 = 1 << 20;

#[test]
fn abort_goes_back_where_the_former_state_was_kept() {
    let random = Random::seeded("abort_goes_back_where_the_former_state_was_kept");
    on_both(|s| {
        long(s);
        let was = fs::read(s.path("a.img")).expect("the image");
        for attempt in 2.. {
            let _ = fs::remove_file(s.path("kept"));
            let mut job =
                s.command(&["restore", "-q", "a.snap", "a.img", "--keep-current", "kept"]).spawn().expect("started");
            thread::sleep(Duration::from_micros(random.below(u64::min(attempt, 10) * 200_000)));
            job.kill().and_then(|()| job.wait()).expect("killed");
            if !s.path("a.img").exists() {
                break;
            }
            // Too early, or too late.
            s.run(&["abort", "kept"]);
            s.run(&["abort", "a.img"]);
            s.run(&["resume", "a.img"]);
            written(&s.path("a.img"), &was);
        }
        s.exits(0, &["abort", "-q", "a.img"]);
        assert!(fs::read(s.path("a.img")).expect("there") == was);
        assert_eq!(s.listing().len(), 3);
    });
}

/// What --keep-current has kept, and not another snapshot of the image that has its path by now.
#[test]
fn abort_takes_what_was_kept_and_nothing_else() {
    on_both(|s| {
        let was = interrupted(s);
        fs::rename(s.path("kept"), s.path("other"))
            .and_then(|()| fs::rename(s.path("a.snap"), s.path("kept")))
            .expect("renamed");
        refused(s, "is not what --keep-current has kept", &["abort", "a.img"]);
        fs::rename(s.path("other"), s.path("kept")).expect("renamed");
        s.exits(0, &["abort", "-q", "a.img"]);
        assert!(fs::read(s.path("a.img")).expect("there") == was);
    });
}

/// The end of one is interrupted by a file of the image's name; until then it could be either.
#[test]
fn what_an_interrupted_abort_has_become_is_told() {
    on_both(|s| {
        for (verb, becomes, state, what) in [
            ("abort", "kept", "restore-aborted", "was-put-back"),
            ("resume", "a.snap", "restore-complete", "was-restored"),
        ] {
            let was = interrupted(s);
            fs::write(s.path("a.img"), b"in the way").expect("written");
            let out = s.run(&[verb, "a.img"]);
            let stderr = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.code() == Some(1) && stderr.contains("appeared meanwhile"), "{stderr}");
            fs::remove_file(s.path("a.img")).expect("removed");
            assert_eq!(s.exits(4, &["status", "--json", "a.img"])[0]["state"], state);
            assert_eq!(s.exits(0, &["resume", "--json", "a.img"])[0]["what"], what);
            assert!(fs::read(s.path("a.img")).expect("there") == fs::read(s.path(becomes)).expect("there"));
            assert_eq!(becomes == "kept", fs::read(s.path("a.img")).expect("there") == was);
            assert_eq!(s.listing().len(), 3);
            ["a.img", "a.snap", "kept"].iter().for_each(|name| fs::remove_file(s.path(name)).expect("removed"));
        }
    });
}

#[test]
fn an_abort_that_was_interrupted_goes_on_and_is_given_up_by_force_alone() {
    on_both(|s| {
        let ways: [(&[&str], _, _); 3] = [
            (&["abort"], "kept", "put-back"),
            (&["resume"], "kept", "put-back"),
            (&["resume", "--force"], "a.snap", "restored"),
        ];
        for (verb, becomes, what) in ways {
            interrupted(s);
            s.start_with_fault("EIO:0", &["abort", "a.img"]).end();
            assert!(!s.path("a.img").exists());
            assert_eq!(s.exits(4, &["status", "--json", "a.img"])[0]["state"], "restore-abort-interrupted");
            let told = s.exits(0, &[verb, &["--json", "a.img"]].concat());
            assert_eq!(told[0]["what"], what, "{:?} {verb:?}", s.fs);
            assert!(fs::read(s.path("a.img")).expect("there") == fs::read(s.path(becomes)).expect("there"));
            ["a.img", "a.snap", "kept"].iter().for_each(|name| fs::remove_file(s.path(name)).expect("removed"));
        }
        // What it goes back to is gone: only one way is left, and it is told.
        interrupted(s);
        s.start_with_fault("EIO:0", &["abort", "a.img"]).end();
        fs::remove_file(s.path("kept")).expect("removed");
        refused(s, "resume --force a.img' takes the snapshot after all", &["resume", "a.img"]);
        s.exits(0, &["resume", "--force", "-q", "a.img"]);
        assert!(fs::read(s.path("a.img")).expect("there") == fs::read(s.path("a.snap")).expect("there"));
    });
}

/// An image whose restore was interrupted halfway; what it was before.
fn interrupted(s: &Sandbox) -> Vec<u8> {
    noise(&s.path("a.img"), MIB);
    s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
    for at in [0, MIB / 2] {
        writer(&s.path("a.img")).write_all_at(b"new", at).expect("written");
    }
    let was = fs::read(s.path("a.img")).expect("the image");
    for call in 1.. {
        let fault = format!("EIO:{call}");
        s.start_with_fault(&fault, &["restore", "a.snap", "a.img", "--keep-current", "kept"]).end();
        if !s.path("a.img").exists() {
            break;
        }
        s.run(&["abort", "kept"]);
        let _ = fs::remove_file(s.path("kept"));
    }
    s.start_with_fault("EIO:1", &["resume", "a.img"]).end();
    assert!(!s.path("a.img").exists());
    let image = fs::read(s.path("a.img.restoring")).expect("the image");
    assert!(image != was && image != fs::read(s.path("a.snap")).expect("the snapshot"), "no mixture");
    was
}
