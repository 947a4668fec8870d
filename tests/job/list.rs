//! `list`: what is asked for by name is there, or it is said.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use serde_json::Value;

use crate::support::{Fs, Random, must, noise, on_both, refused, until, writer};

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

/// It shows no instant yet.
#[test]
fn unfinished_work_has_no_age() {
    on_both(|s| {
        noise(&s.path("a.img"), 1 << 20);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let name = "user.reflink-img";
        let record = xattr::get(s.path("a.snap"), name).expect("read").expect("there");
        let mut record: Value = serde_json::from_slice(&record).expect("JSON");
        (record["state"], record["t0"]) = ("in-progress".into(), "1970-01-01T00:00:00Z".into());
        xattr::set(s.path("a.snap"), name, record.to_string().as_bytes()).expect("root may");
        let out = s.run(&["list", "a.snap"]);
        let told = String::from_utf8_lossy(&out.stdout);
        assert!(told.contains("(not complete)") && !told.contains("1970") && told.contains("  - "), "{told}");
        assert!(s.exits(0, &["list", "--json", "a.snap"])[0]["t0"].is_null());
    });
}

/// Where only a part of the image was overwritten Btrfs keeps whole what is still used in part, and that is what is said.
#[test]
fn what_a_snapshot_has_alone_is_what_its_removal_frees() {
    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 16 * MIB;
    // Metadata comes and goes as well.
    const SLACK: u64 = MIB;
    on_both(|s| {
        noise(&s.path("a.img"), SIZE);
        let sizes = || {
            let listed = s.exits(0, &["list", "--json", "a.snap"]);
            ["size", "own_bytes", "shared_bytes"].map(|name| listed[0][name].as_u64().expect("a number"))
        };
        let free =
            || nix::sys::statvfs::statvfs(&s.dir()).map(|it| it.blocks_free() * it.fragment_size()).expect("free");
        for overwritten in [SIZE, 6 * MIB] {
            s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
            assert_eq!(sizes(), [SIZE, 0, SIZE], "{:?}", s.fs);
            let image = writer(&s.path("a.img"));
            image.write_all_at(&Random::new(overwritten).bytes(overwritten as usize), 0).expect("written");
            drop(image);
            must("sync", &[&"-f", &s.dir()]);
            let [size, own, shared] = sizes();
            assert_eq!((size, own + shared), (SIZE, SIZE), "{:?}", s.fs);
            let part_of_an_extent = s.fs == Fs::Btrfs && overwritten < SIZE;
            assert!(own == overwritten || part_of_an_extent && own < overwritten, "{:?}: {own} of {overwritten}", s.fs);
            let before = free();
            fs::remove_file(s.path("a.snap")).expect("removed");
            must("sync", &[&"-f", &s.dir()]);
            // XFS frees what was removed a little later.
            let freed = || free().saturating_sub(before);
            assert!(until(|| freed().abs_diff(own) <= SLACK), "{:?}: {} instead of {own} are freed", s.fs, freed());
        }
    });
}
