//! The kernel facts that the guard hold stands on, each asked of the kernel itself, on real XFS and Btrfs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use crate::support::{BOUND, XfsIo, must, on_both, until};
use rclone_img::sys::fanotify::{Event, Group, Mark, exempt};

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("open")
}

/// The events that an access makes in a group that watches the file, each allowed.
fn events(group: &Group, access: impl FnOnce() -> io::Result<()> + Send + 'static) -> Vec<(i32, Option<(u64, u64)>)> {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(access()));
    let mut seen = Vec::new();
    let mut result = None;
    let over = until(|| {
        while let Some(Event { file, pid, range, asks }) = group.read().expect("read") {
            assert!(asks);
            group.allow(file.as_raw_fd()).expect("allow");
            seen.push((pid, range));
        }
        result = ended.try_recv().ok();
        result.is_some()
    });
    assert!(over, "an access hung for {BOUND:?}");
    result.expect("ended").expect("the access");
    seen
}

fn read_nothing(file: &File) -> impl FnOnce() -> io::Result<()> + Send + 'static {
    let file = file.try_clone().expect("dup");
    move || file.read_at(&mut [], 0).map(drop)
}

#[test]
fn an_ignore_mark_arms_what_is_opened_under_it_and_nothing_else() {
    on_both(|s| {
        let path = s.path("vm.img");
        std::fs::write(&path, vec![1; 1 << 20]).expect("write");
        let before = open(&path);
        let arming = Group::pre_content().expect("a group");
        arming.mark(before.as_fd(), Mark::ArmFile).expect("mark");
        let after = open(&path);
        // Nothing is delivered, and nobody waits.
        after.write_all_at(&[2; 4096], 0).expect("write");
        assert!(arming.read().expect("read").is_none());
        drop(arming);
        let (watch, me) = (Group::pre_content().expect("a group"), std::process::id() as i32);
        watch.mark(before.as_fd(), Mark::PreAccess).expect("mark");
        assert_eq!(events(&watch, read_nothing(&before)), []);
        assert_eq!(events(&watch, read_nothing(&after)), [(me, Some((0, 0)))], "{:?}", s.fs);
        let file = after.try_clone().expect("dup");
        let write = move || file.write_all_at(&[3; 5000], 8192);
        assert_eq!(events(&watch, write), [(me, Some((8192, 8192)))], "{:?}: rounded to pages", s.fs);
        let (nowhere, file) = (i64::MAX as u64 & !0xFFFF, after.try_clone().expect("dup"));
        let past_any_end = move || file.read_at(&mut [], nowhere).and_then(|_| file.write_at(&[], nowhere)).map(drop);
        let told = (me, Some((nowhere, 0)));
        assert_eq!(events(&watch, past_any_end), [told, told], "{:?}", s.fs);
        watch.unmark_all().expect("flush");
        assert_eq!(events(&watch, read_nothing(&after)), []);
    });
}

#[test]
fn a_directory_is_armed_with_the_files_that_it_will_have() {
    on_both(|s| {
        let arming = Group::pre_content().expect("a group");
        arming.mark(File::open(s.dir()).expect("open").as_fd(), Mark::ArmDirectory).expect("mark");
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(s.path("new.img")).expect("create");
        let watch = Group::pre_content().expect("a group");
        watch.mark(file.as_fd(), Mark::PreAccess).expect("mark");
        let opened = events(&watch, read_nothing(&open(&s.path("new.img"))));
        assert_eq!(opened.len(), 1, "{:?}", s.fs);
        eprintln!("{:?}: by its creator's descriptor: {:?}", s.fs, events(&watch, read_nothing(&file)));
    });
}

#[test]
fn the_descriptor_of_an_event_is_exempt_and_clones_without_an_event() {
    on_both(|s| {
        let path = s.path("vm.img");
        std::fs::write(&path, vec![1; 1 << 20]).expect("write");
        let arming = Group::pre_content().expect("a group");
        let first = open(&path);
        arming.mark(first.as_fd(), Mark::ArmFile).expect("mark");
        let ours = File::from(exempt(first.as_fd(), || File::open(&path)).expect("exempt"));
        let watch = Group::pre_content().expect("a group");
        watch.mark(first.as_fd(), Mark::PreAccess).expect("mark");
        assert_eq!(events(&watch, read_nothing(&open(&path))).len(), 1);
        assert_eq!(events(&watch, read_nothing(&ours)), []);
        let to = File::create(s.path("vm.snap")).expect("create");
        let clone = move || {
            let (from, to) = (rclone_img::disk::real::RealFile::from(ours), rclone_img::disk::real::RealFile::from(to));
            use rclone_img::disk::DiskFile;
            let block = from.fs()?.block;
            let whole = rclone_img::range::Geometry { size: 1 << 20, block }.whole().expect("not empty");
            to.clone_range(&from, whole).map(drop)
        };
        assert_eq!(events(&watch, clone), []);
    });
}

/// What somebody maps is told before the mapping exists; that it grows is not told, nor what is written to it.
#[test]
fn a_mapping_is_told_once_and_never_again() {
    on_both(|s| {
        let path = s.path("vm.img");
        std::fs::write(&path, vec![1; 1 << 20]).expect("write");
        let watch = Group::pre_content().expect("a group");
        watch.mark(File::open(&path).expect("open").as_fd(), Mark::PreAccess).expect("mark");
        let program = Arc::new(Mutex::new(XfsIo::open(&path)));
        let told = |commands: &'static [&str]| {
            let program = Arc::clone(&program);
            let access = move || {
                commands.iter().for_each(|command| program.lock().expect("no panic").tell(command));
                Ok(())
            };
            events(&watch, access).into_iter().map(|(_, range)| range).collect::<Vec<_>>()
        };
        assert_eq!(told(&["mmap -rw 65536 8192"]), [Some((65536, 8192))], "{:?}", s.fs);
        assert_eq!(told(&["mremap -m 65536", "mwrite 65536 65536", "msync -s", "munmap"]), [], "{:?}", s.fs);
        // This program's own reading would wait for its own answer.
        watch.unmark_all().expect("flush");
        let changed = std::fs::read(&path).expect("read");
        assert_ne!((changed[65536], changed[131071]), (1, 1), "{:?}: it has grown, and was written", s.fs);
    });
}

/// Of everybody: whoever writes through a mapping keeps the file open. Two events are not read as one.
#[test]
fn that_a_writer_closes_is_told_when_its_last_mapping_is_gone() {
    on_both(|s| {
        let path = s.path("vm.img");
        // Written and closed by others alone: a process that another test starts has for a moment what this one has open, and may be the last to
        // close it.
        must("dd", &[&"if=/dev/zero", &format!("of={}", path.display()), &"bs=1M", &"count=1", &"status=none"]);
        let ours = File::open(&path).and_then(|file| exempt(file.as_fd(), || File::open(&path))).expect("exempt");
        let closings = Group::notification().expect("a group");
        closings.mark(ours.as_fd(), Mark::CloseWrite).expect("mark");
        let told = || std::iter::from_fn(|| closings.read().expect("read")).map(|e| e.pid).collect::<Vec<_>>();
        drop(File::open(&path).expect("open"));
        drop(ours.try_clone().expect("dup"));
        let mut program = XfsIo::open(&path);
        program.tell("mmap -rw 0 65536");
        program.tell("close");
        assert_eq!(told(), [0i32; 0], "{:?}", s.fs);
        program.tell("munmap");
        assert_eq!(told(), [program.pid() as i32], "{:?}", s.fs);
        let (second, third) = (XfsIo::open(&path), XfsIo::open(&path));
        let pids = [third.pid() as i32, second.pid() as i32];
        drop(third);
        drop(second);
        assert_eq!(told(), pids, "{:?}", s.fs);
        drop(ours);
        assert_eq!(told(), [0i32; 0], "{:?}: exempt", s.fs);
    });
}
