//! A QEMU that was started before anything armed its image: `--qmp` has it open the image anew, and a snapshot is made while
//! it writes. On real XFS and Btrfs.

use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support;
use crate::support::{BOUND, Sandbox, has, noise, on_both, patiently, refused, skipped, until};
use rclone_img::qemu::qmp::Qmp;
use reflink_img_guest::fill::fill;
use serde_json::{Value, json};

const QEMU: &str = "qemu-system-x86_64";
/// The last part of the image, which the writer writes to and the others do not.
const SIZE: u64 = 16 << 20;

/// A QEMU with two monitors, one for the test and one for the program; its guest is not started.
struct Vm(Child);

impl Vm {
    fn start(s: &Sandbox, drive: &str) -> Option<Self> {
        if !has(QEMU) {
            skipped(&format!("{QEMU} is not installed"));
            return None;
        }
        // One for each QEMU.
        let _ = std::fs::remove_file(s.path("vm.img"));
        fill(&s.path("vm.img"), SIZE, true, 1).expect("filled");
        let mut command = Command::new(QEMU);
        command.args(["-S", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg"]);
        for socket in ["ours", "theirs"] {
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", s.outside(socket).display()));
        }
        command.arg("-drive").arg(format!("file=vm.img,format=raw,if=none,id=disk,{drive}"));
        let child = command.args(["-device", "virtio-blk-pci,drive=disk"]).current_dir(s.dir());
        let vm = Self(child.stdin(Stdio::null()).spawn().expect("it starts"));
        assert!(until(|| Qmp::connect(&s.outside("ours"), BOUND).is_ok()), "{QEMU} does not start: see above");
        Some(vm)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn options(s: &Sandbox) -> Value {
    let mut monitor = Qmp::connect(&s.outside("ours"), BOUND).expect("a monitor");
    let query = monitor.execute("query-named-block-nodes", json!({"flat": true}), BOUND);
    let mut nodes = query.expect("nodes");
    nodes.as_array_mut().into_iter().flatten().for_each(|node| node["image"] = Value::Null);
    nodes
}

fn qemu_io(monitor: &mut Qmp, command: &str) {
    let line = json!({"command-line": format!("qemu-io disk \"{command}\"")});
    let said = monitor.execute("human-monitor-command", line, BOUND).expect("done");
    assert!(!said.to_string().contains("rror"), "{command}: {said}");
}

/// Every block that the job clones holds one byte throughout, which QEMU raises by one in each round (0 comes after 255), from the first block
/// to the last: at any instant the blocks before some point have one value, and those from there on have the one before.
fn written_in_rounds(s: &Sandbox, stop: Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let socket = s.outside("ours");
    thread::spawn(move || {
        let mut monitor = Qmp::connect(&socket, BOUND).expect("a monitor");
        let mut round = 1_u64;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            (0..16).for_each(|part: u32| qemu_io(&mut monitor, &format!("write -q -P {} {part}M 1M", round as u8)));
        }
        round
    })
}

/// Says what is wrong with an image that [`written_in_rounds`] has written.
fn torn(bytes: &[u8]) -> Option<String> {
    let steps: Vec<_> = (1..bytes.len()).filter(|at| bytes[*at] != bytes[*at - 1]).collect();
    match steps[..] {
        [] => None,
        // The write that was in flight may be there in part, block by block.
        _ if steps.iter().all(|at| at % 512 == 0 && at >> 20 == steps[0] >> 20 || at % (1 << 20) == 0) => {
            let last = bytes[bytes.len() - 1];
            let other = bytes.iter().find(|it| it.wrapping_sub(last) > 1)?;
            Some(format!("{other} and {last}, {steps:?}"))
        }
        _ => Some(format!("{steps:?}")),
    }
}

#[test]
fn a_qemu_that_runs_is_armed_and_snapshotted_while_it_writes() {
    on_both(|s| {
        for drive in ["cache=none,aio=threads", "cache=writeback,aio=io_uring", "cache=none,aio=native"] {
            let Some(_vm) = Vm::start(s, drive) else { return };
            let before = options(s);
            refused(
                s,
                "opened before it could be watched",
                &["snapshot", "--consistency", "guard", "vm.img", "vm.snap"],
            );
            let theirs = s.outside("theirs");
            let theirs = theirs.to_str().expect("UTF-8");
            // The image is of one value before the first snapshot.
            qemu_io(&mut Qmp::connect(&s.outside("ours"), BOUND).expect("a monitor"), "write -q -P 1 0 16M");
            let stop = Arc::new(AtomicBool::new(false));
            let writer = written_in_rounds(s, Arc::clone(&stop));
            let mut promoted = 0;
            for round in 0..3 {
                let args =
                    ["snapshot", "--consistency", "guard", "--qmp", theirs, "--refresh", "vm.img", "vm.snap", "--json"];
                let args: Vec<_> = args.into_iter().filter(|arg| round > 0 || *arg != "--refresh").collect();
                let events = s.exits(0, &patiently(&args));
                let finished = events.last().expect("finished");
                assert_eq!(finished["hold"], "guard");
                promoted += finished["promoted"].as_u64().expect("a number");
                let bytes = std::fs::read(s.path("vm.snap")).expect("the snapshot");
                assert_eq!((bytes.len() as u64, torn(&bytes)), (SIZE, None), "{:?} {drive}, round {round}", s.fs);
            }
            stop.store(true, Ordering::Relaxed);
            assert!(writer.join().expect("no panic") > 1);
            assert_eq!(options(s), before, "{:?} {drive}", s.fs);
            // Jobs that no access has met prove nothing.
            assert!(promoted > 0, "{:?} {drive}", s.fs);
            std::fs::remove_file(s.path("vm.snap")).expect("the snapshot");
        }
    });
}

#[test]
fn a_monitor_that_is_of_no_use_is_told() {
    on_both(|s| {
        let Some(_vm) = Vm::start(s, "cache=none") else { return };
        let args = |socket: &str| {
            let socket = s.outside(socket).to_str().expect("UTF-8").to_owned();
            ["snapshot", "--consistency", "guard", "--qmp", &socket, "vm.img", "vm.snap"].map(str::to_owned)
        };
        refused(s, "no monitor listens at", &args("nowhere").each_ref().map(String::as_str));
        // Whoever comes second waits for a greeting that does not come.
        let other = UnixStream::connect(s.outside("theirs")).expect("the first");
        thread::sleep(Duration::from_millis(100));
        refused(s, "takes one client at a time", &args("theirs").each_ref().map(String::as_str));
        drop(other);
        noise(&s.path("other.img"), 1 << 20);
        let _writer = support::writer(&s.path("other.img"));
        let mut wrong = args("theirs");
        wrong[5] = "other.img".into();
        refused(s, "does not have the image open", &wrong.each_ref().map(String::as_str));
        s.exits(0, &args("theirs"));
    });
}
