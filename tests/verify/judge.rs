//! The guest that other tests rely on, and its judge: on XFS and Btrfs an image is what its log says, a copy in one call is of
//! one instant, and a copy in pieces under a guest that writes is found out.

use std::fs::File;
use std::path::Path;

use crate::support::{ANY_TIME, Stamper, assert_one_instant, judged, modes, must, on_both, rounds};
use reflink_img_guest::clock;
use reflink_img_guest::fill::fill;

/// The image's size: 4096 extents, with `REFLINK_IMG_SOAK=1` 16384.
fn size() -> u64 {
    u64::from(rounds(4).max(1)) * (16 << 20)
}

fn reflink(from: &Path, to: &Path) {
    must("cp", &[&"--reflink=always", &from, &to]);
}

/// Clones a half of the image, in one call.
fn half(from: &Path, to: &Path, start: u64) {
    must("xfs_io", &[&"-c", &format!("reflink {} {start} {start} {}", from.display(), size() / 2), &to]);
}

#[test]
fn one_call_is_one_instant_and_two_calls_are_not() {
    on_both(|s| {
        let (image, whole, pieces, log) = (s.path("a.img"), s.path("whole"), s.path("pieces"), s.outside("log"));
        fill(&image, size(), true, 1).expect("filled");
        for mode in modes(&s.dir()) {
            let guest =
                Stamper::start(&log, &[image.as_os_str(), "--writers=2".as_ref(), format!("--mode={mode}").as_ref()]);
            guest.goes_on(100);
            let before = clock::now();
            reflink(&image, &whole);
            let call = before..=clock::now();
            File::create(&pieces).and_then(|file| file.set_len(size())).expect("a file");
            half(&image, &pieces, 0);
            guest.goes_on(300);
            half(&image, &pieces, size() / 2);
            guest.goes_on(100);
            // While the guest writes on, and when it has ended.
            let alive = assert_one_instant(&[&whole], &log, call.clone());
            guest.stop();
            let ended = assert_one_instant(&[&whole], &log, call);
            assert_eq!((alive.t0, alive.sectors), (ended.t0, size() / 512), "{:?} {mode}", s.fs);
            assert_one_instant(&[&image], &log, ANY_TIME);
            let verdict = judged(&[&pieces], &log, ANY_TIME);
            assert!(
                !verdict.good && verdict.torn == 0 && verdict.unknown == 0,
                "{:?} {mode}: {}",
                s.fs,
                verdict.json()
            );
            std::fs::remove_file(&whole).expect("removed");
        }
    });
}

#[test]
fn a_killed_guest_leaves_its_image_and_its_log_at_one() {
    on_both(|s| {
        let (image, log) = (s.path("a.img"), s.outside("log"));
        fill(&image, size(), true, 1).expect("filled");
        for (mode, more) in [("buffered", None), ("libaio", Some("--continue")), ("punch", Some("--continue"))] {
            let mode = format!("--mode={mode}");
            let args = ["--writers=2".as_ref(), mode.as_ref(), image.as_os_str()];
            let args: Vec<_> = args.into_iter().chain(more.map(str::as_ref)).collect();
            let guest = Stamper::start(&log, &args);
            guest.goes_on(500);
            guest.kill();
            assert_one_instant(&[&image], &log, ANY_TIME);
        }
    });
}

#[test]
fn writes_that_depend_on_each_other_tell_copies_of_two_instants() {
    on_both(|s| {
        let paths = ["a.img", "b.img", "a.snap", "b.snap"].map(|name| s.path(name));
        let [a, b, a_snap, b_snap] = paths.each_ref().map(|path| path.as_path());
        let log = s.outside("log");
        fill(a, size() / 4, true, 1).expect("filled");
        fill(b, size() / 4, true, 2).expect("filled");
        for mode in ["direct", "buffered"] {
            let images = format!("--images={},{}", a.display(), b.display());
            let guest = Stamper::start(&log, &["--dependent", &images, &format!("--mode={mode}")]);
            guest.goes_on(20);
            reflink(a, a_snap);
            guest.goes_on(20);
            reflink(b, b_snap);
            guest.goes_on(20);
            guest.stop();
            let together = assert_one_instant(&[a, b], &log, ANY_TIME);
            assert!(together.prefix.is_some());
            let apart = judged(&[a_snap, b_snap], &log, ANY_TIME);
            assert!(!apart.good && apart.prefix.is_none(), "{:?} {mode}: {}", s.fs, apart.json());
            for snapshot in [a_snap, b_snap] {
                std::fs::remove_file(snapshot).expect("removed");
            }
        }
    });
}
