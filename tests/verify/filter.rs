//! Snapshots under the hold `filter`, of an image that QEMU's block layer writes to through `rclone-img serve`: `qemu-io` on several
//! connections, and a QEMU process. On real XFS and Btrfs, and with what can go wrong.

use std::fs;
use std::path::Path;

use crate::support;
use crate::support::serving::{LASTS, LASTS_LONG, clients, image, serve, stop, uri};
use crate::support::{ANY_TIME, Job, Random, Sandbox, Taken, Vm, Writers, assert_one_instant, on_both, runs, there};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Takes a snapshot while they write, and another one over it, and judges both.
fn snapshots_are_right(s: &Sandbox, what: &str, writers: &Writers) {
    for refresh in [&[][..], &["--refresh"]] {
        Taken::while_they_write(s, what, &[&LASTS[..], refresh].concat(), "filter", writers);
    }
}

#[test]
fn qemu_io_writes_by_several_connections() {
    if !there("qemu-io") {
        return;
    }
    let random = Random::seeded("qemu_io_writes_by_several_connections");
    on_both(|s| {
        for round in 0..runs(1, 10) {
            for (cache, count) in [("writeback", 1), ("writeback", 4), ("none", 4)] {
                let image = image(s, random.next());
                let server = serve(s, cache);
                let writers = Writers::start(s, &image, random.next(), clients(s, count));
                let what = format!("{:?}, round {round}, {cache}, {count} clients", s.fs);
                snapshots_are_right(s, &what, &writers);
                writers.stop();
                stop(server);
                assert_one_instant(&[&image], &s.outside("log"), ANY_TIME);
                fs::remove_file(s.path("a.snap")).expect("the snapshot");
            }
        }
    });
}

#[test]
fn a_real_qemu_has_its_disk_there() {
    if !there("qemu-system-x86_64") {
        return;
    }
    let random = Random::seeded("a_real_qemu_has_its_disk_there");
    on_both(|s| {
        let image = image(s, random.next());
        let server = serve(s, "none");
        let vm = Vm::start(s, Path::new(&uri(s, "")), "cache=none");
        let writers = Writers::start(s, &image, random.next(), vec![Box::new(vm.disk())]);
        snapshots_are_right(s, &format!("{:?}, QEMU (pid {})", s.fs, vm.pid()), &writers);
        writers.stop();
        drop(vm);
        stop(server);
        assert_one_instant(&[&image], &s.outside("log"), ANY_TIME);
    });
}

/// The same writers and no hold.
#[test]
fn without_the_hold_a_copy_is_bad() {
    if !there("qemu-io") {
        return;
    }
    on_both(|s| {
        let image = image(s, 1);
        let server = serve(s, "none");
        let writers = Writers::start(s, &image, 1, clients(s, 1));
        // By chance one may be of one instant.
        let is_bad = || {
            let verdict = Taken::without_a_hold(s, &writers);
            !verdict.good && verdict.bad > 0
        };
        assert!((0..5).any(|_| is_bad()), "{:?}: copies without the hold are good", s.fs);
        writers.stop();
        stop(server);
    });
}

/// A job that something happens to while it watches. The guest's writes go on, without an error.
fn meanwhile(code: Option<i32>, says: &str, act: impl Fn(&Job, &Job, &Writers)) {
    if !there("qemu-io") {
        return;
    }
    let random = Random::seeded(says);
    on_both(|s| {
        let image = image(s, random.next());
        let server = serve(s, "none");
        let writers = Writers::start(s, &image, random.next(), clients(s, 2));
        let args = [
            &["snapshot", "--consistency", "filter", "--guest-deadline", "500ms"],
            &LASTS_LONG[..],
            &["a.img", "a.snap"],
        ];
        let mut job = s.start(&args.concat());
        assert!(job.wait_for("started"), "{:?}", job.events);
        act(&job, &server, &writers);
        let ended = job.end();
        assert_eq!(ended.code, code, "{:?}: {}", s.fs, ended.stderr);
        assert!(ended.stderr.contains(says), "{:?}: {}", s.fs, ended.stderr);
        assert!(!s.path("a.snap").exists());
        writers.goes_on(20);
        // The next one finds all as it should be.
        snapshots_are_right(s, says, &writers);
        writers.stop();
        stop(server);
        assert_one_instant(&[&image], &s.outside("log"), ANY_TIME);
    });
}

fn send(job: &Job, signal: Signal) {
    kill(Pid::from_raw(job.pid() as i32), signal).expect("a signal");
}

#[test]
fn the_job_is_killed() {
    meanwhile(None, "", |job, _, _| send(job, Signal::SIGKILL));
}

#[test]
fn the_job_is_interrupted() {
    meanwhile(Some(6), "hint: ", |job, _, _| send(job, Signal::SIGTERM));
}

#[test]
fn the_job_is_stopped_for_longer_than_a_write_may_wait() {
    meanwhile(Some(6), "--guest-deadline", |job, _, writers| {
        send(job, Signal::SIGSTOP);
        writers.goes_on(20);
        send(job, Signal::SIGCONT);
    });
}

/// `auto` tries the hold before it takes it: one look after the other must find nobody in the way.
#[test]
fn a_job_that_has_left_is_in_nobodys_way() {
    on_both(|s| {
        image(s, 1);
        let server = serve(s, "writeback");
        for _ in 0..50 {
            s.exits(0, &["snapshot", "--dry-run", "a.img", "a.snap"]);
        }
        stop(server);
    });
}

#[test]
fn a_second_job_is_sent_away() {
    if !there("qemu-io") {
        return;
    }
    on_both(|s| {
        let image = image(s, 1);
        let server = serve(s, "writeback");
        let writers = Writers::start(s, &image, 1, clients(s, 1));
        let mut first = s.start(&[&["snapshot"], &LASTS_LONG[..], &["a.img", "a.snap"]].concat());
        assert!(first.wait_for("started"), "{:?}", first.events);
        let second = s.run(&["snapshot", "--consistency", "filter", "a.img", "b.snap"]);
        assert_eq!(second.status.code(), Some(5), "{}", String::from_utf8_lossy(&second.stderr));
        // And whoever asks is told how far it is.
        let status = s.exits(0, &["status", "--json", "a.snap"]);
        assert_eq!(status[0]["live"]["bytes"], image.metadata().expect("the image").len(), "{status:?}");
        send(&first, Signal::SIGTERM);
        assert_eq!(first.end().code, Some(6));
        writers.stop();
        stop(server);
    });
}

/// Who writes past the server would not be seen.
#[test]
fn another_writer_is_found_before_t0_and_after_it() {
    on_both(|s| {
        let image = image(s, 1);
        let server = serve(s, "writeback");
        let open = || fs::File::options().write(true).open(&image).expect("the image");
        let other = support::Other::opens("<>", &image);
        support::refused(s, "past its server", &["snapshot", "--consistency", "filter", "a.img", "a.snap"]);
        drop(other);
        let mut job =
            s.start(&[&["snapshot", "--consistency", "filter"], &LASTS_LONG[..], &["a.img", "a.snap"]].concat());
        assert!(job.wait_for("started"), "{:?}", job.events);
        let late = open();
        let ended = job.end();
        drop(late);
        assert_eq!(ended.code, Some(6), "{:?}: {}", s.fs, ended.stderr);
        assert!(ended.stderr.contains("past its server") && !s.path("a.snap").exists(), "{}", ended.stderr);
        // One that comes, writes, and is gone before anybody looks.
        let mut job =
            s.start(&[&["snapshot", "--consistency", "filter"], &LASTS_LONG[..], &["a.img", "a.snap"]].concat());
        assert!(job.wait_for("started"), "{:?}", job.events);
        drop(open());
        let ended = job.end();
        assert_eq!(ended.code, Some(6), "{:?}: {}", s.fs, ended.stderr);
        assert!(ended.stderr.contains("past its server") && !s.path("a.snap").exists(), "{}", ended.stderr);
        stop(server);
    });
}
