//! Files that are not ours, and users who are not us: nothing of theirs is removed or believed, and nothing of the image is
//! opened to them. Each test is a way that a hostile review found.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::{Command, Stdio};

use rclone_img::hold::HoldKind;
use rclone_img::journal::format::{self, Header, State};
use rclone_img::journal::group::Group;
use support::{PROGRAM, Sandbox, assert_same, has, noise, on_both, skipped};

const MIB: u64 = 1 << 20;

/// A journal as a job of `image` would leave it in this state.
fn journal(s: &Sandbox, image: &str, state: State, partial_ino: u64) -> Vec<u8> {
    let meta = fs::metadata(s.path(image)).expect("the image");
    let header = Header {
        job: [7; 16],
        epoch: 1,
        state,
        hold: HoldKind::Frozen,
        replace: false,
        writable: false,
        refreshes: false,
        t0: jiff::Timestamp::UNIX_EPOCH,
        image: format::Image { ino: meta.ino(), size: meta.len(), ..format::Image::default() },
        fs: [0; 16],
        boot: [0; 16],
        mount_instance: 0,
        cluster: 65536,
        chunk: 64 << 20,
        partial_ino,
        old_mode: 0,
        pid: 0,
        pid_start: 0,
        image_path: s.path(image).into_os_string().into_encoded_bytes(),
        reason: String::new(),
        old_record: Vec::new(),
        group: Group::default(),
    };
    let mut bytes = format::encode_slot(&header, 1);
    bytes.extend(format::encode_slot(&header, 2));
    bytes
}

/// Puts a file there with mode 0600, as a job makes its own.
fn put(s: &Sandbox, name: &str, bytes: &[u8]) {
    fs::write(s.path(name), bytes).expect("write");
    fs::set_permissions(s.path(name), Permissions::from_mode(0o600)).expect("chmod");
}

#[test]
fn a_complete_job_of_another_image_is_never_passed_off_as_a_snapshot_of_this_one() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        noise(&s.path("b.img"), MIB);
        put(s, "x.partial", b"the bytes of a.img, say");
        let ino = fs::metadata(s.path("x.partial")).expect("there").ino();
        put(s, "x.journal", &journal(s, "a.img", State::Committing, ino));
        let before = s.listing();
        s.exits(3, &["snapshot", "b.img", "x"]);
        assert_eq!(s.listing(), before, "{:?}", s.fs);
    });
}

#[test]
fn a_long_file_of_zeros_at_the_journals_name_is_somebodys_file() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        fs::File::create(s.path("x.journal")).and_then(|f| f.set_len(80 * MIB)).expect("sparse");
        let before = s.listing();
        s.exits(3, &["snapshot", "a.img", "x"]);
        s.exits(3, &["abort", "x"]);
        s.exits(3, &["snapshot", "x.journal", "x", "--consistency", "none"]);
        assert_eq!(s.listing(), before, "{:?}", s.fs);
    });
}

#[test]
fn a_strangers_partial_file_survives_the_abort_of_a_job_that_never_made_one() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        put(s, "x.journal", &journal(s, "a.img", State::Preparing, 0));
        put(s, "x.partial", b"precious");
        s.exits(3, &["abort", "x"]);
        assert_eq!(fs::read(s.path("x.partial")).expect("still there"), b"precious", "{:?}", s.fs);
    });
}

#[test]
fn a_strangers_file_that_was_given_the_partial_files_inode_number_is_left_alone() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        put(s, "x.partial", b"precious");
        let ino = fs::metadata(s.path("x.partial")).expect("there").ino();
        put(s, "x.journal", &journal(s, "a.img", State::Interrupted, ino));
        let before = s.listing();
        s.exits(3, &["abort", "x"]);
        s.exits(3, &["snapshot", "a.img", "x"]);
        s.exits(3, &["resume", "x"]);
        assert_eq!(s.listing(), before, "{:?}", s.fs);
        assert_eq!(fs::read(s.path("x.partial")).expect("still there"), b"precious", "{:?}", s.fs);
    });
}

#[test]
fn an_image_too_large_for_the_done_map_is_refused_before_anything_is_touched() {
    let Some(s) = Sandbox::new(support::Fs::Xfs) else { return };
    fs::File::create(s.path("a.img")).and_then(|f| f.set_len(7 << 60)).expect("sparse");
    let before = s.listing();
    s.exits(3, &["snapshot", "a.img", "x"]);
    assert_eq!(s.listing(), before);
}

#[test]
fn restart_beside_a_finished_snapshot_is_refused_at_once() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        s.exits(0, &["snapshot", "a.img", "x"]);
        put(s, "x.journal", &journal(s, "a.img", State::Interrupted, 0));
        let before = s.listing();
        s.exits(3, &["snapshot", "--restart", "a.img", "x"]);
        assert_eq!(s.listing(), before, "{:?}", s.fs);
    });
}

#[test]
fn files_of_another_user_are_neither_believed_nor_filled() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        fs::set_permissions(s.path("a.img"), Permissions::from_mode(0o600)).expect("chmod");
        put(s, "x.partial", b"");
        chown(s.path("x.partial"), Some(2000), Some(2000)).expect("chown");
        let ino = fs::metadata(s.path("x.partial")).expect("there").ino();
        put(s, "x.journal", &journal(s, "a.img", State::Running, ino));
        s.exits(3, &["snapshot", "a.img", "x"]);
        chown(s.path("x.journal"), Some(2000), Some(2000)).expect("chown");
        s.exits(3, &["abort", "x"]);
        assert_eq!(fs::metadata(s.path("x.partial")).expect("there").len(), 0, "{:?}", s.fs);
    });
}

#[test]
fn the_owner_of_an_image_needs_no_root_and_gets_a_record() {
    if !has("setpriv") {
        return skipped("setpriv is not installed");
    }
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        fs::copy(PROGRAM, s.path("program")).expect("copy");
        for name in ["", "a.img"] {
            chown(s.path(name), Some(2000), Some(2000)).expect("chown");
        }
        fs::set_permissions(s.outside(""), Permissions::from_mode(0o711)).expect("chmod");
        let run = |args: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "2000", "--regid", "2000", "--clear-groups", "./program"]).args(args);
            let out = command.current_dir(s.dir()).stdin(Stdio::null()).output().expect("setpriv");
            (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
        };
        for args in [&["snapshot", "a.img", "x"][..], &["snapshot", "--refresh", "a.img", "x"]] {
            let (code, stderr) = run(args);
            assert_eq!(code, Some(0), "{:?} {args:?}: {stderr}", s.fs);
            let status = s.exits(0, &["status", "--json", "x"]);
            assert_eq!(status[0]["state"], "finished", "{:?}", s.fs);
            assert_same(&s.path("a.img"), &s.path("x"));
        }
        assert_eq!(fs::metadata(s.path("x")).expect("there").mode() & 0o222, 0, "{:?}", s.fs);
    });
}
