//! Never harm the guest: whatever becomes of the job's processes, the guest's accesses go on without an error, and a snapshot
//! that is not of one instant is never put into place. On real XFS and Btrfs, four times each (`REFLINK_IMG_SOAK=1`: 20).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::support;
use crate::support::{
    Armed, BLOCK, Family, Guest, PATIENT, Sandbox, on_both, patiently, refused, rounds, slowly, until,
};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// One that has ended by itself, because of what was sent to another, has nothing to be told.
fn send(pid: Pid, signal: Signal) {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => panic!("{signal} to {pid}: {e}"),
    }
}

/// Bytes of an image whose job lasts a few seconds when it is made [`slowly`].
const LASTS: u64 = 16 << 20;

/// The same, and longer than a test takes until it has done something to the job.
const LASTS_LONG: u64 = 32 << 20;

fn image(s: &Sandbox) {
    support::noise(&s.path("vm.img"), LASTS);
}

/// A test beside a guest that uses the image, and is not harmed by it.
fn beside_a_guest(what: &str, test: impl Fn(&Sandbox, &Guest)) {
    beside_a_guest_of(LASTS, what, test);
}

/// As [`beside_a_guest`], of an image of so many bytes.
fn beside_a_guest_of(size: u64, what: &str, test: impl Fn(&Sandbox, &Guest)) {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        support::noise(&s.path("vm.img"), size);
        let guest = Guest::start(&s.path("vm.img"));
        test(s, &guest);
        guest.stop().assert_unharmed(&format!("{:?} {what}", s.fs));
    });
}

/// The worker fails in the midst of its work, by itself, and says one of these, the first of them at least once.
fn fault_inside(kind: &str, code: i32, says: &[&str]) {
    let first = std::cell::Cell::new(false);
    beside_a_guest(kind, |s, guest| {
        for round in 0..rounds(20) {
            let what = format!("{:?} {kind}, round {round}", s.fs);
            let mut command = s.command(&slowly(&["snapshot", "vm.img", "vm.snap"]));
            let out = command.env("REFLINK_IMG_FAULT", format!("{kind}:300")).output().expect("it starts");
            let told = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(code), "{what}: {told}");
            assert!(says.iter().any(|it| told.contains(it)) && told.contains("hint: "), "{what}: {told}");
            first.set(first.get() || told.contains(says[0]));
            guest.runs_on();
            assert!(!s.path("vm.snap").exists(), "{what}: a snapshot is in place");
            let next = s.exits(0, &["snapshot", "vm.img", "vm.snap", "--json"]);
            assert_eq!(next.last().expect("finished")["new_t0"], true, "{what}");
            fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        }
    });
    assert!(first.get(), "{kind}: it never said {:?}", says[0]);
}

#[test]
fn the_worker_panics() {
    fault_inside("panic", 6, &["the point in time is lost"]);
}

/// The thread that answers is alive, and gives the access up before the supervisor has to. Where this machine stands still for the tenth of a second
/// between the two, that one may come first.
#[test]
fn a_clone_call_hangs() {
    fault_inside("hang", 6, &["was about to wait for longer than --guest-deadline", "unanswered"]);
}

/// Whoever needs nothing cloned waits neither for a clone call that takes long nor for those who wait for it.
#[test]
fn an_access_to_what_is_done_goes_on_while_a_clone_call_hangs() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        image(s);
        let (image, as_at_t0) = (s.path("vm.img"), s.outside("t0"));
        fs::copy(&image, &as_at_t0).expect("a copy");
        let file = File::options().read(true).write(true).open(&image).expect("open");
        let args = slowly(&["snapshot", "vm.img", "vm.snap", "--guest-deadline", "30s"]);
        let job = s.start_with_fault("held:100", &args);
        assert!(until(|| s.path("held").exists()), "{:?}: {}", s.fs, job.end().stderr);
        let waiting = || {
            let status = s.exits(0, &["status", "--json", "vm.snap"]);
            status[0]["live"]["waiting"].as_u64().expect("a job under watch")
        };
        let write = |at: u64| file.write_all_at(&[7; BLOCK as usize], at).expect("written");
        thread::scope(|scope| {
            let last = scope.spawn(|| write((16 << 20) - BLOCK));
            assert!(until(|| waiting() == 1), "{:?}: nobody waits", s.fs);
            let done = scope.spawn(|| (0..100).for_each(|_| write(0)));
            let goes_on = until(|| done.is_finished());
            let waits = !last.is_finished();
            // Whatever was found: they go on, or the scope does not end.
            fs::remove_file(s.path("held")).expect("it is held up");
            assert!(goes_on && waits, "{:?}: done {goes_on}, not done {waits}", s.fs);
        });
        let end = job.end();
        assert_eq!(end.code, Some(0), "{:?}: {}", s.fs, end.stderr);
        support::assert_same(&as_at_t0, &s.path("vm.snap"));
    });
}

#[test]
fn the_device_fails_under_a_clone_call() {
    fault_inside("EIO", 6, &["cannot clone"]);
}

#[test]
fn the_kernel_has_no_memory_for_a_clone_call() {
    fault_inside("ENOMEM", 6, &["its point in time is lost"]);
}

/// What cannot be shared for want of space is copied, and the guest waits no longer for it than it may.
#[test]
fn the_file_system_has_no_space_to_share() {
    beside_a_guest("ENOSPC", |s, _| {
        for _ in 0..rounds(20) {
            let mut command = s.command(&[&["snapshot", "vm.img", "vm.snap", "--json"], &PATIENT[..]].concat());
            let out = command.env("REFLINK_IMG_FAULT", "ENOSPC:2").output().expect("it starts");
            assert_eq!(out.status.code(), Some(0), "{:?}: {}", s.fs, String::from_utf8_lossy(&out.stderr));
            let events = support::events(&String::from_utf8_lossy(&out.stdout));
            assert!(events.last().expect("finished")["copied_bytes"].as_u64() > Some(0));
            fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        }
    });
}

/// Makes a fault while a guest uses the image and a job clones it; `code` is how the job ends, `None` where nobody is left
/// to say. The next run of the same command makes the snapshot.
fn fault(name: &str, code: Option<i32>, act: impl Fn(Family)) {
    let size = if code == Some(6) { LASTS_LONG } else { LASTS };
    beside_a_guest_of(size, name, |s, guest| {
        for round in 0..rounds(20) {
            let what = format!("{:?} {name}, round {round}", s.fs);
            let begun = || {
                let args = ["snapshot", "vm.img", "vm.snap", "--force"];
                let mut job = s.start(&if code == Some(6) { slowly(&args) } else { patiently(&args) });
                assert!(job.wait_for("started"), "{what}: {}", job.end().stderr);
                let family = Family::of(&job);
                guest.runs_on();
                (job, family)
            };
            let (mut job, mut family) = begun();
            // Beside a test that keeps all processors busy a job may be at its end by now.
            for _ in 0..10 {
                if code != Some(0) && !s.path("vm.snap.partial").exists() {
                    job.end();
                    (job, family) = begun();
                }
            }
            act(family);
            guest.runs_on();
            let ended = job.end();
            if code.is_some() {
                assert_eq!(ended.code, code, "{what}: {}", ended.stderr);
            }
            assert!(until(|| family.is_gone()), "{what}: processes are left");
            guest.runs_on();
            if code != Some(0) {
                assert!(!s.path("vm.snap").exists(), "{what}: a snapshot is in place");
                // Whoever looks is told, also where nobody was left to say it.
                s.exits(6, &["status", "vm.snap", "--json"]);
                s.exits(6, &["resume", "vm.snap", "--json"]);
                let next = s.exits(0, &["snapshot", "vm.img", "vm.snap", "--force", "--json"]);
                let last = next.last().expect("finished");
                assert_eq!((&last["hold"], &last["new_t0"]), (&"guard".into(), &true.into()), "{what}: {last}");
            }
            s.no_sidecars("vm.snap");
            fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        }
    });
}

#[test]
fn nothing_goes_wrong() {
    fault("nothing", Some(0), |_| {});
}

#[test]
fn the_worker_is_killed() {
    fault("worker killed", Some(6), |f| send(f.worker, Signal::SIGKILL));
}

#[test]
fn the_worker_hangs() {
    fault("worker stopped", Some(6), |f| send(f.worker, Signal::SIGSTOP));
}

#[test]
fn the_supervisor_is_killed() {
    fault("supervisor killed", Some(6), |f| send(f.supervisor, Signal::SIGKILL));
}

#[test]
fn worker_and_supervisor_are_killed_at_once() {
    fault("both killed", Some(6), |f| {
        // Stopped first, so that neither sees the other go.
        send(f.supervisor, Signal::SIGSTOP);
        send(f.worker, Signal::SIGKILL);
        send(f.supervisor, Signal::SIGKILL);
    });
}

#[test]
fn the_process_that_the_user_started_is_killed() {
    fault("front killed", None, |f| send(f.front, Signal::SIGKILL));
}

#[test]
fn the_user_interrupts_the_job() {
    fault("interrupted", Some(6), |f| send(f.front, Signal::SIGINT));
}

#[test]
fn everybody_of_that_name_is_told_to_end() {
    fault("pkill", Some(6), |f| [f.supervisor, f.worker, f.front].into_iter().for_each(|p| send(p, Signal::SIGTERM)));
}

#[test]
fn the_job_is_sent_to_the_background() {
    fault("Ctrl-Z", Some(0), |f| {
        send(f.front, Signal::SIGTSTP);
        thread::sleep(Duration::from_millis(300));
        send(f.front, Signal::SIGCONT);
    });
}

#[test]
fn the_process_group_is_stopped() {
    beside_a_guest("group stopped", |s, guest| {
        for _ in 0..rounds(20) {
            let mut command = s.command(&patiently(&["snapshot", "vm.img", "vm.snap", "-q"]));
            let mut front = command.process_group(0).stderr(Stdio::piped()).spawn().expect("the program starts");
            let group = Pid::from_raw(front.id() as i32);
            assert!(until(|| s.path("vm.snap.partial").exists()));
            killpg(group, Signal::SIGSTOP).expect("a signal");
            // The job is another session's: it goes on, and ends.
            assert!(until(|| s.path("vm.snap").exists()), "{:?}", s.fs);
            guest.runs_on();
            killpg(group, Signal::SIGCONT).expect("a signal");
            assert_eq!(front.wait().expect("its end").code(), Some(0));
            fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        }
    });
}

#[test]
fn nobody_drains_the_reports() {
    beside_a_guest("undrained", |s, _| {
        let fifo = s.outside("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let metrics = fifo.to_str().expect("a plain path");
        // What is renamed into place can be no pipe: nothing has begun when that is told.
        refused(s, "is not a regular file", &["snapshot", "vm.img", "vm.snap", "--metrics", metrics]);
        for _ in 0..rounds(20) {
            let mut command = s.command(&[&["snapshot", "vm.img", "vm.snap", "--json"], &PATIENT[..]].concat());
            // A pipe that is full before the job has told anything.
            let (full, _keep) = support::full_pipe();
            command.stdout(full.try_clone().expect("dup")).stderr(full);
            let mut front = command.spawn().expect("the program starts");
            assert!(until(|| s.path("vm.snap").exists()), "{:?}", s.fs);
            assert_eq!(front.wait().expect("its end").code(), Some(0));
            fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        }
    });
}

/// It cannot say any more that the snapshot is there, and nobody says that it is not.
#[test]
fn the_worker_is_killed_when_all_is_done() {
    beside_a_guest("killed when done", |s, _| {
        let (full, read) = support::full_pipe();
        let mut command = s.command(&patiently(&["snapshot", "vm.img", "vm.snap", "--json"]));
        // It tries for some seconds to tell how it has ended.
        let front = command.stdout(full).stderr(Stdio::piped()).spawn().expect("the program starts");
        let family = Family::behind(front.id());
        assert!(until(|| s.path("vm.snap").exists()), "{:?}", s.fs);
        send(family.worker, Signal::SIGKILL);
        drop(read);
        let out = front.wait_with_output().expect("its end");
        let told = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{:?}: {told}", s.fs);
        assert!(told.contains("the snapshot is complete") && told.contains("hint: "), "{:?}: {told}", s.fs);
        // It may have had its journal left to remove.
        s.run(&["resume", "-q", "vm.snap"]);
        s.exits(0, &["status", "vm.snap", "--json"]);
        s.no_sidecars("vm.snap");
    });
}

/// What the processes that a guest waits for are while it may: in sessions of their own, in memory, never chosen for want of it, without
/// a core dump that would keep their descriptors open. The supervisor keeps the CPUs awake.
#[test]
fn they_are_fit_to_be_waited_for() {
    beside_a_guest("looked at", |s, _| {
        let mut job = s.start(&slowly(&["snapshot", "vm.img", "vm.snap"]));
        assert!(job.wait_for("started"), "{}", job.end().stderr);
        let f = Family::of(&job);
        let sessions = [f.front, f.worker, f.supervisor].map(|pid| nix::unistd::getsid(Some(pid)).expect("alive"));
        assert!(sessions[1] == f.worker && sessions[2] == f.supervisor && sessions[0] != f.worker, "{sessions:?}");
        for pid in [f.worker, f.supervisor] {
            let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).expect("alive");
            let field = |text: &str, name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
                line.split_whitespace().next().unwrap_or_default().to_owned()
            };
            assert_ne!(field(&of("status"), "VmLck:"), "0", "{:?}", s.fs);
            // Some sandboxes let nobody set it.
            if fs::write("/proc/self/oom_score_adj", "-1000").is_ok() {
                fs::write("/proc/self/oom_score_adj", "0").expect("put back");
                assert_eq!(of("oom_score_adj").trim(), "-1000", "{:?}", s.fs);
            }
            assert_eq!(field(&of("limits"), "Max core file size"), "0", "{:?}", s.fs);
        }
        let awake = || {
            let of = fs::read_dir(format!("/proc/{}/fd", f.supervisor)).expect("alive");
            of.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("/dev/cpu_dma_latency")))
        };
        if Path::new("/dev/cpu_dma_latency").exists() {
            assert!(until(awake), "{:?}: the CPUs may sleep", s.fs);
        }
        send(f.front, Signal::SIGINT);
        job.end();
    });
}

/// Two busy processes for two cores, until they are dropped.
struct Hogs(Vec<Child>);

impl Hogs {
    fn start() -> Self {
        let hog = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh");
        Self((0..2).map(|_| hog()).collect())
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}

#[test]
fn cron_runs_it_with_the_lowest_priority_on_a_busy_host() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        support::noise(&s.path("vm.img"), 4 * 1024 * BLOCK);
        let guest = Guest::start(&s.path("vm.img"));
        let _hogs = Hogs::start();
        let ways = [&["nice", "-n", "19", "ionice", "-c", "3"][..], &["chrt", "-i", "0"]];
        for with in ways.repeat(rounds(20) as usize) {
            let mut command = Command::new(with[0]);
            command.args(&with[1..]).arg(support::PROGRAM).args(["snapshot", "vm.img", "vm.snap", "--json"]);
            command.current_dir(s.dir()).stdin(Stdio::null());
            let mut out = command.output().expect("it starts");
            // Where others keep this machine from it as well the guest comes first, as it should. Once.
            if out.status.code() == Some(6) && String::from_utf8_lossy(&out.stderr).contains("--guest-deadline") {
                out = command.output().expect("it starts");
            }
            let told = String::from_utf8_lossy(&out.stdout);
            let what = format!("{:?} {with:?}: {told}{}", s.fs, String::from_utf8_lossy(&out.stderr));
            assert_eq!(out.status.code(), Some(0), "{what}");
            let events = support::events(&told);
            println!("{:?} {with:?}: {}", s.fs, events.last().expect("finished")["longest_guest_wait_ms"]);
            fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        }
        guest.stop().assert_unharmed(&format!("{:?} busy host", s.fs));
    });
}
