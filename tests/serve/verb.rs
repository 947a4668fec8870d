//! `serve` as a user has it: its socket, its refusals, its end, and what it tells.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use crate::support;
use crate::support::serving::{client, request, stalled};
use crate::support::{BOUND, Disk, Fs, Job, PROGRAM, QemuIo, Sandbox, must, refused, there, until};
use nix::sys::signal::Signal;

const SIZE: u64 = 8 << 20;

/// A directory with an image.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a directory"));
        File::create(place.at("vm.img")).and_then(|it| it.set_len(SIZE)).expect("an image");
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("serve").args(args).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program starts")
    }

    fn start(&self, args: &[&str]) -> Job {
        let mut job = Job::spawn(self.command(args).arg("--json"));
        assert!(job.wait_for("started"), "{:?}", job.events);
        job
    }

    fn connect(&self) -> UnixStream {
        let mut client = UnixStream::connect(self.at("vm.sock")).expect("a connection");
        client.read_exact(&mut [0; 18]).expect("the greeting");
        client
    }

    fn choose(&self) -> UnixStream {
        client(&self.at("vm.sock"))
    }

    /// What qemu-io does on the export; whether it could.
    fn io(&self, command: &str) -> bool {
        let uri = format!("nbd+unix:///?socket={}", self.at("vm.sock").display());
        let ran = Command::new("qemu-io").args(["-f", "raw", "-t", "writeback", "-c", command, &uri]).output();
        ran.expect("qemu-io").status.success()
    }
}

const SERVE: [&str; 3] = ["vm.img", "--socket", "vm.sock"];

fn stop(job: Job) -> support::Ended {
    job.signal(Signal::SIGTERM);
    let ended = job.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.events.last().expect("events")["event"], "stopped");
    ended
}

fn first_byte(path: &Path) -> u8 {
    let mut byte = [0];
    File::open(path).and_then(|it| it.read_exact_at(&mut byte, 0)).expect("the image");
    byte[0]
}

#[test]
fn an_image_is_served_until_it_is_told_to_stop() {
    if !there("qemu-io") {
        return;
    }
    for cache in ["writeback", "none"] {
        let place = Place::new();
        let job = place.start(&[&SERVE[..], &["--cache", cache]].concat());
        let started = job.events[0].clone();
        let meta = fs::metadata(place.at("vm.sock")).expect("a socket");
        assert!(meta.file_type().is_socket() && meta.permissions().mode() & 0o777 == 0o600);
        assert_eq!(
            (&started["bytes"], &started["cache"], &started["read_only"]),
            (&SIZE.into(), &cache.into(), &false.into())
        );
        assert!(started["uri"].as_str().expect("text").ends_with("/vm.sock"), "{started}");
        assert!(place.io("write -P 7 0 64k"));
        let ended = stop(job);
        let told: Vec<_> = ended.events.iter().map(|it| it["event"].as_str().expect("a name")).collect();
        assert_eq!(told, ["started", "connected", "disconnected", "stopped"], "{}", ended.stderr);
        assert_eq!(first_byte(&place.at("vm.img")), 7);
        assert!(!place.at("vm.sock").exists());
    }
}

#[test]
fn who_reads_leaves_no_trace() {
    if !there("qemu-io") {
        return;
    }
    for cache in ["writeback", "none"] {
        let place = Place::new();
        let job = place.start(&[&SERVE[..], &["--cache", cache]].concat());
        let epoch = fs::FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH);
        File::options().write(true).open(place.at("vm.img")).and_then(|it| it.set_times(epoch)).expect("an old time");
        assert!(place.io("read 0 64k"));
        stop(job);
        let accessed = fs::metadata(place.at("vm.img")).and_then(|it| it.accessed()).expect("a time");
        assert_eq!(accessed, SystemTime::UNIX_EPOCH);
    }
}

#[test]
fn what_it_has_taken_is_answered_before_it_ends() {
    let place = Place::new();
    let job = place.start(&SERVE);
    let mut client = place.choose();
    let write = [request(1, 1), vec![7]];
    client.write_all(&write.concat()).expect("sent");
    let ended = stop(job);
    let mut reply = Vec::new();
    client.read_to_end(&mut reply).expect("the end");
    // Either it was taken, and then it was done and said to be, or it was not.
    let done = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &9_u64.to_be_bytes()].concat();
    match first_byte(&place.at("vm.img")) {
        7 => assert_eq!(reply, done, "{}", ended.stderr),
        _ => assert!(reply.is_empty()),
    }
}

/// He asks for 64 MiB and reads none of it, so that the answers fill the socket.
#[test]
fn who_does_not_read_his_answers_keeps_it_from_ending_for_a_while_only() {
    let place = Place::new();
    let job = place.start(&SERVE);
    let _client = stalled(&place.at("vm.sock"));
    let ended = stop(job);
    assert_eq!(ended.events.last().expect("events")["hung_up"], 1, "{}", ended.stderr);
}

/// A file system, unmounted when this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: PathBuf, what: &str) -> Self {
        fs::create_dir(&path).expect("mkdir");
        let done = Command::new("mount").args(what.split(' ')).arg(&path).status().expect("mount");
        assert!(done.success(), "mount {what}");
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Two clients; the file system is full, and the first one's flush is told so by the kernel. Nobody's ever succeeds after that.
#[test]
fn data_that_is_lost_is_told_to_everybody_and_for_ever() {
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    if !there("qemu-io") {
        return;
    }
    // A file system whose disk has not room for what it says.
    let small = Mounted::at(s.outside("small"), "-t tmpfs -o size=70M tmpfs");
    let disk = small.0.join("disk");
    File::create(&disk).and_then(|it| it.set_len(400 << 20)).expect("a disk");
    must("mkfs.xfs", &[&"-q", &disk]);
    let full = Mounted::at(s.outside("full"), &format!("-o loop {}", disk.display()));
    let image = full.0.join("vm.img");
    File::create(&image).and_then(|it| it.set_len(200 << 20)).expect("an image");
    let socket = s.outside("lost.sock");
    let mut job = s.start(&["serve", image.to_str().expect("text"), "--socket", socket.to_str().expect("text")]);
    assert!(job.wait_for("started"));
    let mut clients = [(); 2].map(|()| QemuIo::nbd(&socket));
    for (n, client) in clients.iter_mut().enumerate() {
        let writes = (0..3).map(|part| format!("write -P 7 {}M 30M", n * 100 + part * 30));
        writes.for_each(|write| assert!(client.does(&write), "{write}"));
    }
    let lasts = [0, 1, 0, 1].map(|n| clients[n].does("write -f -P 8 0 4k"));
    drop(clients);
    job.signal(Signal::SIGTERM);
    let job = job.end();
    drop((full, small));
    assert_eq!(lasts, [false; 4]);
    assert!(job.events.iter().filter(|event| event["event"] == "lost").count() == 1, "{:?}", job.events);
    assert!(job.stderr.contains("cannot be put on the disk"), "{}", job.stderr);
}

/// Somebody has the directory locked, or listens and takes nobody.
#[test]
fn it_does_not_wait_for_others_for_ever_before_it_serves() {
    let place = Place::new();
    let dir = File::open(place.0.path()).expect("the directory");
    dir.lock().expect("a lock");
    let stderr = place.run(&SERVE).stderr;
    assert!(String::from_utf8_lossy(&stderr).contains("locked"), "{}", String::from_utf8_lossy(&stderr));
    drop(dir);
    let hangs = std::os::unix::net::UnixListener::bind(place.at("vm.sock")).expect("a socket");
    nix::sys::socket::listen(&hangs, nix::sys::socket::Backlog::new(0).expect("none")).expect("no backlog");
    let _full = UnixStream::connect(place.at("vm.sock")).expect("the one that there is room for");
    let stderr = place.run(&SERVE).stderr;
    assert!(String::from_utf8_lossy(&stderr).contains("somebody listens"), "{}", String::from_utf8_lossy(&stderr));
}

#[test]
fn more_clients_than_there_are_descriptors_for_are_refused() {
    let place = Place::new();
    let few = format!("ulimit -n 40; exec {PROGRAM} serve vm.img --socket vm.sock --connections 16");
    let out = Command::new("sh").args(["-c", &few]).current_dir(place.0.path()).output().expect("a shell");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(3) && stderr.contains("descriptors"), "{stderr}");
}

/// Whether it is there is looked at by connecting: no news for anybody.
#[test]
fn who_only_looks_whether_it_is_there_is_no_warning() {
    let place = Place::new();
    let job = place.start(&SERVE);
    (0..10).for_each(|_| drop(UnixStream::connect(place.at("vm.sock")).expect("a connection")));
    drop(place.connect());
    assert_eq!(stop(job).stderr, "");
}

#[test]
fn who_else_may_write_is_told() {
    let place = Place::new();
    let other = support::Other::opens("<>", &place.at("vm.img"));
    let stderr = stop(place.start(&SERVE)).stderr;
    assert!(stderr.contains("others may write") && stderr.contains(&format!("pid {}", other.0.id())), "{stderr}");
}

#[test]
fn an_image_has_one_server_and_no_other_writer_that_locks() {
    if !there("qemu-io") {
        return;
    }
    let place = Place::new();
    let job = place.start(&SERVE);
    let second = place.run(&["vm.img", "--socket", "other.sock"]);
    let stderr = String::from_utf8_lossy(&second.stderr).into_owned();
    let says = ["in use", "hint: 'rclone-img serve' has it already (pid "];
    assert!(second.status.code() == Some(3) && says.iter().all(|it| stderr.contains(it)), "{stderr}");
    assert!(!place.at("other.sock").exists());
    let image = place.at("vm.img").display().to_string();
    let theirs = |args: &[&str]| Command::new("qemu-io").args(args).arg(&image).output().expect("qemu-io");
    assert!(!theirs(&["-f", "raw", "-c", "write 0 4k"]).status.success());
    // The socket, too, is one server's.
    File::create(place.at("second.img")).and_then(|it| it.set_len(SIZE)).expect("an image");
    let stderr = place.run(&["second.img", "--socket", "vm.sock"]).stderr;
    assert!(String::from_utf8_lossy(&stderr).contains("somebody listens"), "{}", String::from_utf8_lossy(&stderr));
    stop(job);
    assert!(theirs(&["-f", "raw", "-c", "write 0 4k"]).status.success());
    // Several may read.
    let [one, two] = ["a.sock", "b.sock"].map(|name| place.start(&["vm.img", "--read-only", "--socket", name]));
    stop(one);
    stop(two);
}

#[test]
fn one_that_was_killed_leaves_nothing_in_the_way() {
    let place = Place::new();
    place.start(&SERVE).kill();
    assert!(place.at("vm.sock").exists());
    let job = place.start(&SERVE);
    drop(place.connect());
    stop(job);
}

#[test]
fn what_cannot_be_served_is_refused_in_words() {
    let place = Place::new();
    let check = |code: i32, needle: &str, args: &[&str]| {
        let out = place.run(args);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(code) && stderr.contains(needle), "{args:?}: {stderr}");
        assert!(code == 2 || stderr.contains("hint: "), "{stderr}");
    };
    fs::create_dir(place.at("dir")).expect("mkdir");
    fs::write(place.at("file"), "mine").expect("a file");
    nix::unistd::mkfifo(&place.at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    check(3, "No such file", &["nobody.img", "--socket", "s"]);
    check(3, "not a regular file", &["dir", "--socket", "s"]);
    check(3, "not a regular file", &["pipe", "--socket", "s"]);
    check(3, "not a regular file", &["/dev/null", "--socket", "s"]);
    check(3, "exists and is no socket", &["vm.img", "--socket", "file"]);
    check(3, "cannot listen", &["vm.img", "--socket", "nowhere/s"]);
    check(3, "at most 107 bytes", &["vm.img", "--socket", &"s".repeat(200)]);
    check(2, "no socket to listen at", &["vm.img"]);
    check(2, "--connections", &["vm.img", "--socket", "s", "--connections", "0"]);
    assert_eq!(fs::read(place.at("file")).expect("a file"), b"mine");
}

#[test]
fn a_snapshot_is_served_to_readers_alone() {
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    fs::write(s.path("vm.img"), vec![1; 1 << 16]).expect("write");
    assert!(s.run(&["snapshot", "vm.img", "vm.snap"]).status.success());
    refused(&s, "is a snapshot", &["serve", "vm.snap", "--socket", "s.sock"]);
    let mut job = s.start(&["serve", "vm.snap", "--read-only", "--socket", "s.sock"]);
    assert!(job.wait_for("started"));
    stop(job);
}

#[test]
fn one_client_more_than_there_may_be_is_told_of() {
    let place = Place::new();
    let mut job = place.start(&[&SERVE[..], &["--connections", "1"]].concat());
    let _first = place.connect();
    assert!(job.wait_for("connected"));
    let mut second = UnixStream::connect(place.at("vm.sock")).expect("a connection");
    assert_eq!(second.read(&mut [0; 18]).expect("the end"), 0);
    assert!(job.wait_for("sent-away"));
    assert!(stop(job).stderr.contains("--connections"));
}

#[test]
fn a_reader_that_does_not_read_holds_no_client_up() {
    let place = Place::new();
    let (full, _reader) = support::full_pipe();
    let mut command = place.command(&SERVE);
    let mut child = command.stdout(Stdio::null()).stderr(full).spawn().expect("the program starts");
    assert!(until(|| UnixStream::connect(place.at("vm.sock")).is_ok()));
    (0..50).for_each(|_| drop(place.connect()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("a signal");
    assert_eq!(child.wait().expect("its end").code(), Some(0));
}

#[test]
fn a_service_manager_is_told_how_it_stands() {
    let place = Place::new();
    let manager = UnixDatagram::bind(place.at("notify")).expect("a socket");
    manager.set_read_timeout(Some(BOUND)).expect("a limit");
    let next = || {
        let mut message = [0; 4096];
        let length = manager.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let job = Job::spawn(place.command(&SERVE).arg("--json").env("NOTIFY_SOCKET", place.at("notify")));
    assert_eq!(next(), "READY=1\nSTATUS=vm.img served to 0 clients\n");
    let client = place.connect();
    assert_eq!(next(), "STATUS=vm.img served to 1 client\n");
    drop(client);
    assert_eq!(next(), "STATUS=vm.img served to 0 clients\n");
    // A terminal that is gone takes no VM's disk with it.
    job.signal(Signal::SIGHUP);
    drop(place.connect());
    assert_eq!(next(), "STATUS=vm.img served to 1 client\n");
    job.signal(Signal::SIGTERM);
    assert!(until(|| next() == "STOPPING=1\n"));
    assert_eq!(job.end().code, Some(0));
}

/// The socket is systemd's: it is taken over, and is there when the server is gone.
#[test]
fn a_socket_is_handed_over_by_systemd() {
    const HAND_OVER: &str = "
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
if sys.argv[1] == 'listen':
    s.bind('vm.sock'); s.listen()
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
";
    if !there("python3") {
        return;
    }
    let place = Place::new();
    let handed = |what: &str, count: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", HAND_OVER, what, count, PROGRAM, "serve", "vm.img", "--json"]).current_dir(place.0.path());
        command
    };
    let mut job = Job::spawn(&mut handed("listen", "1"));
    assert!(job.wait_for("started"));
    drop(place.connect());
    stop(job);
    assert!(place.at("vm.sock").exists(), "it is not ours to remove");
    for (what, count, says) in
        [("no", "1", "no Unix socket that listens"), ("no", "2", "more than one"), ("no", "x", "cannot be read")]
    {
        let out = handed(what, count).output().expect("python3");
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && stderr.contains(says), "{stderr}");
    }
}

#[test]
fn people_are_told_what_to_do() {
    let place = Place::new();
    let mut child = place.command(&SERVE).stderr(Stdio::piped()).spawn().expect("the program starts");
    assert!(until(|| UnixStream::connect(place.at("vm.sock")).is_ok()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("a signal");
    let mut stderr = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
    assert_eq!(child.wait().expect("its end").code(), Some(0));
    let uri = format!("nbd+unix:///?socket={}", place.at("vm.sock").display());
    assert!(stderr.starts_with(&format!("vm.img: 8.0 MiB, at {}\nnext: ", place.at("vm.sock").display())), "{stderr}");
    let drive = format!("-drive 'file={uri},format=raw,if=virtio,file.reconnect-delay=30'");
    assert!(stderr.contains(&drive), "{stderr}");
    assert!(stderr.contains("stopped; every request that was taken was answered\nnext: "), "{stderr}");
}
