//! The command line as users meet it: help word for word, usage errors with exit code 2, names of any bytes, and
//! outputs that nobody reads. `SNAPSHOTS=overwrite cargo test --test cli_usage` rewrites the stored texts.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output, Stdio};

use snapbox::{Data, assert_data_eq, file};

fn program(args: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("rclone-img"));
    command.args(args).stdin(Stdio::null());
    for name in ["COLUMNS", "CLICOLOR_FORCE", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command
}

fn run(args: &[impl AsRef<OsStr>]) -> Output {
    program(args).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn check_help(args: &[&str], stored: Data) {
    let output = run(args);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{args:?}");
    assert_data_eq!(text(&output.stdout), stored.raw());
}

/// A usage error: exit 2, nothing on standard output, and `expect` as the first line of standard error.
fn check_usage(args: &[&str], expect: &str) {
    let output = run(args);
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().next(), Some(expect), "{args:?}");
}

#[test]
fn help_is_what_is_stored() {
    check_help(&["--help"], file!["snapshots/help.txt"]);
    check_help(&["snapshot", "--help"], file!["snapshots/help-snapshot.txt"]);
    check_help(&["resume", "--help"], file!["snapshots/help-resume.txt"]);
    check_help(&["status", "--help"], file!["snapshots/help-status.txt"]);
    check_help(&["abort", "--help"], file!["snapshots/help-abort.txt"]);
    check_help(&["map", "--help"], file!["snapshots/help-map.txt"]);
    check_help(&["check", "--help"], file!["snapshots/help-check.txt"]);
    check_help(&["guard", "--help"], file!["snapshots/help-guard.txt"]);
    check_help(&["serve", "--help"], file!["snapshots/help-serve.txt"]);
    check_help(&["fleece", "--help"], file!["snapshots/help-fleece.txt"]);
    check_help(&["diff", "--help"], file!["snapshots/help-diff.txt"]);
    check_help(&["verify", "--help"], file!["snapshots/help-verify.txt"]);
    check_help(&["send", "--help"], file!["snapshots/help-send.txt"]);
    check_help(&["receive", "--help"], file!["snapshots/help-receive.txt"]);
    check_help(&["restore", "--help"], file!["snapshots/help-restore.txt"]);
    check_help(&["rotate", "--help"], file!["snapshots/help-rotate.txt"]);
    check_help(&["list", "--help"], file!["snapshots/help-list.txt"]);
    check_help(&["fleece", "start", "--help"], file!["snapshots/help-fleece-start.txt"]);
}

#[test]
fn the_version_is_the_packages() {
    let output = run(&["--version"]);
    assert_eq!(text(&output.stdout), format!("rclone-img {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn values_out_of_range_name_the_range() {
    let check = |option: &str, value: &str, name: &str, why: &str| {
        let expect = format!("error: invalid value '{value}' for '{option} <{name}>': {why}");
        check_usage(&["snapshot", "a", "b", &format!("{option}={value}")], &expect);
    };
    let chunk = "a chunk is 4K to 1T, in multiples of 4096 bytes";
    check("--chunk", "0", "SIZE", chunk);
    check("--chunk", "1", "SIZE", chunk);
    check("--chunk", "2T", "SIZE", chunk);
    check("--chunk", "6000", "SIZE", chunk);
    check("--chunk", "-1", "SIZE", &format!("not a size like 64M, 1GiB or 4096; {chunk}"));
    check("--chunk", "3G5", "SIZE", &format!("not a size like 64M, 1GiB or 4096; {chunk}"));
    check("--chunk", "18446744073709551616", "SIZE", &format!("more than 64 bits hold; {chunk}"));
    check("--cluster", "48K", "SIZE", "a cluster is a power of two from 4K to 64M");
    check("--cluster", "1G", "SIZE", "a cluster is a power of two from 4K to 64M");
    check("--latency", "0ms", "TIME", "a latency is 1ms to 10s, written like 5ms or 2s");
    check("--latency", "5", "TIME", "a latency is 1ms to 10s, written like 5ms or 2s");
    check("--wait", "2d", "TIME", "a wait is 0s to 24h, written like 30s or 5m");
    let free = "a minimum of free space is 0% to 99% in whole percents, or a size like 10G";
    check("--min-free", "100%", "FREE", free);
    check("--min-free", "much", "FREE", free);
}

#[test]
fn a_cluster_is_at_most_a_chunk() {
    check_usage(
        &["snapshot", "a", "b", "--chunk", "64K", "--cluster", "128K"],
        "error: --cluster is 131072 bytes, more than --chunk, 65536: a cluster is at most a chunk",
    );
}

#[test]
fn what_freezes_is_whole_and_of_use() {
    let snapshot = |more: &[&'static str]| [&["snapshot", "a", "b"], more].concat();
    let both = "error: the argument '--freeze <COMMAND>' cannot be used with '--qga <SOCKET>'";
    check_usage(&snapshot(&["--freeze", "f", "--thaw", "t", "--qga", "s"]), both);
    let missing = "error: the following required arguments were not provided:";
    check_usage(&snapshot(&["--freeze", "f"]), missing);
    check_usage(&snapshot(&["--thaw", "t"]), missing);
    let nothing = "error: --require-freeze needs --qga, or --freeze and --thaw";
    check_usage(&snapshot(&["--require-freeze"]), nothing);
    let no_instant = "error: --consistency none keeps no instant for which a guest could be frozen";
    check_usage(&snapshot(&["--qga", "s", "--consistency", "none"]), no_instant);
    let range = "error: invalid value '0s' for '--freeze-timeout <TIME>': a freeze timeout is 1s to 10m, written like 10s or 1m";
    check_usage(&snapshot(&["--freeze-timeout", "0s"]), range);
}

#[test]
fn what_is_not_built_is_not_accepted() {
    check_usage(&["catalogue", "a"], "error: unrecognized subcommand 'catalogue'");
    check_usage(
        &["snapshot", "a", "b", "--consistency", "anchor"],
        "error: invalid value 'anchor' for '--consistency <HOLD>'",
    );
}

#[test]
fn contradictions_and_gaps_are_usage_errors() {
    check_usage(
        &["snapshot", "a"],
        "error: name an image and a snapshot, SRC DST, or SRC=DST for each of several images",
    );
    check_usage(&["send", "a", "--checksum"], "error: the following required arguments were not provided:");
    check_usage(
        &["receive", "--checksum", "-o", "a"],
        "error: --checksum needs the stream in a file: STREAM and STREAM.sums",
    );
    check_usage(&["receive"], "error: the following required arguments were not provided:");
    check_usage(
        &["rotate", "a=b-%F"],
        "error: say what is to be kept: --keep-last, --keep-daily, ...; without that all would be removed",
    );
    check_usage(
        &["rotate", "a=b-%F", "--keep-last", "0"],
        "error: invalid value '0' for '--keep-last <N>': 0 is not in 1..=4294967295",
    );
    check_usage(&["snapshot"], "error: the following required arguments were not provided:");
    check_usage(
        &["snapshot", "a", "b", "c"],
        "error: name an image and a snapshot, SRC DST, or SRC=DST for each of several images",
    );
    check_usage(
        &["snapshot", "a", "b", "--refresh", "--restart"],
        "error: the argument '--refresh' cannot be used with '--restart'",
    );
    check_usage(&["snapshot", "", "b"], "error: a value is required for '<SRC DST>...' but none was supplied");
    check_usage(&["map", "a", "--json", "--json"], "error: the argument '--json' cannot be used multiple times");
    for verb in ["resume", "abort", "map", "check", "guard"] {
        check_usage(&[verb], "error: the following required arguments were not provided:");
    }
    let bare = run(&[] as &[&str]);
    assert_eq!((bare.status.code(), bare.stdout.len()), (Some(2), 0));
}

#[test]
fn a_guard_is_told_what_to_arm() {
    check_usage(&["guard", ""], "error: a value is required for '[PATH]...' but none was supplied");
    check_usage(
        &["guard", "--file-system"],
        "error: a value is required for '--file-system <PATH>' but none was supplied",
    );
    check_usage(
        &["guard", "--config", "a", "--config", "b"],
        "error: the argument '--config <FILE>' cannot be used multiple times",
    );
    check_usage(&["guard", "a", "--once"], "error: unexpected argument '--once' found");
    check_usage(&["serve", "a"], "rclone-img: there is no socket to listen at");
    check_usage(
        &["serve", "a", "--socket", "s", "--connections", "0"],
        "error: invalid value '0' for '--connections <N>': 0 is not in 1..=1024",
    );
    check_usage(&["serve", "a", "--cache", "unsafe"], "error: invalid value 'unsafe' for '--cache <MODE>'");
}

#[test]
fn a_bad_line_of_a_configuration_is_a_usage_error_that_names_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let conf = dir.path().join("guard.conf");
    let conf = conf.to_str().expect("UTF-8");
    let check = |text: &[u8], why: &str| {
        std::fs::write(conf, text).expect("written");
        check_usage(&["guard", "--config", conf], &format!("rclone-img: {conf}, line 2: {why}"));
    };
    check(b"# images\nvm.img\n", "vm.img is no absolute path");
    check(b"/srv\nfile-system\n", "no path after 'file-system'");
    check(b"\na\x1b\xff", "a\\u{1b}\\xff is no absolute path");
}

#[test]
fn names_of_any_bytes_are_taken_and_stay_on_one_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = dir.path().join(OsStr::from_bytes(b"no such \n\xff.img"));
    for verb in ["map", "check"] {
        let output = run(&[OsStr::new(verb), name.as_os_str()]);
        let stderr = text(&output.stderr);
        assert!(!matches!(output.status.code(), None | Some(0 | 2 | 101)), "{verb}: {stderr}");
        assert!(stderr.lines().count() <= 2, "{verb}: {stderr}");
    }
    let args = [b"snapshot".as_slice(), b"\xff", b"b", b"--chunk", b"\xff"];
    let args: Vec<OsString> = args.into_iter().map(|arg| OsStr::from_bytes(arg).to_owned()).collect();
    assert_eq!(run(&args).status.code(), Some(2));
}

/// A pipe whose reading end is closed already.
fn nobody_reads() -> Stdio {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("vm.img");
    std::fs::write(&image, vec![1; 1 << 16]).expect("written");
    let image = image.to_str().expect("UTF-8");
    for args in [&["--help"][..], &["map", image], &["map", "--json", image], &["status", "--json"]] {
        let output = program(args).stdout(nobody_reads()).output().expect("the program starts");
        let stderr = text(&output.stderr);
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
        assert!(output.status.code().is_some_and(|code| code != 101), "{args:?}: {:?}", output.status);
    }
}

#[test]
fn a_closed_standard_error_changes_no_exit_code() {
    let status = program(&["snapshot", "a"]).stderr(nobody_reads()).status().expect("the program starts");
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_standard_error_that_nobody_drains_keeps_no_process_alive() {
    let (_reader, mut writer) = io::pipe().expect("a pipe");
    fill(&mut writer);
    let status = program(&["snapshot", "a"]).stderr(writer).status().expect("the program starts");
    assert_eq!(status.code(), Some(2));
}

/// Fills a pipe to the last byte. Its size is asked for, so that the last write does not block.
fn fill(pipe: &mut io::PipeWriter) {
    let size = nix::fcntl::fcntl(&*pipe, nix::fcntl::FcntlArg::F_GETPIPE_SZ).expect("the pipe's size");
    let size = usize::try_from(size).expect("a size");
    io::Write::write_all(pipe, &vec![b'.'; size]).expect("an empty pipe takes its size");
}
