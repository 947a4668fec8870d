//! QEMU's block layer as the guest: `qemu-io`, or a QEMU whose machine does not run and whose monitor is told what to write.
//!
//! Either takes one command at a time and reads from a file what it is to write. So the stamps, and the log of them, are made
//! here: what is logged begins before the command is given, and ends after it has been answered.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rclone_img::qemu::qmp::Qmp;
use reflink_img_guest::bits::Bits;
use reflink_img_guest::log::{History, Kind, Log, Subject};
use reflink_img_guest::sector;
use serde_json::json;

use super::{BOUND, Random, Sandbox, until, with_us};

/// How many operations a log holds: more than a run can make, one answer at a time.
const CAPACITY: u64 = 1 << 20;

/// The unit of offsets and lengths.
const UNIT: u64 = 4096;

/// What takes `qemu-io`'s commands.
pub trait Disk: Send {
    /// Does what the command says; false where it was not done.
    fn does(&mut self, command: &str) -> bool;
}

/// A `qemu-io`. It ends with its standard input, so with the test.
pub struct QemuIo {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl QemuIo {
    /// Opens a raw image with these options of its file, `aio=native,cache.direct=on` say, without QEMU's lock: the image
    /// has several of them.
    pub fn open(image: &Path, options: &str) -> Self {
        let raw = "driver=raw,discard=unmap,file.discard=unmap,file.driver=file,file.locking=off";
        Self::with(&["-t", "writethrough"], &format!("{raw},file.filename={},{options}", image.display()))
    }

    /// Connects to an NBD server's socket; nothing is flushed unless it is told to.
    pub fn nbd(socket: &Path) -> Self {
        let server = "driver=raw,discard=unmap,file.discard=unmap,file.driver=nbd,file.server.type=unix";
        // A server that is started again is waited for.
        let server = format!("{server},file.reconnect-delay=60");
        Self::with(&["-t", "writeback"], &format!("{server},file.server.path={}", socket.display()))
    }

    /// Connects to an export that is read only.
    pub fn nbd_export(socket: &Path, export: &str) -> Self {
        let server = "read-only=on,driver=raw,file.driver=nbd,file.server.type=unix";
        Self::with(&["-r"], &format!("{server},file.export={export},file.server.path={}", socket.display()))
    }

    fn with(how: &[&str], options: &str) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(how).args(["--image-opts", options]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("qemu-io starts");
        let commands = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut program = Self { child, commands, answers };
        program.answer();
        program
    }

    /// What it says until it asks for the next command.
    fn answer(&mut self) -> String {
        let mut said = Vec::new();
        let mut byte = [0];
        while !said.ends_with(b"qemu-io> ") {
            self.answers.read_exact(&mut byte).expect("qemu-io has ended");
            said.push(byte[0]);
        }
        String::from_utf8_lossy(&said).into_owned()
    }
}

impl Disk for QemuIo {
    fn does(&mut self, command: &str) -> bool {
        writeln!(self.commands, "{command}").expect("it runs");
        let said = self.answer();
        let done = [("write", "wrote "), ("read", "read ")]
            .iter()
            .all(|(of, begins)| !command.starts_with(of) || said.starts_with(begins));
        done && !said.contains("failed")
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A QEMU that has an image as a drive and has not started its guest.
pub struct Vm {
    child: Child,
    monitor: PathBuf,
}

impl Vm {
    /// Starts one, with these options of the drive.
    pub fn start(s: &Sandbox, image: &Path, options: &str) -> Self {
        let monitor = s.outside("monitor");
        let _ = fs::remove_file(&monitor);
        let mut command = with_us("qemu-system-x86_64");
        command.args(["-S", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg"]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
        command.args(["-device", "virtio-blk-pci,drive=disk", "-drive"]);
        command.arg(format!("if=none,id=disk,format=raw,discard=unmap,file={},{options}", image.display()));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
        let ended = |child: &mut Child| child.try_wait().is_ok_and(|status| status.is_some());
        let greets = || Qmp::connect(&monitor, BOUND).is_ok();
        assert!(until(|| greets() || ended(&mut child)) && !ended(&mut child), "QEMU does not start: see above");
        Self { child, monitor }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its drive, as its monitor has it.
    pub fn disk(&self) -> impl Disk + use<> {
        MonitorDisk(Qmp::connect(&self.monitor, BOUND).expect("a monitor"))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct MonitorDisk(Qmp);

impl Disk for MonitorDisk {
    fn does(&mut self, command: &str) -> bool {
        let line = format!("qemu-io disk \"{command}\"");
        let said = self.0.execute("human-monitor-command", json!({"command-line": line}), BOUND).expect("answered");
        // What was done it prints elsewhere; what was not it tells.
        said.as_str().is_some_and(str::is_empty)
    }
}

/// Threads that write stamps to an image, each by a disk of its own, in a part of the image of its own.
pub struct Writers {
    stop: Arc<AtomicBool>,
    log: Arc<Log>,
    path: PathBuf,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Begins to write to an image that is all stamps of generation 0.
    pub fn start(s: &Sandbox, image: &Path, seed: u64, disks: Vec<Box<dyn Disk>>) -> Self {
        let meta = fs::metadata(image).expect("the image");
        let path = s.outside("log");
        let subject = Subject { size: meta.len(), device: meta.dev(), inode: meta.ino() };
        let log = Log::create_for(&path, &[subject], disks.len() == 1, CAPACITY).expect("a log");
        let sectors = meta.len() / 512;
        log.set_base(0, &Bits::from_words(vec![u64::MAX; Bits::words_for(sectors)]));
        let (log, stop) = (Arc::new(log), Arc::new(AtomicBool::new(false)));
        let part = meta.len() / UNIT / disks.len() as u64;
        let threads = disks.into_iter().enumerate().map(|(number, mut disk)| {
            let (log, stop, source) = (Arc::clone(&log), Arc::clone(&stop), s.outside(&format!("source-{number}")));
            let random = Random::new(seed ^ (number as u64) << 32);
            let units = number as u64 * part..(number as u64 + 1) * part;
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let length = 1 + random.below(16);
                    let first = units.start + random.below(part - length + 1);
                    let piece = first * UNIT..(first + length) * UNIT;
                    operation(&log, &mut *disk, &source, number as u32, piece, random.below(8));
                }
            })
        });
        let threads = threads.collect();
        let writers = Self { stop, log, path, threads };
        writers.goes_on(20);
        writers
    }

    /// Waits until they have begun so many more operations than now.
    pub fn goes_on(&self, operations: usize) {
        let begun = || History::read(&self.path).expect("a log").records.len();
        let enough = begun() + operations;
        assert!(until(|| begun() >= enough), "QEMU does not go on");
    }

    /// Ends them; every operation that was begun has been answered.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            assert!(until(|| thread.is_finished()), "an operation of QEMU's hangs");
            thread.join().expect("no panic");
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One write, or zeros where a hole is punched or not.
fn operation(log: &Log, disk: &mut dyn Disk, source: &Path, id: u32, piece: std::ops::Range<u64>, chance: u64) {
    let (offset, length) = (piece.start, piece.end - piece.start);
    let generation = log.take().expect("room in the log");
    let (kind, command) = match chance {
        0 => (Kind::Punch, format!("write -z -u {offset} {length}")),
        1 => (Kind::Punch, format!("write -z {offset} {length}")),
        _ => {
            let mut bytes = vec![0; length as usize];
            sector::put_all(&mut bytes, offset / 512, generation, id);
            File::create(source).and_then(|mut file| file.write_all(&bytes)).expect("the source");
            (Kind::Write, format!("write -s {} {offset} {length}", source.display()))
        }
    };
    log.begin(generation, kind, 0, id, &piece);
    let done = disk.does(&command);
    log.end(generation, done);
    assert!(done, "not done: {command}");
}
