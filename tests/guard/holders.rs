//! Whoever has an image open for writing keeps the lease away and is named, on real XFS and Btrfs.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::{Fs, LoopDevice, Other, Sandbox, must, on_both};
use rclone_img::disk::real::RealFile;
use rclone_img::hold::holders::{Holder, Holding, holders};
use rclone_img::range::ByteRange;
use rclone_img::sys::lease::{self, Lease};
use rclone_img::sys::ofd::{self, Lock};

/// Set for the child that looks for holders as an unprivileged user; the value is the file's path.
const CHILD_SEARCHES: &str = "RCLIMG_TEST_CHILD_SEARCHES";

#[test]
fn a_writer_refuses_the_lease_and_is_named() {
    on_both(|s| {
        let kind = s.fs;
        let path = s.path("image");
        fs::write(&path, [0; 4096]).expect("write");
        let image = RealFile::open_image(&path).expect("open");
        {
            let writer = Other::opens("<>", &path);
            let refused = lease::take(image.as_fd(), Lease::Read).expect_err("a writer");
            assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN), "{kind:?}");
            let found = holders(image.as_fd()).expect("search").found;
            let expect = Holder { pid: writer.pid(), comm: "sh".to_owned(), what: Holding::Descriptor(9) };
            assert_eq!(found, [expect], "{kind:?}");
        }
        let reader = Other::opens("<", &path);
        assert_eq!(holders(image.as_fd()).expect("search").found, [], "{kind:?}: a reader is none");
        lease::take(image.as_fd(), Lease::Read).expect("readers do not mind");
        assert_eq!(lease::held(image.as_fd()).expect("ask"), Lease::Read);
        // A second opener for writing, which does not wait: it breaks the lease, and the signal must not end this process.
        let late = nix::fcntl::open(
            &path,
            nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        );
        assert_eq!(late.err(), Some(nix::errno::Errno::EWOULDBLOCK), "{kind:?}");
        assert_eq!(lease::held(image.as_fd()).expect("ask"), Lease::None, "{kind:?}: being broken");
        lease::release(image.as_fd()).expect("release");
        lease::release(image.as_fd()).expect("releasing none is no error");
        drop(reader);
    });
}

#[test]
fn a_loop_device_is_named_and_a_read_only_one_is_not() {
    on_both(|s| {
        let kind = s.fs;
        let path = s.path("image");
        File::create(&path).and_then(|f| f.set_len(1 << 20)).expect("create");
        let image = RealFile::open_image(&path).expect("open");
        for read_only in [false, true] {
            let device = LoopDevice::on(&path, read_only);
            let found = holders(image.as_fd()).expect("search").found;
            let what = Holding::LoopDevice(device.0.clone());
            let expect = (!read_only).then_some(Holder { pid: None, comm: String::new(), what });
            assert_eq!(found, expect.into_iter().collect::<Vec<_>>(), "{kind:?}");
        }
    });
}

#[test]
fn a_shared_mapping_outlives_its_descriptor_and_is_named() {
    on_both(|s| {
        let kind = s.fs;
        let path = s.path("image");
        fs::write(&path, [0; 8192]).expect("write");
        let image = RealFile::open_image(&path).expect("open");
        // Maps the file for reading as yet, through a descriptor that may write, and closes that; says so in a listing.
        let script = r#"exec stdbuf -oL xfs_io "$1" < <(printf 'mmap -r 0 8192\nclose\nmmap\n'; cat)"#;
        let mut command = Command::new("bash");
        command.args(["-c", script, "bash"]).arg(&path);
        let mapper = Other::start(&mut command, "[000]");
        let found = holders(image.as_fd()).expect("search").found;
        let named: Vec<_> = found.iter().map(|h| (h.pid, h.what.clone())).collect();
        assert_eq!(named, [(mapper.pid(), Holding::Mapping)], "{kind:?}");
    });
}

#[test]
fn somebody_elses_processes_are_counted_where_they_cannot_be_seen() {
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    let path = s.path("image");
    fs::write(&path, [0; 4096]).expect("write");
    // Where the test was built need not be open to that user.
    let itself = s.path("search");
    must("cp", &[&std::env::current_exe().expect("this test"), &itself]);
    let _writer = Other::opens("<>", &path);
    let mut command = Command::new(itself);
    command.args(["--exact", "holders::child_that_searches", "--nocapture"]).env(CHILD_SEARCHES, &path).uid(65_534);
    Other::start(&mut command, "found nobody");
}

/// Not a test: what the one above starts.
#[test]
fn child_that_searches() {
    let Some(path) = std::env::var_os(CHILD_SEARCHES) else { return };
    let image = RealFile::open_image(Path::new(&path)).expect("open");
    let seen = holders(image.as_fd()).expect("search");
    assert!(!seen.hidden.is_empty());
    assert_eq!(seen.found, []);
    assert_eq!(seen.insist().found[0].what, Holding::Unknown);
    println!("found nobody");
}

#[test]
fn qemus_lock_is_seen() {
    on_both(|s| {
        let kind = s.fs;
        let path = s.path("image");
        fs::write(&path, [0; 4096]).expect("write");
        let image = RealFile::open_image(&path).expect("open");
        let qemu = File::open(&path).expect("open");
        assert!(ofd::try_lock(qemu.as_fd(), ByteRange::at(101, 1).expect("not empty"), Lock::Read).expect("lock"));
        let found = holders(image.as_fd()).expect("search").found;
        assert_eq!(found, [Holder { pid: None, comm: String::new(), what: Holding::QemuLock }], "{kind:?}");
    });
}
