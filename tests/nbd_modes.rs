//! The command lines of docs/NBD.md, run as they stand there, by their sections.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::serving::{image, serve_at, stop};
use support::{Disk, PROGRAM, QemuIo, Sandbox, assert_same, must, on_both, there};

/// The blocks of commands of a section.
fn commands(section: &str) -> Vec<String> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/NBD.md")).expect("the page");
    let section = page.split("\n## ").find(|it| it.starts_with(section)).expect("a section").to_owned();
    let blocks: Vec<_> =
        section.split("```sh\n").skip(1).map(|it| it.split("```").next().expect("an end").to_owned()).collect();
    assert!(!blocks.is_empty(), "{section}");
    blocks
}

/// Runs commands where the image and the socket are.
fn run(s: &Sandbox, commands: &str) {
    let programs = Path::new(PROGRAM).parent().expect("a directory").display().to_string();
    // The distribution's own interpreter has the distribution's module, whatever else is called python3.
    let path = format!("{programs}:/usr/bin:{}", std::env::var("PATH").expect("a path"));
    let mut shell = Command::new("sh");
    shell.args(["-euc", commands]).current_dir(s.dir()).env("PATH", path).env("RESTIC_PASSWORD", "test");
    shell.env("HOME", s.outside("home"));
    let ran = shell.output().expect("a shell");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{:?} {commands}: {said}", s.fs);
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
