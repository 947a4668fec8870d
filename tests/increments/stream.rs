//! `send` and `receive`: what arrives is the snapshot, whatever its history; what is not right leaves nothing and says where; Ceph's own
//! tool takes the streams and joins them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rclone_img::stream::format::{Record, read_beginning};
use serde_json::Value;

use crate::diff::diff;
use crate::support;
use crate::support::history::{change, image, on_every};
use crate::support::{
    BLOCK, Random, Sandbox, assert_same, difference, must, nobody_has, noise, on_both, refused, rounds, runs, there,
    writer,
};

const MIB: u64 = 1 << 20;

pub fn sent(s: &Sandbox, args: &[&str]) -> Vec<u8> {
    let out = s.run(&[&["send"], args].concat());
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// Receives a stream; the exit code, and what was said.
fn receive(s: &Sandbox, stream: &[u8], args: &[&str]) -> (Option<i32>, String) {
    let mut command = s.command(&[&["receive"], args].concat());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let mut input = child.stdin.take().expect("a pipe");
    let bytes = stream.to_vec();
    // It may stop listening.
    let writes = thread::spawn(move || drop(input.write_all(&bytes)));
    let out = child.wait_with_output().expect("its end");
    writes.join().expect("no panic");
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

pub fn received(s: &Sandbox, stream: &[u8], args: &[&str]) {
    let (code, said) = receive(s, stream, args);
    assert_eq!(code, Some(0), "{args:?}: {said}");
}

/// Nothing is left of a stream that is not right, and what is wrong is said.
fn fails(s: &Sandbox, stream: &[u8], args: &[&str], needle: &str) {
    let before = s.listing();
    let (code, said) = receive(s, stream, args);
    assert!(matches!(code, Some(1 | 3)), "{args:?}: {code:?} {said}");
    assert!(said.contains(needle) && said.contains("hint: "), "no {needle:?} in {said}");
    assert_eq!(s.listing(), before, "{args:?}");
}

/// Two snapshots of an image that was changed in between: a.1 and a.2, and r.1, which was received.
fn two(s: &Sandbox) {
    noise(&s.path("a.img"), 4 * MIB);
    s.exits(0, &["snapshot", "-q", "a.img", "a.1"]);
    let image = writer(&s.path("a.img"));
    image.write_all_at(&[7; 3 * BLOCK as usize], MIB).expect("written");
    image.write_all_at(b"end", 4 * MIB + 100).expect("grown");
    drop(image);
    must("fallocate", &[&"-p", &"-o", &"2097152", &"-l", &"65536", &s.path("a.img")]);
    s.exits(0, &["snapshot", "-q", "a.img", "a.2"]);
    received(s, &sent(s, &["a.1"]), &["-q", "-o", "r.1"]);
}

#[test]
fn what_arrives_is_the_snapshot_after_any_history() {
    let random = Random::seeded("what_arrives_is_the_snapshot_after_any_history");
    on_every(|s, kind| {
        image(&s.path("a.img"), 6 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.0"]);
        received(s, &sent(s, &["a.0"]), &["-q", "-o", "r.0"]);
        assert_same(&s.path("a.0"), &s.path("r.0"));
        for round in 1..=rounds(30) {
            let said = change(&s.path("a.img"), &random);
            let names = [round - 1, round].map(|nth| (format!("a.{nth}"), format!("r.{nth}")));
            let [(old, base), (new, copy)] = &names;
            s.exits(0, &["snapshot", "-q", "a.img", new]);
            let content: &[&str] = if round % 2 == 0 { &["--content"] } else { &[] };
            let stream = sent(s, &[&[new, "--from", old][..], content].concat());
            received(s, &stream, &["-q", "--base", base, "-o", copy]);
            let why = format!("{kind} round {round}: {said}");
            assert_eq!(difference(&s.path(new), &s.path(copy)), None, "{why}");
            assert_eq!(s.exits(0, &["status", "--json", copy])[0]["state"], "finished", "{why}");
            assert_eq!(fs::metadata(s.path(copy)).expect("the copy").mode() & 0o777, 0o400, "{why}");
            fs::remove_file(s.path(old)).and_then(|()| fs::remove_file(s.path(base))).expect("removed");
        }
    });
}

/// Only what has changed is in the stream, and what has not is shared with the base on the other side as well.
#[test]
fn an_increment_has_only_the_changes_and_shares_the_rest() {
    on_both(|s| {
        two(s);
        let stream = sent(s, &["a.2", "--from", "a.1"]);
        assert!((stream.len() as u64) < 16 * BLOCK, "{:?}: {} bytes", s.fs, stream.len());
        received(s, &stream, &["-q", "--base", "r.1", "-o", "r.2"]);
        assert_same(&s.path("a.2"), &s.path("r.2"));
        let sums = s.exits(0, &["diff", "--json", "r.1", "r.2"]).pop().expect("sums");
        assert!(sums["equal_bytes"].as_u64().is_some_and(|equal| equal >= 3 * MIB), "{sums}");
        // And on from there.
        let back = sent(s, &["r.2", "--from", "r.1"]);
        received(s, &back, &["-q", "--base", "a.1", "-o", "a.3"]);
        assert_same(&s.path("a.2"), &s.path("a.3"));
    });
}

/// The ranges of a stream's records, as the format's own reader reads them, and whether they are zeros.
fn ranges(mut stream: &[u8]) -> Vec<(u64, u64, bool)> {
    let mut ranges = Vec::new();
    read_beginning(&mut stream).expect("the beginning");
    loop {
        let (range, zero) = match Record::read(&mut stream).expect("a record") {
            Record::From(_) | Record::To(_) | Record::Size(_) => continue,
            Record::Data(range) => {
                stream = &stream[range.len() as usize..];
                (range, false)
            }
            Record::Zero(range) => (range, true),
            Record::End => break,
        };
        ranges.push((range.start(), range.end(), zero));
    }
    assert!(stream.is_empty());
    ranges
}

/// Whoever takes a stream may have each record whole in memory, as Ceph does.
#[test]
fn no_record_is_longer_than_cephs_own_and_none_is_empty() {
    on_both(|s| {
        noise(&s.path("a.img"), 24 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let data = Random::new(9).bytes(9 * MIB as usize);
        writer(&s.path("a.img")).write_all_at(&data, MIB + 7).expect("written");
        must("fallocate", &[&"-p", &"-o", &(12 * MIB).to_string(), &"-l", &(10 * MIB).to_string(), &s.path("a.img")]);
        s.exits(0, &["snapshot", "-q", "a.img", "a.2"]);
        let whole = vec![(0, 12 * MIB, false), (22 * MIB, 24 * MIB, false)];
        for (from, expected) in [(&[][..], whole), (&["--from", "a.snap"][..], diff(s, &[]).0)] {
            let records = ranges(&sent(s, &[&["a.2"], from].concat()));
            assert!(records.iter().all(|it| (it.0 + 1..=it.0 + 4 * MIB).contains(&it.1)), "{:?}: {records:?}", s.fs);
            // In order, and together what was to be sent.
            let mut joined: Vec<(u64, u64, bool)> = Vec::new();
            for it in records {
                match joined.last_mut() {
                    Some(last) if (last.1, last.2) == (it.0, it.2) => last.1 = it.1,
                    _ => joined.push(it),
                }
            }
            assert_eq!(joined, expected, "{:?} {from:?}", s.fs);
        }
    });
}

#[test]
fn what_is_not_whole_or_not_right_leaves_nothing() {
    let random = Random::seeded("what_is_not_whole_or_not_right_leaves_nothing");
    on_both(|s| {
        two(s);
        let stream = sent(s, &["a.2", "--from", "a.1"]);
        let args = ["--base", "r.1", "-o", "r.2"];
        for _ in 0..rounds(60) {
            let cut = random.below(stream.len() as u64) as usize;
            fails(s, &stream[..cut], &args, "byte ");
        }
        fails(s, &[&stream[..], b"e"].concat(), &args, "behind its end");
        fails(s, b"rbd diff v2\n", &args, "RBD diff");
        fails(s, &stream, &["-o", "r.2"], "only what has changed since");
        fails(s, &sent(s, &["a.2"]), &args, "leave --base out");
        fails(s, &stream, &["--base", "a.2", "-o", "r.2"], "and the stream's base is");
        fails(s, &stream, &["--base", "a.img", "-o", "r.2"], "no finished snapshot");
        fails(s, &stream, &["--base", "r.1", "-o", "a.2"], "cannot have this name");
        fails(s, &stream, &["--base", "r.1", "--min-free", "1T", "-o", "r.2"], "--min-free");
        // Hostile: past the end, backwards, lengths near 2^64; each in place of the end.
        let body = &stream[..stream.len() - 1];
        for (at, length, why) in [
            (4 * MIB + 103, 1_u64, "of a snapshot of"),
            (0, 1, "come after"),
            (u64::MAX, u64::MAX, "a range of"),
            (1, u64::MAX, "a range of"),
            (4 * MIB + 103, 0, "a range of"),
        ] {
            for tag in [b"z", b"w"] {
                let record = [&tag[..], &at.to_le_bytes(), &length.to_le_bytes(), &[0; 64], b"e"].concat();
                fails(s, &[body, &record].concat(), &args, why);
            }
        }
        // A base that somebody has written to is none any more.
        OpenOptions::new().write(true).open(s.path("r.1")).and_then(|it| it.write_all_at(b"x", 0)).expect("root may");
        fails(s, &stream, &args, "was changed since");
    });
}

#[test]
fn the_right_base_is_named_where_it_lies_beside_what_was_named() {
    on_both(|s| {
        two(s);
        let stream = sent(s, &["a.2", "--from", "a.1"]);
        fs::remove_file(s.path("a.1")).expect("removed");
        for args in [
            &["-o", "r.2"][..],
            &["--base", "a.2", "-o", "r.2"],
            &["--base", "missing.snap", "-o", "r.2"],
            &["--base", "a.img", "-o", "r.2"],
        ] {
            fails(s, &stream, args, "--base r.1");
        }
        let held = writer(&s.path("r.1"));
        fails(s, &stream, &["--base", "r.1", "-o", "r.2"], "shut the VM down");
        drop(held);
        fs::create_dir(s.path("old")).and_then(|()| fs::rename(s.path("r.1"), s.path("old/x y.1"))).expect("moved");
        fails(s, &stream, &["-o", "old/r.2"], "--base 'old/x y.1'");
        fails(s, &stream, &["--base", "old/missing.snap", "-o", "r.2"], "--base 'old/x y.1'");
        // What somebody has written to is none, and then there is no other.
        OpenOptions::new()
            .write(true)
            .open(s.path("old/x y.1"))
            .and_then(|it| it.write_all_at(b"x", 0))
            .expect("root may");
        fails(s, &stream, &["-o", "old/r.2"], "tells a file's job");
        fails(s, &stream, &["--base", "missing.snap", "-o", "r.2"], "missing.snap");
        // A whole one needs none, whatever is said.
        fails(s, &sent(s, &["a.2"]), &["--base", "missing.snap", "-o", "r.2"], "missing.snap");
    });
}

/// A byte of a block that is shared with the base takes a block, whether it is data or zeros.
#[test]
fn small_records_do_not_take_the_space_that_is_left_to_the_guests() {
    const SIZE: u64 = 32 * MIB;
    on_both(|s| {
        noise(&s.path("a.img"), SIZE);
        s.exits(0, &["snapshot", "-q", "a.img", "a.1"]);
        s.exits(0, &["snapshot", "-q", "a.img", "a.2"]);
        let nothing = sent(s, &["a.2", "--from", "a.1"]);
        let stream = |tag: &[u8], data: &[u8]| {
            let record = |at: u64| [tag, &(at + 7).to_le_bytes(), &1_u64.to_le_bytes(), data].concat();
            let records = (0..SIZE / BLOCK).flat_map(|block| record(block * BLOCK));
            nothing[..nothing.len() - 1].iter().copied().chain(records).chain(*b"e").collect::<Vec<u8>>()
        };
        let free = || nix::sys::statvfs::statvfs(&s.dir()).map(|it| it.blocks_available() * it.fragment_size());
        let filler = free().expect("its space") - 2 * SIZE;
        must("fallocate", &[&"-l", &filler.to_string(), &s.path("filler")]);
        for (stream, byte) in [(stream(b"z", b""), 0), (stream(b"w", b"x"), b'x')] {
            // What is free is enough for all of them, and not for what the guests need besides.
            let (code, said) = receive(s, &stream, &["-q", "--min-free", "48M", "--base", "a.1", "-o", "r.2"]);
            assert!(
                code == Some(3) && said.contains("--min-free") && !said.contains("metadata"),
                "{:?}: {code:?} {said}",
                s.fs
            );
            assert!(!s.path("r.2").exists());
            received(s, &stream, &["-q", "--min-free", "4M", "--base", "a.1", "-o", "r.2"]);
            let bytes = fs::read(s.path("r.2")).expect("received");
            assert!((0..SIZE / BLOCK).all(|block| bytes[(block * BLOCK + 7) as usize] == byte), "{:?}", s.fs);
            fs::remove_file(s.path("r.2")).expect("removed");
            must("sync", &[&"-f", &s.dir()]);
        }
    });
}

#[test]
fn checksums_find_what_the_format_does_not() {
    on_both(|s| {
        two(s);
        let out = s.run(&["send", "a.2", "--from", "a.1", "--checksum", "-o", "d"]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && said.contains("receive d --checksum --base"), "{said}");
        let take = |code, name| s.exits(code, &["receive", "-q", "--checksum", "--base", "r.1", "-o", name, "d"]);
        take(0, "r.2");
        assert_same(&s.path("a.2"), &s.path("r.2"));
        let whole = fs::read(s.path("d")).expect("the stream");
        let at = whole.windows(64).position(|bytes| bytes == [7; 64]).expect("data") as u64;
        writer(&s.path("d")).write_all_at(b"x", at).expect("damaged");
        let before = s.listing();
        take(1, "r.3");
        assert_eq!(s.listing(), before);
        // Without them it is taken: that is what the manual says.
        s.exits(0, &["receive", "-q", "--base", "r.1", "-o", "r.4", "d"]);
        assert!(difference(&s.path("a.2"), &s.path("r.4")).is_some());
        fs::write(s.path("d"), whole).expect("mended");
        let sums = fs::read_to_string(s.path("d.sums")).expect("sums");
        let short: String = sums.lines().take(3).flat_map(|line| [line, "\n"]).collect();
        fs::write(s.path("d.sums"), short).expect("cut off");
        take(1, "r.5");
        refused(s, "is there already", &["send", "a.1", "-o", "d"]);
        refused(s, "no finished snapshot", &["send", "a.img"]);
    });
}

/// Whoever was there first has his file, and another send its own.
#[test]
fn what_somebody_else_has_put_in_the_place_of_the_checksums_stays() {
    on_both(|s| {
        two(s);
        let mut send = s.command(&["send", "-q", "a.1", "--checksum", "-o", "d", "--bwlimit", "2M"]);
        let mut send = send.stderr(Stdio::piped()).spawn().expect("started");
        let fds = format!("/proc/{}/fd", send.id());
        let nameless = |it: &fs::DirEntry| {
            fs::read_link(it.path()).is_ok_and(|it| it.starts_with(s.dir()) && it.to_string_lossy().contains("deleted"))
        };
        let both = || fs::read_dir(&fds).is_ok_and(|all| all.flatten().filter(nameless).count() == 2);
        assert!(support::until(both));
        fs::write(s.path("d.sums"), b"precious").expect("a file");
        assert_eq!(send.wait().expect("its end").code(), Some(1));
        assert_eq!(fs::read(s.path("d.sums")).expect("there"), b"precious", "{:?}", s.fs);
        assert!(!s.path("d").exists());
    });
}

/// Whoever asks whether somebody reads a snapshot does not break the reader's lease by asking.
#[test]
fn a_refresh_that_is_refused_costs_no_reader_its_stream() {
    on_both(|s| {
        noise(&s.path("a.img"), 4 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.1"]);
        let mut send = s.command(&["send", "-q", "a.1"]);
        let mut send = send.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
        let mut out = send.stdout.take().expect("a pipe");
        let mut stream = vec![0; 16];
        out.read_exact(&mut stream).expect("it has begun");
        let refresh = ["snapshot", "--refresh", "a.img", "a.1"];
        let before = s.listing();
        s.exits(3, &refresh);
        s.exits(3, &[&refresh[..], &["--force"]].concat());
        assert_eq!(s.listing(), before, "{:?}", s.fs);
        out.read_to_end(&mut stream).expect("to its end");
        let ended = send.wait_with_output().expect("its end");
        assert!(ended.status.success(), "{:?}: {}", s.fs, String::from_utf8_lossy(&ended.stderr));
        received(s, &stream, &["-q", "-o", "r.1"]);
        let held = File::open(s.path("a.1")).expect("a reader");
        refused(s, "somebody has the snapshot open", &refresh);
        drop(held);
        nobody_has(&s.path("a.1"));
        s.exits(0, &refresh);
    });
}

#[test]
fn killed_at_any_instant_there_is_all_or_nothing() {
    let random = Random::seeded("killed_at_any_instant_there_is_all_or_nothing");
    on_both(|s| {
        noise(&s.path("a.img"), 48 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.1"]);
        s.exits(0, &["send", "-q", "a.1", "-o", "whole"]);
        // An increment of many records.
        let image = writer(&s.path("a.img"));
        for block in 0..4096 {
            image.write_all_at(&[3; BLOCK as usize], block * 3 * BLOCK).expect("written");
        }
        drop(image);
        s.exits(0, &["snapshot", "-q", "a.img", "a.2"]);
        s.exits(0, &["send", "-q", "a.2", "--from", "a.1", "-o", "increment"]);
        let kinds = [
            ("whole", "a.1", &["receive", "-q", "-o", "r.1"][..]),
            ("increment", "a.2", &["receive", "-q", "-o", "r.1", "--base", "a.1"][..]),
        ];
        let before = s.listing();
        let mut none = [0; 2];
        for round in 0..runs(20, 100) {
            let kind = round as usize % 2;
            let (stream, snapshot, args) = kinds[kind];
            let input = File::open(s.path(stream)).expect("the stream");
            let mut job = s.command(args).stdin(input).spawn().expect("started");
            thread::sleep(Duration::from_micros(random.below(60_000)));
            job.kill().and_then(|()| job.wait()).expect("killed");
            if s.path("r.1").exists() {
                assert_same(&s.path(snapshot), &s.path("r.1"));
                assert_eq!(s.exits(0, &["status", "--json", "r.1"])[0]["state"], "finished", "round {round}");
                fs::remove_file(s.path("r.1")).expect("removed");
            } else {
                none[kind] += 1;
            }
            assert_eq!(s.listing(), before, "round {round}");
        }
        assert!(none.iter().all(|none| *none > 0), "{:?}: none was killed in time: {none:?}", s.fs);
    });
}

#[test]
fn ceph_takes_the_streams_and_joins_them() {
    if !there("rbd") {
        return;
    }
    let random = Random::seeded("ceph_takes_the_streams_and_joins_them");
    on_both(|s| {
        noise(&s.path("a.img"), 6 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.0"]);
        for round in 0..rounds(10) {
            for (old, new) in [("a.0", "a.1"), ("a.1", "a.2")] {
                change(&s.path("a.img"), &random);
                s.exits(0, &["snapshot", "-q", "a.img", new]);
                s.exits(0, &["send", "-q", new, "--from", old, "-o", &format!("{new}.diff")]);
            }
            must("rbd", &[&"merge-diff", &"--no-progress", &s.path("a.1.diff"), &s.path("a.2.diff"), &s.path("both")]);
            s.exits(0, &["receive", "-q", "--base", "a.0", "-o", "r.2", "both"]);
            assert_eq!(difference(&s.path("a.2"), &s.path("r.2")), None, "{:?} round {round}", s.fs);
            for name in ["a.0", "a.1", "a.1.diff", "a.2.diff", "both", "r.2"] {
                fs::remove_file(s.path(name)).expect("removed");
            }
            fs::rename(s.path("a.2"), s.path("a.0")).expect("renamed");
        }
    });
}

#[test]
fn a_terminal_gets_no_stream() {
    if !there("script") {
        return;
    }
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.1"]);
        let program = assert_cmd::cargo::cargo_bin!("rclone-img");
        let command = format!("{} send a.1", Path::new(program).display());
        let out = Command::new("script").args(["-qec", &command, "/dev/null"]).current_dir(s.dir()).output();
        let out = out.expect("script");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.code() == Some(3) && said.contains("not for a terminal"), "{said}");
        let finished: Value = s.exits(0, &["send", "--json", "a.1", "-o", "d"]).pop().expect("an end");
        assert_eq!(finished["data_bytes"], MIB, "{finished}");
    });
}
