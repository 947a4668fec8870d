//! `list`: what is asked for by name is there, or it is said.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use support::{noise, on_both, refused};

#[test]
fn what_is_listed_by_name_is_there_and_a_snapshot_or_is_said_not_to_be() {
    on_both(|s| {
        noise(&s.path("a.img"), 1 << 20);
        refused(s, "No such file", &["list", "missing.snap"]);
        refused(s, "No such file", &["list", "a.img", "missing/a.snap", "--json"]);
        let said = |args: &[&str]| {
            let out = s.run(args);
            assert_eq!(out.status.code(), Some(0), "{args:?}");
            [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let [told, warned] = said(&["list", "a.img"]);
        assert!(told.is_empty() && warned.contains("a.img is no snapshot"), "{told}{warned}");
        let [told, warned] = said(&["list", "."]);
        assert!(told.starts_with("no snapshots here") && warned.is_empty(), "{told}{warned}");
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let [told, warned] = said(&["list", "a.snap", "a.img"]);
        assert!(told.contains("a.snap") && warned.contains("a.img is no snapshot"), "{told}{warned}");
    });
}

#[test]
fn a_snapshot_is_listed_with_the_image_that_it_is_of() {
    on_both(|s| {
        noise(&s.path("a.img"), 1 << 20);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let listed = s.exits(0, &["list", "--json", "a.snap"]);
        assert_eq!(listed[0]["image_ino"], fs::metadata(s.path("a.img")).expect("there").ino(), "{listed:?}");
    });
}
