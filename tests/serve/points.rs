//! Points in time that clients read over NBD, while they are made and afterwards, and what has changed since an earlier one.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::support;
use crate::support::serving::{LASTS_LONG, SERVED, clients, copied, image, map, serve, socket, stop, uri};
use crate::support::{Disk, Job, QemuIo, Random, Sandbox, Writers, assert_same, must, on_both, there, until};
use nix::sys::signal::Signal;

fn have() -> bool {
    ["qemu-io", "nbdcopy", "nbdinfo"].iter().all(|tool| there(tool))
}

/// Starts a job that lasts, and waits for its T0.
fn job(s: &Sandbox, flags: &[&str]) -> Job {
    let mut job = s.start(&[&["snapshot", "--consistency", "filter"], &LASTS_LONG[..], flags].concat());
    assert!(job.wait_for("started"), "{:?}", job.events);
    job
}

/// Everybody reads the same, whenever he reads.
#[test]
fn what_is_read_while_it_is_made_is_what_it_will_be() {
    if !have() {
        return;
    }
    let random = Random::seeded("what_is_read_while_it_is_made_is_what_it_will_be");
    on_both(|s| {
        for cache in ["writeback", "none"] {
            let image = image(s, random.next());
            let server = serve(s, cache);
            let writers = Writers::start(s, &image, random.next(), clients(s, 3));
            let mut copies = Vec::new();
            for flags in [&["a.img", "a.snap"][..], &["--refresh", "a.img", "a.snap"]] {
                let job = job(s, flags);
                while !job.has_ended() {
                    copies.push(copied(s, "snapshot/a.snap", &format!("copy-{}", copies.len())).expect("a copy"));
                }
                let ended = job.end();
                assert_eq!(ended.code, Some(0), "{:?}: {}", s.fs, ended.stderr);
                copies.push(copied(s, "snapshot/a.snap", "copy-last").expect("a copy of what is finished"));
                assert!(copies.len() > 1, "no reading of it began before its end");
                copies.drain(..).for_each(|copy| assert_same(&copy, &s.path("a.snap")));
            }
            writers.stop();
            stop(server);
            fs::remove_file(s.path("a.snap")).expect("the snapshot");
        }
    });
}

/// Of a client that reads more than it has to.
#[test]
fn a_snapshot_tells_where_it_has_data_and_what_has_changed() {
    if !have() {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        fs::File::options().write(true).open(&image).and_then(|it| it.set_len(2 * SERVED)).expect("a hole behind it");
        let server = serve(s, "writeback");
        let mut client = QemuIo::nbd(&socket(s));
        s.exits(0, &["snapshot", "--json", "a.img", "old.snap"]);
        // A block in the middle of others, a hole in the data, and data in the hole.
        let changed = [(1 << 20, 4096_u64), (2 << 20, 65536), (SERVED + (1 << 20), 8192)];
        assert!(client.does("write -P 9 1M 4k") && client.does("discard 2M 64k"));
        assert!(client.does(&format!("write -P 9 {} 8k", changed[2].0)) && client.does("flush"));
        let job = job(s, &["a.img", "new.snap"]);
        let context = "qemu:dirty-bitmap:old.snap";
        let meanwhile = map(s, "snapshot/new.snap", context);
        assert_eq!(job.end().code, Some(0));
        // Later writes are of no concern.
        assert!(client.does("write -P 8 3M 1M"));
        for dirty in [meanwhile, map(s, "snapshot/new.snap", context)] {
            let dirty: Vec<_> = dirty.into_iter().filter(|(.., flags)| *flags == 1).collect();
            for (start, length) in changed {
                let covered = dirty.iter().any(|(at, len, _)| *at <= start && start + length <= at + len);
                assert!(covered, "{:?}: {start} is not in {dirty:?}", s.fs);
            }
            // A hole proves nothing, and data that is where it was does.
            let in_data: u64 = dirty.iter().filter(|(at, ..)| *at < SERVED).map(|(_, len, _)| len).sum();
            assert_eq!(in_data, 4096 + 65536, "{:?}: {dirty:?}", s.fs);
            // Old and what has changed is new.
            let patched = s.outside("patched");
            fs::copy(s.path("old.snap"), &patched).expect("a copy");
            let new = fs::read(s.path("new.snap")).expect("the snapshot");
            must("chmod", &[&"u+w", &patched]);
            let to = fs::File::options().write(true).open(&patched).expect("the copy");
            for (at, len, _) in dirty {
                to.write_all_at(&new[at as usize..(at + len) as usize], at).expect("written");
            }
            assert_same(&patched, &s.path("new.snap"));
            fs::remove_file(patched).expect("the copy");
        }
        let ours = map(s, "snapshot/new.snap", "base:allocation");
        assert_eq!(ours.iter().map(|(_, len, _)| len).sum::<u64>(), 2 * SERVED);
        assert!(ours.contains(&(2 << 20, 65536, 3)) && ours.last().is_some_and(|last| last.2 == 3), "{ours:?}");
        // Those that are older can be asked of, and no others.
        let list = must("nbdinfo", &[&"--list", &uri(s, "")]);
        assert!(list.contains("snapshot/old.snap") && list.contains(context), "{list}");
        assert!(!list.contains("qemu:dirty-bitmap:new.snap"), "{list}");
        let mut reader = QemuIo::nbd_export(&socket(s), "snapshot/new.snap");
        assert!(reader.does("read -P 9 1M 4k") && !reader.does("write 0 4k"));
        drop((client, reader));
        stop(server);
        // A new server finds them as well.
        let server = serve(s, "none");
        assert_same(&copied(s, "snapshot/new.snap", "copy").expect("a copy"), &s.path("new.snap"));
        assert!(map(s, "snapshot/new.snap", context).iter().any(|(.., flags)| *flags == 0));
        stop(server);
    });
}

/// Two connections that ask for the same name get the same instant.
#[test]
fn a_fleece_does_not_take_the_name_of_what_is_being_made() {
    if !have() {
        return;
    }
    on_both(|s| {
        image(s, 7);
        let server = serve(s, "writeback");
        let fleece = ["fleece", "start", "a.img", "--name", "a.snap"];
        let job = job(s, &["a.img", "a.snap"]);
        let out = s.run(&fleece);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            out.status.code() == Some(3) && said.contains("a snapshot that is being made of the name a.snap"),
            "{said}"
        );
        job.signal(Signal::SIGKILL);
        drop(job);
        assert!(until(|| s.run(&fleece).status.success()), "{:?}: the name is free again", s.fs);
        s.exits(0, &["fleece", "stop", "a.img", "--name", "a.snap"]);
        stop(server);
    });
}

#[test]
fn what_is_lost_cannot_be_read() {
    if !have() {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        let server = serve(s, "writeback");
        let writers = Writers::start(s, &image, 7, clients(s, 2));
        let job = job(s, &["a.img", "a.snap"]);
        let mut reader = QemuIo::nbd_export(&socket(s), "snapshot/a.snap");
        assert!(reader.does("read 0 64k"));
        job.signal(Signal::SIGKILL);
        drop(job);
        assert!(until(|| !reader.does("read 0 64k")), "the server knows");
        assert!(copied(s, "snapshot/a.snap", "copy").is_err());
        drop(reader);
        s.exits(0, &["snapshot", "--json", "a.img", "a.snap"]);
        assert_same(&copied(s, "snapshot/a.snap", "copy").expect("a copy"), &s.path("a.snap"));
        writers.stop();
        stop(server);
    });
}

/// All of it is kept, and the job finds at its end that somebody may have written past the server.
#[test]
fn what_the_job_does_not_finish_cannot_be_read() {
    if !have() {
        return;
    }
    on_both(|s| {
        let image = image(s, 7);
        let server = serve(s, "writeback");
        let job = job(s, &["a.img", "a.snap"]);
        let mut reader = QemuIo::nbd_export(&socket(s), "snapshot/a.snap");
        assert!(reader.does("read 0 64k"));
        let other = support::Other::opens("<>", &image);
        assert_eq!(job.end().code, Some(6));
        assert!(until(|| !reader.does("read 0 64k")) && copied(s, "snapshot/a.snap", "copy").is_err());
        drop((other, reader));
        stop(server);
    });
}

/// The server holds a snapshot only while somebody reads it.
#[test]
fn a_snapshot_is_refreshed_unless_somebody_reads_it() {
    if !have() {
        return;
    }
    on_both(|s| {
        image(s, 7);
        let server = serve(s, "writeback");
        s.exits(0, &["snapshot", "--json", "a.img", "a.snap"]);
        let mut reader = QemuIo::nbd_export(&socket(s), "snapshot/a.snap");
        assert!(reader.does("read 0 64k"));
        support::refused(s, "open", &["snapshot", "--refresh", "a.img", "a.snap"]);
        drop(reader);
        let refreshed = until(|| s.run(&["snapshot", "--refresh", "a.img", "a.snap"]).status.success());
        assert!(refreshed, "nobody reads it any more");
        // A modified one is none, and one that is removed is gone.
        must("chmod", &[&"u+w", &s.path("a.snap")]);
        fs::File::options()
            .write(true)
            .open(s.path("a.snap"))
            .and_then(|it| it.write_all_at(b"x", 0))
            .expect("written");
        assert!(copied(s, "snapshot/a.snap", "copy").is_err());
        for name in ["../a.img", "a.img", "", ".", "a.snap/"] {
            assert!(copied(s, &format!("snapshot/{name}"), "copy").is_err(), "{name}");
        }
        stop(server);
    });
}
