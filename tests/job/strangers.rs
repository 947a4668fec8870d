//! Files that are not ours, and users who are not us: nothing of theirs is removed or believed, and nothing of the image is
//! opened to them. Each test is a way that a hostile review found.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support;
use crate::support::rotating::{PATTERN, begin, newest, rotate};
use crate::support::{PROGRAM, Sandbox, assert_same, has, must, noise, on_both, refused, skipped};
use rclone_img::hold::HoldKind;
use rclone_img::journal::format::{self, Header, State};
use rclone_img::journal::group::Group;
use rclone_img::record::{self, Record};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// What a job of `image` would say of itself in this state.
fn header(s: &Sandbox, image: &str, state: State, partial_ino: u64) -> Header {
    let meta = fs::metadata(s.path(image)).expect("the image");
    Header {
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
    }
}

fn encoded(header: &Header) -> Vec<u8> {
    let mut bytes = format::encode_slot(header, 1);
    bytes.extend(format::encode_slot(header, 2));
    bytes
}

/// A journal as a job of `image` would leave it in this state.
fn journal(s: &Sandbox, image: &str, state: State, partial_ino: u64) -> Vec<u8> {
    encoded(&header(s, image, state, partial_ino))
}

/// A job of `image` that is complete but for its last steps, of this user's, and may replace what is there.
fn complete(s: &Sandbox, image: &str, dst: &str, epoch: u64, uid: u32) {
    let [partial, journal] = ["partial", "journal"].map(|suffix| format!("{dst}.{suffix}"));
    put(s, &partial, b"made up");
    let meta = fs::metadata(s.path(&partial)).expect("there");
    let header = Header { epoch, replace: true, ..header(s, image, State::Committing, meta.ino()) };
    let record = Record {
        v: record::VERSION,
        state: record::State::Finished,
        job: Uuid::from_bytes(header.job),
        t0: header.t0,
        hold: "frozen".into(),
        point_in_time: true,
        quiesced: false,
        image: header.image.id(),
        fs: Uuid::nil(),
        ino: meta.ino(),
        subvolume: 0,
        generation: None,
        size: meta.len(),
        mtime_ns: String::new(),
    };
    xattr::set(s.path(&partial), record::ATTRIBUTE, &record.to_bytes()).expect("root may");
    put(s, &journal, &encoded(&header));
    [partial, journal].iter().for_each(|name| chown(s.path(name), Some(uid), None).expect("chown"));
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
        must("cp", &[&Path::new(PROGRAM), &s.path("program")]);
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

/// In a directory of all anybody can put a file beside a snapshot, and a journal that would have it renamed over that.
#[test]
fn a_complete_job_of_another_user_replaces_no_snapshot() {
    on_both(|s| {
        begin(s);
        rotate(s, 0, &["--keep-last", "9"]);
        let name = format!("snaps/{}", newest(s));
        let partial = format!("{name}.partial");
        for epoch in [0, 1] {
            complete(s, "a.img", &name, epoch, 2000);
            refused(s, "belongs to another user", &["resume", &name]);
            let plan = rotate(s, 0, &["--keep-last", "9", "--dry-run"]);
            assert!(plan.iter().all(|it| it["what"] != "finish"), "{plan:?}");
            for more in [&["--prune-only"][..], &[], &["-q"]] {
                let out = s.run(&[&["rotate", PATTERN, "--keep-last", "9"], more].concat());
                let said = String::from_utf8_lossy(&out.stderr);
                assert!(out.status.success() && said.contains("another user"), "{:?} {more:?}: {said}", s.fs);
                assert_same(&s.path("a.img"), &s.path(&name));
                assert_eq!(fs::read(s.path(&partial)).expect("still there"), b"made up", "{:?}", s.fs);
            }
        }
        // One's own, which others may write to.
        complete(s, "a.img", &name, 1, 0);
        fs::set_permissions(s.path(format!("{name}.journal")), Permissions::from_mode(0o666)).expect("chmod");
        refused(s, "others may write to it", &["resume", &name]);
        // By its other name it may be anybody's.
        complete(s, "a.img", &name, 1, 0);
        fs::hard_link(s.path(&partial), s.path("second")).expect("a link");
        refused(s, "others may write to it", &["resume", &name]);
        fs::remove_file(s.path("second")).expect("removed");
        // Before its T0 no job is complete, of whatever image it says that it is.
        noise(&s.path("b.img"), MIB);
        complete(s, "b.img", &name, 0, 0);
        rotate(s, 0, &["--keep-last", "9", "--prune-only"]);
        assert_same(&s.path("a.img"), &s.path(&name));
        // What root has given to the image's owner is root's to end.
        complete(s, "a.img", &name, 1, 0);
        chown(s.path(&partial), Some(2000), None).expect("chown");
        s.exits(0, &["resume", "-q", &name]);
        assert_eq!(fs::read(s.path(&name)).expect("in place"), b"made up", "{:?}", s.fs);
    });
}

/// Whoever has said --force has meant what was there then.
#[test]
fn a_file_that_came_after_a_job_was_complete_is_not_replaced() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        fs::write(s.path("x"), b"to be replaced").expect("a file");
        complete(s, "a.img", "x", 1, 0);
        s.exits(0, &["resume", "-q", "x"]);
        assert_eq!(fs::read(s.path("x")).expect("in place"), b"made up", "{:?}", s.fs);
        for renamed in [false, true] {
            fs::remove_file(s.path("x")).expect("removed");
            fs::write(s.path("old"), b"came later").expect("a file");
            complete(s, "a.img", "x", 1, 0);
            let journal = fs::metadata(s.path("x.journal")).expect("there");
            let is_later = || {
                let is = fs::metadata(s.path("x")).expect("there");
                (is.ctime(), is.ctime_nsec()) > (journal.mtime(), journal.mtime_nsec())
            };
            // A change time is only as fine as the kernel's tick.
            let comes = || {
                if renamed && !s.path("x").exists() {
                    fs::rename(s.path("old"), s.path("x")).expect("renamed");
                } else if renamed {
                    fs::rename(s.path("x"), s.path("old"))
                        .and_then(|()| fs::rename(s.path("old"), s.path("x")))
                        .expect("renamed");
                } else {
                    fs::write(s.path("x"), b"came later").expect("a file");
                }
                is_later()
            };
            assert!(support::until(comes));
            for _ in 0..2 {
                s.exits(1, &["resume", "-q", "x"]);
                assert_eq!(fs::read(s.path("x")).expect("still there"), b"came later", "{:?}", s.fs);
            }
            fs::remove_file(s.path("x")).expect("moved away");
            s.exits(0, &["resume", "-q", "x"]);
            assert_eq!(fs::read(s.path("x")).expect("in place"), b"made up", "{:?}", s.fs);
        }
    });
}
