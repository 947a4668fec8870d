//! docs/GUIDE.md: its commands, as they stand there, on real file systems.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

use support::{Other, Sandbox, assert_same, must, noise, on_both, there, writer};

/// The lines of a section's code blocks.
fn blocks(section: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/GUIDE.md");
    let text = fs::read_to_string(path).expect("the page");
    let section = text.split("\n## ").find(|it| it.starts_with(section)).expect("the section").to_owned();
    let blocks = section.split("```\n").skip(1).step_by(2);
    blocks.map(|block| block.lines().map(str::to_owned).collect()).collect()
}

/// The lines of all of them.
fn commands(section: &str) -> Vec<String> {
    blocks(section).concat()
}

/// The block with a line that begins so.
fn block(section: &str, line: &str) -> Vec<String> {
    blocks(section).into_iter().find(|it| it.iter().any(|it| it.starts_with(line))).expect("the block")
}

/// The other host is this one. Its shell is given what ssh gives one: the words with blanks between them.
const HERE: &str = r#"ssh() { if [ "$1" = -n ]; then shift; fi; shift; sh -c "$*"; }"#;

/// Runs lines as somebody would, in the sandbox: `/snaps` and the like are folders of it. Of a script nothing is made stricter than it is; of lines that are typed
/// each one must succeed.
fn ran(s: &Sandbox, host: &str, lines: &[String]) -> Output {
    let program = Path::new(assert_cmd::cargo::cargo_bin!("rclone-img")).parent().expect("a directory");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    let is_script = lines[0].starts_with("set ") || lines[0].starts_with("#!");
    let mut script = format!("{host}\n");
    for line in lines {
        script += &["/snaps", "/backup", "/mnt"].iter().fold(line.clone(), |line, dir| {
            line.replace(&format!(" {dir}"), &format!(" {}{dir}", s.dir().display()))
                .replace(&format!("={dir}"), &format!("={}{dir}", s.dir().display()))
                .replace(&format!("\"{dir}"), &format!("\"{}{dir}", s.dir().display()))
        });
        script += if is_script { "\n" } else { "\n[ $? = 0 ] || exit 99\n" };
    }
    Command::new("bash").arg("-c").arg(&script).current_dir(s.dir()).env("PATH", path).output().expect("bash")
}

fn run(s: &Sandbox, lines: &[String]) {
    run_beside(s, HERE, lines);
}

/// Beside a host on which some commands are functions.
fn run_beside(s: &Sandbox, host: &str, lines: &[String]) {
    let out = ran(s, host, lines);
    assert!(out.status.success(), "{lines:#?}\n{}", String::from_utf8_lossy(&out.stderr));
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
        assert_eq!(lines.len(), 3);
        run(s, &lines);
        let name = fs::read_dir(s.path("snaps")).expect("the directory").flatten().next().expect("a snapshot").path();
        assert_same(&s.path("vm.img"), &name);
    });
}

#[test]
fn room_on_a_full_file_system() {
    on_both(|s| {
        begin(s);
        for second in 1..4 {
            let name = format!("snaps/vm-20261122T03170{second}+0100.snap");
            s.exits(0, &["snapshot", "-q", "vm.img", &name]);
        }
        run(s, &commands("A full file system"));
        assert_eq!(fs::read_dir(s.path("snaps")).expect("the directory").count(), 2);
    });
}

#[test]
fn a_machine_is_rolled_back() {
    on_both(|s| {
        begin(s);
        s.exits(0, &["snapshot", "-q", "vm.img", "snaps/vm-20261122T031700+0100.snap"]);
        writer(&s.path("vm.img")).write_all_at(b"changed", 1 << 20).expect("written");
        let back = block("With libvirt", "virsh shutdown");
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
        run_beside(s, &virsh, &back);
        assert_same(&s.path("vm.img"), &s.path("snaps/vm-20261122T031700+0100.snap"));
        assert!(s.path("snaps/before-restore-vm.snap").exists());
    });
}

#[test]
fn increments_to_another_host() {
    on_both(|s| {
        two(s);
        let [ssh, stored, cron, prune] =
            <[Vec<String>; 4]>::try_from(blocks("Increments to another host by ssh")).expect("four ways");
        let arrived = || {
            assert_same(&s.path("snaps/vm-2.snap"), &s.path("backup/vm-2.snap"));
            fs::remove_file(s.path("backup/vm-2.snap")).expect("removed");
        };
        run(s, &ssh);
        arrived();
        run(s, &stored);
        arrived();
        run(s, &cron);
        arrived();
        run(s, &prune);
    });
}

/// What a script says that runs by cron, and how it ends, where there is nothing to send an increment of.
#[test]
fn increments_that_cannot_be_sent() {
    on_both(|s| {
        two(s);
        let cron = block("Increments to another host by ssh", "#!");
        let told = |host: &str| {
            let out = ran(s, host, &cron);
            let text = [out.stdout, out.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
            (out.status.code().expect("a code"), text)
        };
        let none = "no snapshot here is on the other host: send the whole one first\n";
        assert_eq!(told(HERE), (1, [String::new(), none.into()]), "{:?}", s.fs);
        let (code, [_, stderr]) = told("ssh() { echo 'No route to host' >&2; return 255; }");
        assert_eq!((code, stderr.as_str()), (255, "No route to host\n"), "{:?}", s.fs);
        run(s, &block("Increments to another host by ssh", "rclone-img send")[..1]);
        for _ in 0..2 {
            let (code, [stdout, stderr]) = told(HERE);
            assert_eq!((code, stderr.as_str()), (0, ""), "{:?}: {stdout}", s.fs);
            assert_same(&s.path("snaps/vm-2.snap"), &s.path("backup/vm-2.snap"));
        }
        let (_, [stdout, _]) = told(HERE);
        assert!(stdout.starts_with("the other host has ") && stdout.ends_with("vm-2.snap already\n"), "{stdout}");
    });
}

/// What a restore keeps lies beside the nightly snapshots, and is none of them.
#[test]
fn a_night_after_a_restore_ships_what_the_night_has_made() {
    on_both(|s| {
        begin(s);
        let ship = block("Increments to another host by ssh", "#!");
        let night = |nth: u64| {
            writer(&s.path("vm.img")).write_all_at(&[nth as u8; 4096], nth << 16).expect("written");
            let name = format!("vm-2026112{nth}T031700+0100.snap");
            s.exits(0, &["snapshot", "-q", "vm.img", &format!("snaps/{name}")]);
            name
        };
        let shipped = |name: &str| {
            run(s, &ship);
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
        let [lines] = <[Vec<String>; 1]>::try_from(blocks("One file from a snapshot")).expect("one way");
        run(s, &lines.iter().map(|line| line.replace("${loop}p1", "$loop")).collect::<Vec<_>>());
        assert_eq!(fs::read(s.path("fstab")).expect("copied"), b"what was there");
        assert_eq!(s.exits(0, &["status", "--json", "snaps/vm-2.snap"])[0]["state"], "finished");
    });
}
