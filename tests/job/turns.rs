//! Jobs on one file system take turns in the background work, and none is deaf while it waits for its own.

use std::fs::OpenOptions;

use crate::support::{Armed, Family, Guest, Sandbox, assert_same, fragmented, noise, on_both, patiently, until};
use nix::sys::signal::Signal;
use rclone_img::disk::Disk;
use rclone_img::disk::real::{RealDisk, RealFile};

/// Another job: has the turn, or waits for it.
fn another(s: &Sandbox) -> RealDisk {
    RealDisk::open_dir(&s.dir()).expect("the directory")
}

#[test]
fn the_turn_is_the_file_systems_and_goes_round() {
    on_both(|s| {
        std::fs::create_dir(s.path("sub")).expect("a directory");
        let (one, other) = (another(s), RealDisk::open_dir(&s.path("sub")).expect("the directory"));
        assert!(one.take_turn() && one.take_turn());
        assert!(!other.take_turn(), "{:?}: one has it", s.fs);
        one.end_turn();
        assert!(!one.take_turn(), "{:?}: the other is next", s.fs);
        assert!(other.take_turn(), "{:?}", s.fs);
        drop(other);
        // What another test starts has its lock for a moment as well.
        assert!(until(|| one.take_turn()), "{:?}: a job that died has no turn", s.fs);
    });
}

#[test]
fn a_job_that_waits_clones_nothing_and_answers_signals() {
    on_both(|s| {
        fragmented(&s.path("a.img"), 3000);
        let before = another(s);
        assert!(before.take_turn());
        let mut job = s.start(&["snapshot", "--consistency", "frozen", "a.img", "a.snap"]);
        assert!(job.wait_for("progress") && job.wait_for("progress"), "{:?}", s.fs);
        job.signal(Signal::SIGTERM);
        let ended = job.end();
        assert_eq!(ended.code, Some(4), "{:?}: {}", s.fs, ended.stderr);
        let calls: Vec<_> = ended.events.iter().filter_map(|e| e["calls"].as_u64()).collect();
        assert!(calls.len() >= 2 && calls.iter().all(|c| *c == 0), "{:?}: {:?}", s.fs, ended.events);
        before.end_turn();
        s.exits(0, &["resume", "-q", "a.snap"]);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    });
}

/// It took itself for one that nobody waits for.
#[test]
fn a_job_that_waits_while_a_vm_is_started_gets_a_worker() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        noise(&s.path("a.img"), 16 << 20);
        let other = RealFile::open_image(&s.path("a.img")).expect("the image");
        assert!(other.try_flock().expect("a lock"));
        let mut job = s.start(&patiently(&["snapshot", "--wait", "2m", "a.img", "a.snap"]));
        assert!(until(|| job.catches(Signal::SIGTERM)), "{:?}", s.fs);
        let guest = Guest::start(&s.path("a.img"));
        drop(other);
        assert!(job.wait_for("started"), "{:?}: {}", s.fs, job.end().stderr);
        let family = Family::of(&job);
        let session = nix::unistd::getsid(Some(family.worker)).expect("alive");
        assert_eq!(session, family.worker, "{:?}: what guests wait for can be stopped with the terminal's job", s.fs);
        let ended = job.end();
        assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
        assert_eq!(ended.events.last().expect("finished")["hold"], "guard", "{:?}", s.fs);
        guest.stop().assert_unharmed(&format!("{:?} started meanwhile", s.fs));
    });
}

#[test]
fn a_job_that_waits_ends_for_a_writer_without_its_turn() {
    on_both(|s| {
        fragmented(&s.path("a.img"), 300);
        std::fs::copy(s.path("a.img"), s.path("before")).expect("copied");
        let other = another(s);
        assert!(other.take_turn());
        let mut job = s.start(&["snapshot", "--consistency", "frozen", "a.img", "a.snap"]);
        assert!(job.wait_for("progress"), "{:?}", s.fs);
        OpenOptions::new().write(true).open(s.path("a.img")).expect("let in");
        let ended = job.end();
        // So small an image is finished while the writer waits.
        assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
        assert_same(&s.path("before"), &s.path("a.snap"));
    });
}
