//! The command lines of docs/NBD.md, run as they stand there, by their sections.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::serving::{image, serve_at, stop};
use crate::support::{Disk, PROGRAM, QemuIo, Sandbox, assert_same, must, on_both, refused, there};

/// The blocks of commands of a section.
fn commands(section: &str) -> Vec<String> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/NBD.md")).expect("the page");
    let section = page.split("\n## ").find(|it| it.starts_with(section)).expect("a section").to_owned();
    let blocks: Vec<_> =
        section.split("```sh\n").skip(1).map(|it| it.split("```").next().expect("an end").to_owned()).collect();
    assert!(!blocks.is_empty(), "{section}");
    blocks
}

/// Runs commands where the image and the socket are: as they stand there, with no option of the shell but what they set.
fn ran(s: &Sandbox, commands: &str) -> Output {
    let programs = Path::new(PROGRAM).parent().expect("a directory").display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").expect("a path"));
    let mut shell = Command::new("sh");
    shell.args(["-c", commands]).current_dir(s.dir()).env("PATH", path).env("RESTIC_PASSWORD", "test");
    shell.env("HOME", s.outside("home"));
    shell.output().expect("a shell")
}

fn run(s: &Sandbox, commands: &str) {
    ends(s, 0, commands);
}

/// Runs commands that end with this exit code, whatever of them it is of.
fn ends(s: &Sandbox, code: i32, commands: &str) {
    let ran = ran(s, commands);
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(code), "{:?} {commands}: {said}", s.fs);
}

/// A text with something else in it.
fn with(text: &str, what: &str, instead: &str) -> String {
    assert_eq!(text.matches(what).count(), 1, "{what} in {text}");
    text.replace(what, instead)
}

/// A served image with a guest that has written to it, and what is done with it.
fn with_guest(tools: &[&str], act: impl Fn(&Sandbox, &mut QemuIo)) {
    if !tools.iter().all(|tool| there(tool)) {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        fs::File::options().write(true).open(&image).and_then(|it| it.set_len(64 << 20)).expect("a hole");
        let server = serve_at(s, "vm.sock", "none");
        let mut guest = QemuIo::nbd(&s.path("vm.sock"));
        assert!(guest.does("write -P 1 1M 1M"));
        act(s, &mut guest);
        drop(guest);
        stop(server);
    });
}

/// The guest's disk as it is now.
fn now(s: &Sandbox, guest: &mut QemuIo) -> std::path::PathBuf {
    assert!(guest.does("flush"));
    let now = s.outside("now");
    fs::copy(s.path("vm.img"), &now).expect("a copy");
    now
}

#[test]
fn full_is_everything() {
    with_guest(&["qemu-io", "nbdcopy"], |s, guest| {
        let now = now(s, guest);
        run(s, &commands("`full`")[0]);
        assert_same(&now, &s.path("full.raw"));
    });
}

/// The backup's exit code is that of the fleece's end where the reader has seen nothing of it.
#[test]
fn a_fleece_that_is_lost_is_no_backup() {
    with_guest(&["qemu-io", "nbdcopy"], |s, _| {
        let full = &commands("`full`")[0];
        let reader = full.lines().find(|line| line.starts_with("nbdcopy")).expect("the reader");
        let writes = "qemu-io -f raw -c 'write -P 9 0 8M' 'nbd+unix:///?socket=vm.sock' >&2";
        let small = with(full, "--name nightly\ntrap", "--name nightly --max-sidecar 1M\ntrap");
        ends(s, 6, &with(&small, reader, &format!("{reader}\n{writes}")));
        // The guest's writes alone, and nobody who reads.
        ends(s, 6, &with(&small, reader, writes));
        // Who is told to stop leaves no fleece either, and is no success.
        ends(s, 1, &with(full, reader, "kill -TERM $$; sleep 10"));
        ends(s, 1, &with(full, reader, "false"));
        assert!(s.exits(0, &["fleece", "list", "--json", "vm.img"]).is_empty());
        run(s, full);
    });
}

#[test]
fn top_is_what_is_allocated() {
    with_guest(&["qemu-io", "qemu-img"], |s, guest| {
        let now = now(s, guest);
        run(s, &commands("`top`")[0]);
        let copy = s.path("allocated.qcow2");
        must("qemu-img", &[&"compare", &"-f", &"raw", &"-F", &"qcow2", &now, &copy]);
        assert!(fs::metadata(copy).expect("the copy").len() < 24 << 20, "the hole was not copied");
    });
}

#[test]
fn incremental_is_what_has_changed() {
    with_guest(&["qemu-io", "nbdsh"], |s, guest| {
        let [first, next] = <[String; 2]>::try_from(commands("`incremental`")).expect("two steps");
        run(s, &first);
        for write in ["write -P 2 5M 300k", "write -P 3 40M 4k", "discard 8M 1M"] {
            assert!(guest.does(write));
            run(s, &next);
            assert_same(&s.path("backup.raw"), &s.path("old.snap"));
            assert_same(&now(s, guest), &s.path("old.snap"));
        }
        let read = |name: &str| fs::read(s.path(name)).expect("a file");
        let before = ["backup.raw", "old.snap"].map(read);
        assert!(guest.does("write -P 4 6M 300k"));
        // A reader that fails at once, and one that fails in the midst of it.
        for (what, instead) in [
            ("?socket=vm.sock' qemu", "?socket=gone.sock' qemu"),
            ("            at += length", "            sys.exit(1)"),
        ] {
            let failed = ran(s, &with(&next, what, instead));
            assert!(!failed.status.success(), "{}", String::from_utf8_lossy(&failed.stderr));
            assert!(before == ["backup.raw", "old.snap"].map(read), "{:?}: they belong together", s.fs);
            assert!(guest.does("write -P 5 7M 4k"));
        }
        run(s, &next);
        assert_same(&s.path("backup.raw"), &s.path("old.snap"));
        assert_same(&now(s, guest), &s.path("old.snap"));
    });
}

#[test]
fn restic_takes_an_export_and_a_file() {
    with_guest(&["qemu-io", "nbdcopy", "restic"], |s, guest| {
        let now = now(s, guest);
        run(s, "restic init -r backup.restic");
        let [export, file] = <[String; 2]>::try_from(commands("restic")).expect("two ways");
        run(s, &export);
        run(s, "restic -r backup.restic dump latest vm.img > restored");
        assert_same(&now, &s.path("restored"));
        run(s, &file);
        run(s, "restic -r backup.restic dump latest restic.snap > restored");
        assert_same(&now, &s.path("restored"));
    });
}

#[test]
fn a_served_image_is_restored_with_its_vm_off_and_its_server_ended() {
    if !there("qemu-io") {
        return;
    }
    on_both(|s| {
        image(s, 7);
        let server = serve_at(s, "vm.sock", "none");
        let mut guest = QemuIo::nbd(&s.path("vm.sock"));
        s.exits(0, &["snapshot", "-q", "vm.img", "old.snap"]);
        assert!(guest.does("write -P 1 1M 1M") && guest.does("flush"));
        drop(guest);
        refused(s, "somebody has", &["restore", "old.snap", "vm.img"]);
        let pid = server.pid();
        let host = format!(
            "alias systemd-escape=escape
            escape() {{ [ -f \"$3\" ] && echo disk.socket; }}
            systemctl() {{ echo \"$*\" >> told; case $1 in
                stop) kill {pid}; while [ -e /proc/{pid}/exe ]; do sleep 0.01; done;;
            esac; }}
            virsh() {{ echo \"$*\" >> told; case $1 in domstate) echo 'shut off';; esac; }}\n"
        );
        let [block] = <[String; 1]>::try_from(commands("Back to a snapshot")).expect("one way");
        run(s, &(host + &block));
        assert_same(&s.path("vm.img"), &s.path("old.snap"));
        assert!(s.path("before.snap").exists());
        let told = fs::read_to_string(s.path("told")).expect("what was told");
        assert_eq!(told, "shutdown vm\ndomstate vm\nstop disk.socket\nstart disk.socket\nstart vm\n");
        stop(server);
    });
}
