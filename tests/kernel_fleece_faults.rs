//! Fleeces when something goes wrong: what is not of T0 for sure is lost, and nobody reads it as if it were.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use support::fleeces::{EXPORT, end, end_lost, files, have, listed, start};
use support::serving::{copied, image, serve, socket, stop};
use support::{Disk, QemuIo, Sandbox, assert_same, must, on_both, refused, runs, there, until};

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
        server.kill();
        let server = serve(s, "writeback");
        assert_same(&first, &copied(s, EXPORT, "second").expect("it is whole"));
        end(s);
        stop(server);
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
