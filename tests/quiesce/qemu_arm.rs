//! A real QEMU opens its image anew when it is told to, and keeps every option that it had.
//!
//! Whether a descriptor is a new one is seen by the name that it was opened by: while QEMU runs, the image is renamed
//! and linked again under its old name. A descriptor from before shows the name it was given then.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{BOUND, has, skipped, until};
use rclone_img::error::{Error, Kind};
use rclone_img::qemu::arm::{Armed, Inode, arm};
use rclone_img::qemu::qmp::Qmp;
use serde_json::{Value, json};

const QEMU: &str = "qemu-system-x86_64";
const DAEMON: &str = "qemu-storage-daemon";
const SIZE: usize = 8 << 20;
/// The image's name, and the one that it is moved to.
const IMAGE: &str = "disk.img";
const EARLIER: &str = "earlier.img";
/// A disk of this name, its requests handled by a thread of its own.
const DISK: [&str; 4] =
    ["-object", "iothread,id=thread", "-device", "virtio-blk-pci,id=disk,iothread=thread,drive=top"];

/// A QEMU that has not started its guest, with an image in a directory of its own, which is its working directory.
struct Vm {
    child: Child,
    dir: tempfile::TempDir,
}

impl Vm {
    /// Starts one; `None`, loudly, where there is none to start. `IMAGE` in the arguments is the image's path.
    fn start(args: &[&str]) -> Option<Self> {
        let machine = ["-S", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg"];
        let monitor = ["-qmp", "unix:monitor,server=on,wait=off"];
        Self::run(QEMU, &[&machine[..], &monitor, args].concat())
    }

    fn run(program: &str, args: &[&str]) -> Option<Self> {
        if !has(program) {
            skipped(&format!("{program} is not installed"));
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join(IMAGE);
        let written = File::create(&image).and_then(|f| f.write_all_at(&[b'x'; SIZE], 0).and_then(|()| f.sync_all()));
        written.expect("an image");
        let args = args.iter().map(|arg| arg.replace("IMAGE", image.to_str().expect("a name in UTF-8")));
        // Descriptor 9 is there for who wants it.
        let script = format!("exec 9<>{IMAGE} && exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, program]).args(args).current_dir(dir.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
        let mut vm = Self { child, dir };
        let ended = |vm: &mut Self| vm.child.try_wait().is_ok_and(|status| status.is_some());
        assert!(until(|| vm.greets() || ended(&mut vm)) && vm.greets(), "{program} does not start: see above");
        Some(vm)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn greets(&self) -> bool {
        // Who comes between the socket and the monitor behind it is never greeted.
        Qmp::connect(&self.path("monitor"), Duration::from_secs(5)).is_ok()
    }

    fn monitor(&self) -> Qmp {
        Qmp::connect(&self.path("monitor"), BOUND).expect("a monitor")
    }

    fn image(&self) -> Inode {
        let found = [IMAGE, EARLIER].iter().find_map(|name| fs::metadata(self.path(name)).ok()).expect("the image");
        Inode { dev: found.dev(), ino: found.ino() }
    }

    /// From here on descriptors that are opened anew can be told from those that were open.
    fn rename_and_link(&self) {
        fs::rename(self.path(IMAGE), self.path(EARLIER)).expect("rename");
        fs::hard_link(self.path(EARLIER), self.path(IMAGE)).expect("link");
    }

    /// The descriptors of the image: the name it was opened by, and the flags. Without the script's.
    fn descriptors(&self) -> Vec<(String, i32)> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let mut found = Vec::new();
        for entry in fs::read_dir(process.join("fd")).expect("descriptors") {
            let number = entry.expect("an entry").file_name();
            let Ok(target) = fs::read_link(process.join("fd").join(&number)) else { continue };
            if number == "9" || !target.starts_with(self.dir.path()) || target.extension().is_none_or(|e| e != "img") {
                continue;
            }
            let info = fs::read_to_string(process.join("fdinfo").join(&number)).expect("fdinfo");
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags").trim();
            let name = target.file_name().expect("a name").to_string_lossy().into_owned();
            found.push((name, i32::from_str_radix(flags, 8).expect("octal")));
        }
        found.sort();
        found
    }

    /// Arms it, where "armed" means opened by the image's name; how often that was asked.
    fn arm(&self) -> (Armed, u32) {
        let asked = Cell::new(0);
        let probe = || {
            asked.set(asked.get() + 1);
            Ok(self.descriptors().iter().all(|(name, _)| name == IMAGE))
        };
        let armed = arm(&mut self.monitor(), self.image(), probe).expect("armed");
        (armed, asked.get())
    }

    fn nodes(&self) -> Value {
        let query = self.monitor().execute("query-named-block-nodes", json!({"flat": true}), BOUND);
        let mut nodes = query.expect("nodes");
        nodes.as_array_mut().into_iter().flatten().for_each(|node| node["image"] = Value::Null);
        nodes
    }

    /// It cannot be armed, for this reason, and is as it was.
    fn refuses(&self, needle: &str) {
        let before = (self.descriptors(), self.nodes());
        let error = arm(&mut self.monitor(), self.image(), || Ok(false)).expect_err("refused");
        assert_refused(&error, needle);
        assert_eq!((self.descriptors(), self.nodes()), before);
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It has ended already where it could not be started.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn assert_refused(error: &Error, needle: &str) {
    assert_eq!(error.kind, Kind::Refused, "{error}");
    assert!(error.to_string().contains(needle), "no {needle:?} in: {error}");
    assert!(!error.hint.is_empty());
}

/// Every option that can be seen is as before, and every descriptor is a new one with the old one's flags.
fn is_armed(what: &str, args: &[&str], nodes: usize) {
    let Some(vm) = Vm::start(args) else { return };
    assert_eq!(vm.arm(), (Armed::Already, 1), "{what}: nothing to do");
    vm.rename_and_link();
    let (options, before) = (vm.nodes(), vm.descriptors());
    assert!(!before.is_empty() && before.iter().all(|(name, _)| name == EARLIER), "{what}: {before:?}");
    let (Armed::Reopened(names), asked) = vm.arm() else { panic!("{what}: not opened anew") };
    assert_eq!((names.len(), asked), (nodes, 2), "{what}: {names:?}");
    let expect: Vec<_> = before.iter().map(|(_, flags)| (IMAGE.to_owned(), *flags)).collect();
    assert_eq!(vm.descriptors(), expect, "{what}");
    assert_eq!(vm.nodes(), options, "{what}");
    assert_eq!(vm.arm(), (Armed::Already, 1), "{what}: it stays so");
}

#[test]
fn nodes_with_names_are_armed_with_and_without_o_direct() {
    let top = "driver=raw,node-name=top,file=file0";
    let native = "driver=file,node-name=file0,filename=IMAGE,aio=native,cache.direct=on,discard=unmap,locking=on";
    is_armed("native", &[&["-blockdev", native, "-blockdev", top], &DISK[..]].concat(), 1);
    let plain = "driver=file,node-name=file0,filename=IMAGE,cache.no-flush=on,auto-read-only=on,detect-zeroes=on";
    is_armed("buffered", &[&["-blockdev", plain, "-blockdev", top], &DISK[..]].concat(), 1);
    is_armed("not in use", &["-blockdev", plain], 1);
}

#[test]
fn nodes_without_names_are_armed() {
    is_armed("drive", &[&["-drive", "file=IMAGE,format=raw,if=none,id=top"], &DISK[..]].concat(), 1);
    let direct = "file=disk.img,format=raw,if=none,id=top,cache=none,aio=native,discard=unmap";
    is_armed("drive, O_DIRECT, relative", &[&["-drive", direct], &DISK[..]].concat(), 1);
    let inline = "driver=raw,node-name=top,offset=1048576,file.driver=file,file.filename=IMAGE,file.aio=threads";
    is_armed("inside its parent", &[&["-blockdev", inline], &DISK[..]].concat(), 1);
}

#[test]
fn all_nodes_of_an_image_are_armed_and_no_others() {
    let one = "driver=file,node-name=one,filename=IMAGE";
    let two = "driver=file,node-name=two,filename=IMAGE,read-only=on,cache.direct=on";
    let other = "driver=file,node-name=other,filename=/bin/sh,read-only=on";
    is_armed("two nodes", &["-blockdev", one, "-blockdev", two, "-blockdev", other], 2);
}

#[test]
fn an_option_that_cannot_be_seen_is_kept() {
    for (discard, expect) in [("unmap", 2), ("ignore", 0)] {
        let file = format!("driver=file,node-name=file0,filename=IMAGE,discard={discard}");
        let args = ["-blockdev", &file, "-blockdev", "driver=raw,node-name=top,file=file0,discard=unmap"];
        let Some(vm) = Vm::start(&[&args[..], &DISK].concat()) else { return };
        let allocated = |vm: &Vm| fs::metadata(vm.path(IMAGE)).expect("the image").blocks() * 512;
        let discard = |at: u64| {
            let line = format!("qemu-io -d /machine/peripheral/disk/virtio-backend \"discard {at}M 1M\"");
            vm.monitor().execute("human-monitor-command", json!({"command-line": line}), BOUND).expect("discarded");
        };
        let full = allocated(&vm);
        discard(0);
        vm.rename_and_link();
        assert!(matches!(vm.arm(), (Armed::Reopened(_), 2)));
        discard(4);
        // The file system may free or keep a block more.
        let freed = (full - allocated(&vm)) >> 20;
        assert_eq!(freed, expect, "discard={file}");
    }
}

#[test]
fn an_image_that_the_name_no_longer_leads_to_is_left_alone() {
    let Some(vm) = Vm::start(&["-drive", "file=IMAGE,format=raw,if=none,id=top"]) else { return };
    fs::rename(vm.path(IMAGE), vm.path(EARLIER)).expect("rename");
    vm.refuses("moved or replaced");
    // Now the name leads to another file, which QEMU would open in place of its own.
    File::create(vm.path(IMAGE)).and_then(|f| f.set_len(SIZE as u64)).expect("another");
    let found = fs::metadata(vm.path(EARLIER)).expect("the image");
    let image = Inode { dev: found.dev(), ino: found.ino() };
    let error = arm(&mut vm.monitor(), image, || Ok(false)).expect_err("refused");
    assert_refused(&error, "moved or replaced");
    let names: Vec<_> = vm.descriptors().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [EARLIER]);
}

#[test]
fn an_image_given_as_a_descriptor_is_left_alone() {
    let args = ["-add-fd", "fd=9,set=1", "-blockdev", "driver=file,node-name=given,filename=/dev/fdset/1"];
    let Some(vm) = Vm::start(&args) else { return };
    vm.refuses("it was given open descriptors (block nodes given)");
}

#[test]
fn a_process_without_a_human_monitor_is_left_alone() {
    if !has(DAEMON) {
        // Not every distribution has it in a package of its own, so this is no failure on CI either.
        eprintln!("SKIPPED: {DAEMON} is not installed");
        return;
    }
    let chardev = "socket,id=monitor,path=monitor,server=on,wait=off";
    let node = "driver=file,node-name=file0,filename=IMAGE,discard=unmap";
    let args = ["--blockdev", node, "--chardev", chardev, "--monitor", "chardev=monitor"];
    let Some(vm) = Vm::run(DAEMON, &args) else { return };
    vm.refuses("human-monitor-command");
}

#[test]
fn a_process_that_does_not_have_the_image_is_not_its_qemu() {
    let Some(vm) = Vm::start(&["-drive", "file=IMAGE,format=raw,if=none,id=top"]) else { return };
    let other = vm.path("other");
    File::create(&other).and_then(|f| f.write_all_at(b"x", 0)).expect("a file");
    let found = fs::metadata(&other).expect("a file");
    let image = Inode { dev: found.dev(), ino: found.ino() };
    let error = arm(&mut vm.monitor(), image, || Ok(false)).expect_err("refused");
    assert_refused(&error, "does not have the image open");
}

#[test]
fn descriptors_that_stay_as_they_were_are_told() {
    let Some(vm) = Vm::start(&["-drive", "file=IMAGE,format=raw,if=none,id=top"]) else { return };
    vm.refuses("still has it open by a descriptor that is not armed");
    // What the probe itself says is passed on.
    let broken = || Err(Error::new(Kind::Broken, "no probe", "none"));
    assert_eq!(arm(&mut vm.monitor(), vm.image(), broken).expect_err("passed on").kind, Kind::Broken);
}

#[test]
fn a_monitor_takes_one_client_at_a_time() {
    let Some(vm) = Vm::start(&[]) else { return };
    let path = vm.path("monitor");
    let first = vm.monitor();
    // The queue has room for one who waits; the next cannot even connect.
    for _ in 0..3 {
        let error = Qmp::connect(&path, Duration::from_millis(300)).expect_err("held");
        assert_refused(&error, "does not answer within 0.3 s: it takes one client at a time, and libvirt");
    }
    drop(first);
    vm.monitor();
    let gone = Qmp::connect(Path::new("/nowhere/monitor"), BOUND).expect_err("nobody");
    assert_refused(&gone, "no monitor listens at '/nowhere/monitor'");
}
