//! Fleeces: points in time of a served image of which only what the guest overwrites is kept, read over NBD while it does.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;

use crate::support;
use crate::support::fleeces::{EXPORT, elsewhere, end, end_lost, files, have, listed, looks, mark, start};
use crate::support::serving::{SERVED, clients, copied, image, map, serve, socket, stop, uri};
use crate::support::{
    ANY_TIME, Disk, Fs, Job, QemuIo, Random, Sandbox, Writers, assert_one_instant, assert_same, difference, must,
    on_both, refused, runs, until,
};
use nix::sys::signal::Signal;

/// What a program for nbdsh says, with `h` connected to an export.
fn nbdsh(s: &Sandbox, export: &str, contexts: &[&str], program: &str) -> String {
    let contexts = contexts.iter().flat_map(|it| ["-c".to_owned(), format!("h.add_meta_context('{it}')")]);
    let connect =
        ["-c".to_owned(), format!("h.connect_uri('{}')", uri(s, export)), "-c".to_owned(), program.to_owned()];
    let args: Vec<String> = contexts.chain(connect).collect();
    // The distribution's own interpreter has the distribution's module, whatever else is called python3.
    let ran = Command::new("/usr/bin/python3").args(["-m", "nbd"]).args(&args).output().expect("nbdsh");
    assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).trim().to_owned()
}

/// Of one instant, whoever reads it and how often; by clones, by copies through memory, and with all of it on the disk first.
#[test]
fn what_is_read_is_of_one_instant() {
    if !have() {
        return;
    }
    let random = Random::seeded("what_is_read_is_of_one_instant");
    on_both(|s| {
        let side = elsewhere(s);
        let ways: [&[&str]; 4] = [
            &[],
            &["--sidecar", &side, "--ram", "128K"],
            &["--durable", "--cluster", "4K"],
            &["--durable", "--sidecar", &side],
        ];
        for (nth, flags) in ways.iter().enumerate() {
            for _ in 0..runs(1, 10) {
                let image = image(s, random.next());
                let server = serve(s, if nth % 2 == 0 { "none" } else { "writeback" });
                let writers = Writers::start(s, &image, random.next(), clients(s, 3));
                start(s, &[*flags, &["--guest-deadline", "10s"]].concat());
                let first = copied(s, EXPORT, "first").expect("a copy");
                writers.goes_on(100);
                let second = copied(s, EXPORT, "second").expect("a copy");
                let state = listed(s);
                println!("{:?} {flags:?}: {state}", s.fs);
                assert!(state["lost"].is_null() && state["waited"].as_u64() > Some(0), "{state}");
                let copies = flags.contains(&"--sidecar");
                assert_eq!(state["copied_bytes"].as_u64() > Some(0), copies, "{state}");
                end(s);
                writers.goes_on(20);
                writers.stop();
                stop(server);
                assert_same(&first, &second);
                let verdict = assert_one_instant(&[&first], &s.outside("log"), ANY_TIME);
                assert!(verdict.good);
                assert_one_instant(&[&image], &s.outside("log"), ANY_TIME);
            }
        }
    });
}

/// With a base: what has not changed since may not be read; what was read may be let go.
#[test]
fn of_what_has_not_changed_nothing_is_kept_and_nothing_is_read() {
    if !have() {
        return;
    }
    on_both(|s| {
        image(s, 7);
        let server = serve(s, "writeback");
        let mut guest = QemuIo::nbd(&socket(s));
        s.exits(0, &["snapshot", "--json", "a.img", "base.snap"]);
        assert!(guest.does("write -P 9 1M 128k") && guest.does("flush"));
        start(s, &["--base", "base.snap", "--guest-deadline", "30s"]);
        assert!(guest.does("write -P 8 0 2M"));
        assert_eq!(listed(s)["waited"], 1, "{:?}", s.fs);
        // Read, and refused with the reason.
        let read = "print(h.pread(131072, 1048576) == b'\\x09' * 131072)\ntry:\n h.pread(65536, 0)\nexcept nbd.Error as e:\n print(e.errno)";
        assert_eq!(nbdsh(s, EXPORT, &[], read), "True\nEPERM", "{:?}", s.fs);
        // Block status stops short before it, fails within it, and the context of the changes never fails.
        let context = "qemu:dirty-bitmap:base.snap";
        let status = |context: &str, from: u64, length: u64| {
            let show = format!(
                "def f(c, o, e, err):\n print(o, e)\ntry:\n h.block_status({length}, {from}, f)\nexcept nbd.Error as e:\n print(e.errno)"
            );
            nbdsh(s, EXPORT, &[context], &show)
        };
        assert_eq!(status("base:allocation", 1 << 20, 1 << 20), "1048576 [131072, 0]", "{:?}", s.fs);
        assert_eq!(status("base:allocation", 0, 1 << 20), "EPERM", "{:?}", s.fs);
        let rest = SERVED - (1 << 20) - 131_072;
        assert_eq!(status(context, 0, SERVED), format!("0 [1048576, 0, 131072, 1, {rest}, 0]"), "{:?}", s.fs);
        let one = format!("h.block_status({SERVED}, 0, lambda c, o, e, err: print(o, e), nbd.CMD_FLAG_REQ_ONE)");
        assert_eq!(nbdsh(s, EXPORT, &[context], &one), "0 [1048576, 0]", "{:?}", s.fs);
        assert_eq!(map(s, EXPORT, context), [(0, 1 << 20, 0), (1 << 20, 131_072, 1), ((1 << 20) + 131_072, rest, 0)]);
        // Let go: denied from then on, and not kept any more. Only whole clusters are, and nobody writes there.
        let before = listed(s)["kept_bytes"].as_u64();
        let trim = "h.trim(65536 + 100, 1048576)\ntry:\n h.pread(512, 1048576)\nexcept nbd.Error as e:\n print(e.errno)\nprint(h.pread(1, 1048576 + 65536 + 100))\ntry:\n h.pwrite(b'x', 1048576)\nexcept nbd.Error as e:\n print(e.errno)";
        assert_eq!(nbdsh(s, EXPORT, &[], trim), "EPERM\nbytearray(b'\\t')\nEPERM", "{:?}", s.fs);
        assert!(until(|| listed(s)["kept_bytes"].as_u64() < before), "{:?}", s.fs);
        assert_eq!(map(s, EXPORT, context).len(), 3, "what has changed has changed");
        let zero = "h.zero(65536, 4194304, nbd.CMD_FLAG_FAST_ZERO)\nprint(h.pread(65536, 4194304) == bytes(65536))";
        assert_eq!(nbdsh(s, "", &[], zero), "True", "{:?}", s.fs);
        end(s);
        stop(server);
    });
}

/// Nothing more is kept of what was let go before it was overwritten.
#[test]
fn who_lets_go_early_costs_the_guest_nothing() {
    if !have() {
        return;
    }
    on_both(|s| {
        image(s, 7);
        let server = serve(s, "none");
        let mut guest = QemuIo::nbd(&socket(s));
        start(s, &[]);
        nbdsh(s, EXPORT, &[], &format!("h.trim({SERVED}, 0)"));
        assert!(guest.does("write -P 8 0 2M"));
        assert_eq!((&listed(s)["waited"], &listed(s)["kept_bytes"]), (&0.into(), &0.into()), "{:?}", s.fs);
        end(s);
        stop(server);
    });
}

/// What cannot be kept costs the fleece, or the guest's write, as was asked for.
#[test]
fn a_full_sidecar_costs_the_fleece_or_the_write() {
    if !have() {
        return;
    }
    on_both(|s| {
        image(s, 7);
        let server = serve(s, "writeback");
        let mut guest = QemuIo::nbd(&socket(s));
        start(s, &["--max-sidecar", "256K"]);
        let mut reader = QemuIo::nbd_export(&socket(s), EXPORT);
        assert!(guest.does("write -P 8 0 128k") && reader.does("read 0 1M"));
        assert!(guest.does("write -P 8 1M 1M"), "the guest's write goes on");
        assert!(!reader.does("read 0 4k"), "{:?}: nobody reads what is lost", s.fs);
        let lost = listed(s)["lost"].as_str().expect("a reason").to_owned();
        assert!(lost.contains("--max-sidecar"), "{lost}");
        drop(reader);
        assert!(copied(s, EXPORT, "copy").is_err());
        // What nobody can read any more keeps no block from the guest.
        let blocks = || fs::metadata(s.path("a.img.f.fleece-data")).expect("its data").blocks();
        assert!(until(|| blocks() == 0), "{:?}: {} blocks", s.fs, blocks());
        end_lost(s);
        let terms = ["--max-sidecar", "256K", "--on-cbw-error", "break-guest-write", "--guest-deadline", "30s"];
        start(s, &terms);
        let before = copied(s, EXPORT, "before").expect("a copy");
        assert!(guest.does("write -P 7 4M 128k"));
        let error = "try:\n h.pwrite(bytearray(1 << 20), 1 << 20)\nexcept nbd.Error as e:\n print(e.errno)";
        assert_eq!(nbdsh(s, "", &[], error), "ENOSPC", "{:?}", s.fs);
        assert!(!guest.does("write -P 6 1M 1M") && guest.does("write -P 6 4M 64k"), "what is kept can be written");
        assert_same(&before, &copied(s, EXPORT, "after").expect("it is whole"));
        end(s);
        assert!(guest.does("write -P 6 1M 1M"));
        stop(server);
    });
}

/// Writers on an image whose server this happens to while it has a fleece, and what becomes of that. The guest gets no error.
fn meanwhile(s: &Sandbox, seed: u64, flags: &[&str], then: impl Fn(&Writers, Job) -> Job) -> serde_json::Value {
    let image = image(s, seed);
    let server = serve(s, "none");
    let writers = Writers::start(s, &image, seed, clients(s, 3));
    // A slow disk is not what is tested here.
    start(s, &[flags, &["--guest-deadline", "30s"]].concat());
    let first = copied(s, EXPORT, "first").expect("a copy");
    writers.goes_on(50);
    let server = then(&writers, server);
    writers.goes_on(50);
    let state = listed(s);
    assert!(state["lost"].is_null(), "{:?} {flags:?}: {state}", s.fs);
    let second = copied(s, EXPORT, "second").expect("a copy");
    assert_eq!(difference(&first, &second), None, "{:?} {flags:?}", s.fs);
    writers.stop();
    end(s);
    stop(server);
    assert_one_instant(&[&first], &s.outside("log"), ANY_TIME);
    assert_one_instant(&[&image], &s.outside("log"), ANY_TIME);
    state
}

#[test]
fn a_server_that_is_killed_or_stopped_is_followed_by_one_that_takes_it_up() {
    if !have() {
        return;
    }
    let random = Random::seeded("taken up");
    on_both(|s| {
        let side = elsewhere(s);
        for flags in [&[][..], &["--durable", "--sidecar", &side]] {
            meanwhile(s, random.next(), flags, |writers, server| {
                looks(s);
                server.kill();
                let server = serve(s, "writeback");
                writers.goes_on(20);
                looks(s);
                server.kill();
                serve(s, "none")
            });
        }
        // What is in memory is written by one that is told to stop.
        for flags in [&[][..], &["--sidecar", &side]] {
            meanwhile(s, random.next(), flags, |_, server| {
                stop(server);
                serve(s, "none")
            });
        }
    });
}

/// What was only in memory is lost with the server, and known to be; so is what somebody has written without one.
#[test]
fn what_is_not_whole_is_not_taken_up() {
    if !have() {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        let server = serve(s, "writeback");
        start(s, &[]);
        let mut guest = QemuIo::nbd(&socket(s));
        assert!(guest.does("write -P 8 0 128k"));
        drop(guest);
        refused_elsewhere(s);
        server.kill();
        assert!(mark(s).exists(), "{:?}", s.fs);
        // Somebody writes without a server, some time later.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        fs::File::options().write(true).open(&image).and_then(|it| it.write_all_at(b"x", 0)).expect("written");
        let server = serve(s, "none");
        assert!(copied(s, EXPORT, "copy").is_err());
        // It has its name until somebody ends it, and whoever asks is told.
        assert_eq!(s.exits(6, &["fleece", "list", "a.img", "--json"])[0]["name"], "f");
        let again = s.run(&["fleece", "start", "a.img", "--name", "f"]);
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(again.status.code() == Some(3) && said.contains("rclone-img abort"), "{said}");
        let ended = {
            server.signal(Signal::SIGTERM);
            server.end()
        };
        assert!(ended.stderr.contains("while no server had it"), "{}", ended.stderr);
        // It is found, and removed.
        let status = s.run(&["status", "--json"]);
        let said = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(status.status.code() == Some(6) && said.contains("fleece-orphaned"), "{said}");
        assert_eq!(files(s).len(), 2);
        let mark = mark(s);
        s.exits(0, &["abort", "--json", "a.img.f.fleece"]);
        assert_eq!((files(s), mark.exists()), (Vec::<PathBuf>::new(), false));
    });
}

/// A server that was told to stop has said when the image was changed last: whoever changes it in the next moment is found.
#[test]
fn nobody_writes_unseen_after_a_server_that_was_stopped() {
    if !have() {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        let server = serve(s, "writeback");
        start(s, &[]);
        stop(server);
        fs::File::options().write(true).open(&image).and_then(|it| it.write_all_at(b"x", 0)).expect("written");
        let server = serve(s, "writeback");
        assert!(copied(s, EXPORT, "copy").is_err(), "{:?}", s.fs);
        let said = s.exits(6, &["fleece", "stop", "a.img", "--name", "f", "--json"]);
        assert!(said[0]["lost"].as_str().expect("why").contains("while no server had it"), "{said:?}");
        assert_eq!((s.exits(0, &["fleece", "list", "a.img", "--json"]).len(), files(s)), (0, vec![]));
        start(s, &[]);
        s.exits(0, &["fleece", "stop", "a.img", "--name", "f", "--json"]);
        stop(server);
    });
}

/// Nobody begins one of what is served read-only; what an earlier server has left can be read, and ended.
#[test]
fn what_a_server_that_does_not_write_takes_up_can_be_ended() {
    if !have() {
        return;
    }
    let Some(s) = &Sandbox::new(Fs::Xfs) else { return };
    image(s, 7);
    let server = serve(s, "writeback");
    start(s, &["--sidecar", &elsewhere(s)]);
    let first = copied(s, EXPORT, "first").expect("a copy");
    server.kill();
    let mut server = s.start(&["serve", "a.img", "--socket", &socket(s).display().to_string(), "--read-only"]);
    assert!(server.wait_for("started"), "{:?}", server.events);
    assert_same(&first, &copied(s, EXPORT, "second").expect("it is whole"));
    refused(s, "read-only", &["fleece", "start", "a.img", "--name", "g"]);
    end(s);
    stop(server);
}

/// A copy of the map names the data of the original, which is not the copy's to remove.
#[test]
fn a_copy_of_a_fleece_is_none() {
    if !have() {
        return;
    }
    on_both(|s| {
        image(s, 7);
        let server = serve(s, "writeback");
        start(s, &[]);
        let first = copied(s, EXPORT, "first").expect("a copy");
        let mut guest = QemuIo::nbd(&socket(s));
        assert!(guest.does("write -P 8 0 1M"));
        fs::create_dir(s.path("copy")).expect("a directory");
        for name in ["a.img", "a.img.f.fleece", "a.img.f.fleece-data"] {
            must("cp", &[&"-a", &s.path(name), &s.path("copy")]);
        }
        s.exits(0, &["abort", "--json", "copy/a.img.f.fleece"]);
        assert_same(&first, &copied(s, EXPORT, "second").expect("it is whole"));
        fs::remove_dir_all(s.path("copy")).expect("removed");
        end(s);
        stop(server);
    });
}

/// While a server has it, it is not removed under its feet.
fn refused_elsewhere(s: &Sandbox) {
    let out = s.run(&["abort", "a.img.f.fleece"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(5) && said.contains("fleece stop"), "{said}");
    let status = s.run(&["status"]);
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.success() && said.contains("its server has it"), "{said}");
    refused(s, "already", &["fleece", "start", "a.img", "--name", "f"]);
    refused(s, "no fleece", &["fleece", "stop", "a.img", "--name", "g"]);
    refused(s, "no finished snapshot", &["fleece", "start", "a.img", "--name", "g", "--base", "a.img"]);
    refused(s, "a fleece of the name f", &["snapshot", "--consistency", "filter", "a.img", "f"]);
    refused(s, "less than a cluster", &["fleece", "start", "a.img", "--name", "g", "--max-sidecar", "4K"]);
    refused(s, "--min-free", &["fleece", "start", "a.img", "--name", "g", "--min-free", "99%"]);
    assert_eq!(s.run(&["fleece", "start", "a.img", "--name", "../g"]).status.code(), Some(2));
}

/// A snapshot by a job beside a fleece, and a fleece that somebody else's writes cost.
#[test]
fn a_fleece_and_a_job_keep_the_same_guest_waiting() {
    if !have() {
        return;
    }
    let random = Random::seeded("beside a job");
    on_both(|s| {
        let image = image(s, random.next());
        let server = serve(s, "none");
        let writers = Writers::start(s, &image, random.next(), clients(s, 3));
        start(s, &["--guest-deadline", "30s"]);
        let first = copied(s, EXPORT, "first").expect("a copy");
        s.exits(0, &["snapshot", "--json", "--latency", "1ms", "--guest-deadline", "30s", "a.img", "a.snap"]);
        writers.goes_on(20);
        assert_same(&first, &copied(s, EXPORT, "second").expect("a copy"));
        writers.stop();
        assert_one_instant(&[&first], &s.outside("log"), ANY_TIME);
        assert_one_instant(&[&s.path("a.snap")], &s.outside("log"), ANY_TIME);
        drop(fs::File::options().write(true).open(&image).expect("the image"));
        assert!(until(|| listed(s)["lost"].as_str().is_some_and(|why| why.contains("past its server"))));
        end_lost(s);
        let other = support::Other::opens("<>", &image);
        refused(s, "past its server", &["fleece", "start", "a.img", "--name", "g"]);
        drop(other);
        must("true", &[]);
        stop(server);
    });
}
