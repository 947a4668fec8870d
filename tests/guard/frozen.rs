//! Frozen means frozen: no snapshot while somebody can write, and a writer that comes later is let in, gets no error, and
//! never ends up in the snapshot.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support;
use crate::support::{
    BLOCK, BOUND, LoopDevice, Other, Sandbox, assert_same, fragmented, has, must, noise, on_both, roomy, skipped,
    slowly,
};

const MIB: u64 = 1 << 20;

/// Refused while `_holder` lives, with words that have all of `needles`, and nothing is touched.
fn check_refused(s: &Sandbox, image: &str, needles: &[&str]) {
    let before = s.listing();
    for consistency in ["auto", "frozen"] {
        let out = s.run(&["snapshot", "--consistency", consistency, image, "refused.snap"]);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(3), "{:?} {consistency}: {stderr}", s.fs);
        for needle in needles {
            assert!(stderr.contains(needle), "{:?} {consistency}: no {needle:?} in {stderr}", s.fs);
        }
    }
    assert_eq!(s.listing(), before, "{:?}", s.fs);
}

/// So many extents that `auto` takes no single call for them.
fn image(s: &Sandbox) -> &'static str {
    fragmented(&s.path("a.img"), 3000);
    "a.img"
}

#[test]
fn a_writer_that_has_the_image_open_is_named_with_pid_and_command() {
    on_both(|s| {
        let image = image(s);
        let mut child = Command::new("sh");
        child.args(["-c", "exec 9<>\"$0\"; echo ready; exec sleep 600"]).arg(s.path(image));
        let other = Other::start(&mut child, "ready");
        // The shell becomes sleep after it has said so.
        let comm = format!("/proc/{}/comm", other.0.id());
        assert!(support::until(|| fs::read_to_string(&comm).is_ok_and(|c| c == "sleep\n")));
        let pid = other.0.id().to_string();
        check_refused(s, image, &[&pid, "sleep"]);
        drop(other);
        s.exits(0, &["snapshot", "-q", image, "after.snap"]);
        assert_same(&s.path(image), &s.path("after.snap"));
    });
}

#[test]
fn a_writable_shared_mapping_counts_as_a_writer() {
    on_both(|s| {
        let image = image(s);
        // The descriptor is closed: only the mapping is left.
        let mut command = Command::new("xfs_io");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut other = Other(command.spawn().expect("xfs_io"));
        let mut stdin = other.0.stdin.take().expect("piped");
        write!(stdin, "open {}\nmmap -rw 0 65536\nclose\nmwrite 0 10\nmsync -s\n", s.path(image).display())
            .expect("told");
        stdin.flush().expect("told");
        let maps = format!("/proc/{}/maps", other.0.id());
        let fds = format!("/proc/{}/fd", other.0.id());
        let closed = || {
            let names = fs::read_dir(&fds).expect("/proc").flatten().filter_map(|e| fs::read_link(e.path()).ok());
            !names.into_iter().any(|n| n.ends_with("a.img"))
        };
        assert!(support::until(|| fs::read_to_string(&maps).is_ok_and(|m| m.contains("a.img")) && closed()));
        let pid = other.0.id().to_string();
        check_refused(s, image, &[&pid, "xfs_io"]);
        drop(other);
        s.exits(0, &["snapshot", "-q", image, "after.snap"]);
    });
}

#[test]
fn a_loop_device_on_the_image_counts_as_a_writer() {
    on_both(|s| {
        let image = image(s);
        let device = LoopDevice::on(&s.path(image), false);
        check_refused(s, image, &[device.0.to_str().expect("UTF-8")]);
        drop(device);
        assert!(support::until(|| must("losetup", &[&"-j", &s.path(image)]).is_empty()));
        s.exits(0, &["snapshot", "-q", image, "after.snap"]);
    });
}

#[test]
fn readers_and_readonly_loop_devices_are_welcome() {
    on_both(|s| {
        let image = image(s);
        let _reader = File::open(s.path(image)).expect("a reader");
        let device = LoopDevice::on(&s.path(image), true);
        let out = s.run(&["snapshot", "-q", "--consistency", "frozen", image, "a.snap"]);
        drop(device);
        assert_eq!(out.status.code(), Some(0), "{:?}: {}", s.fs, String::from_utf8_lossy(&out.stderr));
        assert_same(&s.path(image), &s.path("a.snap"));
    });
}

/// qemu-io with the image open, told so by its own answer to a command.
fn qemu_io(path: &Path, flags: &[&str], first: &str) -> Other {
    let mut command = Command::new("qemu-io");
    command.args(flags).args(["-f", "raw"]).arg(path);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut other = Other(command.spawn().expect("qemu-io"));
    writeln!(other.0.stdin.as_mut().expect("piped"), "{first}").expect("told");
    let mut out = BufReader::new(other.0.stdout.as_mut().expect("piped"));
    let mut line = String::new();
    while !line.contains("bytes") {
        line.clear();
        assert!(out.read_line(&mut line).expect("an answer") > 0, "qemu-io ended");
    }
    other
}

#[test]
fn qemu_with_the_image_open_for_writing_is_refused_and_reading_is_not() {
    if !has("qemu-io") {
        return skipped("qemu-io is not installed");
    }
    on_both(|s| {
        let image = image(s);
        let qemu = qemu_io(&s.path(image), &[], "write 0 4k");
        check_refused(s, image, &[&qemu.0.id().to_string(), "qemu-io"]);
        drop(qemu);
        let reader = qemu_io(&s.path(image), &["-r"], "read 0 4k");
        s.exits(0, &["snapshot", "-q", "--consistency", "frozen", image, "a.snap"]);
        drop(reader);
        assert_same(&s.path(image), &s.path("a.snap"));
    });
}

#[test]
fn qemu_that_opens_the_image_during_a_job_gets_in_without_an_error() {
    if !has("qemu-io") {
        return skipped("qemu-io is not installed");
    }
    on_both(|s| {
        roomy(&s.path("a.img"), 512 * MIB);
        let mut job = s.start(&slowly(&["snapshot", "--consistency", "frozen", "a.img", "a.snap"]));
        assert!(job.wait_for("progress"));
        let qemu = qemu_io(&s.path("a.img"), &[], "write -P 7 0 4k");
        let ended = job.end();
        assert!(matches!(ended.code, Some(0 | 4)), "{:?} {:?} {}", s.fs, ended.code, ended.stderr);
        drop(qemu);
    });
}

/// What a finished or interrupted job leaves, and that `snapshot` heals it; `changed` says whether the writer wrote.
fn check_after_writer(s: &Sandbox, code: Option<i32>, before: &Path, changed: bool) {
    if code == Some(0) {
        assert_same(before, &s.path("a.snap"));
        return;
    }
    assert_eq!(code, Some(4), "{:?}", s.fs);
    assert!(!s.path("a.snap").exists(), "{:?}", s.fs);
    // What resume would say, status says beforehand.
    let (code, state) = if changed { (6, "broken") } else { (4, "interrupted") };
    assert_eq!(s.exits(code, &["status", "--json", "a.snap"])[0]["state"], state);
    if changed {
        let lost = s.exits(6, &["resume", "--json", "a.snap"]);
        assert!(lost.last().expect("an end")["error"].as_str().is_some_and(|e| e.contains("changed")), "{lost:?}");
        let healed = s.exits(0, &slowly(&["snapshot", "--json", "a.img", "a.snap"]));
        assert_eq!(healed.last().expect("an end")["new_t0"], true, "{:?}", s.fs);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    } else {
        let resumed = s.exits(0, &["resume", "--json", "a.snap"]);
        assert_eq!(resumed.last().expect("an end")["new_t0"], false, "{:?}", s.fs);
        assert_same(before, &s.path("a.snap"));
    }
    s.no_sidecars("a.snap");
}

fn check_writer_during_job(s: &Sandbox, writes: bool) {
    roomy(&s.path("a.img"), 1024 * MIB);
    must("cp", &[&"--reflink=always", &s.path("a.img"), &s.path("before")]);
    let mut job = s.start(&slowly(&["snapshot", "a.img", "a.snap"]));
    assert!(job.wait_for("progress"));
    let asked = Instant::now();
    let writer = OpenOptions::new().write(true).open(s.path("a.img")).expect("let in without an error");
    // The kernel alone would let it in after 45 s; the generous bound is far below that.
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}: waited {:?}", s.fs, asked.elapsed());
    if writes {
        // At both ends: what is cloned already and what is not.
        writer.write_all_at(&[0x55; 8192], 0).expect("written");
        writer.write_all_at(&[0x55; 8192], 1000 * MIB).expect("written");
    }
    drop(writer);
    let ended = job.end();
    check_after_writer(s, ended.code, &s.path("before"), writes);
}

#[test]
fn a_writer_during_the_job_is_let_in_and_its_bytes_are_not_in_the_snapshot() {
    on_both(|s| check_writer_during_job(s, true));
}

#[test]
fn an_opener_that_writes_nothing_costs_no_point_in_time() {
    on_both(|s| check_writer_during_job(s, false));
}

#[test]
fn a_nonblocking_opener_gets_eagain_and_then_the_image() {
    on_both(|s| {
        roomy(&s.path("a.img"), 512 * MIB);
        let mut job = s.start(&slowly(&["snapshot", "a.img", "a.snap"]));
        assert!(job.wait_for("progress"));
        let open = || {
            use std::os::unix::fs::OpenOptionsExt;
            OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(s.path("a.img"))
        };
        match open() {
            Ok(_) => {}
            Err(e) => assert_eq!(e.raw_os_error(), Some(nix::libc::EAGAIN)),
        }
        let begun = Instant::now();
        assert!(support::until(|| open().is_ok()));
        assert!(begun.elapsed() < BOUND);
        assert!(matches!(job.end().code, Some(0 | 4)));
    });
}

#[test]
fn atomic_and_none_work_beside_a_writer_and_none_says_what_it_is() {
    on_both(|s| {
        let image = image(s);
        let _writer = support::writer(&s.path(image));
        let atomic = s.exits(0, &["snapshot", "--json", "--consistency", "atomic", image, "atomic.snap"]);
        let end = atomic.last().expect("an end");
        assert_eq!((&end["hold"], &end["point_in_time"], &end["calls"]), (&"atomic".into(), &true.into(), &1.into()));
        let none = s.exits(0, &["snapshot", "--json", "--consistency", "none", image, "none.snap"]);
        let end = none.last().expect("an end");
        assert_eq!((&end["hold"], &end["point_in_time"]), (&"none".into(), &false.into()));
        assert_same(&s.path(image), &s.path("atomic.snap"));
        assert_same(&s.path(image), &s.path("none.snap"));
        let out = s.run(&["status", "none.snap"]);
        assert!(String::from_utf8_lossy(&out.stdout).contains("NOT A POINT IN TIME"), "{out:?}");
        assert_eq!(s.exits(0, &["status", "--json", "none.snap"])[0]["point_in_time"], false);
    });
}

#[test]
fn auto_takes_one_call_where_the_image_is_in_use_and_has_few_extents() {
    on_both(|s| {
        noise(&s.path("few.img"), 4 * MIB);
        let _writer = support::writer(&s.path("few.img"));
        let events = s.exits(0, &["snapshot", "--json", "few.img", "few.snap"]);
        assert_eq!(events.last().expect("an end")["hold"], "atomic");
        assert_same(&s.path("few.img"), &s.path("few.snap"));
    });
}

#[test]
fn an_image_resized_during_a_job_without_a_lease_breaks_it() {
    on_both(|s| {
        roomy(&s.path("a.img"), 1024 * MIB);
        for len in [1024 * MIB + BLOCK, 512 * MIB] {
            let mut job = s.start(&slowly(&["snapshot", "--consistency", "none", "a.img", "a.snap"]));
            assert!(job.wait_for("progress"));
            support::writer(&s.path("a.img")).set_len(len).expect("resized");
            let ended = job.end();
            assert_eq!(ended.code, Some(6), "{:?}: {}", s.fs, ended.stderr);
            assert!(!s.path("a.snap").exists());
            assert_eq!(s.exits(6, &["status", "--json", "a.snap"])[0]["state"], "broken");
            s.exits(6, &["resume", "a.snap"]);
            s.exits(0, &["abort", "-q", "a.snap"]);
            s.no_sidecars("a.snap");
        }
    });
}

#[test]
fn an_image_replaced_during_the_job_breaks_it() {
    on_both(|s| {
        roomy(&s.path("a.img"), 512 * MIB);
        noise(&s.path("other.img"), MIB);
        let mut job = s.start(&slowly(&["snapshot", "a.img", "a.snap"]));
        assert!(job.wait_for("progress"));
        fs::rename(s.path("other.img"), s.path("a.img")).expect("replaced");
        let ended = job.end();
        assert_eq!(ended.code, Some(6), "{:?}: {}", s.fs, ended.stderr);
        assert!(!s.path("a.snap").exists());
        let healed = s.exits(0, &["snapshot", "--json", "a.img", "a.snap"]);
        assert_eq!(healed.last().expect("an end")["new_t0"], true);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    });
}
