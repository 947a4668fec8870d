//! A fleece and a host that goes down: what was durable is taken up afterwards, anything else is known to be lost. The power cut is XFS's own
//! shutdown, which loses whatever was not synced; the boot is another one by a file that is mounted over the kernel's id of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::support::fleeces::{looks, mark};
use crate::support::serving::{clients, copied, image, serve, socket, stop, uri};
use crate::support::{Disk, Fs, Job, PROGRAM, QemuIo, Random, Sandbox, Writers, assert_same, must, there};
use nix::sys::signal::Signal;

/// Starts a server in what looks like another boot to it.
fn serve_after_boot(s: &Sandbox) -> Job {
    let id = s.outside("boot_id");
    fs::write(&id, "11111111-2222-3333-4444-555555555555\n").expect("an id");
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(&id).arg(PROGRAM);
    command.args(["serve", "a.img", "--socket"]).arg(socket(s)).args(["--cache", "none", "--json"]);
    let mut job = Job::spawn(command.current_dir(s.dir()).stdin(Stdio::null()));
    assert!(job.wait_for("started"), "{}", job.end().stderr);
    job
}

/// What the runtime directory has of the image goes with the boot.
fn forget(s: &Sandbox) {
    let image = fs::metadata(s.path("a.img")).expect("the image");
    let socket = format!("/run/rclone-img/serve-{:x}-{:x}", image.dev(), image.ino());
    // Mounted anew the image may be on another device.
    let _ = fs::remove_file(socket);
    // A server that has noticed that its disk is gone has taken it away.
    let _ = fs::remove_file(mark(s));
}

/// The other boot has mounts of its own, copies of all that there are: one test's file system is not to be held by the other's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A fleece under load when the power fails, and the server of the next boot.
fn power_cut(
    cache: &str,
    flags: &[&str],
    meanwhile: impl Fn(&Sandbox),
    then: impl Fn(&Sandbox, &std::path::Path, Job),
) {
    if !["qemu-io", "nbdcopy", "xfs_io", "unshare"].iter().all(|tool| there(tool)) {
        return;
    }
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    let s = &s;
    let random = Random::seeded("power cut");
    let image = image(s, random.next());
    let server = serve(s, cache);
    let writers = Writers::start(s, &image, random.next(), clients(s, 3));
    s.exits(0, &[&["fleece", "start", "a.img", "--name", "f", "--json", "--guest-deadline", "30s"], flags].concat());
    let first = copied(s, "snapshot/f", "first").expect("a copy");
    writers.goes_on(100);
    meanwhile(s);
    writers.stop();
    // Or it would notice, and say that the fleece is lost.
    server.signal(Signal::SIGSTOP);
    must("xfs_io", &[&"-x", &"-c", &"shutdown", &s.dir()]);
    server.kill();
    s.unmount();
    s.mount();
    forget(s);
    then(s, &first, serve_after_boot(s));
}

/// The file system is gone and comes back, and with it all that was not synced is gone; the boot is the same.
fn mounted_anew(s: &Sandbox) {
    must("xfs_io", &[&"-x", &"-c", &"shutdown", &s.dir()]);
    s.unmount();
    s.mount();
}

/// The next server does not take the fleece up, for this reason.
fn not_taken_up(s: &Sandbox, why: &str) {
    let server = serve(s, "none");
    assert!(copied(s, "snapshot/f", "second").is_err());
    let said = ended(server);
    assert!(said.contains(why) && said.contains("rclone-img abort"), "{said}");
    s.exits(0, &["abort", "--json", "a.img.f.fleece"]);
}

/// The mark outlives the file system whose map it speaks for.
#[test]
fn what_a_file_system_has_lost_within_one_boot_is_not_taken_for_whole() {
    if !["qemu-io", "nbdcopy", "xfs_io"].iter().all(|tool| there(tool)) {
        return;
    }
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(s) = &Sandbox::new(Fs::Xfs) else { return };
    let image = image(s, 7);
    must("sync", &[&"-f", &image]);
    for durable in [false, true] {
        let server = serve(s, "none");
        let flags: &[&str] = if durable { &["--durable"] } else { &[] };
        s.exits(0, &[&["fleece", "start", "a.img", "--name", "f", "--json"], flags].concat());
        let first = copied(s, "snapshot/f", "first").expect("a copy");
        let mut guest = QemuIo::nbd(&socket(s));
        assert!(guest.does("write -P 8 0 64k") && guest.does("flush"));
        drop(guest);
        looks(s);
        // Or it would notice, and take its mark away.
        server.signal(Signal::SIGSTOP);
        must("xfs_io", &[&"-x", &"-c", &"shutdown", &s.dir()]);
        server.kill();
        s.unmount();
        s.mount();
        if durable {
            let server = serve(s, "none");
            assert_same(&first, &copied(s, "snapshot/f", "second").expect("it was taken up"));
            s.exits(0, &["fleece", "stop", "a.img", "--name", "f", "--json"]);
            stop(server);
        } else {
            not_taken_up(s, "mounted anew");
        }
    }
}

/// XFS brings back what was written past the page cache with the time of change before it.
#[test]
fn what_was_written_between_a_server_that_was_stopped_and_a_power_cut_is_not_overlooked() {
    if !["nbdcopy", "xfs_io"].iter().all(|tool| there(tool)) {
        return;
    }
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(s) = &Sandbox::new(Fs::Xfs) else { return };
    let image = image(s, 7);
    let server = serve(s, "none");
    s.exits(0, &["fleece", "start", "a.img", "--name", "f", "--json", "--durable"]);
    stop(server);
    must("sync", &[&"-f", &image]);
    must("xfs_io", &[&"-d", &"-c", &"pwrite -q -b 64k 8M 64k", &image]);
    mounted_anew(s);
    not_taken_up(s, "after its server was stopped");
}

fn ended(job: Job) -> String {
    job.signal(Signal::SIGTERM);
    job.end().stderr
}

#[test]
fn what_is_durable_is_taken_up_after_a_power_cut() {
    for cache in ["none", "writeback"] {
        power_cut(
            cache,
            &["--durable"],
            |_| (),
            |s, first, server| {
                assert_same(first, &copied(s, "snapshot/f", "second").expect("it was taken up"));
                s.exits(0, &["fleece", "stop", "a.img", "--name", "f", "--json"]);
                stop(server);
            },
        );
    }
}

/// What is not kept is not taken for what it was, either: it was overwritten, by somebody who did not wait.
#[test]
fn what_was_let_go_stays_so_after_a_power_cut() {
    let let_go = |s: &Sandbox| {
        let trim = format!("h.connect_uri('{}'); h.trim({}, 0)", uri(s, "snapshot/f"), 4 << 20);
        must("/usr/bin/python3", &[&"-m", &"nbd", &"-c", &trim]);
        let mut guest = QemuIo::nbd(&socket(s));
        assert!(guest.does("write -P 9 0 4M") && guest.does("flush"));
    };
    if !there("nbdsh") {
        return;
    }
    power_cut("none", &["--durable"], let_go, |s, _, server| {
        let mut reader = QemuIo::nbd_export(&socket(s), "snapshot/f");
        for at in [0, 1, 2, 3] {
            assert!(!reader.does(&format!("read {at}M 64k")), "{at} was let go");
        }
        assert!(reader.does("read 8M 64k"));
        s.exits(0, &["fleece", "stop", "a.img", "--name", "f", "--json"]);
        stop(server);
    });
}

#[test]
fn what_is_not_durable_is_known_to_be_lost() {
    power_cut(
        "none",
        &[],
        |_| (),
        |s, _, server| {
            assert!(copied(s, "snapshot/f", "second").is_err());
            let said = ended(server);
            // The sidecar's name may be what was not durable.
            let why = ["was started again", "cannot open its sidecar"].iter().any(|why| said.contains(why));
            assert!(why && said.contains("rclone-img abort"), "{said}");
            s.exits(0, &["abort", "--json", "a.img.f.fleece"]);
        },
    );
}
