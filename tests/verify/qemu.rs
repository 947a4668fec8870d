//! Snapshots under the hold `guard` while QEMU writes: its block layer as `qemu-io` has it, with each way of its to reach the
//! kernel, and a QEMU process whose monitor is told what to write. On real XFS and Btrfs.

use std::fs;
use std::path::PathBuf;

use crate::support::{
    ANY_TIME, Disk, QemuIo, Random, Sandbox, Taken, Vm, Writers, assert_one_instant, guard, modes, on_both, refused,
    runs, there,
};
use reflink_img_guest::fill::fill;

/// The image's size: 4096 extents, one a block.
const SIZE: u64 = 16 << 20;

/// Threads with and without the page cache, and the two that submit to the kernel.
const WAYS: [&str; 4] =
    ["threads,cache.direct=off", "threads,cache.direct=on", "native,cache.direct=on", "io_uring,cache.direct=on"];

/// Flags by which a job lasts.
const LASTS: [&str; 2] = ["--latency", "1ms"];

fn image(s: &Sandbox, seed: u64) -> PathBuf {
    let path = s.path("a.img");
    let _ = fs::remove_file(&path);
    fill(&path, SIZE, true, seed).expect("filled");
    path
}

/// The ways that this system has.
fn ways(s: &Sandbox) -> impl Iterator<Item = &'static str> {
    let uring = modes(&s.dir()).contains(&"uring");
    WAYS.into_iter().filter(move |way| uring || !way.starts_with("io_uring"))
}

/// Takes a snapshot while they write, and where they submit to the kernel another one over it, and judges both.
fn snapshots_are_right(s: &Sandbox, what: &str, writers: &Writers) {
    let times = if what.contains("native") { 2 } else { 1 };
    for refresh in [&[][..], &["--refresh"]].into_iter().take(times) {
        Taken::while_they_write(s, what, &[&LASTS[..], refresh].concat(), "guard", writers);
    }
}

/// Two of them, so that two writes are under way.
fn two(image: &std::path::Path, way: &str) -> Vec<Box<dyn Disk>> {
    let open = || Box::new(QemuIo::open(image, &format!("file.aio={way}"))) as Box<dyn Disk>;
    vec![open(), open()]
}

#[test]
fn qemu_io_writes_in_each_of_its_ways() {
    if !there("qemu-io") {
        return;
    }
    let random = Random::seeded("qemu_io_writes_in_each_of_its_ways");
    on_both(|s| {
        let _service = guard(s);
        for round in 0..runs(1, 10) {
            for way in ways(s) {
                let image = image(s, random.next());
                let writers = Writers::start(s, &image, random.next(), two(&image, way));
                snapshots_are_right(s, &format!("{:?}, round {round}, qemu-io {way}", s.fs), &writers);
                writers.stop();
                assert_one_instant(&[&image], &s.outside("log"), ANY_TIME);
                fs::remove_file(s.path("a.snap")).expect("the snapshot");
            }
        }
    });
}

#[test]
fn a_real_qemu_writes_by_its_monitor() {
    if !there("qemu-system-x86_64") {
        return;
    }
    let random = Random::seeded("a_real_qemu_writes_by_its_monitor");
    on_both(|s| {
        let _service = guard(s);
        for round in 0..runs(1, 10) {
            for options in ["cache=none,aio=native", "cache=writeback,aio=threads"] {
                let image = image(s, random.next());
                let vm = Vm::start(s, &image, options);
                let writers = Writers::start(s, &image, random.next(), vec![Box::new(vm.disk())]);
                let what = format!("{:?}, round {round}, QEMU (pid {}) {options}", s.fs, vm.pid());
                snapshots_are_right(s, &what, &writers);
                writers.stop();
                drop(vm);
                assert_one_instant(&[&image], &s.outside("log"), ANY_TIME);
                fs::remove_file(s.path("a.snap")).expect("the snapshot");
            }
        }
    });
}

/// A QEMU that was started before the guard is refused, and a copy that is made all the same is bad.
#[test]
fn without_the_guard_a_real_qemus_image_is_refused_and_a_copy_is_bad() {
    if !there("qemu-system-x86_64") {
        return;
    }
    on_both(|s| {
        let image = image(s, 1);
        let vm = Vm::start(s, &image, "cache=none,aio=native");
        let writers = Writers::start(s, &image, 1, vec![Box::new(vm.disk())]);
        let who = format!("pid {} (qemu-system-x86)", vm.pid());
        refused(s, &who, &["snapshot", "--consistency", "guard", "a.img", "a.snap"]);
        // By chance one may be of one instant.
        let is_bad = || {
            let verdict = Taken::without_a_hold(s, &writers);
            !verdict.good && verdict.bad > 0 && verdict.prefix.is_none()
        };
        assert!((0..5).any(|_| is_bad()), "{:?}: copies without the hold are good", s.fs);
        writers.stop();
    });
}
