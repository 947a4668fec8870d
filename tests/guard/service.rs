//! The service `guard` on real XFS and Btrfs: what it arms, what outlives it, and that nobody waits for it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use crate::support;
use crate::support::{BOUND, Fs, Job, Other, Sandbox, armed, has, must, on_both, refused, skipped, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rclone_img::sys::lease::{self, Lease};

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("open")
}

fn image(path: &Path) -> File {
    fs::write(path, vec![1; 1 << 16]).expect("write");
    open(path)
}

/// The service, with everything armed that can be.
fn guard(s: &Sandbox, args: &[&str]) -> Job {
    let mut job = s.start(&[&["guard"], args].concat());
    told(&mut job, "started");
    job
}

/// Waits for an event of a service that would not end by itself.
fn told(job: &mut Job, event: &str) {
    let pid = Pid::from_raw(job.pid() as i32);
    let (done, wait) = mpsc::channel::<()>();
    thread::spawn(move || {
        if wait.recv_timeout(BOUND) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    assert!(job.wait_for(event), "it never told of '{event}': {:?}", job.events);
    drop(done);
}

/// Ends it as a service manager does.
fn stop(job: Job) -> String {
    job.signal(Signal::SIGTERM);
    let ended = job.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.events.last().expect("events")["event"], "stopped");
    ended.stderr
}

fn config(s: &Sandbox, text: &str) {
    fs::write(s.outside("guard.conf"), text.replace("DIR", s.dir().to_str().expect("UTF-8"))).expect("write");
}

#[test]
fn a_file_is_armed_for_those_who_open_it_from_then_on() {
    on_both(|s| {
        let path = s.path("vm.img");
        let before = image(&path);
        let other = image(&s.path("other.img"));
        symlink("vm.img", s.path("link")).expect("a link");
        let listing = s.listing();
        let job = guard(s, &["link"]);
        let after = open(&path);
        assert!(!armed(&before) && armed(&after) && !armed(&open(&s.path("other.img"))), "{:?}", s.fs);
        drop(other);
        stop(job);
        assert!(armed(&after) && !armed(&open(&path)));
        assert_eq!(s.listing(), listing, "it writes nothing");
    });
}

#[test]
fn a_directory_is_armed_with_the_files_that_come_and_not_with_those_below() {
    on_both(|s| {
        fs::create_dir(s.path("100")).expect("mkdir");
        drop((image(&s.path("vm.img")), image(&s.path("100/vm.img"))));
        let job = guard(s, &["."]);
        assert!(armed(&open(&s.path("vm.img"))) && !armed(&open(&s.path("100/vm.img"))), "{:?}", s.fs);
        drop(image(&s.path("new.img")));
        assert!(armed(&open(&s.path("new.img"))), "{:?}", s.fs);
        fs::rename(s.path("100/vm.img"), s.path("moved.img")).expect("rename");
        assert!(armed(&open(&s.path("moved.img"))), "{:?}", s.fs);
        stop(job);
    });
}

#[test]
fn a_file_system_is_armed_whole() {
    on_both(|s| {
        match s.fs {
            Fs::Xfs => fs::create_dir(s.path("100")).expect("mkdir"),
            Fs::Btrfs => drop(must("btrfs", &[&"subvolume", &"create", &s.path("100")])),
        }
        let before = image(&s.path("100/vm.img"));
        let mut job = guard(s, &["--file-system", "."]);
        assert_eq!(job.events[0]["what"], "file-system");
        assert!(armed(&open(&s.path("100/vm.img"))) && !armed(&before), "{:?}", s.fs);
        fs::create_dir(s.path("101")).expect("mkdir");
        drop(image(&s.path("101/vm.img")));
        assert!(armed(&open(&s.path("101/vm.img"))), "{:?}", s.fs);
        job.signal(Signal::SIGHUP);
        told(&mut job, "reloaded");
        assert!(armed(&open(&s.path("101/vm.img"))), "{:?}", s.fs);
        stop(job);
    });
}

#[test]
fn killed_it_disarms_nobody_and_started_again_it_arms_again() {
    on_both(|s| {
        let path = s.path("vm.img");
        drop(image(&path));
        let job = guard(s, &["vm.img"]);
        let first = open(&path);
        job.kill();
        let down = open(&path);
        assert!(armed(&first) && !armed(&down), "{:?}", s.fs);
        let job = guard(s, &["vm.img"]);
        assert!(armed(&first) && !armed(&down) && armed(&open(&path)), "{:?}", s.fs);
        job.kill();
    });
}

#[test]
fn a_hangup_reads_the_configuration_again_and_a_bad_one_is_told_and_not_taken() {
    on_both(|s| {
        let (a, b, c) = (s.path("a.img"), s.path("b.img"), s.path("my c.img"));
        drop([&a, &b, &c].map(|path| image(path)));
        let conf = s.outside("guard.conf");
        config(s, "# images\n\nDIR/a.img\n  DIR/b.img  \n");
        let mut job = guard(s, &["--config", conf.to_str().expect("UTF-8")]);
        let stays = open(&a);
        assert!(armed(&open(&a)) && armed(&open(&b)) && !armed(&open(&c)), "{:?}", s.fs);

        config(s, "DIR/b.img\nDIR/my c.img\n");
        job.signal(Signal::SIGHUP);
        told(&mut job, "reloaded");
        assert!(!armed(&open(&a)) && armed(&open(&b)) && armed(&open(&c)), "{:?}", s.fs);
        assert!(armed(&stays));

        for (bad, told_of) in [("DIR/a.img\nb.img\n", "line 2"), ("# none\n", "nothing")] {
            config(s, bad);
            job.signal(Signal::SIGHUP);
            told(&mut job, "not-reloaded");
            let error = job.events.last().expect("an event")["error"].to_string();
            assert!(error.contains("guard.conf") && error.contains(told_of), "{error}");
        }
        fs::remove_file(&conf).expect("remove");
        job.signal(Signal::SIGHUP);
        told(&mut job, "not-reloaded");
        assert!(!armed(&open(&a)) && armed(&open(&b)) && armed(&open(&c)), "{:?}", s.fs);

        config(s, "file-system DIR\n");
        job.signal(Signal::SIGHUP);
        told(&mut job, "reloaded");
        assert!(armed(&open(&a)), "{:?}", s.fs);
        let stderr = stop(job);
        assert!(stderr.contains("line 2") && stderr.contains("from before is kept"), "{stderr}");
    });
}

#[test]
fn a_path_that_comes_later_or_is_replaced_is_armed_then() {
    on_both(|s| {
        let (later, replaced) = (s.path("later.img"), s.path("replaced.img"));
        drop(image(&replaced));
        let mut job = guard(s, &["later.img", "replaced.img"]);
        assert_eq!((&job.events[0]["event"], &job.events[1]["event"]), (&"missing".into(), &"armed".into()));
        drop((image(&later), image(&s.path("new"))));
        fs::rename(s.path("new"), &replaced).expect("rename");
        told(&mut job, "armed");
        told(&mut job, "armed");
        assert!(armed(&open(&later)) && armed(&open(&replaced)), "{:?}", s.fs);
        fs::remove_file(&later).expect("remove");
        job.signal(Signal::SIGHUP);
        told(&mut job, "missing");
        stop(job);
    });
}

#[test]
fn a_file_system_can_be_unmounted_and_is_armed_when_it_is_back() {
    on_both(|s| {
        fs::create_dir(s.path("images")).expect("mkdir");
        drop((image(&s.path("vm.img")), image(&s.path("images/vm.img"))));
        let mut job = guard(s, &["vm.img", "images", "--file-system", "images"]);
        s.unmount();
        job.signal(Signal::SIGHUP);
        told(&mut job, "reloaded");
        assert_eq!(job.events.last().expect("events")["missing"], 3);
        s.mount();
        job.signal(Signal::SIGHUP);
        told(&mut job, "reloaded");
        assert_eq!(job.events.last().expect("events")["armed"], 3);
        assert!(armed(&open(&s.path("vm.img"))) && armed(&open(&s.path("images/vm.img"))), "{:?}", s.fs);
        stop(job);
    });
}

#[test]
fn a_deleted_image_gives_its_space_back() {
    on_both(|s| {
        let path = s.path("vm.img");
        let free = || {
            let top = File::open(s.dir()).expect("open");
            top.sync_all().and_then(|()| Ok(nix::unistd::syncfs(&top)?)).expect("sync");
            let stat = nix::sys::statvfs::statvfs(&s.dir()).expect("statvfs");
            stat.blocks_free() * stat.fragment_size()
        };
        support::noise(&path, 64 << 20);
        let before = free();
        let job = guard(s, &["vm.img", ".", "--file-system", "."]);
        fs::remove_file(&path).expect("remove");
        assert!(until(|| free() >= before + (48 << 20)), "{:?}", s.fs);
        stop(job);
    });
}

#[test]
fn one_that_is_stopped_keeps_nobody_waiting() {
    on_both(|s| {
        let path = s.path("vm.img");
        drop(image(&path));
        let job = guard(s, &["vm.img", ".", "--file-system", "."]);
        job.signal(Signal::SIGSTOP);
        let (done, ended) = mpsc::channel();
        let file = open(&path);
        let at_work = file.try_clone().expect("dup");
        thread::spawn(move || {
            let read = at_work.read_exact_at(&mut [0; 4096], 0);
            let _ =
                done.send(read.and_then(|()| at_work.write_all_at(&[2; 4096], 4096)).and_then(|()| at_work.sync_all()));
        });
        ended.recv_timeout(BOUND).expect("a read and a write go on").expect("and succeed");
        assert!(armed(&file), "{:?}", s.fs);
        job.signal(Signal::SIGCONT);
        stop(job);
    });
}

#[test]
fn nothing_is_opened_to_be_armed_so_leases_hold() {
    on_both(|s| {
        let file = image(&s.path("vm.img"));
        // What another test starts has it as well, until it is another program.
        assert!(until(|| lease::take(file.as_fd(), Lease::Write).is_ok()), "{:?}: nobody else has it open", s.fs);
        let job = guard(s, &["vm.img", "."]);
        assert_eq!(lease::held(file.as_fd()).expect("a lease"), Lease::Write, "{:?}", s.fs);
        stop(job);
    });
}

#[test]
fn a_service_manager_is_told_how_it_stands() {
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    drop(image(&s.path("vm.img")));
    let manager = UnixDatagram::bind(s.outside("notify")).expect("a socket");
    manager.set_read_timeout(Some(BOUND)).expect("a limit");
    // A call with a time limit is not begun anew after a signal, such as that of another test's lease (signal(7)).
    let receive = |message: &mut [u8]| loop {
        match manager.recv(message) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            received => return received.expect("a message"),
        }
    };
    // The next message that is not just a sign of life.
    let next = || loop {
        let mut message = [0; 4096];
        let length = receive(&mut message);
        let text = String::from_utf8_lossy(&message[..length]).into_owned();
        if text != "WATCHDOG=1\n" {
            return text;
        }
    };
    let mut command = s.command(&["guard", "--json", "vm.img", "later.img"]);
    command.env("NOTIFY_SOCKET", s.outside("notify")).env("WATCHDOG_USEC", "20000").env_remove("WATCHDOG_PID");
    let mut service = Other::start(&mut command, "started");
    let name = s.path("later.img").display().to_string();
    assert_eq!(next(), format!("READY=1\nSTATUS=1 of 2 paths armed; {name} is not there\n"));
    let mut message = [0; 4096];
    let length = receive(&mut message);
    assert_eq!(&message[..length], b"WATCHDOG=1\n");
    let pid = Pid::from_raw(service.0.id() as i32);
    kill(pid, Signal::SIGHUP).expect("a signal");
    let reloading = next();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert!(next().starts_with("READY=1\nSTATUS=1 of 2 paths armed"));
    drop(image(&s.path("later.img")));
    assert_eq!(next(), "STATUS=2 of 2 paths armed\n");
    kill(pid, Signal::SIGINT).expect("a signal");
    assert_eq!(next(), "STOPPING=1\n");
    // Nobody reads what it writes to standard output by now.
    assert_eq!(service.0.wait().expect("its end").code(), Some(0));
}

#[test]
fn people_are_told_what_is_armed_and_what_to_do() {
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    drop(image(&s.path("vm.img")));
    let mut command = s.command(&["guard", "vm.img", "."]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let mut told = Vec::new();
    told.extend(lines.by_ref().take(4));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("a signal");
    told.extend(lines);
    let dir = s.dir().display().to_string();
    assert_eq!(
        told,
        [
            format!("{dir}/vm.img: armed"),
            format!("{dir}: armed: the files in this directory, and those that it will have"),
            "2 of 2 paths armed; what was opened before is not, until it is opened again".into(),
            "next: leave this running; shut the VMs that run already down and start them again: a reboot opens nothing anew".into(),
            "stopped; what is open stays armed, what is opened from now on is not".into(),
            "next: start it again before a VM is started".into(),
        ]
    );
    assert_eq!(child.wait().expect("its end").code(), Some(0));
}

#[test]
fn what_cannot_be_armed_is_refused_in_words() {
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    fs::create_dir(s.path("tmpfs")).expect("mkdir");
    must("mount", &[&"-t", &"tmpfs", &"tmpfs", &s.path("tmpfs")]);
    refused(&s, "does not tell of accesses", &["guard", "tmpfs"]);
    refused(&s, "does not tell of accesses", &["guard", "--file-system", "tmpfs"]);
    refused(&s, "does not tell of accesses", &["guard", "tmpfs", "/proc/self/status"]);
    refused(&s, "neither a regular file nor a directory", &["guard", "/dev/null"]);
    refused(&s, "cannot read the configuration", &["guard", "--config", "nosuch.conf"]);
    // With others beside it, it is a warning.
    drop(image(&s.path("vm.img")));
    let job = guard(&s, &["-q", "tmpfs", "vm.img"]);
    assert!(armed(&open(&s.path("vm.img"))));
    let stderr = stop(job);
    assert!(stderr.starts_with("warning: ") && stderr.contains("does not tell of accesses"), "{stderr}");

    if !has("setpriv") {
        return skipped("setpriv is not installed");
    }
    let program = support::PROGRAM;
    let mut without = std::process::Command::new("setpriv");
    let output = without.args(["--bounding-set=-sys_admin", program, "guard"]).arg(s.path("vm.img")).output();
    let output = output.expect("setpriv starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("CAP_SYS_ADMIN") && stderr.contains("hint: "), "{stderr}");
}

#[test]
fn a_reader_that_does_not_read_holds_nothing_up() {
    on_both(|s| {
        let path = s.path("vm.img");
        drop(image(&path));
        let (full, _reader) = support::full_pipe();
        let mut command = s.command(&["guard", "vm.img"]);
        let mut child = command.stdout(Stdio::null()).stderr(full).spawn().expect("the program starts");
        assert!(until(|| armed(&open(&path))), "{:?}", s.fs);
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("a signal");
        assert_eq!(child.wait().expect("its end").code(), Some(0));
    });
}
