//! What the program asks of the kernel, and when, and what becomes of it where the kernel says no: by strace, which sees each
//! call and can make it fail. On real XFS and Btrfs.

use std::fs;
use std::process::{Command, Output, Stdio};

use crate::support;
use crate::support::{
    Armed, Guest, Other, PROGRAM, Sandbox, fragmented, has, nobody_has, on_both, skipped, slowly, written,
};
use rclone_img::cli::worker::WORKER;

/// The program under strace: how it ended, and its calls of these names, in the order in which they began.
fn traced(s: &Sandbox, calls: &str, faults: &[&str], args: &[&str]) -> Option<(Output, Vec<String>)> {
    if !has("strace") {
        skipped("strace is not installed");
        return None;
    }
    let log = s.outside("calls");
    let mut command = Command::new("strace");
    // With the filter no signals are sent.
    let filter = (!faults.iter().any(|it| it.contains(":signal="))).then_some("--seccomp-bpf");
    command.args(filter).args(["-f", "-y", "-qq", "-e", &format!("trace={calls}"), "-o"]).arg(&log);
    for fault in faults {
        command.args(["-e", &format!("inject={fault}")]);
    }
    let out = command.arg(PROGRAM).args(args).current_dir(s.dir()).stdin(Stdio::null()).output().expect("it starts");
    let calls = fs::read_to_string(&log).expect("a log");
    Some((out, calls.lines().map(str::to_owned).collect()))
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

const SNAPSHOT: [&str; 5] = ["snapshot", "--consistency", "guard", "vm.img", "vm.snap"];

/// A test beside a guest that uses an image of many extents, and is not harmed by it.
fn beside_a_guest(what: &str, test: impl Fn(&Sandbox, &Guest)) {
    on_both(|s| {
        fragmented(&s.path("vm.img"), 4096);
        let _armed = Armed::directory(&s.dir());
        let guest = Guest::start(&s.path("vm.img"));
        test(s, &guest);
        guest.stop().assert_unharmed(&format!("{:?} {what}", s.fs));
    });
}

/// Linux before 6.14.
#[test]
fn a_kernel_without_the_events() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        for (image, extents) in [("many.img", 2000), ("few.img", 3)] {
            fragmented(&s.path(image), extents);
        }
        let _writers = ["many.img", "few.img"].map(|image| Other::opens("<>", &s.path(image)));
        let without = |args: &[&str]| traced(s, "fanotify_init", &["fanotify_init:error=EINVAL"], args);
        let before = s.listing();
        for args in
            [&["snapshot", "--consistency", "guard", "few.img", "x.snap"][..], &["snapshot", "many.img", "x.snap"]]
        {
            let Some((out, calls)) = without(args) else { return };
            let told = stderr(&out);
            assert_eq!(out.status.code(), Some(3), "{:?} {args:?}: {told}", s.fs);
            assert!(told.contains("6.14") && told.contains("hint: "), "{:?} {args:?}: {told}", s.fs);
            assert!(calls.iter().any(|call| call.contains("INJECTED")), "{calls:?}");
            assert_eq!(s.listing(), before, "{:?} {args:?}", s.fs);
        }
        let Some((out, _)) = without(&["snapshot", "few.img", "x.snap"]) else { return };
        let told = stderr(&out);
        assert_eq!(out.status.code(), Some(0), "{:?}: {told}", s.fs);
        assert!(told.contains("hold atomic (") && told.contains("not guard: "), "{:?}: {told}", s.fs);
    });
}

/// Whichever process or thread cannot be started: there is a snapshot or none, and no guest waits for who has no supervisor.
#[test]
fn a_process_that_cannot_be_started() {
    beside_a_guest("no processes", |s, guest| {
        let mut without_a_supervisor = 0;
        // By itself the process that guests wait for: the one before it has as many threads.
        for (verb, nth) in [SNAPSHOT[0], WORKER].into_iter().flat_map(|verb| (1..=6).map(move |nth| (verb, nth))) {
            let args = [&[verb], &SNAPSHOT[1..]].concat();
            let faults = ["clone", "clone3", "vfork"].map(|call| format!("{call}:error=EAGAIN:when={nth}"));
            let faults = faults.each_ref().map(String::as_str);
            let Some((out, calls)) = traced(s, "clone,clone3,vfork,fanotify_mark", &faults, &args) else { return };
            let told = stderr(&out);
            if out.status.code() == Some(0) {
                fs::remove_file(s.path("vm.snap")).expect("the snapshot");
                continue;
            }
            let what = format!("{:?} {verb}, the {nth}th: {told}", s.fs);
            assert!(matches!(out.status.code(), Some(1 | 3 | 6)) && told.contains("hint: "), "{what}");
            assert!(!s.path("vm.snap").exists(), "{what}");
            if told.contains("cannot have a supervisor") {
                without_a_supervisor += 1;
                assert!(!calls.iter().any(|call| call.contains("FAN_PRE_ACCESS")), "{what}{calls:?}");
                s.no_sidecars("vm.snap");
            }
            guest.runs_on();
            s.run(&["abort", "-q", "vm.snap"]);
        }
        assert!(without_a_supervisor > 0, "{:?}: there always was one", s.fs);
    });
}

/// Whichever mark the kernel refuses: who was frozen is thawed, and who waits goes on.
#[test]
fn a_mark_that_the_kernel_refuses() {
    beside_a_guest("no marks", |s, guest| {
        let log = s.outside("log");
        let (freeze, thaw) = (format!("echo freeze >> {}", log.display()), format!("echo thaw >> {}", log.display()));
        let mut failed_when_frozen = false;
        for nth in 1..=6 {
            let args = [&SNAPSHOT[..], &["--freeze", &freeze, "--thaw", &thaw]].concat();
            let fault = format!("fanotify_mark:error=ENOSPC:when={nth}");
            let Some((out, _)) = traced(s, "fanotify_mark", &[&fault], &args) else { return };
            let (told, asked) = (stderr(&out), fs::read_to_string(&log).unwrap_or_default());
            let what = format!("{:?}, the {nth}th: {told}{asked}", s.fs);
            assert!(matches!(&asked[..], "" | "freeze\nthaw\n"), "{what}");
            let _ = fs::remove_file(&log);
            match out.status.code() {
                Some(0) => fs::remove_file(s.path("vm.snap")).expect("the snapshot"),
                Some(1 | 3 | 6) => {
                    failed_when_frozen |= !asked.is_empty();
                    assert!(told.contains("hint: ") && !s.path("vm.snap").exists(), "{what}");
                }
                other => panic!("{other:?}, {what}"),
            }
            guest.runs_on();
            s.run(&["abort", "-q", "vm.snap"]);
        }
        assert!(failed_when_frozen, "{:?}: none failed between freeze and T0", s.fs);
    });
}

/// As above, of a job that nobody waits for: what it had done is kept.
#[test]
fn a_thread_that_cannot_be_started_where_nobody_uses_the_image() {
    on_both(|s| {
        fragmented(&s.path("vm.img"), 4096);
        let mut ends = std::collections::BTreeSet::new();
        for nth in 1..=6 {
            let fault = format!("clone3:error=EAGAIN:when={nth}");
            let args = slowly(&["snapshot", "--consistency", "frozen", "vm.img", "vm.snap"]);
            let Some((out, _)) = traced(s, "clone3", &[&fault], &args) else { return };
            let (told, what) = (stderr(&out), format!("{:?}, the {nth}th", s.fs));
            ends.insert(out.status.code());
            if out.status.code() != Some(0) {
                assert!(matches!(out.status.code(), Some(1 | 3 | 4)) && told.contains("hint: "), "{what}: {told}");
                assert!(told.contains("limit"), "{what}: it is no fault of the disk: {told}");
                assert!(!told.contains("panicked") && !s.path("vm.snap").exists(), "{what}: {told}");
                s.exits(0, &["snapshot", "vm.img", "vm.snap"]);
            }
            support::assert_same(&s.path("vm.img"), &s.path("vm.snap"));
            s.no_sidecars("vm.snap");
            fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        }
        assert!(ends.contains(&Some(0)) && ends.len() > 1, "{:?}: {ends:?}", s.fs);
    });
}

/// The guest waits for no fsync, and for no data that the clone calls would have to write: that is done before T0, chunk by chunk in the
/// window, and after it.
#[test]
fn what_is_synced_when() {
    beside_a_guest("traced", |s, _| {
        let calls = "ioctl,fsync,fdatasync,syncfs,sync_file_range";
        // As `auto` does it, which looks whether the image can be frozen.
        let args = slowly(&["snapshot", "--guest-deadline", "30s", "vm.img", "vm.snap"]);
        let Some((out, calls)) = traced(s, calls, &[], &args) else { return };
        assert_eq!(out.status.code(), Some(0), "{:?}: {}", s.fs, stderr(&out));
        let clones: Vec<usize> = (0..calls.len()).filter(|&at| calls[at].contains("FICLONERANGE")).collect();
        let images: Vec<&String> = calls[..clones[1]].iter().filter(|call| call.contains("vm.img")).collect();
        assert!(!images.is_empty() && !images.iter().any(|call| call.contains("sync(")), "{:?}: {images:?}", s.fs);
        let begun = calls[..clones[0]].iter().any(|call| call.contains("sync_file_range("));
        assert!(begun, "{:?}: the first attempt at a block writes all that is dirty", s.fs);
        // The first is the attempt at a block, before anything is touched.
        let (first, last) = (clones[1], *clones.last().expect("clones"));
        assert!(clones.len() > 100, "{:?}: {} clones", s.fs, clones.len());
        let within = &calls[first..=last];
        let syncs: Vec<&String> = within.iter().filter(|c| c.contains("sync(") || c.contains("syncfs(")).collect();
        assert!(syncs.is_empty(), "{:?}: {syncs:?}", s.fs);
        let written_back = |calls: &[String]| calls.iter().filter(|call| call.contains("sync_file_range(")).count();
        assert!(written_back(&calls[..first]) > 0, "{:?}: nothing is written back before T0", s.fs);
        assert!(written_back(within) > 1, "{:?}: nothing is written back in the window", s.fs);
        assert!(calls[last..].iter().any(|call| call.contains("fsync(")), "{:?}: no fsync at the end", s.fs);
    });
}

/// A job that is refused for a writer writes none of his data: on Btrfs a clone call of one block would, with the image locked.
#[test]
fn a_job_that_is_refused_clones_nothing() {
    beside_a_guest("refused", |s, _| {
        for args in [&["snapshot"][..], &["snapshot", "--dry-run"]] {
            let args = [args, &["--consistency", "frozen", "vm.img", "vm.snap"]].concat();
            let Some((out, calls)) = traced(s, "ioctl,fsync,fdatasync,fanotify_init", &[], &args) else { return };
            assert_eq!(out.status.code(), Some(3), "{:?}: {}", s.fs, stderr(&out));
            let done = calls.iter().find(|call| call.contains("FICLONERANGE") || call.contains("sync("));
            assert_eq!((done, calls.is_empty()), (None, false), "{:?}", s.fs);
        }
    });
}

/// What is dirty cannot be written: before T0, in the window, and after it. Whoever runs it again has the snapshot.
#[test]
fn the_device_fails_under_a_write_back() {
    beside_a_guest("write-back fails", |s, guest| {
        for fault in
            ["sync_file_range:error=EIO:when=1+", "sync_file_range:error=EIO:when=3+", "fsync:error=EIO:when=1+"]
        {
            let Some((out, calls)) = traced(s, "sync_file_range,fsync", &[fault], &slowly(&SNAPSHOT)) else { return };
            let told = stderr(&out);
            assert!(calls.iter().any(|call| call.contains("INJECTED")), "{:?} {fault}: {calls:?}", s.fs);
            assert!(matches!(out.status.code(), Some(1 | 6)), "{:?} {fault}: {told}", s.fs);
            assert!(told.contains("hint: ") && !s.path("vm.snap").exists(), "{:?} {fault}: {told}", s.fs);
            guest.runs_on();
            s.exits(0, &[&SNAPSHOT[..], &["--json"]].concat());
            fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        }
    });
}

/// Whoever waited for the snapshot when a refresh of it was killed is let in on it: it is not changed under him.
#[test]
fn a_refresh_that_was_killed_before_its_t0_changes_nothing_under_a_reader() {
    on_both(|s| {
        let refresh = ["snapshot", "-q", "--refresh", "vm.img", "vm.snap"];
        fragmented(&s.path("vm.img"), 4);
        s.exits(0, &["snapshot", "-q", "vm.img", "vm.snap"]);
        let old = fs::read(s.path("vm.snap")).expect("the snapshot");
        written(&s.path("vm.img"), vec![7; old.len()]);
        // Its record is next, when it has its name; the lease goes with the process.
        let marks = "setxattr,fsetxattr";
        let killed = traced(s, marks, &[&format!("{marks}:signal=SIGKILL:when=1")], &refresh);
        let Some((out, calls)) = killed else { return };
        assert!(!out.status.success() && s.path("vm.snap.partial").exists(), "{:?}: {out:?} {calls:?}", s.fs);
        let partial = s.path("vm.snap.partial");
        let reader = fs::File::open(&partial).expect("let in");
        let run = s.run(&refresh);
        let said = stderr(&run);
        assert!(run.status.code() == Some(3) && said.contains("somebody reads the snapshot"), "{:?}: {said}", s.fs);
        assert!(fs::read(&partial).expect("read") == old, "{:?}", s.fs);
        // As the hint says.
        s.exits(0, &["abort", "--json", "vm.snap"]);
        assert_eq!(s.exits(0, &["status", "--json", "vm.snap"])[0]["state"], "finished", "{:?}", s.fs);
        drop(reader);
        nobody_has(&s.path("vm.snap"));
        s.exits(0, &refresh);
        assert!(fs::read(s.path("vm.snap")).expect("read") == vec![7; old.len()], "{:?}", s.fs);
        s.no_sidecars("vm.snap");
    });
}
