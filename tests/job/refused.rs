//! Bad input: each with a clear message, the right exit code, and nothing left behind.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support;
use crate::support::serving::{image, serve, stop};
use crate::support::{
    BLOCK, Fs, PROGRAM, Random, Sandbox, assert_same, fragmented, has, must, noise, on_both, on_both_sized, refused,
    roomy, skipped, slowly, until,
};

const MIB: u64 = 1 << 20;
const UNCHECKED: [&str; 2] = ["--min-free", "0"];

#[test]
fn what_is_no_image_is_refused_and_nothing_is_left() {
    on_both(|s| {
        File::create(s.path("empty.img")).expect("a file");
        fs::create_dir(s.path("dir")).expect("a directory");
        mkfifo(&s.path("fifo"), Mode::from_bits_truncate(0o600)).expect("a FIFO");
        symlink("nowhere", s.path("dangling")).expect("a link");
        symlink("dir", s.path("to-dir")).expect("a link");
        for (src, needle) in [
            ("missing.img", "No such file"),
            ("empty.img", "empty"),
            ("dir", "not a regular file"),
            ("/dev/null", "not a regular file"),
            ("fifo", "not a regular file"),
            ("dangling", "No such file"),
            ("to-dir", "not a regular file"),
        ] {
            refused(s, needle, &["snapshot", src, "x.snap"]);
        }
    });
}

#[test]
fn what_stands_at_the_snapshots_name_stays_as_it_is() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        fs::write(s.path("file"), "mine").expect("a file");
        fs::create_dir(s.path("dir")).expect("a directory");
        fs::write(s.path("target"), "mine too").expect("a file");
        symlink("target", s.path("link")).expect("a link");
        symlink("nowhere", s.path("dangling")).expect("a link");
        mkfifo(&s.path("fifo"), Mode::from_bits_truncate(0o600)).expect("a FIFO");
        for dst in ["file", "dir", "link", "dangling", "fifo"] {
            refused(s, "", &["snapshot", "a.img", dst]);
        }
        // Force replaces files, never what is not a file.
        for dst in ["dir", "link", "dangling", "fifo"] {
            for flag in ["--force", "--refresh"] {
                refused(s, "", &["snapshot", flag, "a.img", dst]);
            }
        }
        refused(s, "record", &["snapshot", "--refresh", "a.img", "file"]);
        assert_eq!(fs::read_to_string(s.path("target")).expect("there"), "mine too");
        assert_eq!(fs::read_to_string(s.path("file")).expect("there"), "mine");
        refused(s, "", &["snapshot", "a.img", "missing-dir/x"]);
        refused(s, "", &["snapshot", "a.img", "a.img/x"]);
        refused(s, "", &["snapshot", "a.img", ".."]);
        refused(s, "bytes", &["snapshot", "a.img", &"n".repeat(255)]);
    });
}

#[test]
fn the_image_survives_every_way_of_naming_it_as_the_snapshot() {
    on_both(|s| {
        let names = ["a.img", "x.partial", "y.journal"];
        names.iter().for_each(|n| noise(&s.path(n), MIB));
        fs::hard_link(s.path("a.img"), s.path("hard")).expect("a link");
        symlink("a.img", s.path("soft")).expect("a link");
        fs::hard_link(s.path("a.img"), s.path("h.partial")).expect("a link");
        fs::hard_link(s.path("a.img"), s.path("j.journal")).expect("a link");
        let pairs = [
            ("a.img", "a.img"),
            ("a.img", "./a.img"),
            ("a.img", "hard"),
            ("hard", "a.img"),
            ("soft", "a.img"),
            ("a.img", "soft"),
            ("x.partial", "x"),
            ("a.img", "h"),
            ("y.journal", "y"),
            ("a.img", "j"),
        ];
        for (src, dst) in pairs {
            for flag in ["-q", "--force", "--refresh", "--restart"] {
                refused(s, "", &["snapshot", flag, src, dst]);
            }
            let before = s.listing();
            for verb in [&["abort"][..], &["abort", "--force"], &["resume"]] {
                let out = s.run(&[verb, &[dst]].concat());
                assert_ne!(out.status.code(), Some(0), "{verb:?} {dst}");
                assert_eq!(s.listing(), before, "{verb:?} {dst}");
            }
        }
        for name in names {
            assert_eq!(fs::read(s.path(name)).expect("there"), Random::new(MIB ^ 7).bytes(MIB as usize), "{name}");
        }
    });
}

#[test]
fn another_file_system_and_one_without_reflinks_are_refused() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        let Some(other) = Sandbox::new(s.fs) else { return };
        let elsewhere = other.path("x.snap");
        refused(s, "file system", &["snapshot", "a.img", elsewhere.to_str().expect("UTF-8")]);
        assert_eq!(other.listing().len(), 0);
        let plain = s.outside("tmpfs");
        fs::create_dir(&plain).expect("a directory");
        must("mount", &[&"-t", &"tmpfs", &"none", &plain]);
        noise(&plain.join("t.img"), MIB);
        let code =
            |src: &Path, dst: &Path| s.run(&["snapshot".as_ref(), src.as_os_str(), dst.as_os_str()]).status.code();
        let codes = [code(&s.path("a.img"), &plain.join("x.snap")), code(&plain.join("t.img"), &plain.join("x.snap"))];
        let left = fs::read_dir(&plain).expect("a directory").count();
        must("umount", &[&plain]);
        assert_eq!((codes, left), ([Some(3); 2], 1));
    });
}

#[test]
fn a_directory_that_takes_no_files_is_refused() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        fs::create_dir(s.path("fixed")).expect("a directory");
        must("chattr", &[&"+i", &s.path("fixed")]);
        let fixed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            refused(s, "immutable", &["snapshot", "a.img", "fixed/x.snap"]);
        }));
        must("chattr", &[&"-i", &s.path("fixed")]);
        fixed.expect("refused");
        must("mount", &[&"-o", &"remount,ro", &s.dir()]);
        refused(s, "read-only", &["snapshot", "a.img", "x.snap"]);
        must("mount", &[&"-o", &"remount,rw", &s.dir()]);
        s.exits(0, &["snapshot", "-q", "a.img", "x.snap"]);
    });
}

#[test]
fn an_immutable_image_is_snapshotted_or_refused_but_never_changed() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        must("chattr", &[&"+i", &s.path("a.img")]);
        let out = s.run(&["snapshot", "a.img", "x.snap"]);
        must("chattr", &[&"-i", &s.path("a.img")]);
        assert!(matches!(out.status.code(), Some(0 | 3)), "{out:?}");
        if out.status.code() == Some(0) {
            assert_same(&s.path("a.img"), &s.path("x.snap"));
        }
        s.no_sidecars("x.snap");
    });
}

/// Takes the last byte of the file system; what was taken is in `ballast`.
fn fill(s: &Sandbox) {
    let ballast = File::create(s.path("ballast")).expect("a file");
    let (mut at, mut piece) = (0, 4 * MIB as usize);
    let bytes = Random::new(3).bytes(piece);
    while piece >= BLOCK as usize {
        match ballast.write_at(&bytes[..piece], at).and_then(|n| ballast.sync_data().map(|()| n)) {
            Ok(n) if n > 0 => at += n as u64,
            _ => piece /= 4,
        }
    }
    let _ = ballast.sync_all();
}

#[test]
fn a_full_file_system_ends_in_words_and_its_space_comes_back() {
    on_both_sized(320 << 20, |s| {
        fragmented(&s.path("a.img"), 4000);
        fill(s);
        refused(s, "--min-free", &["snapshot", "a.img", "a.snap"]);
        let out = s.run(&["snapshot", UNCHECKED[0], UNCHECKED[1], "a.img", "a.snap"]);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!stderr.contains("panicked"), "{stderr}");
        match out.status.code() {
            Some(0) => assert_same(&s.path("a.img"), &s.path("a.snap")),
            code => {
                assert!(matches!(code, Some(1 | 3 | 4 | 6)), "{:?} {code:?}: {stderr}", s.fs);
                assert!(stderr.contains("space") && stderr.contains("hint: "), "{:?}: {stderr}", s.fs);
                assert!(!s.path("a.snap").exists(), "{:?}", s.fs);
            }
        }
        fs::remove_file(s.path("ballast")).expect("removed");
        if out.status.code() != Some(0) {
            assert!(until(|| s
                .run(&["snapshot", "-q", UNCHECKED[0], UNCHECKED[1], "a.img", "a.snap"])
                .status
                .success()));
            assert_same(&s.path("a.img"), &s.path("a.snap"));
        }
        s.no_sidecars("a.snap");
    });
}

#[test]
fn an_unfinished_job_on_a_full_file_system_can_be_aborted() {
    on_both_sized(320 << 20, |s| {
        roomy(&s.path("a.img"), 512 * MIB);
        let mut job = s.start(&slowly(&["snapshot", "--min-free", "0", "a.img", "a.snap"]));
        assert!(job.wait_for("progress"));
        fill(s);
        let code = job.end().code;
        if code == Some(0) {
            return assert_same(&s.path("a.img"), &s.path("a.snap"));
        }
        assert!(!s.path("a.snap").exists());
        s.exits(0, &["abort", "-q", "a.snap"]);
        s.no_sidecars("a.snap");
    });
}

#[test]
fn too_little_free_space_is_refused_before_and_ends_a_job_that_meets_it() {
    on_both(|s| {
        roomy(&s.path("a.img"), 1024 * MIB);
        refused(s, "--min-free", &["snapshot", "--min-free", "99%", "a.img", "a.snap"]);
        refused(s, "--min-free", &["snapshot", "--min-free", "1T", "a.img", "a.snap"]);
        let mut job = s.start(&slowly(&["snapshot", "--min-free", "300M", "a.img", "a.snap"]));
        assert!(job.wait_for("progress"));
        must("fallocate", &[&"-l", &"250M", &s.path("ballast")]);
        let ended = job.end();
        if ended.code != Some(0) {
            assert_eq!(ended.code, Some(4), "{:?}: {}", s.fs, ended.stderr);
            fs::remove_file(s.path("ballast")).expect("removed");
            s.exits(0, &["resume", "-q", "--min-free", "0", "a.snap"]);
        }
        assert_same(&s.path("a.img"), &s.path("a.snap"));
    });
}

/// The guest writes on: what the job has cloned is not to cost it its room.
#[test]
fn too_little_free_space_costs_a_job_beside_a_guest_what_it_has_cloned() {
    on_both(|s| {
        image(s, 7);
        let server = serve(s, "writeback");
        let mut job =
            s.start(&slowly(&["snapshot", "--consistency", "filter", "--min-free", "300M", "a.img", "a.snap"]));
        assert!(job.wait_for("started"));
        must("fallocate", &[&"-l", &"250M", &s.path("ballast")]);
        let ended = job.end();
        assert!(ended.code == Some(6) && ended.stderr.contains("gives its room back"), "{:?}: {}", s.fs, ended.stderr);
        let left = fs::metadata(s.path("a.snap.partial")).expect("it is there");
        // XFS has put what is said of the file into a block of its own.
        assert!(left.len() == 0 && left.blocks() <= 8, "{:?}: {left:?}", s.fs);
        fs::remove_file(s.path("ballast")).expect("removed");
        s.exits(0, &["snapshot", "-q", "--min-free", "0", "a.img", "a.snap"]);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
        stop(server);
    });
}

/// What was a snapshot before keeps what it has: it is not told otherwise.
#[test]
fn too_little_free_space_takes_nothing_from_a_refresh_and_is_not_told_to() {
    on_both(|s| {
        image(s, 7);
        s.exits(0, &["snapshot", "-q", "--min-free", "0", "a.img", "a.snap"]);
        noise(&s.path("a.img"), fs::metadata(s.path("a.img")).expect("it is there").len());
        let server = serve(s, "writeback");
        let refresh = ["snapshot", "--consistency", "filter", "--refresh", "--min-free", "300M", "a.img", "a.snap"];
        let mut job = s.start(&slowly(&refresh));
        assert!(job.wait_for("started"));
        must("fallocate", &[&"-l", &"250M", &s.path("ballast")]);
        let ended = job.end();
        assert_eq!(ended.code, Some(6), "{:?}: {}", s.fs, ended.stderr);
        assert!(ended.stderr.contains("run the same command again"), "{:?}: {}", s.fs, ended.stderr);
        assert!(!ended.stderr.contains("gives its room back"), "{:?}: {}", s.fs, ended.stderr);
        assert!(fs::metadata(s.path("a.snap.partial")).expect("it is there").len() > 0, "{:?}", s.fs);
        fs::remove_file(s.path("ballast")).expect("removed");
        s.exits(0, &["snapshot", "-q", "--refresh", "--min-free", "0", "a.img", "a.snap"]);
        assert_same(&s.path("a.img"), &s.path("a.snap"));
        stop(server);
    });
}

/// All chunks of a Btrfs are taken; those for data are nearly empty, and a part of those for metadata is not.
#[test]
fn too_little_space_for_the_metadata_of_a_btrfs_is_refused() {
    let Some(s) = Sandbox::sized(Fs::Btrfs, 512 << 20, "loop,max_inline=2048") else { return };
    noise(&s.path("a.img"), 8 * MIB);
    let takes = |name: String, size: &str| {
        let mut command = Command::new("fallocate");
        command.args(["-l", size]).arg(s.path(&name)).stderr(Stdio::null()).status().expect("fallocate").success()
    };
    // What is small keeps its chunk when what is large is gone.
    let taken = (0..100).take_while(|n| takes(format!("small{n}"), "64K") && takes(format!("large{n}"), "16M")).count();
    (0..taken).for_each(|n| fs::remove_file(s.path(format!("large{n}"))).expect("removed"));
    (0..4000).for_each(|n| fs::write(s.path(format!("inline{n}")), [7; 2000]).expect("written"));
    must("sync", &[&"-f", &s.dir()]);
    refused(&s, "for metadata free", &["snapshot", "--min-free", "70%", "a.img", "a.snap"]);
    s.exits(0, &["snapshot", "-q", "--min-free", "40%", "a.img", "a.snap"]);
}

/// The program under a shell, which limits it; words and exit code.
fn limited(s: &Sandbox, script: &str) -> (Option<i32>, String) {
    let mut command = Command::new("bash");
    command.args(["-c", script]).env("PROGRAM", PROGRAM).current_dir(s.dir()).stdin(Stdio::null());
    let out = assert_cmd::Command::from_std(command).timeout(support::BOUND).output().expect("bash");
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn a_limit_on_the_size_of_files_is_refused_with_words() {
    on_both(|s| {
        noise(&s.path("a.img"), 8 * MIB);
        for kib in [1, 16, 24, 1024, 8191] {
            let before = s.listing();
            let (code, stderr) = limited(s, &format!("ulimit -f {kib}; exec \"$PROGRAM\" snapshot a.img a.snap"));
            assert_eq!(code, Some(3), "{:?} ulimit -f {kib}: {stderr}", s.fs);
            assert!(stderr.contains("ulimit"), "{stderr}");
            assert_eq!(s.listing(), before, "{:?} ulimit -f {kib}", s.fs);
        }
        let (code, stderr) = limited(s, "ulimit -f 8192; exec \"$PROGRAM\" snapshot a.img a.snap");
        assert_eq!(code, Some(0), "{stderr}");
    });
}

#[test]
fn a_users_quota_ends_the_job_in_words_and_abort_gives_the_space_back() {
    if !has("xfs_quota") || !has("setpriv") {
        return skipped("xfs_quota or setpriv is not installed");
    }
    let Some(s) = Sandbox::sized(Fs::Xfs, 512 << 20, "loop,uquota") else { return };
    // A clone counts against the owner's blocks: 8 MiB of image and 4 MiB more are allowed.
    noise(&s.path("a.img"), 8 * MIB);
    must("chown", &[&"-R", &"1234:1234", &s.dir()]);
    must("chmod", &[&"711", &s.outside("")]);
    must("xfs_quota", &[&"-x", &"-c", &"limit bhard=12m 1234", &s.dir()]);
    let script = "exec setpriv --reuid 1234 --regid 1234 --clear-groups \"$PROGRAM\"";
    if limited(&s, &format!("{script} --version")).0 != Some(0) {
        return skipped("another user cannot run the program where it was built");
    }
    let (code, stderr) = limited(&s, &format!("{script} snapshot a.img a.snap"));
    assert!(matches!(code, Some(1 | 3 | 4)), "{code:?} {stderr}");
    assert!(stderr.to_lowercase().contains("quota"), "{stderr}");
    assert!(!s.path("a.snap").exists());
    if s.path("a.snap.journal").exists() {
        assert_eq!(limited(&s, &format!("{script} abort a.snap")).0, Some(0));
    }
    s.no_sidecars("a.snap");
    must("xfs_quota", &[&"-x", &"-c", &"limit bhard=32m 1234", &s.dir()]);
    let (code, stderr) = limited(&s, &format!("{script} snapshot a.img a.snap"));
    assert_eq!(code, Some(0), "{stderr}");
    assert_same(&s.path("a.img"), &s.path("a.snap"));
}

#[test]
fn an_output_that_is_closed_or_never_read_ends_no_job() {
    on_both(|s| {
        fragmented(&s.path("a.img"), 2000);
        let (code, stderr) =
            limited(s, "set -o pipefail; \"$PROGRAM\" snapshot --json a.img head.snap | head -1 >/dev/null");
        assert_eq!((code, stderr.contains("panicked")), (Some(0), false), "{stderr}");
        assert_same(&s.path("a.img"), &s.path("head.snap"));
        // A pipe that is full already, and a reader that never reads.
        let mut args: Vec<OsString> = vec!["snapshot".into(), "--json".into(), "a.img".into(), "full.snap".into()];
        args.push("-q".into());
        mkfifo(&s.path("pipe"), Mode::from_bits_truncate(0o600)).expect("a FIFO");
        let open =
            |write| File::options().read(true).write(write).custom_flags(nix::libc::O_NONBLOCK).open(s.path("pipe"));
        let _reader = open(true).expect("a pipe");
        let full = open(true).expect("a pipe");
        while full.write_at_end() {}
        let blocking = File::options().write(true).open(s.path("pipe")).expect("a pipe");
        let mut child = s.command(&args).stdout(blocking).spawn().expect("the program");
        assert!(until(|| child.try_wait().expect("its state").is_some()), "it hangs on a full pipe");
        assert_same(&s.path("a.img"), &s.path("full.snap"));
    });
}

/// One more page into a pipe; false when it is full.
trait WriteAtEnd {
    fn write_at_end(&self) -> bool;
}

impl WriteAtEnd for File {
    fn write_at_end(&self) -> bool {
        let mut file = self;
        std::io::Write::write(&mut file, &[b'x'; 4096]).is_ok()
    }
}

/// A job of several images replaces and removes none of them, whatever it was told to replace.
#[test]
fn an_image_where_another_ones_snapshot_is_to_be() {
    on_both(|s| {
        for name in ["a.img", "b.img", "x.partial", "y.journal"] {
            noise(&s.path(name), MIB);
        }
        fs::hard_link(s.path("b.img"), s.path("also b")).expect("a link");
        for pairs in [
            ["a.img=b.img", "b.img=b.snap"],
            ["b.img=b.snap", "a.img=b.img"],
            ["a.img=also b", "b.img=b.snap"],
            ["a.img=x", "x.partial=z"],
            ["a.img=y", "y.journal=z"],
        ] {
            for args in [&["snapshot", "--force"][..], &["snapshot"], &["snapshot", "--restart"]] {
                refused(s, "is where the job would put a snapshot", &[args, &pairs].concat());
            }
        }
    });
}

#[test]
fn usage_errors_touch_nothing() {
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    noise(&s.path("a.img"), MIB);
    let before = s.listing();
    for chunk in ["0", "1", "3G5", "18446744073709551616", "-1", "", "4097", "2T"] {
        s.exits(2, &["snapshot", &format!("--chunk={chunk}"), "a.img", "x.snap"]);
    }
    for args in
        [&["snapshot"][..], &["snapshot", "a.img"], &["resume"], &["abort"], &["snapshot", "--nonsense", "a.img", "x"]]
    {
        s.exits(2, args);
    }
    s.exits(2, &["snapshot", "", "x.snap"]);
    s.exits(2, &["snapshot", "a.img", ""]);
    s.exits(2, &["snapshot", "--restart", "--refresh", "a.img", "x.snap"]);
    s.exits(3, &["resume", "x.snap"]);
    s.exits(3, &["abort", "x.snap"]);
    assert_eq!(s.listing(), before);
}
