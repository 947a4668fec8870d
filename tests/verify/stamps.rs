//! Snapshots under the hold `guard` while a guest writes in every way: each sector of a snapshot is what the last write that
//! ended before T0 has put there, or one that was under way at T0, and none is torn. T0 is the instant that the job tells. With
//! the guard off the same judge finds the snapshot bad. On real XFS and Btrfs, ten runs each (`REFLINK_IMG_SOAK=1`: 100).

use std::fs;
use std::path::PathBuf;

use crate::support::{
    ANY_TIME, Random, Sandbox, Stamper, Taken, assert_one_instant, guard, is_met, judged, modes, on_both, refused, runs,
};
use reflink_img_guest::fill::fill;

/// An image's size: 8192 extents, one a block.
const SIZE: u64 = 32 << 20;

/// How the guest writes, and what the job is told beside that. Every other run is a refresh; an odd number of these, so that
/// in the long run each is.
const RUNS: [(&str, &[&str]); 9] = [
    ("buffered", &[]),
    ("direct", &["--latency", "1ms"]),
    ("libaio", &["--cluster", "4K", "--chunk", "64K"]),
    ("uring", &["--cluster", "16K"]),
    ("punch", &["--latency", "1ms"]),
    ("mix-open", &["--cluster", "1M", "--chunk", "1M"]),
    ("uring", &["--chunk", "128K", "--latency", "1ms"]),
    ("punch", &["--cluster", "4K", "--chunk", "4K"]),
    ("mix-open", &["--latency", "1ms"]),
];

/// Flags by which a copy without a hold takes its time.
const SLOW_NONE: [&str; 6] = ["--consistency", "none", "--chunk", "1M", "--latency", "1ms"];

/// The image: stamps in as many extents as there are blocks. One that was written to has fewer, so it is made anew.
fn image(s: &Sandbox, size: u64, seed: u64) -> PathBuf {
    let path = s.path("a.img");
    let _ = fs::remove_file(&path);
    fill(&path, size, true, seed).expect("filled");
    path
}

/// A guest that writes to `a.img`, and leaves some of two cores to others.
fn guest(s: &Sandbox, mode: &str, seed: u64) -> Stamper {
    let image = s.path("a.img");
    let args = [format!("--mode={mode}"), format!("--seed={seed}"), "--writers=2".into(), "--rate=4000/s".into()];
    let guest = Stamper::start(
        &s.outside("log"),
        &[&[image.as_os_str()], args.each_ref().map(AsRef::as_ref).as_slice()].concat(),
    );
    guest.goes_on(100);
    guest
}

/// Takes a snapshot, or refreshes it, beside a guest that writes in that way, and judges it.
fn one_instant(s: &Sandbox, run: &str, (mode, flags): (&str, &[&str]), refresh: bool, random: &Random) {
    let (snapshot, log) = (s.path("a.snap"), s.outside("log"));
    let image = if refresh { s.path("a.img") } else { image(s, SIZE, random.next()) };
    let refresh: &[&str] = if refresh { &["--refresh"] } else { &[] };
    let what = format!("{:?}, {run}, {mode} {flags:?} {refresh:?}", s.fs);
    let guest = guest(s, mode, random.next());
    let met = |again: bool| {
        if again && refresh.is_empty() {
            fs::remove_file(&snapshot).expect("the snapshot");
        }
        let taken = Taken::by(s, &[flags, refresh, &["a.img", "a.snap"]].concat());
        guest.goes_on(100);
        println!("{what}: {}", taken.finished[0]);
        let verdict = assert_one_instant(&[&snapshot], &log, taken.t0.clone());
        assert_eq!(verdict.sectors, SIZE / 512, "{what}");
        assert_eq!(taken.finished[0]["hold"], "guard", "{what}");
        taken.number("promoted") > 0
    };
    is_met(&what, met);
    guest.stop();
    assert_one_instant(&[&image], &log, ANY_TIME);
}

#[test]
fn a_snapshot_is_of_one_instant_however_the_guest_writes() {
    let random = Random::seeded("a_snapshot_is_of_one_instant_however_the_guest_writes");
    on_both(|s| {
        let _service = guard(s);
        let snapshot = s.path("a.snap");
        let modes = modes(&s.dir());
        for run in 0..runs(10, 100) {
            let (mode, flags) = RUNS[run as usize % RUNS.len()];
            if !modes.contains(&mode) {
                continue;
            }
            let refresh = snapshot.exists();
            one_instant(s, &format!("run {run}"), (mode, flags), refresh, &random);
            if refresh {
                fs::remove_file(&snapshot).expect("the snapshot");
            }
        }
    });
}

/// A clone call takes whole blocks: no cluster and no call may be smaller.
#[test]
fn blocks_that_are_larger_than_a_cluster_usually_is() {
    let random = Random::seeded("blocks_that_are_larger_than_a_cluster_usually_is");
    let Some(s) = Sandbox::xfs_with_blocks(16 << 10) else { return };
    let _service = guard(&s);
    image(&s, SIZE, 1);
    refused(&s, "smaller than the file system's blocks", &["snapshot", "--cluster", "4K", "a.img", "a.snap"]);
    for (run, flags) in [&[][..], &["--chunk", "8K"], &["--chunk", "16K", "--cluster", "16K"]].into_iter().enumerate() {
        one_instant(&s, &format!("run {run}"), ("direct", flags), false, &random);
        fs::remove_file(s.path("a.snap")).expect("the snapshot");
    }
}

#[test]
fn without_the_guard_it_is_refused_and_a_copy_all_the_same_is_bad() {
    on_both(|s| {
        let (snapshot, log) = (s.path("a.snap"), s.outside("log"));
        let modes = modes(&s.dir());
        for mode in ["buffered", "libaio", "uring", "punch"].into_iter().filter(|mode| modes.contains(mode)) {
            let image = image(s, SIZE, 1);
            let guest = guest(s, mode, 1);
            refused(s, "cannot all be watched", &["snapshot", "--consistency", "guard", "a.img", "a.snap"]);
            // By chance one may be of one instant.
            let is_bad = || {
                let taken = Taken::by(s, &[&SLOW_NONE[..], &["--force", "a.img", "a.snap"]].concat());
                guest.goes_on(100);
                let verdict = judged(&[&snapshot], &log, ANY_TIME);
                println!("{:?}, {mode}: {} of {} bad", s.fs, verdict.bad, verdict.sectors);
                assert_eq!(taken.finished[0]["point_in_time"], false, "{:?}, {mode}", s.fs);
                // Bad for its instants alone: each sector is one that the guest wrote there.
                let wrong = verdict.unknown + verdict.torn + verdict.misplaced;
                assert_eq!(wrong, 0, "{:?}, {mode}: {}", s.fs, verdict.json());
                verdict.bad > 0 && !verdict.good
            };
            assert!((0..5).any(|_| is_bad()), "{:?}, {mode}: copies without the guard are good", s.fs);
            guest.stop();
            assert_one_instant(&[&image], &log, ANY_TIME);
            fs::remove_file(&snapshot).expect("the snapshot");
        }
    });
}

/// Such a file cannot be asked whether it is watched.
#[test]
fn an_image_that_is_registered_with_an_io_uring_is_refused_under_the_guard_too() {
    on_both(|s| {
        let _service = guard(s);
        image(s, SIZE, 1);
        if modes(&s.dir()).contains(&"uring-fixed") {
            let guest = guest(s, "uring-fixed", 1);
            refused(s, "registered with the io_uring", &["snapshot", "a.img", "a.snap"]);
            guest.stop();
        }
    });
}
