//! Who escapes a watch is found before anything is touched, and named with the way out: the traps of `docs/KERNEL.md`, each
//! made on real XFS and Btrfs. What is no obstacle is none.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support;
use crate::support::{Armed, LoopDevice, Other, Sandbox, XfsIo, fragmented, must, on_both, refused, until};
use io_uring::{IoUring, Probe};
use nix::sched::{CloneFlags, unshare};
use rclone_img::sys::fanotify::{Group, Mark};
use rclone_img::sys::passing;
use reflink_img_guest::sys::uring::Uring;

/// An image with so many extents that a single call for it takes too long for `auto`.
fn image(s: &Sandbox) -> PathBuf {
    let path = s.path("vm.img");
    fragmented(&path, 2000);
    path
}

/// `guard`, `auto` and `check` say each of these words, with exit 3, and touch nothing.
fn escapes(s: &Sandbox, words: &[&str]) {
    for word in words {
        refused(s, word, &["snapshot", "--consistency", "guard", "vm.img", "vm.snap"]);
        refused(s, word, &["snapshot", "vm.img", "vm.snap"]);
    }
    let before = s.listing();
    let out = s.run(&["check", "vm.img"]);
    let told = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(3), "{:?}: {told}", s.fs);
    for word in words {
        assert!(told.contains(word), "{:?}: no {word:?} in {told}", s.fs);
    }
    assert_eq!(s.listing(), before, "{:?}", s.fs);
}

/// The image is snapshotted under watch.
fn is_no_obstacle(s: &Sandbox) {
    let events = s.exits(0, &["snapshot", "--consistency", "guard", "vm.img", "vm.snap", "--json"]);
    assert_eq!(events.last().expect("finished")["hold"], "guard", "{:?}", s.fs);
    support::assert_same(&s.path("vm.img"), &s.path("vm.snap"));
}

const RESTART: &str = "'rclone-img guard' must be running when the image is opened";

#[test]
fn a_descriptor_that_was_opened_for_writing_before_anything_was_armed() {
    on_both(|s| {
        let path = image(s);
        for mode in ["<>", ">>"] {
            let writer = Other::opens(mode, &path);
            let who = format!("pid {} (sh) has it open for writing as descriptor 9, opened", writer.0.id());
            escapes(s, &[&who, RESTART]);
        }
        let me = std::process::id();
        for flags in [0, libc::O_DIRECT, libc::O_APPEND] {
            let file = OpenOptions::new().write(true).custom_flags(flags).open(&path).expect("open");
            let number = file.as_raw_fd();
            escapes(s, &[&format!("pid {me} ("), &format!("open for writing as descriptor {number}, opened")]);
        }
        // One among several that can be watched.
        let unarmed = Other::opens("<>", &path);
        let _armed = Armed::directory(&s.dir());
        let _writer = OpenOptions::new().write(true).open(&path).expect("open");
        escapes(s, &[&format!("pid {} (sh) has", unarmed.0.id()), RESTART]);
        drop(unarmed);
        is_no_obstacle(s);
    });
}

#[test]
fn a_descriptor_that_can_only_read_is_no_obstacle() {
    on_both(|s| {
        let path = image(s);
        let _reader = Other::opens("<", &path);
        let _another = File::open(&path).expect("open");
        is_no_obstacle(s);
    });
}

#[test]
fn a_descriptor_of_a_thread_that_shares_none_with_its_process() {
    on_both(|s| {
        let path = image(s);
        let armed = Armed::directory(&s.dir());
        let _writer = OpenOptions::new().write(true).open(&path).expect("open");
        drop(armed);
        // A process of its own: its table would be a copy of this one's, with what other tests have open.
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", "traps::child_with_two_tables", "--nocapture"]).env(CHILD_WITH_TWO_TABLES, &path);
        let child = Other::start(&mut command, "opened");
        escapes(s, &[&format!("pid {} (", child.0.id()), "as descriptor", "of its thread"]);
        drop(child);
        is_no_obstacle(s);
    });
}

/// Set for the child a thread of which has the file of this path open in a table of descriptors that is its own.
const CHILD_WITH_TWO_TABLES: &str = "RCLIMG_TEST_CHILD_WITH_TWO_TABLES";

/// Not a test: what the one above starts.
#[test]
fn child_with_two_tables() {
    let Some(path) = std::env::var_os(CHILD_WITH_TWO_TABLES) else { return };
    let has_it_open = thread::spawn(move || {
        unshare(CloneFlags::CLONE_FILES).expect("a table of its own");
        let _file = OpenOptions::new().read(true).write(true).open(Path::new(&path)).expect("open");
        println!("opened");
        // Until the test ends it.
        let _ = std::io::stdin().read_line(&mut String::new());
    });
    has_it_open.join().expect("no panic");
}

#[test]
fn a_shared_mapping_whose_descriptor_is_closed() {
    on_both(|s| {
        let path = image(s);
        for mode in ["-rw", "-r"] {
            let _armed = Armed::directory(&s.dir());
            let mut mapper = XfsIo::open(&path);
            mapper.tell(&format!("mmap {mode} 0 8192"));
            let mapped = format!("pid {} (xfs_io) has it mapped shared", mapper.pid());
            escapes(s, &[&mapped, "end what has the image mapped"]);
            mapper.tell("close");
            escapes(s, &[&mapped, "end what has the image mapped"]);
        }
    });
}

#[test]
fn a_mapping_that_cannot_change_the_image_is_no_obstacle() {
    on_both(|s| {
        // A program that runs is mapped privately.
        let path = s.path("vm.img");
        // By another process: who is forked from this one meanwhile has what is written open, and nobody could run it.
        must("cp", &[&Path::new("/bin/sleep"), &path]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        let mut runs = Command::new(&path).arg("1000").stdin(Stdio::null()).spawn().expect("it runs");
        is_no_obstacle(s);
        runs.kill().expect("a signal");
        runs.wait().expect("its end");
    });
}

#[test]
fn a_file_that_an_io_uring_has_and_nobody_else() {
    on_both(|s| {
        // The kernel tells its name in a way of its own.
        let dir = s.path("a b\\c\n\u{e4}");
        fs::create_dir(&dir).expect("a directory");
        fragmented(&dir.join("vm.img"), 2000);
        fs::hard_link(dir.join("vm.img"), s.path("vm.img")).expect("a link");
        let _armed = Armed::directory(&dir);
        let _writer = OpenOptions::new().write(true).open(dir.join("vm.img")).expect("open");
        let ring = IoUring::new(4).expect("a ring");
        let file = OpenOptions::new().read(true).write(true).open(dir.join("vm.img")).expect("open");
        ring.submitter().register_files(&[-1, file.as_raw_fd()]).expect("registered");
        drop(file);
        let number = ring.as_raw_fd();
        let who = format!("has it registered with the io_uring of descriptor {number}");
        escapes(s, &[&format!("pid {} (", std::process::id()), &who, "not register its files with io_uring"]);
    });
}

#[test]
fn a_loop_device_that_can_be_written() {
    on_both(|s| {
        let path = image(s);
        let device = LoopDevice::on(&path, false);
        escapes(s, &[&format!("loop device {} is backed by it", device.0.display()), "losetup -d"]);
        drop(device);
        let _read_only = LoopDevice::on(&path, true);
        is_no_obstacle(s);
    });
}

#[test]
fn somebody_whom_no_search_finds() {
    on_both(|s| {
        let path = image(s);
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        passing::send(&ours, b"x", &[file.as_fd()]).expect("sent");
        drop(file);
        escapes(
            s,
            &["somebody who cannot be named has it open for writing", "run as root in the host's own namespaces"],
        );
        drop(theirs);
        is_no_obstacle(s);
    });
}

/// A mount namespace of its own, where the image has another name, as libvirt gives one to each VM.
#[test]
fn a_file_of_an_io_uring_in_another_mount_namespace() {
    on_both(|s| {
        let path = image(s);
        let _armed = Armed::directory(&s.dir());
        let _writer = OpenOptions::new().write(true).open(&path).expect("open");
        let elsewhere = s.outside("elsewhere");
        fs::create_dir(&elsewhere).expect("a directory");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(r#"mount --bind "$1" "$2" && exec "$3" --exact traps::child_with_a_ring --nocapture"#).arg("sh");
        command.arg(s.dir()).arg(&elsewhere).arg(std::env::current_exe().expect("this test"));
        command.env(CHILD_HAS_A_RING, elsewhere.join("vm.img"));
        let child = Other::start(&mut command, "registered");
        escapes(s, &[&format!("pid {} (", child.0.id()), "has it registered with the io_uring of descriptor"]);
    });
}

/// Set for the child that has the file of this path in a ring, and no descriptor of it.
const CHILD_HAS_A_RING: &str = "RCLIMG_TEST_CHILD_HAS_A_RING";

/// Not a test: what the one above starts.
#[test]
fn child_with_a_ring() {
    let Some(path) = std::env::var_os(CHILD_HAS_A_RING) else { return };
    let ring = IoUring::new(4).expect("a ring");
    let file = OpenOptions::new().read(true).write(true).open(Path::new(&path)).expect("open");
    ring.submitter().register_files(&[file.as_raw_fd()]).expect("registered");
    drop(file);
    println!("registered");
    // Until the test ends it.
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// What the kernel tells of an io_uring at work is nothing: it cannot have its lock.
#[test]
fn a_busy_io_uring_does_not_hide_its_files() {
    on_both(|s| {
        let path = image(s);
        let _armed = Armed::directory(&s.dir());
        let _writer = OpenOptions::new().write(true).open(&path).expect("open");
        let ring = IoUring::new(4).expect("a ring");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        ring.submitter().register_files(&[file.as_raw_fd()]).expect("registered");
        drop(file);
        let (number, stop) = (ring.as_raw_fd(), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        ring.submitter().register_probe(&mut Probe::new()).expect("a call that takes the lock");
                    }
                });
            }
            let told = catch_unwind(AssertUnwindSafe(|| {
                escapes(s, &[&format!("registered with the io_uring of descriptor {number}")]);
            }));
            stop.store(true, Ordering::Relaxed);
            told.expect("found");
        });
    });
}

/// A submission that waits, as for a clone under a watch, has the ring's lock all the while: what the ring has is told when it
/// is over.
#[test]
fn an_io_uring_whose_submission_waits_is_waited_for() {
    on_both(|s| {
        let path = image(s);
        let _armed = Armed::directory(&s.dir());
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).expect("open");
        let watch = Group::pre_content().expect("a group");
        watch.mark(file.as_fd(), Mark::PreAccess).expect("a mark");
        let mut ring = Uring::new(file, 1, 4096, false).expect("a ring");
        let (waits, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                ring.write(0, 0, 4096).expect("submitted");
                ring.wait(|_, result| assert_eq!(result.expect("written"), 4096)).expect("waited");
            });
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let Some(event) = watch.read().expect("an event") else {
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    // The first is the write's. Half a second is longer than a look takes that does not wait.
                    if !waits.swap(true, Ordering::Relaxed) {
                        thread::sleep(Duration::from_millis(500));
                    }
                    watch.allow(event.file.as_raw_fd()).expect("allowed");
                }
            });
            assert!(until(|| waits.load(Ordering::Relaxed)));
            let made = catch_unwind(AssertUnwindSafe(|| is_no_obstacle(s)));
            ended.store(true, Ordering::Relaxed);
            made.expect("a snapshot");
        });
    });
}
