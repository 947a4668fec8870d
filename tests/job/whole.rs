//! The main job on real XFS and Btrfs: the snapshot has the image's bytes, shares its blocks, carries a record, and says
//! what it did in the forms that DESIGN section 8 promises.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use fiemap::fiemap;
use serde_json::Value;

use crate::support;
use crate::support::{
    BLOCK, Fs, Random, Sandbox, addresses, assert_same, fragmented, must, noise, on_both, refused, rounds,
};

const MIB: u64 = 1 << 20;

fn snapshot(s: &Sandbox, img: &str, snap: &str) -> Value {
    let events = s.exits(0, &["snapshot", "--json", img, snap]);
    s.no_sidecars(snap);
    events.last().expect("events").clone()
}

/// A file of which only these ranges are written.
fn sparse(path: &Path, len: u64, written: &[(u64, u64)]) {
    let file = File::create(path).expect("a file");
    file.set_len(len).expect("its size");
    for &(at, len) in written {
        file.write_all_at(&Random::new(at).bytes(len as usize), at).expect("written");
    }
}

fn check_job(s: &Sandbox, name: &str) {
    let snap = format!("{name}.snap");
    let finished = snapshot(s, name, &snap);
    let why = format!("{:?} {name}: {finished}", s.fs);
    assert_same(&s.path(name), &s.path(&snap));
    assert_eq!(finished["event"], "finished", "{why}");
    assert_eq!(finished["copied_bytes"], 0, "{why}");
    assert_eq!(addresses(&s.path(name)), addresses(&s.path(&snap)), "{why}");
}

#[test]
fn a_snapshot_has_the_images_bytes_and_blocks_whatever_its_size() {
    on_both(|s| {
        for len in [1, 511, 4095, 4096, 4097, MIB + 1, 3 * MIB - 1, 8 * MIB] {
            let name = format!("dense-{len}");
            noise(&s.path(&name), len);
            check_job(s, &name);
        }
    });
}

#[test]
fn a_snapshot_has_the_images_bytes_and_blocks_wherever_its_holes_are() {
    on_both(|s| {
        sparse(&s.path("start"), 4 * MIB, &[(3 * MIB, MIB)]);
        sparse(&s.path("middle"), 4 * MIB, &[(0, MIB), (3 * MIB, MIB)]);
        sparse(&s.path("end"), 4 * MIB, &[(0, MIB)]);
        sparse(&s.path("odd-end"), 4 * MIB + 77, &[(MIB, MIB)]);
        sparse(&s.path("only-hole"), 4 * MIB, &[]);
        fragmented(&s.path("every-other"), 1000);
        for name in ["start", "middle", "end", "odd-end", "only-hole", "every-other"] {
            check_job(s, name);
        }
    });
}

#[test]
fn preallocated_images_read_the_same_and_dirty_ones_too() {
    on_both(|s| {
        must("fallocate", &[&"-l", &"8M", &s.path("unwritten")]);
        must("fallocate", &[&"-l", &"8M", &s.path("half")]);
        support::writer(&s.path("half")).write_all_at(&Random::new(1).bytes(MIB as usize), 2 * MIB).expect("written");
        // Beyond the end of the file, as preallocation for growth is.
        noise(&s.path("beyond"), MIB);
        must("fallocate", &[&"-n", &"-l", &"4M", &s.path("beyond")]);
        fs::write(s.path("dirty"), Random::new(2).bytes(3 * MIB as usize)).expect("written");
        for name in ["unwritten", "half", "beyond", "dirty"] {
            check_job(s, name);
        }
    });
}

#[test]
fn a_terabyte_with_little_in_it_is_a_short_job() {
    on_both(|s| {
        let len = 1 << 40;
        let written: Vec<(u64, u64)> = (0..64).map(|i| (i * (len / 64), BLOCK)).chain([(len - 10, 10)]).collect();
        sparse(&s.path("huge"), len, &written);
        let finished = snapshot(s, "huge", "huge.snap");
        assert_eq!((finished["bytes"].as_u64(), finished["copied_bytes"].as_u64()), (Some(len), Some(0)));
        assert_eq!(addresses(&s.path("huge")), addresses(&s.path("huge.snap")));
        let snap = File::open(s.path("huge.snap")).expect("the snapshot");
        assert_eq!(snap.metadata().expect("metadata").len(), len);
        for (at, len) in written {
            let mut bytes = vec![0; len as usize];
            snap.read_exact_at(&mut bytes, at).expect("read");
            assert_eq!(bytes, Random::new(at).bytes(len as usize), "at {at}");
        }
    });
}

#[test]
fn random_images_come_out_the_same_with_any_chunk() {
    let random = Random::seeded("random_images_come_out_the_same_with_any_chunk");
    on_both(|s| {
        for round in 0..rounds(50) {
            let (name, snap) = (format!("r{round}"), format!("r{round}.snap"));
            let len = 1 + random.below(8 * MIB);
            let count = random.below(200);
            let written: Vec<_> = (0..count).map(|_| random.below(len)).map(|at| (at, (len - at).min(9000))).collect();
            sparse(&s.path(&name), len, &written);
            let chunk = format!("{}K", 64 << random.below(5));
            s.exits(0, &["snapshot", "-q", "--chunk", &chunk, &name, &snap]);
            assert_same(&s.path(&name), &s.path(&snap));
            assert_eq!(addresses(&s.path(&name)), addresses(&s.path(&snap)), "round {round}, {len} bytes, {chunk}");
            fs::remove_file(s.path(&name)).and_then(|()| fs::remove_file(s.path(&snap))).expect("removed");
        }
    });
}

#[test]
fn a_nocow_image_on_btrfs_is_cloned_and_the_snapshot_is_nocow() {
    let Some(s) = Sandbox::new(Fs::Btrfs) else { return };
    File::create(s.path("a.img")).expect("a file");
    must("chattr", &[&"+C", &s.path("a.img")]);
    support::writer(&s.path("a.img")).write_all_at(&Random::new(1).bytes(MIB as usize), 0).expect("written");
    check_job(&s, "a.img");
    let flags = must("lsattr", &[&s.path("a.img.snap")]);
    assert!(flags.split(' ').next().is_some_and(|f| f.contains('C')), "{flags}");
}

#[test]
fn an_image_without_checksums_clones_into_a_nocow_directory_and_out_of_it() {
    let Some(s) = Sandbox::new(Fs::Btrfs) else { return };
    fs::create_dir(s.path("nocow")).expect("a directory");
    must("chattr", &[&"+C", &s.path("nocow")]);
    noise(&s.path("plain.img"), MIB);
    s.exits(0, &["snapshot", "-q", "plain.img", "nocow/plain.snap"]);
    assert_same(&s.path("plain.img"), &s.path("nocow/plain.snap"));
    noise(&s.path("nocow/inherited.img"), MIB);
    s.exits(0, &["snapshot", "-q", "nocow/inherited.img", "out.snap"]);
    assert_same(&s.path("nocow/inherited.img"), &s.path("out.snap"));
}

#[test]
fn owner_and_mode_are_the_images_without_write_permission_unless_writable() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        std::os::unix::fs::chown(s.path("a.img"), Some(1234), Some(5678)).expect("root");
        for (mode, flag, expect) in [(0o660, "-q", 0o440), (0o640, "--writable", 0o640), (0o777, "-q", 0o555)] {
            fs::set_permissions(s.path("a.img"), fs::Permissions::from_mode(mode)).expect("its owner");
            s.exits(0, &["snapshot", "--force", flag, "a.img", "a.snap"]);
            let m = fs::metadata(s.path("a.snap")).expect("the snapshot");
            assert_eq!((m.uid(), m.gid(), m.mode() & 0o7777), (1234, 5678, expect), "{:?} {mode:o} {flag}", s.fs);
        }
    });
}

#[test]
fn a_snapshot_carries_its_record_and_status_tells_finished_copy_and_modified() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        let finished = snapshot(s, "a.img", "a.snap");
        let record = xattr::get(s.path("a.snap"), "user.reflink-img").expect("xattr").expect("a record");
        let record: Value = serde_json::from_slice(&record).expect("JSON");
        let snap = fs::metadata(s.path("a.snap")).expect("the snapshot");
        assert_eq!(
            (&record["v"], &record["state"], &record["hold"]),
            (&1.into(), &"finished".into(), &"frozen".into())
        );
        assert_eq!((&record["job"], &record["t0"]), (&finished["job"], &finished["t0"]));
        assert_eq!((&record["ino"], &record["size"]), (&snap.ino().into(), &snap.len().into()));
        assert_eq!(record["image"]["ino"], fs::metadata(s.path("a.img")).expect("the image").ino());
        let mtime = i128::from(snap.mtime()) * 1_000_000_000 + i128::from(snap.mtime_nsec());
        assert_eq!(record["mtime_ns"], mtime.to_string());
        let state = |code: i32, name: &str| {
            let events = s.exits(code, &["status", "--json", name]);
            events[0]["state"].as_str().expect("a state").to_owned()
        };
        assert_eq!(state(0, "a.snap"), "finished");
        must("cp", &[&"-a", &s.path("a.snap"), &s.path("copied")]);
        assert_eq!(state(6, "copied"), "copy");
        support::writer(&s.path("a.snap")).write_all_at(b"x", 100).expect("root may");
        assert_eq!(state(6, "a.snap"), "modified");
        assert_eq!(state(6, "a.img"), "not-ours");
        let out = s.run(&["resume", "a.img"]);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(stderr.contains("not a snapshot of rclone-img") && !stderr.contains("--refresh"), "{stderr}");
        s.exits(3, &["status", "nothing.snap"]);
    });
}

#[test]
fn names_may_have_spaces_newlines_and_any_bytes_and_links_to_the_image_are_followed() {
    on_both(|s| {
        noise(&s.path("real.img"), MIB);
        symlink("real.img", s.path("link.img")).expect("a link");
        check_job(s, "link.img");
        assert!(fs::symlink_metadata(s.path("link.img.snap")).expect("the snapshot").is_file());
        for (i, name) in [&b"my vm"[..], b"two\nlines", b"not \xff\xfe utf-8", b"-dash", b"'quoted' \"$HOME\" `x`"]
            .iter()
            .enumerate()
        {
            let image = OsString::from_vec(name.to_vec());
            let snap = OsString::from_vec([name, &b".snap"[..]].concat());
            noise(&s.path(&image), BLOCK + i as u64);
            let args: [&OsStr; 5] = ["snapshot".as_ref(), "--json".as_ref(), "--".as_ref(), &image, &snap];
            let events = s.exits(0, &args);
            assert_same(&s.path(&image), &s.path(&snap));
            assert_eq!(events.last().expect("an end")["dst_bytes"].is_string(), snap.to_str().is_none(), "{name:?}");
            s.exits(0, &["status".as_ref(), "--".as_ref(), snap.as_os_str()]);
        }
    });
}

#[test]
fn json_tells_started_progress_and_last_always_finished_or_failed() {
    on_both(|s| {
        fragmented(&s.path("a.img"), 2000);
        let events = s.exits(0, &["snapshot", "--json", "a.img", "a.snap"]);
        let names: Vec<&str> = events.iter().filter_map(|e| e["event"].as_str()).collect();
        assert_eq!((names.first(), names.last()), (Some(&"started"), Some(&"finished")), "{names:?}");
        assert!(names.contains(&"progress"), "{names:?}");
        let (started, finished) = (&events[0], events.last().expect("an end"));
        for event in &events {
            assert_eq!((&event["v"], &event["job"]), (&1.into(), &started["job"]), "{event}");
        }
        let both = ["src", "dst", "t0", "hold", "point_in_time", "new_t0", "bytes", "extents"];
        for field in both {
            // Where the plan needed no walk nobody has counted the extents.
            assert!(started.get(field).is_some_and(|v| !v.is_null() || field == "extents"), "{field} of {started}");
            assert!(finished.get(field).is_some_and(|v| !v.is_null() || field == "extents"), "{field} of {finished}");
        }
        let end = [
            "calls",
            "longest_call_ms",
            "longest_guest_wait_ms",
            "promoted",
            "skipped_bytes",
            "copied_bytes",
            "window_ms",
            "elapsed_ms",
        ];
        for field in end {
            assert!(finished[field].is_number(), "{field} of {finished}");
        }
        let count = fiemap(s.path("a.img")).expect("FIEMAP").count() as u64;
        assert!(finished["extents"].as_u64().is_none_or(|n| n == count), "{count} extents, {finished}");
        assert_eq!(finished["bytes"], 2000 * 2 * BLOCK, "{finished}");
        assert_eq!((&finished["new_t0"], &finished["point_in_time"]), (&false.into(), &true.into()));
        assert!(started["t0"].as_str().is_some_and(|t| t.ends_with('Z')), "{started}");
        let failed = s.exits(3, &["snapshot", "--json", "a.img", "a.snap"]);
        let failed = failed.last().expect("an end");
        assert_eq!((&failed["event"], &failed["exit"]), (&"failed".into(), &3.into()));
        assert!(failed["error"].as_str().is_some_and(|e| e.contains("exists")), "{failed}");
        assert!(failed["hint"].as_str().is_some_and(|h| h.contains("--force")), "{failed}");
    });
}

#[test]
fn a_qcow2_image_is_told_of_once_and_taken_all_the_same() {
    on_both(|s| {
        fs::write(s.path("a.qcow2"), [&b"QFI\xfb"[..], &Random::new(3).bytes(MIB as usize)].concat()).expect("written");
        let told = |args: &[&str]| {
            let out = s.run(args);
            let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
            assert_eq!(out.status.code(), Some(0), "{args:?}: {stderr}");
            stderr.matches("warning: a.qcow2 is a qcow2 image").count()
        };
        let asked = ["map", "check"].map(|verb| told(&[verb, "a.qcow2"]));
        assert_eq!((asked, told(&["snapshot", "--dry-run", "a.qcow2", "a.snap"])), ([1, 1], 1));
        assert_eq!(told(&["snapshot", "a.qcow2", "a.snap"]), 1);
        assert_eq!(told(&["snapshot", "-q", "--refresh", "a.qcow2", "a.snap"]), 0, "quiet");
        assert_same(&s.path("a.qcow2"), &s.path("a.snap"));
        let events = s.exits(0, &["snapshot", "--json", "a.qcow2", "b.snap"]);
        let warnings = events.iter().filter(|e| e["event"] == "warning").count();
        assert_eq!(warnings, 1, "{events:?}");
    });
}

#[test]
fn metrics_are_written_by_every_job_and_keep_the_last_success() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        let value = |name: &str| {
            let text = fs::read_to_string(s.path("m.prom")).expect("metrics");
            let line = text.lines().find(|l| {
                l.starts_with(&format!("reflink_img_{name}{{")) || l.starts_with(&format!("reflink_img_{name} "))
            });
            line.map(|l| l.rsplit(' ').next().expect("a value").to_owned())
        };
        s.exits(0, &["snapshot", "-q", "--metrics", "m.prom", "a.img", "a.snap"]);
        let success = value("last_success_timestamp_seconds");
        assert!(success.is_some());
        s.exits(3, &["snapshot", "-q", "--metrics", "m.prom", "a.img", "a.snap"]);
        assert_eq!(value("last_success_timestamp_seconds"), success, "kept when a run fails");
        let text = fs::read_to_string(s.path("m.prom")).expect("metrics");
        assert!(text.lines().all(|l| l.starts_with('#') || l.starts_with("reflink_img_")), "{text}");
        fs::write(s.path("mine"), "not metrics\n").expect("written");
        let before = s.listing();
        s.exits(3, &["snapshot", "-q", "--metrics", "mine", "a.img", "b.snap"]);
        assert_eq!(s.listing(), before);
        assert_eq!(fs::read_to_string(s.path("mine")).expect("still there"), "not metrics\n");
    });
}

#[test]
fn a_dry_run_touches_nothing_and_says_what_would_be_done() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        let before = s.listing();
        let said = s.exits(0, &["snapshot", "--dry-run", "--json", "a.img", "a.snap"]);
        assert_eq!((said.len(), &said[0]["hold"]), (1, &"frozen".into()), "{said:?}");
        assert_eq!(s.listing(), before);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let before = s.listing();
        s.exits(3, &["snapshot", "--dry-run", "a.img", "a.snap"]);
        s.exits(0, &["snapshot", "--dry-run", "--refresh", "a.img", "a.snap"]);
        s.exits(0, &["snapshot", "--dry-run", "--force", "a.img", "a.snap"]);
        assert_eq!(s.listing(), before);
        assert_eq!(s.exits(0, &["status", "--json", "a.snap"])[0]["state"], "finished");
    });
}

#[test]
fn check_says_whether_a_snapshot_now_would_be_of_one_instant() {
    on_both(|s| {
        fragmented(&s.path("a.img"), 3000);
        noise(&s.path("few.img"), MIB);
        let yes = s.exits(0, &["check", "--json", "a.img"]);
        assert_eq!((&yes[0]["point_in_time"], &yes[0]["hold"]), (&true.into(), &"frozen".into()));
        let writers = (support::writer(&s.path("a.img")), support::writer(&s.path("few.img")));
        let no = s.exits(3, &["check", "--json", "a.img"]);
        assert_eq!((&no[0]["point_in_time"], &no[0]["hold"]), (&false.into(), &Value::Null));
        // Few extents fit one call, which is of one instant whoever writes.
        assert_eq!(s.exits(0, &["check", "--json", "few.img"])[0]["hold"], "atomic");
        s.exits(3, &["check", "missing.img"]);
        // A job has it. Looking does not: a job that begins meanwhile must not be sent away.
        noise(&s.path("busy.img"), MIB);
        for begun in [&["snapshot", "busy.img", "busy.snap"][..], &["rotate", "busy.img=%s.snap", "--keep-last", "1"]] {
            let job = s.start_with_fault("held:1", begun);
            assert!(support::until(|| s.path("held").exists()));
            let busy = s.exits(3, &["check", "--json", "busy.img"]);
            assert!(
                busy[0]["hold"].is_null() && busy[0]["obstacles"][0]["what"].to_string().contains("another job"),
                "{busy:?}"
            );
            fs::remove_file(s.path("held")).expect("gone");
            assert_eq!(job.end().code, Some(0), "{:?} {begun:?}", s.fs);
        }
        // An image of the same number on another file system is another one.
        let other = Sandbox::new(s.fs).expect("another");
        noise(&other.path("a.img"), MIB);
        assert_eq!(
            fs::metadata(other.path("a.img")).expect("it").ino(),
            fs::metadata(s.path("a.img")).expect("it").ino()
        );
        let job = other.start_with_fault("held:1", &["snapshot", "a.img", "a.snap"]);
        assert!(support::until(|| other.path("held").exists()));
        drop(writers);
        s.exits(0, &["check", "--json", "a.img"]);
        job.kill();
    });
    // A directory where nothing can be cloned to.
    let elsewhere = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let image = elsewhere.path().join("a.img");
    noise(&image, MIB);
    let out =
        assert_cmd::Command::new(support::PROGRAM).args(["check", "--json"]).arg(&image).output().expect("it runs");
    assert_eq!(out.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&out.stdout).contains("no reflinks"), "{out:?}");
}

/// The two may be exchanged by whoever types them; what is no snapshot is not replaced by one of a snapshot.
#[test]
fn a_snapshot_in_the_images_place_is_refused() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        let was = fs::read(s.path("a.img")).expect("the image");
        for flags in [&[][..], &["--force"], &["--dry-run", "--force"]] {
            refused(s, "the image comes first", &[&["snapshot"], flags, &["a.snap", "a.img"]].concat());
        }
        assert!(fs::read(s.path("a.img")).expect("the image") == was);
    });
}

/// An image that began as a copy of a snapshot, with all attributes, has that one's record: it is an image all the same.
#[test]
fn a_snapshot_in_the_place_of_an_image_that_was_a_copy_is_refused() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "old.snap"]);
        support::must("cp", &[&"-a", &s.path("old.snap"), &s.path("vm.img")]);
        for write in [false, true] {
            if write {
                support::must("chmod", &[&"u+w", &s.path("vm.img")]);
                support::writer(&s.path("vm.img")).write_all_at(b"the guest's", 0).expect("written");
            }
            s.exits(0, &["snapshot", "-q", "vm.img", "vm.snap"]);
            refused(s, "the image comes first", &["snapshot", "--force", "vm.snap", "vm.img"]);
            fs::remove_file(s.path("vm.snap")).expect("removed");
        }
        // Cloned within the file system, a finished one that is written to is no snapshot any more either.
        s.exits(0, &["snapshot", "-q", "--writable", "a.img", "b.img"]);
        support::writer(&s.path("b.img")).write_all_at(b"the guest's", 0).expect("written");
        s.exits(0, &["snapshot", "-q", "b.img", "b.snap"]);
        refused(s, "the image comes first", &["snapshot", "--force", "b.snap", "b.img"]);
    });
}

#[test]
fn a_link_to_a_snapshot_in_the_images_place_is_refused() {
    on_both(|s| {
        noise(&s.path("a.img"), MIB);
        s.exits(0, &["snapshot", "-q", "a.img", "a.snap"]);
        symlink("a.snap", s.path("latest.snap")).expect("a link");
        for flags in [&[][..], &["--force"]] {
            refused(s, "the image comes first", &[&["snapshot"], flags, &["latest.snap", "a.img"]].concat());
        }
    });
}

#[test]
fn map_counts_what_the_kernel_shows() {
    on_both(|s| {
        fragmented(&s.path("a.img"), 777);
        noise(&s.path("dense.img"), MIB + 1);
        sparse(&s.path("hole.img"), MIB, &[]);
        s.exits(0, &["snapshot", "-q", "dense.img", "dense.snap"]);
        for (name, shared) in [("a.img", false), ("dense.img", true), ("hole.img", false)] {
            let map = s.exits(0, &["map", "--json", name]).remove(0);
            let count = fiemap(s.path(name)).expect("FIEMAP").count();
            assert_eq!(map["extents"], count as u64, "{:?} {map}", s.fs);
            assert_eq!(map["size"], fs::metadata(s.path(name)).expect("metadata").len(), "{map}");
            assert_eq!(map["shared_bytes"].as_u64().is_some_and(|b| b > 0), shared, "{map}");
            assert!(map["holes"].is_u64() && map["data_bytes"].is_u64() && map["histogram"].is_array(), "{map}");
        }
        s.exits(3, &["map", "missing.img"]);
        s.exits(3, &["map", "."]);
    });
}
