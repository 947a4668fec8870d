//! Fleeces when something goes wrong: what is not of T0 for sure is lost, and nobody reads it as if it were.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use support::fleeces::{EXPORT, end_lost, files, have, listed, start};
use support::serving::{copied, image, serve, socket, stop};
use support::{Disk, QemuIo, Sandbox, must, on_both, runs, there, until};

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
