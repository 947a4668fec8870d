//! The files of `packaging/`: what systemd says of them, where it is installed, and what must not be lost from them.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{PROGRAM, has};

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(packaging(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Everything that a unit says of a key.
fn values(unit: &str, key: &str) -> Vec<String> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.flat_map(|value| value.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Not a failure on CI: no package that the project needs brings systemd.
fn without(tool: &str) -> bool {
    let missing = !has(tool);
    if missing {
        eprintln!("SKIPPED: {tool} is not installed");
    }
    missing
}

#[test]
fn the_guard_is_there_before_anybody_starts_vms() {
    let unit = text("rclone-img-guard.service");
    let before = values(&unit, "Before");
    for service in ["libvirtd.service", "virtqemud.service", "libvirt-guests.service", "pve-guests.service"] {
        assert!(before.iter().any(|named| named == service), "not before {service}: {before:?}");
    }
    assert_eq!(values(&unit, "Type"), ["notify"]);
    assert_eq!(values(&unit, "Restart"), ["always"]);
}

#[test]
fn a_disk_is_there_before_its_vm_and_goes_after_it() {
    let [socket, service] = ["socket", "service"].map(|kind| text(&format!("rclone-img-serve@.{kind}")));
    assert_eq!(values(&socket, "Before"), values(&text("rclone-img-guard.service"), "Before"));
    assert_eq!(values(&socket, "Before"), values(&service, "Before"));
    assert_eq!(values(&socket, "SocketMode"), ["0600"]);
    assert_eq!((values(&service, "Type"), values(&service, "Restart")), (vec!["notify".into()], vec!["always".into()]));
}

#[test]
fn the_guard_keeps_its_right_and_its_view_of_the_mounts() {
    let unit = text("rclone-img-guard.service");
    assert!(values(&unit, "CapabilityBoundingSet").iter().any(|right| right == "CAP_SYS_ADMIN"));
    assert!(values(&unit, "SystemCallFilter").iter().any(|call| call == "fanotify_mark"));
    let own_namespace = [
        "ProtectSystem",
        "ProtectHome",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectProc",
        "PrivateTmp",
        "PrivateDevices",
        "PrivateNetwork",
        "PrivateIPC",
        "PrivateUsers",
        "DynamicUser",
        "RootDirectory",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "NoExecPaths",
        "BindPaths",
        "TemporaryFileSystem",
    ];
    for key in own_namespace {
        assert_eq!(values(&unit, key), [""; 0], "{key}");
    }
}

/// systemd takes the last of several files, and any of them before what `Environment=` says.
#[test]
fn what_is_kept_of_one_image_can_be_said_for_it_alone() {
    let unit = text("rclone-img-rotate@.service");
    // The instance's name (%i) has backslashes where the path has a '-', and in the name of such a file they stand for something else.
    let files = ["-/etc/rclone-img/rotate.conf", "-/etc/rclone-img/rotate%f.conf"];
    assert_eq!(values(&unit, "EnvironmentFile"), files);
    assert_eq!(values(&unit, "ExecStart").last().map(String::as_str), Some("$ROTATE_KEEP"));
    let readme = text("README.md");
    assert!(readme.contains("/etc/rclone-img/rotate/var/lib/libvirt/images/vm.img.conf"), "no example of its own file");
    assert!(!readme.contains("Environment=ROTATE_KEEP"), "a drop-in's Environment= has no effect");
}

#[test]
fn the_way_by_hand_installs_all_units() {
    let readme = text("README.md");
    let line = readme.lines().find(|line| line.ends_with(" /etc/systemd/system/")).expect("a line that installs units");
    let named = line.split_whitespace().filter(|word| word.starts_with("packaging/")).collect::<Vec<_>>().join(" ");
    let mut list = Command::new("sh");
    list.args(["-c", &format!("ls -d {named}")]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let listed = list.output().expect("a shell");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for entry in fs::read_dir(packaging("")).expect("the directory").flatten() {
        let name = entry.file_name().into_string().expect("text");
        if [".service", ".socket", ".timer"].iter().any(|kind| name.ends_with(kind)) {
            assert!(listed.lines().any(|it| it == format!("packaging/{name}")), "{name} is not installed by: {line}");
        }
    }
}

#[test]
fn systemd_takes_the_units_without_a_word() {
    if without("systemd-analyze") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let names = [
        "rclone-img-guard.service",
        "rclone-img-snapshot@.service",
        "rclone-img-snapshot@.timer",
        "rclone-img-rotate@.service",
        "rclone-img-rotate@.timer",
        "rclone-img-serve@.service",
        "rclone-img-serve@.socket",
    ];
    let units = names.map(|name| {
        let unit = text(name);
        assert_eq!(unit.contains("/usr/bin/rclone-img"), name.ends_with(".service"));
        // It wants the program to be there.
        fs::write(dir.path().join(name), unit.replace("/usr/bin/rclone-img", PROGRAM)).expect("written");
        dir.path().join(name)
    });
    let mut verify = Command::new("systemd-analyze");
    let output = verify.args(["verify", "--man=no"]).args(units).stdin(Stdio::null()).output().expect("it starts");
    let told = String::from_utf8_lossy(&output.stderr);
    // What it says of the machine's other units does not concern these.
    let ours: Vec<_> = told.lines().filter(|line| line.contains("rclone-img")).collect();
    assert!(ours.is_empty() && output.status.success(), "{told}");
}

/// A line for cron runs the job where the VMs run, and cron ends a command at a bare %.
#[test]
fn what_cron_runs_is_in_the_slice_of_the_vms() {
    for (file, most) in [("packaging/rclone-img.cron", 1), ("README.md", 2), ("docs/GUIDE.md", 1)] {
        let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("the file");
        let lines: Vec<_> =
            page.lines().filter(|line| line.trim_start_matches('#').starts_with("17 3 * * *")).collect();
        assert_eq!(lines.len(), most, "{file}");
        for line in lines {
            let (_, job) = line.split_once("systemd-run -q --scope --slice=machine.slice ").expect(line);
            let verb = job.trim_start_matches("/usr/bin/").trim_start_matches("rclone-img ").split(' ').next();
            assert!(matches!(verb, Some("rotate" | "snapshot")), "{file}: {line}");
            assert_eq!(line.matches('%').count(), line.matches("\\%").count(), "{file}: {line}");
        }
    }
}

#[test]
fn the_directory_for_sockets_is_roots_alone() {
    assert!(text("rclone-img.tmpfiles").lines().any(|line| line == "d /run/rclone-img 0700 root root -"));
    if without("systemd-tmpfiles") || !nix::unistd::geteuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().expect("a directory");
    let file = packaging("rclone-img.tmpfiles");
    let mut create = Command::new("systemd-tmpfiles");
    create.arg(format!("--root={}", root.path().display())).arg("--create").arg(file);
    let output = create.stdin(Stdio::null()).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made = fs::metadata(root.path().join("run/rclone-img")).expect("made");
    assert_eq!(made.permissions().mode() & 0o7777, 0o700);
}

#[test]
fn the_sample_configuration_is_read_and_arms_nothing_by_itself() {
    let sample = text("guard.conf");
    let mut guard = Command::new(PROGRAM);
    let output = guard.args(["guard", "--config"]).arg(packaging("guard.conf")).output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("names nothing to arm"), "{stderr}");
    // What it offers to be uncommented is a good line, too: it comes to the line after it.
    let dir = tempfile::tempdir().expect("a directory");
    let conf = dir.path().join("guard.conf");
    let offered = sample.lines().filter_map(|line| line.strip_prefix('#'));
    let offered: Vec<_> = offered.filter(|line| !line.is_empty() && !line.starts_with(' ')).collect();
    assert!(offered.len() >= 3, "{offered:?}");
    fs::write(&conf, offered.join("\n") + "\nbad\n").expect("written");
    let output = Command::new(PROGRAM).args(["guard", "--config"]).arg(&conf).output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(&format!("line {}: bad", offered.len() + 1)), "{stderr}");
}
