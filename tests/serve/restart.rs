//! A server that is killed, stopped and started again while a job makes a snapshot through it, with clients that wait for it (`reconnect-delay`
//! of QEMU's client): nobody gets an error, and the snapshot is right, or known to be broken.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::serving::{LASTS_LONG, SERVED, clients, image, serve, socket, stalled, stop, uri};
use crate::support::{
    ANY_TIME, Disk, Ended, Fs, Job, PATIENT, QemuIo, Random, Sandbox, Taken, Vm, Writers, assert_one_instant,
    assert_same, on_both, runs, there, until, until_within,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, truncate};

/// How many points in time of the image the runtime directory has.
fn left(s: &Sandbox) -> usize {
    let image = fs::metadata(s.path("a.img")).expect("the image");
    let of_it = format!("serve-{:x}-{:x}.job-", image.dev(), image.ino());
    let entries = fs::read_dir("/run/rclone-img").expect("the directory").flatten();
    entries.filter(|it| it.file_name().to_string_lossy().starts_with(&of_it)).count()
}

fn start(s: &Sandbox, flags: &[&str]) -> Job {
    let flags = if flags.is_empty() { &PATIENT } else { flags };
    let args = [&["snapshot", "--consistency", "filter"], flags, &LASTS_LONG[..], &["a.img", "a.snap"]];
    let mut job = s.start(&args.concat());
    assert!(job.wait_for("started"), "{:?}", job.events);
    job
}

fn signal(job: &Job, signal: Signal) {
    kill(Pid::from_raw(job.pid() as i32), signal).expect("a signal");
}

/// A job and its writers, to whose server this happens after T0; what the job says in the end. The guest gets no error, and the next snapshot
/// is right.
fn with_writers(seed: &str, flags: &[&str], then: impl Fn(&Sandbox, &Writers, &Job, Job) -> Job) -> Vec<Ended> {
    let mut ends = std::sync::Mutex::new(Vec::new());
    let random = Random::seeded(seed);
    on_both(|s| {
        for round in 0..runs(1, 10) {
            let image = image(s, random.next());
            let server = serve(s, if round % 2 == 0 { "none" } else { "writeback" });
            let writers = Writers::start(s, &image, random.next(), clients(s, 3));
            let job = start(s, flags);
            let server = then(s, &writers, &job, server);
            let ended = job.end();
            writers.goes_on(20);
            if ended.code == Some(0) {
                assert_one_instant(&[&s.path("a.snap")], &s.outside("log"), ANY_TIME);
                fs::remove_file(s.path("a.snap")).expect("the snapshot");
            }
            ends.lock().expect("nobody panics").push(ended);
            Taken::while_they_write(s, seed, &["--latency", "1ms"], "filter", &writers);
            writers.stop();
            assert_eq!(left(s), 0);
            stop(server);
            assert_one_instant(&[&image], &s.outside("log"), ANY_TIME);
            fs::remove_file(s.path("a.snap")).expect("the snapshot");
        }
    });
    std::mem::take(ends.get_mut().expect("nobody panics"))
}

fn have() -> bool {
    there("qemu-io")
}

/// A server that is killed, and a new one.
fn killed(s: &Sandbox, server: Job) -> Job {
    server.kill();
    serve(s, "none")
}

#[test]
fn a_server_that_is_killed_and_started_again_takes_up_its_job() {
    if !have() {
        return;
    }
    let ends = with_writers("killed", &[], |s, writers, _, server| {
        server.kill();
        // One that cannot be one leaves all as it was.
        s.exits(3, &["serve", "a.img", "--socket", "nowhere/socket"]);
        let server = serve(s, "none");
        // One that is killed before the job has found it might have been anybody.
        writers.goes_on(5);
        let server = killed(s, server);
        // One too many is nobody who might have written.
        s.exits(3, &["serve", "a.img", "--socket", "another"]);
        server
    });
    assert!(
        ends.iter().all(|ended| ended.code == Some(0)),
        "{:?}",
        ends.iter().map(|it| &it.stderr).collect::<Vec<_>>()
    );
}

#[test]
fn a_server_that_is_stopped_and_started_again_takes_up_its_job() {
    if !have() {
        return;
    }
    let ends = with_writers("stopped", &[], |s, _, _, server| {
        // Who does not read his answers has written nothing.
        let _stalled = (s.fs == Fs::Xfs).then(|| stalled(&socket(s)));
        stop(server);
        serve(s, "writeback")
    });
    assert!(
        ends.iter().all(|ended| ended.code == Some(0)),
        "{:?}",
        ends.iter().map(|it| &it.stderr).collect::<Vec<_>>()
    );
}

/// QEMU's own client, with the options that the README has.
#[test]
fn a_qemu_whose_server_is_killed_waits_for_the_next_one() {
    if !there("qemu-system-x86_64") {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        let server = serve(s, "none");
        let vm = Vm::start(s, Path::new(&uri(s, "")), "cache=none,file.reconnect-delay=60");
        let writers = Writers::start(s, &image, 7, vec![Box::new(vm.disk())]);
        let job = start(s, &[]);
        let server = killed(s, server);
        let ended = job.end();
        assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
        writers.goes_on(20);
        assert_one_instant(&[&s.path("a.snap")], &s.outside("log"), ANY_TIME);
        writers.stop();
        drop(vm);
        stop(server);
        assert_one_instant(&[&image], &s.outside("log"), ANY_TIME);
    });
}

/// The job does not come: after a while the guest's writes go on, and the job finds that they have.
#[test]
fn a_job_that_does_not_come_back_is_broken_and_the_guest_goes_on() {
    if !have() {
        return;
    }
    let ends = with_writers("late", &["--guest-deadline", "300ms"], |s, _, job, server| {
        signal(job, Signal::SIGSTOP);
        server.kill();
        let server = serve(s, "none");
        assert!(until(|| left(s) == 0), "writes go on");
        signal(job, Signal::SIGCONT);
        server
    });
    let told = |ended: &Ended| ended.stderr.contains("--guest-deadline") || ended.stderr.contains("without the job");
    assert!(
        ends.iter().all(|ended| ended.code == Some(6) && told(ended)),
        "{:?}",
        ends.iter().map(|it| &it.stderr).collect::<Vec<_>>()
    );
}

/// Nobody waits for a job that is gone.
#[test]
fn a_server_and_its_job_that_are_killed_are_in_nobodys_way() {
    if !have() {
        return;
    }
    let ends = with_writers("both", &[], |s, _, job, server| {
        signal(job, Signal::SIGKILL);
        server.kill();
        serve(s, "none")
    });
    assert!(ends.iter().all(|ended| ended.code.is_none()));
}

/// Without a server nobody writes, and the snapshot comes to its end; who writes all the same is found.
#[test]
fn a_job_whose_server_does_not_come_back_ends_by_itself_unless_somebody_else_writes() {
    if !have() {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        let server = serve(s, "writeback");
        let job = start(s, &[]);
        server.kill();
        let ended = job.end();
        assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
        assert_same(&image, &s.path("a.snap"));
        let server = serve(s, "none");
        fs::remove_file(s.path("a.snap")).expect("the snapshot");
        let job = start(s, &[]);
        server.kill();
        drop(fs::File::options().write(true).open(&image).expect("the image"));
        let ended = job.end();
        assert!(ended.code == Some(6) && ended.stderr.contains("past its server"), "{:?}: {}", s.fs, ended.stderr);
        let server = serve(s, "none");
        s.exits(0, &["snapshot", "--json", "a.img", "a.snap"]);
        stop(server);
        assert_eq!(left(s), 0);
    });
}

/// It has the image, and does not answer yet.
#[test]
fn a_server_that_is_about_to_come_when_the_job_ends_is_no_stranger() {
    on_both(|s| {
        let image = image(s, 7);
        let server = serve(s, "writeback");
        let job = start(s, &[]);
        server.kill();
        let server = s.start(&["serve", "a.img", "--socket", &socket(s).display().to_string()]);
        let proc = PathBuf::from(format!("/proc/{}", server.pid()));
        let writes = |fd: fs::DirEntry| {
            let info = fs::read_to_string(proc.join("fdinfo").join(fd.file_name())).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default();
            let is_image = fs::read_link(fd.path()).is_ok_and(|to| to == image);
            is_image
                && i32::from_str_radix(flags.trim(), 8).is_ok_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
        };
        let has_it = || fs::read_dir(proc.join("fd")).expect("it runs").flatten().any(writes);
        // Not a moment later.
        while !has_it() && !server.has_ended() {}
        signal(&server, Signal::SIGSTOP);
        // It would not wait.
        until_within(Duration::from_secs(3), || job.has_ended());
        signal(&server, Signal::SIGCONT);
        let ended = job.end();
        assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
        assert_same(&image, &s.path("a.snap"));
        stop(server);
    });
}

/// Who changes the image's size opens nothing.
#[test]
fn who_changes_the_size_of_the_image_by_its_path_breaks_the_job() {
    on_both(|s| {
        let image = image(s, 7);
        let server = serve(s, "writeback");
        let job = start(s, &[]);
        truncate(&image, SERVED as i64 + 4096).expect("resized");
        let ended = job.end();
        assert!(ended.code == Some(6) && ended.stderr.contains("changed the size"), "{:?}: {}", s.fs, ended.stderr);
        stop(server);
    });
}

/// Who comes while there is no server, writes past the next one, and goes just before that one is killed as well.
#[test]
fn who_came_between_two_servers_is_not_forgotten_when_the_second_is_killed() {
    if !have() {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        let server = serve(s, "writeback");
        let job = start(s, &[]);
        server.kill();
        let other = fs::File::options().write(true).open(&image).expect("the image");
        let server = serve(s, "writeback");
        // It goes on when the job has come back.
        assert!(QemuIo::nbd(&socket(s)).does("write -P 8 0 4k"));
        other.write_all_at(&[9; 4096], SERVED - 4096).expect("written");
        drop(other);
        server.kill();
        let ended = job.end();
        assert!(ended.code == Some(6) && ended.stderr.contains("past its server"), "{:?}: {}", s.fs, ended.stderr);
    });
}
