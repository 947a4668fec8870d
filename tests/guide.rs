//! docs/GUIDE.md: its commands, as they stand there, on real file systems.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use support::{Other, Sandbox, assert_same, must, noise, on_both, there, writer};

/// The commands of a section's code blocks that a shell can run, line by line.
fn commands(section: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/GUIDE.md");
    let text = fs::read_to_string(path).expect("the page");
    let section = text.split("\n## ").find(|it| it.starts_with(section)).expect("the section").to_owned();
    let blocks = section.split("```\n").skip(1).step_by(2);
    blocks.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Runs lines as somebody would, in the sandbox: `/snaps` and the like are folders of it.
fn run(s: &Sandbox, lines: &[String]) {
    let program = Path::new(assert_cmd::cargo::cargo_bin!("rclone-img")).parent().expect("a directory");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    let mut script = String::from("set -eu -o pipefail\n");
    for line in lines {
        let here = ["/snaps", "/backup", "/mnt"].iter().fold(line.clone(), |line, dir| {
            line.replace(&format!(" {dir}"), &format!(" {}{dir}", s.dir().display()))
                .replace(&format!("={dir}"), &format!("={}{dir}", s.dir().display()))
                .replace(&format!("\"{dir}"), &format!("\"{}{dir}", s.dir().display()))
        });
        // The other host is this one.
        script += &here.replace("ssh backup ", "").replace("ssh -n backup ", "");
        script.push('\n');
    }
    let out =
        Command::new("bash").arg("-c").arg(&script).current_dir(s.dir()).env("PATH", path).output().expect("bash");
    assert!(out.status.success(), "{script}\n{}", String::from_utf8_lossy(&out.stderr));
}

fn begin(s: &Sandbox) {
    for dir in ["snaps", "backup", "mnt"] {
        fs::create_dir(s.path(dir)).expect("a directory");
    }
    noise(&s.path("vm.img"), 4 << 20);
}

fn two(s: &Sandbox) {
    begin(s);
    s.exits(0, &["snapshot", "-q", "vm.img", "snaps/vm-1.snap"]);
    writer(&s.path("vm.img")).write_all_at(b"changed", 1 << 20).expect("written");
    s.exits(0, &["snapshot", "-q", "vm.img", "snaps/vm-2.snap"]);
}

#[test]
fn nightly_snapshots() {
    on_both(|s| {
        begin(s);
        let lines = commands("Nightly snapshots with cron");
        let lines: Vec<String> = lines.into_iter().filter(|line| line.starts_with("rclone-img")).collect();
        assert_eq!(lines.len(), 4);
        run(s, &lines);
        let name = fs::read_dir(s.path("snaps")).expect("the directory").flatten().next().expect("a snapshot").path();
        assert_same(&s.path("vm.img"), &name);
    });
}

#[test]
fn a_machine_is_rolled_back() {
    on_both(|s| {
        begin(s);
        s.exits(0, &["snapshot", "-q", "vm.img", "snaps/vm-20261122T031700+0100.snap"]);
        writer(&s.path("vm.img")).write_all_at(b"changed", 1 << 20).expect("written");
        let lines = commands("With libvirt");
        let shutdown = lines.iter().position(|line| line.starts_with("virsh shutdown")).expect("the VM is shut down");
        let vm = Other::opens("<>", &s.path("vm.img"));
        let pid = vm.pid().expect("a process");
        // It needs a while after `shutdown` has returned: until it was asked twice how it stands.
        let virsh = format!(
            "virsh() {{ case $1 in
            shutdown) echo asked > virsh;;
            domstate) case $(wc -l < virsh) in
                1|2) echo more >> virsh; echo running;;
                *) kill -9 {pid} && while [ -e /proc/{pid}/fd/9 ]; do sleep 0.01; done; echo 'shut off';;
                esac;;
            esac; }}"
        );
        run(s, &[&[virsh], &lines[shutdown..]].concat());
        assert_same(&s.path("vm.img"), &s.path("snaps/vm-20261122T031700+0100.snap"));
        assert!(s.path("snaps/before-restore-vm.snap").exists());
    });
}

#[test]
fn increments_to_another_host() {
    on_both(|s| {
        two(s);
        let lines = commands("Increments to another host by ssh");
        run(s, &lines[..2]);
        assert_same(&s.path("snaps/vm-2.snap"), &s.path("backup/vm-2.snap"));
        fs::remove_file(s.path("backup/vm-2.snap")).expect("removed");
        let rest = lines[2..].iter().position(|line| line.starts_with("new=")).expect("the script") + 2;
        run(s, &lines[2..rest]);
        assert_same(&s.path("snaps/vm-2.snap"), &s.path("backup/vm-2.snap"));
        fs::remove_file(s.path("backup/vm-2.snap")).expect("removed");
        run(s, &lines[rest..rest + 3]);
        assert_same(&s.path("snaps/vm-2.snap"), &s.path("backup/vm-2.snap"));
        run(s, &lines[rest + 3..]);
    });
}

/// What a restore keeps lies beside the nightly snapshots, and is none of them.
#[test]
fn a_night_after_a_restore_ships_what_the_night_has_made() {
    on_both(|s| {
        begin(s);
        let nightly = commands("Increments to another host by ssh");
        let first = nightly.iter().position(|line| line.starts_with("new=")).expect("the script");
        let ship = &nightly[first..first + 3];
        let night = |nth: u64| {
            writer(&s.path("vm.img")).write_all_at(&[nth as u8; 4096], nth << 16).expect("written");
            let name = format!("vm-2026112{nth}T031700+0100.snap");
            s.exits(0, &["snapshot", "-q", "vm.img", &format!("snaps/{name}")]);
            name
        };
        let shipped = |name: &str| {
            run(s, ship);
            assert_same(&s.path("snaps").join(name), &s.path("backup").join(name));
        };
        let before = night(2);
        s.exits(0, &["send", "-q", &format!("snaps/{before}"), "-o", "d"]);
        s.exits(0, &["receive", "-q", "d", "-o", &format!("backup/{before}")]);
        writer(&s.path("vm.img")).write_all_at(b"changed", 1 << 20).expect("written");
        for (section, word) in [("With libvirt", " restore "), ("Back from the backup host", "restore ")] {
            let restore = commands(section).into_iter().filter(|line| line.contains(word));
            // Of the newest snapshot here.
            let restore: Vec<_> = restore
                .map(|line| {
                    let snap = line.split(' ').find(|it| it.starts_with("/snaps/")).expect("a snapshot").to_owned();
                    line.replacen(&snap, &format!("/snaps/{before}"), 1)
                })
                .collect();
            assert_eq!(restore.len(), 1);
            run(s, &restore);
        }
        // The restore's own name is none that these nights could ship, nor one that a later restore would meet.
        for nth in [3, 4, 5] {
            shipped(&night(nth));
        }
    });
}

#[test]
fn back_from_another_host() {
    on_both(|s| {
        two(s);
        s.exits(0, &["send", "-q", "snaps/vm-1.snap", "-o", "d"]);
        s.exits(0, &["receive", "-q", "d", "-o", "backup/vm-1.snap"]);
        run(s, &commands("Back from the backup host"));
        assert_same(&s.path("vm.img"), &s.path("snaps/vm-1.snap"));
    });
}

#[test]
fn one_file_from_a_snapshot() {
    if !there("mkfs.ext4") {
        return;
    }
    on_both(|s| {
        begin(s);
        fs::create_dir_all(s.path("root/etc")).expect("a directory");
        fs::write(s.path("root/etc/fstab"), b"what was there").expect("a file");
        must("truncate", &[&"-s", &"32M", &s.path("vm.img")]);
        must("mkfs.ext4", &[&"-q", &"-F", &"-d", &s.path("root"), &s.path("vm.img")]);
        s.exits(0, &["snapshot", "-q", "vm.img", "snaps/vm-2.snap"]);
        // Without partitions: a container has nobody who makes their devices.
        let lines = commands("One file from a snapshot");
        run(s, &lines.iter().map(|line| line.replace("${loop}p1", "$loop")).collect::<Vec<_>>());
        assert_eq!(fs::read(s.path("fstab")).expect("copied"), b"what was there");
        assert_eq!(s.exits(0, &["status", "--json", "snaps/vm-2.snap"])[0]["state"], "finished");
    });
}
