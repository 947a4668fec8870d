//! Several images in one job, whose guest makes each write after the one before it has ended, whatever image that went to: the
//! snapshots show a prefix of the writes. Two jobs, one an image, do not. On real XFS and Btrfs, once each
//! (`REFLINK_IMG_SOAK=1`: 10 times).

use std::fs;
use std::path::PathBuf;

use crate::support::{
    ANY_TIME, Random, Sandbox, Stamper, Taken, assert_one_instant, guard, is_met, judged, modes, on_both, runs,
};
use reflink_img_guest::fill::fill;

/// Each image's size: 2048 extents, one a block.
const SIZE: u64 = 8 << 20;

/// The images, made anew, and how they are named to the guest.
fn images(s: &Sandbox, names: &[&str]) -> (Vec<PathBuf>, String) {
    let paths: Vec<PathBuf> = names.iter().map(|name| s.path(format!("{name}.img"))).collect();
    for (seed, path) in paths.iter().enumerate() {
        let _ = fs::remove_file(path);
        fill(path, SIZE, true, seed as u64).expect("filled");
    }
    let shown: Vec<&str> = paths.iter().map(|path| path.to_str().expect("UTF-8")).collect();
    let argument = format!("--images={}", shown.join(","));
    (paths, argument)
}

/// Takes snapshots of the images in one job and judges them as of one instant.
fn together(s: &Sandbox, what: &str, flags: &[&str], names: &[&str]) {
    let met = |again: bool| {
        if again && !flags.contains(&"--refresh") {
            names.iter().for_each(|name| fs::remove_file(s.path(format!("{name}.snap"))).expect("the snapshot"));
        }
        met_together(s, what, flags, names)
    };
    is_met(what, met);
}

/// Whether the guest has waited for any of them.
fn met_together(s: &Sandbox, what: &str, flags: &[&str], names: &[&str]) -> bool {
    let pairs: Vec<String> = names.iter().map(|name| format!("{name}.img={name}.snap")).collect();
    let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
    let taken = Taken::by(s, &[flags, &pairs].concat());
    assert_eq!(taken.finished.len(), names.len(), "{what}");
    let snapshots: Vec<PathBuf> = names.iter().map(|name| s.path(format!("{name}.snap"))).collect();
    let snapshots: Vec<_> = snapshots.iter().map(PathBuf::as_path).collect();
    let verdict = assert_one_instant(&snapshots, &s.outside("log"), taken.t0.clone());
    println!("{what}: {} and {}", taken.finished[0], verdict.json());
    assert_eq!(taken.finished[0]["hold"], "guard", "{what}");
    assert_eq!(verdict.prefix.is_some(), verdict.dependent, "{what}");
    taken.finished.iter().any(|it| it["promoted"].as_u64().expect("a number") > 0)
}

#[test]
fn snapshots_of_several_images_are_of_one_instant() {
    on_both(|s| {
        let _service = guard(s);
        for round in 0..runs(1, 10) {
            for (mode, names) in [("direct", &["a", "b"][..]), ("buffered", &["a", "b", "c"])] {
                let what = format!("{:?}, round {round}, {mode}", s.fs);
                let (_, images) = images(s, names);
                let guest = Stamper::start(
                    &s.outside("log"),
                    &["--dependent", &images, &format!("--mode={mode}"), &format!("--seed={round}")],
                );
                guest.goes_on(50);
                together(s, &what, &["--latency", "1ms", "--cluster", "16K"], names);
                together(s, &format!("{what}, refreshed"), &["--refresh", "--latency", "1ms"], names);
                guest.stop();
                names.iter().for_each(|name| fs::remove_file(s.path(format!("{name}.snap"))).expect("the snapshot"));
            }
        }
    });
}

#[test]
fn writes_that_are_under_way_at_the_same_time_to_several_images_are_of_one_instant_too() {
    let random = Random::seeded("writes_that_are_under_way_at_the_same_time");
    on_both(|s| {
        let _service = guard(s);
        for round in 0..runs(1, 10) {
            let mode = if modes(&s.dir()).contains(&"mix-open") { "mix-open" } else { "libaio" };
            let (_, images) = images(s, &["a", "b"]);
            let seed = format!("--seed={}", random.next());
            let mode = format!("--mode={mode}");
            let guest = Stamper::start(&s.outside("log"), &[&images, &mode, &seed, "--writers=4", "--rate=4000/s"]);
            guest.goes_on(100);
            together(s, &format!("{:?}, round {round}, {mode}", s.fs), &["--latency", "1ms"], &["a", "b"]);
            guest.stop();
            ["a.snap", "b.snap"].iter().for_each(|name| fs::remove_file(s.path(name)).expect("the snapshot"));
        }
    });
}

/// Each is of one instant, and they are not of the same.
#[test]
fn a_job_an_image_is_found_out() {
    on_both(|s| {
        let _service = guard(s);
        let (paths, images) = images(s, &["a", "b"]);
        let log = s.outside("log");
        let guest = Stamper::start(&log, &["--dependent", &images, "--mode=direct"]);
        guest.goes_on(50);
        for name in ["a", "b"] {
            let flags = ["--consistency", "guard", &format!("{name}.img"), &format!("{name}.snap")];
            Taken::by(s, &flags);
            guest.goes_on(50);
        }
        guest.stop();
        let apart = judged(&[&s.path("a.snap"), &s.path("b.snap")], &log, ANY_TIME);
        assert!(!apart.good && apart.prefix.is_none(), "{:?}: {}", s.fs, apart.json());
        let images: Vec<_> = paths.iter().map(PathBuf::as_path).collect();
        assert_one_instant(&images, &log, ANY_TIME);
    });
}
