//! `rotate --metrics`: whatever a run ends with, it is told, and the last success stays known.

use std::fs::{self, File};

use crate::support::rotating::{begin, newest, rotate};
use crate::support::{Sandbox, must, on_both};

fn value(s: &Sandbox, name: &str) -> String {
    let text = fs::read_to_string(s.path("m.prom")).expect("metrics");
    let lines: Vec<_> = text.lines().filter(|it| it.starts_with(&format!("reflink_img_{name}{{"))).collect();
    assert_eq!(lines.len(), 1, "{name}: {text}");
    assert!(lines[0].contains(r#"{src="a.img",dst="snaps"}"#), "{}", lines[0]);
    lines[0].rsplit(' ').next().expect("a value").to_owned()
}

const KEEP: [&str; 4] = ["--metrics", "m.prom", "--keep-last", "1"];

#[test]
fn the_last_success_is_kept_whatever_a_run_ends_with() {
    on_both(|s| {
        begin(s);
        // A name for a whole year.
        let yearly = [&["rotate", "-q", "a.img=snaps/a-%Y.snap"][..], &KEEP].concat();
        s.exits(0, &yearly);
        let success = ["last_success_timestamp_seconds", "last_success_t0_timestamp_seconds"];
        let was = success.map(|name| value(s, name));
        let check = |code: i32, what: &str| {
            assert_eq!(value(s, "last_run_exit_code"), code.to_string(), "{:?}: {what}", s.fs);
            assert_eq!(success.map(|name| value(s, name)), was, "{:?}: {what}", s.fs);
        };
        // Refused before the snapshot's process is there.
        s.exits(3, &yearly);
        check(3, "a name that is there");
        let busy = File::open(s.path("snaps")).expect("open");
        busy.lock().expect("locked");
        rotate(s, 5, &KEEP);
        check(5, "busy");
        busy.unlock().expect("unlocked");
        rotate(s, 3, &[&KEEP[..], &["--min-free", "99%"]].concat());
        check(3, "the snapshot's process");
        let before = fs::read(s.path("m.prom")).expect("metrics");
        rotate(s, 0, &[&KEEP[..], &["--dry-run"]].concat());
        rotate(s, 0, &[&KEEP[..], &["--prune-only"]].concat());
        assert!(fs::read(s.path("m.prom")).expect("metrics") == before);
        // One that cannot be removed: the new one is a success all the same.
        rotate(s, 0, &KEEP);
        let old = s.path("snaps").join(newest(s));
        must("chattr", &[&"+i", &old]);
        rotate(s, 1, &KEEP);
        must("chattr", &[&"-i", &old]);
        assert_eq!(value(s, "last_run_exit_code"), "1");
        assert!(success.map(|name| value(s, name)) > was);
    });
}
