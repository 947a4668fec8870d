//! Fleeces when something goes wrong: what is not of T0 for sure is lost, and nobody reads it as if it were.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::support;
use crate::support::fleeces::{EXPORT, end, end_lost, files, have, listed, looks, mark, start};
use crate::support::serving::{SERVED, copied, image, serve, socket, stop};
use crate::support::{Disk, Fs, QemuIo, Sandbox, assert_same, must, on_both, refused, runs, slowly, there, until};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, truncate};
use rclone_img::serve::fleece::format::{STATES, State};

/// Somebody who writes, and is gone, in the moment before its server is told to stop.
#[test]
fn who_writes_just_before_the_server_is_stopped_costs_the_fleece() {
    if !have() {
        return;
    }
    on_both(|s| {
        for _ in 0..runs(3, 20) {
            let image = image(s, 7);
            let server = serve(s, "writeback");
            start(s, &[]);
            fs::File::options().write(true).open(&image).and_then(|it| it.write_all_at(b"x", 0)).expect("written");
            stop(server);
            not_taken_up(s, "past its server");
        }
    });
}

/// As one leaves it that was killed before what could not be cloned was on the sidecar's disk.
#[test]
fn what_was_only_in_the_memory_of_a_server_that_was_killed_is_lost() {
    if !have() {
        return;
    }
    on_both(|s| {
        image(s, 7);
        let server = serve(s, "writeback");
        start(s, &[]);
        server.kill();
        let map = fs::File::options().write(true).open(s.path("a.img.f.fleece")).expect("its map");
        map.write_all_at(&[State::InMemory as u8], STATES).expect("written");
        not_taken_up(s, "only in the memory");
    });
}

/// Who is refused has not written.
#[test]
fn what_is_refused_beside_a_server_costs_no_fleece() {
    if !have() {
        return;
    }
    on_both(|s| {
        image(s, 7);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let server = serve(s, "writeback");
        start(s, &[]);
        s.exits(3, &["serve", "a.img", "--socket", "another"]);
        s.exits(3, &["serve", "--read-only", "a.img", "--socket", "another"]);
        s.exits(3, &["restore", "a.snap", "a.img"]);
        s.exits(3, &["restore", "--force", "a.snap", "a.img"]);
        // It is looked once more, and all is well.
        end(s);
        stop(server);
    });
}

/// Somebody who has the image open when a server takes it up, and writes afterwards.
#[test]
fn who_was_there_before_the_server_costs_the_fleece() {
    if !have() {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        let server = serve(s, "writeback");
        start(s, &[]);
        stop(server);
        let other = support::Other::opens("<>", &image);
        not_taken_up(s, "past its server");
        drop(other);
    });
}

/// Who changes the image's size opens nothing.
#[test]
fn who_changes_the_size_of_the_image_by_its_path_costs_the_fleece() {
    if !have() {
        return;
    }
    on_both(|s| {
        for size in [SERVED + 4096, SERVED / 2] {
            let image = image(s, 7);
            let server = serve(s, "writeback");
            start(s, &[]);
            truncate(&image, size as i64).expect("resized");
            assert!(until(|| listed(s)["lost"].as_str().is_some_and(|why| why.contains("size"))), "{:?}", s.fs);
            end_lost(s);
            stop(server);
        }
    });
}

/// The next server of a fleece says why it is lost, and what is left is removed.
fn not_taken_up(s: &Sandbox, why: &str) {
    let server = serve(s, "writeback");
    assert!(copied(s, EXPORT, "copy").is_err(), "{:?}", s.fs);
    server.signal(Signal::SIGTERM);
    let said = server.end().stderr;
    assert!(said.contains("is lost") && said.contains(why), "{:?}: {said}", s.fs);
    s.exits(0, &["abort", "--json", "a.img.f.fleece"]);
    assert_eq!(files(s), Vec::<PathBuf>::new(), "{:?}", s.fs);
}

/// Two maps that name one file with data: only one of them is its map.
#[test]
fn a_copied_map_is_not_taken_up_beside_its_original() {
    if !have() {
        return;
    }
    on_both(|s| {
        image(s, 7);
        let server = serve(s, "writeback");
        start(s, &[]);
        let first = copied(s, EXPORT, "first").expect("a copy");
        let mut guest = QemuIo::nbd(&socket(s));
        assert!(guest.does("write -P 8 0 1M"));
        drop(guest);
        looks(s);
        server.kill();
        fs::copy(s.path("a.img.f.fleece"), s.path("a.img.g.fleece")).expect("copied");
        let server = serve(s, "writeback");
        let mut guest = QemuIo::nbd(&socket(s));
        assert!(guest.does("write -P 9 0 2M"));
        assert_eq!((&listed(s)["name"], &listed(s)["lost"]), (&"f".into(), &serde_json::Value::Null));
        let status = s.run(&["status", "a.img.g.fleece", "--json"]);
        let said = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(status.status.code() == Some(6) && said.contains("fleece-copy"), "{said}");
        s.exits(0, &["abort", "--json", "a.img.g.fleece"]);
        drop(guest);
        // The mark is the original's as well.
        looks(s);
        server.signal(Signal::SIGKILL);
        let said = server.end().stderr;
        assert!(said.contains("a copy of the map") && !said.contains("lost"), "{said}");
        let server = serve(s, "writeback");
        assert_same(&first, &copied(s, EXPORT, "second").expect("it is whole"));
        end(s);
        stop(server);
    });
}

/// Another fleece of the same name and image, beside another name of that, says nothing of the first one.
#[test]
fn a_mark_speaks_for_its_own_fleece_alone() {
    if !have() {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        let serve_other = || {
            let mut server = s.start(&["serve", "b.img", "--socket", &socket(s).display().to_string()]);
            assert!(server.wait_for("started"), "{:?}", server.events);
            server
        };
        fs::hard_link(&image, s.path("b.img")).expect("another name");
        let server = serve(s, "writeback");
        start(s, &[]);
        server.kill();
        // What is written sooner cannot be told from what that server wrote.
        std::thread::sleep(std::time::Duration::from_millis(500));
        let server = serve_other();
        let mut guest = QemuIo::nbd(&socket(s));
        assert!(guest.does("write -P 8 0 64k") && guest.does("flush"));
        drop(guest);
        s.exits(0, &["fleece", "start", "b.img", "--name", "f", "--json"]);
        // A server has looked at it by then.
        std::thread::sleep(std::time::Duration::from_millis(200));
        server.kill();
        let server = serve(s, "writeback");
        assert!(copied(s, EXPORT, "copy").is_err(), "{:?}", s.fs);
        server.signal(Signal::SIGTERM);
        let said = server.end().stderr;
        assert!(said.contains("while no server had it"), "{said}");
        // Nor does the end of the one cost the other.
        s.exits(0, &["abort", "--json", "a.img.f.fleece"]);
        let server = serve_other();
        s.exits(0, &["fleece", "stop", "b.img", "--name", "f", "--json"]);
        assert_eq!(files(s), Vec::<PathBuf>::new(), "{:?}", s.fs);
        stop(server);
    });
}

/// Of an image that is served to readers alone there may be two servers, and one of them has what was left.
#[test]
fn what_another_server_has_is_not_told_as_lost() {
    if !have() {
        return;
    }
    on_both(|s| {
        image(s, 7);
        let server = serve(s, "writeback");
        start(s, &[]);
        stop(server);
        let reads = |at: &PathBuf| {
            let mut server = s.start(&["serve", "a.img", "--read-only", "--socket", &at.display().to_string()]);
            assert!(server.wait_for("started"), "{:?}", server.events);
            server
        };
        let (first, second) = (reads(&socket(s)), reads(&s.path("other")));
        second.signal(Signal::SIGTERM);
        let said = second.end().stderr;
        assert!(said.contains("another server has it") && !said.contains("lost") && !said.contains("abort"), "{said}");
        assert_eq!(listed(s)["lost"], serde_json::Value::Null);
        assert!(copied(s, EXPORT, "copy").is_ok(), "{:?}", s.fs);
        end(s);
        stop(first);
    });
}

/// A map that cannot be read is said to be one, and can be removed.
#[test]
fn a_damaged_map_is_found_and_removed() {
    if !have() {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        let server = serve(s, "writeback");
        start(s, &["--durable"]);
        server.kill();
        let mark = mark(s);
        let map = fs::File::options().write(true).open(s.path("a.img.f.fleece")).expect("the map");
        [0, 16 << 10].iter().for_each(|slot| map.write_all_at(b"?", slot + 30).expect("damaged"));
        fs::write(s.path("a.img.z.fleece"), b"").expect("an empty one");
        fs::write(s.path("a.img.y.fleece"), b"somebody's").expect("another file");
        let server = serve(s, "writeback");
        assert!(copied(s, EXPORT, "copy").is_err());
        let status = s.run(&["status", "--json"]);
        let said = String::from_utf8_lossy(&status.stdout).into_owned();
        assert_eq!((status.status.code(), said.matches("fleece-damaged").count()), (Some(6), 2), "{said}");
        let out = s.run(&["abort", "a.img.f.fleece"]);
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && said.contains("a.img.f.fleece-data"), "{said}");
        s.exits(0, &["abort", "--json", "a.img.z.fleece"]);
        refused(s, "no job to abort", &["abort", "a.img.y.fleece"]);
        assert_eq!(files(s).len(), 2, "what is somebody's, and the data that nobody names");
        s.exits(0, &["fleece", "start", "a.img", "--name", "z", "--json"]);
        s.exits(0, &["fleece", "stop", "a.img", "--name", "z", "--json"]);
        stop(server);
        // Whose it is nobody could read: it stays until the next boot.
        fs::remove_file(mark).expect("removed");
        assert!(image.exists());
    });
}

/// The kernel forgets what a disk does not take, without a word to those who read it.
#[test]
fn what_the_sidecars_disk_does_not_take_costs_the_fleece() {
    if !have() || !there("mkfs.ext4") {
        return;
    }
    on_both(|s| {
        // A disk that has less room than it says. Both mounts go with the sandbox.
        let (thin, side, disk) = (s.path("thin"), s.path("side"), s.path("thin/disk"));
        [&thin, &side].iter().for_each(|dir| fs::create_dir(dir).expect("a directory"));
        must("mount", &[&"-t", &"tmpfs", &"-o", &"size=10M", &"none", &thin]);
        fs::File::create(&disk).and_then(|it| it.set_len(1 << 30)).expect("a disk");
        must("mkfs.ext4", &[&"-q", &"-O", &"^has_journal", &"-E", &"lazy_itable_init=1", &disk]);
        must("mount", &[&"-o", &"loop", &disk, &side]);
        image(s, 7);
        let server = serve(s, "writeback");
        start(s, &["--sidecar", &side.display().to_string(), "--guest-deadline", "10s"]);
        let mut guest = QemuIo::nbd(&socket(s));
        assert!(guest.does("write -P 8 0 16M"));
        // As the kernel does by itself after a while; it may fail.
        drop(Command::new("sync").arg("-f").arg(&side).output());
        assert!(
            until(|| listed(s)["lost"].as_str().is_some_and(|why| why.contains("on the sidecar's disk"))),
            "{:?}",
            s.fs
        );
        assert!(copied(s, EXPORT, "copy").is_err(), "{:?}", s.fs);
        end_lost(s);
        stop(server);
        for mount in [&side, &thin] {
            assert!(until(|| Command::new("umount").arg(mount).status().is_ok_and(|it| it.success())), "{:?}", s.fs);
        }
    });
}

/// A process that answers for a disk, and may be stopped.
struct Answers(Child);

impl Answers {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).expect("a signal");
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file system on a disk that hangs as long as somebody is stopped.
struct Hangs {
    side: PathBuf,
    disk: PathBuf,
    answers: Answers,
    _fuse: Answers,
}

impl Hangs {
    /// None where it cannot be had.
    fn new(s: &Sandbox) -> Option<Self> {
        if !have() || !["mkfs.ext4", "nbdfuse", "nbdkit"].iter().all(|tool| there(tool)) {
            return None;
        }
        let (disk, side, at) = (s.outside("hangs"), s.outside("side"), s.outside("memory"));
        fs::File::create(&disk).expect("a file to mount at");
        fs::create_dir(&side).expect("a directory");
        let spawn = |command: &mut Command| Answers(command.spawn().expect("installed"));
        let answers = spawn(Command::new("nbdkit").args(["-f", "-U"]).arg(&at).args(["memory", "64M"]));
        assert!(until(|| at.exists()));
        let fuse = spawn(Command::new("nbdfuse").arg(&disk).arg(format!("nbd+unix:///?socket={}", at.display())));
        assert!(until(|| fs::metadata(&disk).is_ok_and(|it| it.len() == 64 << 20)));
        must("mkfs.ext4", &[&"-q", &disk]);
        must("mount", &[&"-o", &"loop", &disk, &side]);
        Some(Self { side, disk, answers, _fuse: fuse })
    }
}

impl Drop for Hangs {
    fn drop(&mut self) {
        self.answers.signal(Signal::SIGCONT);
        for mount in [&self.side, &self.disk] {
            let gone = until(|| Command::new("umount").arg(mount).status().is_ok_and(|it| it.success()));
            assert!(gone || std::thread::panicking(), "{}", mount.display());
        }
    }
}

/// Somebody reads what the guest has overwritten in its second cluster, which is on the disk alone, and the disk does not answer any more.
fn read_from_a_disk_that_hangs(s: &Sandbox, hangs: &Hangs, server: &support::Job) -> Child {
    let map = fs::File::open(s.path("a.img.f.fleece")).expect("its map");
    let is_kept = |byte: &mut [u8; 1]| map.read_exact_at(byte, STATES + 1).is_ok() && byte[0] == State::Kept as u8;
    assert!(until(|| is_kept(&mut [0])), "it is in memory");
    let data = fs::File::open(hangs.side.join("a.img.f.fleece-data")).expect("its data");
    data.sync_all().expect("synced");
    posix_fadvise(&data, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("forgotten");
    hangs.answers.signal(Signal::SIGSTOP);
    let uri = format!("nbd+unix:///snapshot/f?socket={}", socket(s).display());
    let reader = Command::new("nbdcopy").args([&uri, "null:"]).spawn().expect("nbdcopy");
    let tasks = format!("/proc/{}/task", server.pid());
    let waits = |task: fs::DirEntry| {
        fs::read_to_string(task.path().join("stat"))
            .is_ok_and(|it| it.rsplit(')').next().is_some_and(|it| it.starts_with(" D")))
    };
    assert!(until(|| fs::read_dir(&tasks).expect("its threads").flatten().any(waits)), "nobody waits for the disk");
    reader
}

/// A server that is told to stop has threads that nobody can end, one with a client: the next one has the image all the same, and a job goes on with it.
#[test]
fn a_sidecar_that_does_not_answer_keeps_no_image_from_the_next_server() {
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    let Some(hangs) = Hangs::new(&s) else { return };
    image(&s, 7);
    let mut server = serve(&s, "writeback");
    start(&s, &["--sidecar", &hangs.side.display().to_string()]);
    let side = hangs.side.display().to_string();
    s.exits(0, &["fleece", "start", "a.img", "--name", "ends", "--sidecar", &side, "--json"]);
    s.exits(0, &["fleece", "start", "a.img", "--name", "whole", "--json"]);
    let mut guest = QemuIo::nbd(&socket(&s));
    assert!(guest.does("write -P 8 64k 4k"));
    let mut reader = read_from_a_disk_that_hangs(&s, &hangs, &server);
    assert!(guest.does("write -P 8 0 4k"));
    drop(guest);
    let mut job = s.start(&slowly(&["snapshot", "--consistency", "filter", "--min-free", "0", "a.img", "a.snap"]));
    assert!(job.wait_for("started"), "{:?}", job.events);
    // It waits for that disk as well.
    let ends = s.start(&["fleece", "stop", "a.img", "--name", "ends", "--json"]);
    let began = Instant::now();
    server.signal(Signal::SIGTERM);
    assert!(server.wait_for("stopped"), "{:?}", server.events);
    let took = began.elapsed();
    assert!(!reader.wait().expect("a reader").success());
    let mut next = s.start(&["serve", "a.img", "--socket", &s.path("next").display().to_string()]);
    assert!(next.wait_for("started"), "{:?}", next.events);
    let ended = job.end();
    let wrote = QemuIo::nbd(&s.path("next")).does("write -P 9 0 1M");
    hangs.answers.signal(Signal::SIGCONT);
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert!(wrote && ended.code == Some(0), "{}", ended.stderr);
    drop(ends.end());
    let said = server.end().stderr;
    assert!(said.contains("has not answered"), "{said}");
    next.signal(Signal::SIGTERM);
    let said = next.end().stderr;
    assert!(said.contains("a.img.f.fleece is lost") && !said.contains("whole"), "{said}");
    s.exits(0, &["abort", "--json", "a.img.f.fleece"]);
    s.exits(0, &["abort", "--json", "a.img.whole.fleece"]);
    // Its server may have come to it, or not.
    drop(s.run(&["abort", "--json", "a.img.ends.fleece"]));
    assert_eq!(files(&s), Vec::<PathBuf>::new());
}

/// A disk that hangs costs the fleece that is kept on it, and no guest its server.
#[test]
fn a_sidecar_that_does_not_answer_keeps_no_server_from_its_guest() {
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    let Some(hangs) = Hangs::new(&s) else { return };
    let (side, answers) = (&hangs.side, &hangs.answers);
    image(&s, 7);
    let server = serve(&s, "writeback");
    start(&s, &["--sidecar", &side.display().to_string()]);
    assert!(QemuIo::nbd(&socket(&s)).does("write -P 8 0 4k"));
    server.kill();
    // Something of it is not on the disk yet.
    let data = fs::File::options().write(true).open(side.join("a.img.f.fleece-data")).expect("the sidecar");
    data.write_all_at(b"x", SERVED - 1).expect("written");
    answers.signal(Signal::SIGSTOP);
    let (began, server) = (Instant::now(), serve(&s, "writeback"));
    let took = began.elapsed();
    let wrote = QemuIo::nbd(&socket(&s)).does("write -P 9 0 1M");
    // The server's thread still has what it waits for: its map is not removed before that.
    let ended = s.run(&["fleece", "stop", "a.img", "--name", "f"]);
    answers.signal(Signal::SIGCONT);
    assert_eq!(ended.status.code(), Some(5), "{}", String::from_utf8_lossy(&ended.stdout));
    assert!(took < Duration::from_secs(30) && wrote, "{took:?}");
    server.signal(Signal::SIGTERM);
    let said = server.end().stderr;
    assert!(said.contains("is lost") && said.contains("has not answered"), "{said}");
    drop(data);
    s.exits(0, &["abort", "--json", "a.img.f.fleece"]);
    assert!(!side.join("a.img.f.fleece-data").exists() && files(&s).is_empty());
}
