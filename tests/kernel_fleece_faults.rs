//! Fleeces when something goes wrong: what is not of T0 for sure is lost, and nobody reads it as if it were.

mod support;

use std::fs;
use std::process::Command;

use support::fleeces::{EXPORT, end_lost, have, listed, start};
use support::serving::{copied, image, serve, socket, stop};
use support::{Disk, QemuIo, must, on_both, there, until};

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
