//! `diff` and `verify`: nothing that has changed is missed, whatever was done to the files; what is told too much is only what the maps
//! cannot tell; and what somebody may write to is refused.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use fiemap::FiemapExtentFlags;
use serde_json::Value;

use crate::support;
use crate::support::history::{change, copied, image, on_every};
use crate::support::{
    BLOCK, Random, Sandbox, addresses, assert_same, fragmented, has_extent, must, noise, on_both, refused, rounds,
    skipped, there, writer,
};

const MIB: u64 = 1 << 20;

/// The ranges that were told of a.img since a.snap, whether they are zeros, and the sums.
pub fn diff(s: &Sandbox, more: &[&str]) -> (Vec<(u64, u64, bool)>, Value) {
    let args: Vec<&str> = ["diff", "--json", "a.snap", "a.img"].iter().chain(more).copied().collect();
    let mut lines = s.exits(0, &args);
    let sums = lines.pop().expect("the sums");
    assert_eq!(sums["event"], "finished");
    let number = |line: &Value, name: &str| line[name].as_u64().expect("a number");
    let range = |line: &Value| {
        let (offset, length) = (number(line, "offset"), number(line, "length"));
        (offset, offset + length, line["kind"] == "zero")
    };
    let ranges: Vec<_> = lines.iter().map(range).collect();
    assert!(ranges.windows(2).all(|two| two[0].1 <= two[1].0), "in order: {ranges:?}");
    (ranges, sums)
}

fn covers(ranges: &[(u64, u64, bool)], at: u64) -> Option<bool> {
    let next = ranges.partition_point(|range| range.1 <= at);
    ranges.get(next).filter(|range| range.0 <= at).map(|range| range.2)
}

/// The address of a byte that has one: it is written, and lies in a block.
fn address(all: &[(u64, u64, u64)], at: u64) -> Option<u64> {
    let next = all.partition_point(|extent| extent.0 + extent.2 <= at);
    all.get(next).filter(|extent| extent.0 <= at).map(|extent| extent.1 + at - extent.0)
}

/// Changes the former state as well: then it is no snapshot any more, but a file that nobody writes to.
fn change_the_former(s: &Sandbox, random: &Random) -> String {
    let [old, new] = ["a.snap", "a.img"].map(|name| s.path(name));
    fs::set_permissions(&old, fs::Permissions::from_mode(0o600)).expect("a mode");
    let said = change(&old, random);
    let copied = if random.below(2) == 0 { copied(&old, &new, random) } else { copied(&new, &old, random) };
    format!("; the former: {said}; {copied}")
}

#[test]
fn nothing_that_has_changed_is_missed_and_with_the_content_nothing_else_is_told() {
    let random = Random::seeded("nothing_that_has_changed_is_missed_and_with_the_content_nothing_else_is_told");
    on_every(|s, kind| {
        image(&s.path("a.img"), 8 * MIB);
        let mut compressed = false;
        for round in 0..rounds(40) {
            let _ = fs::remove_file(s.path("a.snap"));
            s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
            let mut said = change(&s.path("a.img"), &random);
            if round % 2 == 1 {
                said += &change_the_former(s, &random);
            }
            let (old, new) = (fs::read(s.path("a.snap")).expect("old"), fs::read(s.path("a.img")).expect("new"));
            let (told, sums) = diff(s, &[]);
            let (exact, _) = diff(s, &["--content"]);
            let why = format!("{kind} round {round}: {said}");
            let [old_at, new_at] = ["a.snap", "a.img"].map(|name| addresses(&s.path(name)));
            compressed |= has_extent(&s.path("a.img"), FiemapExtentFlags::ENCODED);
            for (block, bytes) in new.chunks(BLOCK as usize).enumerate() {
                let at = block as u64 * BLOCK;
                let before =
                    old.get(at as usize..).map(|rest| &rest[..rest.len().min(bytes.len())]).unwrap_or_default();
                let changed = before.is_empty() || *before != bytes[..before.len()];
                let (whole, read) = (covers(&told, at), covers(&exact, at));
                assert!(!changed || whole.is_some() && read.is_some(), "{at} is missed; {why}");
                assert!(changed || read.is_none(), "{at} has not changed; {why}");
                assert!(whole != Some(true) || bytes.iter().all(|byte| *byte == 0), "{at} is not zeros; {why}");
                // The address of what is compressed says nothing, nor does that of what is behind the former's end.
                let proved = kind != "compressed" && before.len() == bytes.len();
                let same = proved && address(&old_at, at) == address(&new_at, at);
                assert!(changed || whole.is_none() || !same, "{at} is one block, or none, in both; {why}");
            }
            // Behind the end of the former there is nothing to be equal to.
            let behind = old.len() as u64;
            assert!(
                old.len() >= new.len() || covers(&told, behind).is_some() && covers(&exact, behind).is_some(),
                "{why}"
            );
            assert_eq!((&sums["old_size"], &sums["new_size"]), (&old.len().into(), &new.len().into()));
            let total: u64 = told.iter().map(|it| it.1 - it.0).sum();
            assert_eq!(sums["data_bytes"].as_u64().zip(sums["zero_bytes"].as_u64()).map(|(a, b)| a + b), Some(total));
        }
        assert_eq!(compressed, kind == "compressed", "what the test is of");
    });
}

#[test]
fn what_is_shared_is_equal_without_a_byte_being_read() {
    on_both(|s| {
        noise(&s.path("a.img"), 8 * MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        assert_eq!(diff(s, &[]).0, []);
        writer(&s.path("a.img")).write_all_at(b"x", 5 * MIB + 1).expect("written");
        must("fallocate", &[&"-p", &"-o", &"1048576", &"-l", &"65536", &s.path("a.img")]);
        assert_eq!(diff(s, &[]).0, [(MIB, MIB + 65536, true), (5 * MIB, 5 * MIB + BLOCK, false)]);
        s.exits(7, &["diff", "-q", "--exit-code", "a.snap", "a.img"]);
        s.exits(0, &["diff", "-q", "--exit-code", "a.snap", "a.snap"]);
        let verified = s.exits(7, &["verify", "--json", "a.snap", "a.img"]).pop().expect("an answer");
        assert_eq!((&verified["equal"], &verified["read_bytes"]), (&false.into(), &(65536 + BLOCK).into()));
        let first = &verified["first"];
        assert_eq!((&first[0]["offset"], &first[0]["length"]), (&MIB.into(), &65536.into()), "{verified}");
        assert_eq!((&first[1]["offset"], &first[1]["length"]), (&(5 * MIB).into(), &BLOCK.into()), "{verified}");
        let verified = s.exits(0, &["verify", "--json", "a.snap", "a.snap"]).pop().expect("an answer");
        assert_eq!((&verified["equal"], &verified["read_bytes"]), (&true.into(), &0.into()));
        // Another size is a difference, also where all that both have is equal.
        must("cp", &[&"--reflink=always", &s.path("a.snap"), &s.path("b.img")]);
        must("truncate", &[&"-s", &"+1", &s.path("b.img")]);
        let verified = s.exits(7, &["verify", "--json", "a.snap", "b.img"]).pop().expect("an answer");
        assert_eq!((&verified["equal"], &verified["differing_bytes"]), (&false.into(), &0.into()));
    });
}

/// `diff --exit-code | head` answers for all of both files.
#[test]
fn the_answer_does_not_depend_on_how_much_of_it_is_read() {
    on_both(|s| {
        // Many ranges that are equal, and behind them one that is not: more than any buffer before the first difference.
        fragmented(&s.path("a.img"), 2000);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let unread = |args: &[&str]| {
            let (read, write) = nix::unistd::pipe().expect("a pipe");
            drop(read);
            let out = s.command(args).stdout(write).output().expect("started");
            assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{args:?}");
            out.status.code()
        };
        let args = ["diff", "--exit-code", "--format", "qemu-map", "a.snap", "a.img"];
        assert_eq!(unread(&args), Some(0), "{:?}", s.fs);
        writer(&s.path("a.img")).write_all_at(b"x", 3990 * BLOCK).expect("written");
        assert_eq!(s.run(&args).status.code(), Some(7), "{:?}", s.fs);
        assert_eq!(unread(&args), Some(7), "{:?}", s.fs);
        assert_eq!(unread(&["diff", "--exit-code", "--json", "a.snap", "a.img"]), Some(7), "{:?}", s.fs);
        assert_eq!(unread(&["diff", "--format", "qemu-map", "a.snap", "a.img"]), Some(0), "{:?}", s.fs);
    });
}

#[test]
fn verify_is_cmp() {
    let random = Random::seeded("verify_is_cmp");
    let qemu = there("qemu-img");
    on_every(|s, kind| {
        image(&s.path("a.img"), 6 * MIB);
        for round in 0..rounds(20) {
            must("cp", &[&"--reflink=never", &"--sparse=always", &s.path("a.img"), &s.path("b.img")]);
            let said = if round % 3 == 0 { String::new() } else { change(&s.path("b.img"), &random) };
            let same = fs::read(s.path("a.img")).expect("a") == fs::read(s.path("b.img")).expect("b");
            let told = s.exits(if same { 0 } else { 7 }, &["verify", "--json", "a.img", "b.img"]).pop();
            let told = told.expect("an answer");
            let [a, b] = ["a.img", "b.img"].map(|name| s.path(name));
            // To QEMU what one has more is zeros in the other.
            if qemu && fs::metadata(&a).expect("a").len() == fs::metadata(&b).expect("b").len() {
                let compare = ["compare", "-f", "raw", "-F", "raw"];
                let out = Command::new("qemu-img").args(compare).args([&a, &b]).output().expect("qemu-img");
                assert_eq!(out.status.code(), Some(i32::from(!same)), "{kind}: {said}; {out:?}");
            }
            let Some(first) = told["first"].get(0).and_then(|it| it["offset"].as_u64()) else { continue };
            let cmp = Command::new("cmp").args([&a, &b]).output().expect("cmp");
            let text = String::from_utf8_lossy(&cmp.stdout).into_owned();
            let byte = text.split("byte ").nth(1).and_then(|it| it.split(',').next()?.parse::<u64>().ok());
            assert_eq!(byte.map(|byte| (byte - 1) / BLOCK), Some(first / BLOCK), "{kind}: {said}; {text}");
        }
    });
}

#[test]
fn what_somebody_may_write_to_is_refused() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let held = writer(&s.path("a.img"));
        refused(s, "a.img", &["diff", "a.snap", "a.img"]);
        refused(s, "a.img", &["verify", "a.img", "a.snap"]);
        drop(held);
        refused(s, "not a regular file", &["diff", "a.snap", "."]);
        refused(s, "nothing", &["diff", "a.snap", "nothing"]);
    });
}

/// An overlay with what has changed, made by QEMU, has the same map.
#[test]
fn the_map_is_qemus_of_an_overlay() {
    if !there("qemu-img") {
        return;
    }
    let random = Random::seeded("the_map_is_qemus_of_an_overlay");
    on_both(|s| {
        noise(&s.path("a.img"), 2 * MIB);
        File::options().write(true).open(s.path("a.img")).and_then(|it| it.set_len(4 * MIB)).expect("sparse");
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let image = writer(&s.path("a.img"));
        for _ in 0..20 {
            image.write_all_at(&random.bytes(BLOCK as usize), random.below(4 * MIB / BLOCK) * BLOCK).expect("written");
        }
        drop(image);
        must("fallocate", &[&"-p", &"-o", &"65536", &"-l", &"131072", &s.path("a.img")]);
        let (told, _) = diff(s, &[]);
        let overlay = s.path("over.qcow2");
        let options = "cluster_size=4096";
        must(
            "qemu-img",
            &[&"create", &"-q", &"-f", &"qcow2", &"-o", &options, &"-b", &s.path("a.snap"), &"-F", &"raw", &overlay],
        );
        for (from, to, zero) in told {
            let write = if zero {
                format!("write -z {from} {}", to - from)
            } else {
                format!("write -P 1 {from} {}", to - from)
            };
            must("qemu-io", &[&"-c", &write, &overlay]);
        }
        let map = |text: &str| -> Vec<(u64, u64, u64, bool, bool)> {
            let all: Vec<Value> = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
            let number = |it: &Value, name: &str| it[name].as_u64().expect("a number");
            let mut joined: Vec<(u64, u64, u64, bool, bool)> = Vec::new();
            for it in &all {
                let (start, depth) = (number(it, "start"), number(it, "depth"));
                let end = start + number(it, "length");
                let (zero, data) = (it["zero"] == true, it["data"] == true);
                match joined.last_mut() {
                    Some(last) if (last.1, last.2, last.3, last.4) == (start, depth, zero, data) => last.1 = end,
                    _ => joined.push((start, end, depth, zero, data)),
                }
            }
            joined
        };
        let qemu = must("qemu-img", &[&"map", &"--output=json", &overlay]);
        let ours = s.run(&["diff", "--format", "qemu-map", "a.snap", "a.img"]);
        assert_eq!(map(&String::from_utf8_lossy(&ours.stdout)), map(&qemu), "{:?}", s.fs);
    });
}

/// tmpfs has no block maps: what has data is read, and where there are holes is asked in another way.
#[test]
fn a_file_system_without_block_maps_is_read() {
    let Some(s) = Sandbox::new(support::Fs::Xfs) else { return };
    let tmpfs = s.outside("tmpfs");
    fs::create_dir(&tmpfs).expect("a directory");
    must("mount", &[&"-t", &"tmpfs", &"-o", &"size=64M", &"tmpfs", &tmpfs]);
    let checked = std::panic::catch_unwind(|| {
        noise(&s.path("a.img"), 2 * MIB);
        File::options().write(true).open(s.path("a.img")).and_then(|it| it.set_len(8 * MIB + 5)).expect("sparse");
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let other = tmpfs.join("a.raw");
        must("cp", &[&"--sparse=always", &s.path("a.snap"), &other]);
        let text = other.to_str().expect("text");
        for pair in [["a.snap", text], [text, "a.snap"], [text, text]] {
            let verified = s.exits(0, &[&["verify", "--json"], &pair[..]].concat()).pop().expect("an answer");
            assert_eq!((&verified["read_bytes"], &verified["equal"]), (&(2 * MIB).into(), &true.into()), "{verified}");
            s.exits(0, &[&["diff", "--content", "--exit-code"], &pair[..]].concat());
        }
        writer(&other).write_all_at(b"x", 5 * MIB).expect("written");
        let verified = s.exits(7, &["verify", "--json", "a.snap", text]).pop().expect("an answer");
        assert_eq!(verified["first"][0]["offset"], 5 * MIB, "{verified}");
        let mut told = s.exits(0, &["diff", "--content", "--json", "a.snap", text]);
        assert_eq!((told.len(), &told[0]["offset"]), (2, &(5 * MIB).into()), "{told:?}");
        told = s.exits(0, &["diff", "--json", "a.snap", text]);
        let sums = told.pop().expect("sums");
        assert_eq!((&sums["data_bytes"], &sums["zero_bytes"]), (&(2 * MIB + BLOCK).into(), &0.into()), "{told:?}");
        // Whole snapshots can be received anywhere, and go on from there.
        s.exits(0, &["send", "-q", "a.snap", "-o", "d"]);
        let there = tmpfs.join("r.snap");
        let text = there.to_str().expect("text");
        // tmpfs has attributes for users since Linux 6.6.
        if xattr::set(&other, "user.test", b"x").is_err() {
            skipped("this kernel's tmpfs has no user attributes");
        } else {
            s.exits(0, &["receive", "-q", "d", "-o", text]);
            let sent = s.exits(0, &["send", "--json", text, "-o", "e"]).pop().expect("an end");
            assert_eq!(sent["data_bytes"], 2 * MIB, "{sent}");
            s.exits(0, &["receive", "-q", "e", "-o", "back"]);
            assert_same(&s.path("a.snap"), &s.path("back"));
        }
    });
    must("umount", &[&tmpfs]);
    checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A copy of a file system has its UUID, and the same addresses for other data.
#[test]
fn a_copied_file_system_is_another_one() {
    with_a_copy(|s, mnt| {
        let other = mnt.join("a.img");
        writer(&other).write_all_at(&[0xEE; MIB as usize], 0).expect("written");
        let text = other.to_str().expect("text");
        let verified = s.exits(7, &["verify", "--json", "a.img", text]).pop().expect("an answer");
        assert_eq!(verified["differing_bytes"], MIB, "{verified}");
        let sums = s.exits(0, &["diff", "--json", "a.img", text]).pop().expect("sums");
        assert_eq!((&sums["comparable"], &sums["data_bytes"]), (&false.into(), &(2 * MIB).into()));
    });
}

/// An overlay gives files of several file systems the device number of its own, and tells each one's addresses as they are there.
#[test]
fn an_overlay_tells_addresses_of_several_file_systems() {
    with_a_copy(|s, mnt| {
        let (upper, work, merged) = (mnt.join("upper"), mnt.join("work"), s.outside("merged"));
        for dir in [&upper, &work, &merged] {
            fs::create_dir(dir).expect("a directory");
        }
        fs::rename(mnt.join("a.img"), upper.join("b.img")).expect("renamed");
        writer(&upper.join("b.img")).write_all_at(&[0xEE; MIB as usize], 0).expect("written");
        let layers =
            format!("lowerdir={},upperdir={},workdir={},xino=on", s.dir().display(), upper.display(), work.display());
        if !Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &layers])
            .arg(&merged)
            .status()
            .is_ok_and(|it| it.success())
        {
            return skipped("this kernel has no overlayfs, or none with xino=on");
        }
        let checked = std::panic::catch_unwind(|| {
            let [a, b] = ["a.img", "b.img"].map(|name| merged.join(name));
            let device = |path: &Path| fs::metadata(path).expect("there").dev();
            if device(&a) != device(&b) {
                return skipped("this kernel's overlayfs has a device number for each layer");
            }
            assert_eq!(addresses(&a), addresses(&b), "what the test is of");
            let [a, b] = [&a, &b].map(|path| path.to_str().expect("text"));
            let verified = s.exits(7, &["verify", "--json", a, b]).pop().expect("an answer");
            assert_eq!(verified["differing_bytes"], MIB, "{verified}");
            let sums = s.exits(0, &["diff", "--json", a, b]).pop().expect("sums");
            assert_eq!((&sums["comparable"], &sums["data_bytes"]), (&false.into(), &(2 * MIB).into()));
            let sums = s.exits(7, &["diff", "--json", "--content", "--exit-code", a, b]).pop().expect("sums");
            assert_eq!(sums["data_bytes"], MIB, "{sums}");
        });
        must("umount", &[&merged]);
        checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// An XFS with a file of noise, a.img, and a byte for byte copy of the whole file system, mounted beside it.
fn with_a_copy(test: impl Fn(&Sandbox, &Path) + std::panic::RefUnwindSafe) {
    let Some(s) = Sandbox::new(support::Fs::Xfs) else { return };
    noise(&s.path("a.img"), 2 * MIB);
    must("sync", &[]);
    let (disk, copy, mnt) = (s.outside("disk"), s.outside("copy"), s.outside("other"));
    must("xfs_freeze", &[&"-f", &s.dir()]);
    let copied = Command::new("cp").args([&disk, &copy]).status();
    must("xfs_freeze", &[&"-u", &s.dir()]);
    assert!(copied.expect("cp").success());
    fs::create_dir(&mnt).expect("a directory");
    must("mount", &[&"-o", &"loop,nouuid", &copy, &mnt]);
    let checked = std::panic::catch_unwind(|| test(&s, &mnt));
    must("umount", &[&mnt]);
    checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
