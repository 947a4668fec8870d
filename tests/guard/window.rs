//! What is done to an image while its snapshot is being made under watch: the snapshot is as the image was at T0, or the job
//! says that it is broken. Each image here has one user, the test, which changes nothing before T0 is told. On real XFS and
//! Btrfs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::support;
use crate::support::{
    Armed, BLOCK, Ended, Fs, LoopDevice, Other, Sandbox, XfsIo, assert_same, noise, noise_in_use, on_both, patiently,
    slowly, turn, until,
};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::truncate;

/// Bytes of an image whose job lasts when it is made [`slowly`]; the last block is not full.
const SIZE: u64 = (8 << 20) + 1000;

/// Far from where the job begins, and on a block.
const FAR: u64 = 7 << 20;

/// What has to become of the snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Becomes {
    /// As the image was at T0.
    Right,
    /// The job says so, with one of these, and nothing is in place: whoever comes and goes is looked at while he is there, or told of when he goes.
    Broken(&'static [&'static str]),
}
use Becomes::{Broken, Right};

/// Makes a snapshot while `act` does something to the image, through a descriptor that can be watched if it takes that. How
/// many clusters were cloned out of turn, where it has become one.
fn meanwhile(s: &Sandbox, name: &str, becomes: Becomes, act: impl FnOnce(&File, &Path)) -> Option<u64> {
    meanwhile_of(SIZE, s, name, becomes, act)
}

/// As [`meanwhile`], of an image of so many bytes.
fn meanwhile_of(size: u64, s: &Sandbox, name: &str, becomes: Becomes, act: impl FnOnce(&File, &Path)) -> Option<u64> {
    let what = format!("{:?}, {name}", s.fs);
    let (image, as_at_t0) = (s.path("vm.img"), s.outside("t0"));
    let make = if image.exists() { noise_in_use } else { noise };
    make(&image, size);
    fs::copy(&image, &as_at_t0).expect("a copy");
    let file = OpenOptions::new().read(true).write(true).open(&image).expect("open");
    let mut job = s.start(&patiently(&["snapshot", "--consistency", "guard", "vm.img", "vm.snap"]));
    assert!(job.wait_for("started"), "{what}: {}", job.end().stderr);
    assert!(s.path("vm.snap.partial").exists(), "{what}: it has ended too early for a test");
    act(&file, &image);
    let end = job.end();
    let promoted = end.events.last().and_then(|e| e["promoted"].as_u64());
    ended(s, &what, becomes, end);
    fs::remove_file(image).expect("the image");
    promoted
}

fn ended(s: &Sandbox, what: &str, becomes: Becomes, end: Ended) {
    let code = if becomes == Right { 0 } else { 6 };
    // Whatever was expected: a snapshot that is in place is right.
    if s.path("vm.snap").exists() {
        assert_same(&s.outside("t0"), &s.path("vm.snap"));
        fs::remove_file(s.path("vm.snap")).expect("the snapshot");
    }
    assert_eq!(end.code, Some(code), "{what}: {}", end.stderr);
    if let Broken(words) = becomes {
        let said = |words: &str| end.stderr.contains(words);
        assert!(words.iter().any(|words| said(words)) && said("hint: "), "{what}: {}", end.stderr);
        s.exits(0, &["abort", "vm.snap"]);
    }
    s.no_sidecars("vm.snap");
}

fn punch(file: &File, at: u64, len: u64) {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, at as i64, len as i64).expect("a hole");
}

fn write(file: &File, at: u64, len: u64) {
    file.write_all_at(&vec![7; len as usize], at).expect("written");
}

const RESIZED: Becomes = Broken(&["the image was resized during the job"]);

#[test]
fn writes_and_reads() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        meanwhile(s, "one byte", Right, |file, _| write(file, FAR + 5, 1));
        meanwhile(s, "many clusters", Right, |file, _| write(file, FAR - 100, 300_000));
        meanwhile(s, "the last byte", Right, |file, _| write(file, SIZE - 1, 1));
        meanwhile(s, "all of it", Right, |file, _| write(file, 0, SIZE));
        // Closed when all is over: what another test starts meanwhile might else be the last to close it, and is a stranger.
        let mut direct = None;
        meanwhile(s, "past the page cache", Right, |_, path| {
            let opened = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).expect("open");
            let memory = vec![7; 3 * BLOCK as usize];
            let aligned = memory.as_ptr().align_offset(BLOCK as usize);
            let direct = direct.insert(opened);
            direct.write_all_at(&memory[aligned..aligned + 2 * BLOCK as usize], FAR).expect("written");
        });
        meanwhile(s, "nothing, read", Right, |file, _| assert_eq!(file.read_at(&mut [], 0).expect("read"), 0));
        meanwhile(s, "nothing, written", Right, |file, _| assert_eq!(file.write_at(&[], FAR).expect("write"), 0));
        meanwhile(s, "past the end, read", Right, |file, _| {
            let mut buffer = [0; 8192];
            assert_eq!(file.read_at(&mut buffer, SIZE + 5 * BLOCK).expect("read"), 0);
            assert_eq!(file.read_at(&mut buffer, SIZE - 7).expect("read"), 7);
        });
        meanwhile(s, "past the end, written", RESIZED, |file, _| write(file, SIZE + BLOCK, 100));
        meanwhile(s, "over the end, written", RESIZED, |file, _| write(file, SIZE - 10, 20));
    });
}

#[test]
fn what_is_appended() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        let appending = |path: &Path| OpenOptions::new().append(true).open(path).expect("open");
        meanwhile(s, "a byte", RESIZED, |_, path| {
            assert_eq!(std::io::Write::write(&mut appending(path), b"x").expect("write"), 1);
        });
        meanwhile(s, "and taken away again", RESIZED, |file, path| {
            assert_eq!(std::io::Write::write(&mut appending(path), &[7; 100_000]).expect("write"), 100_000);
            file.set_len(SIZE).expect("its size");
        });
    });
}

#[test]
fn other_sizes() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        meanwhile(s, "the same size", Right, |file, _| file.set_len(SIZE).expect("its size"));
        for size in [0, FAR, FAR + 1, SIZE - 1, SIZE + 1, SIZE + (1 << 20)] {
            meanwhile(s, &format!("{size} bytes"), RESIZED, |file, _| file.set_len(size).expect("its size"));
        }
        for size in [0, FAR + 1] {
            meanwhile(s, &format!("{size} bytes and back"), RESIZED, |file, _| {
                file.set_len(size).and_then(|()| file.set_len(SIZE)).expect("its size");
            });
        }
        meanwhile(s, "by its name", RESIZED, |_, path| truncate(path, FAR as i64 + 1).expect("its size"));
        meanwhile(s, "allocated, and longer", RESIZED, |file, _| {
            fallocate(file, FallocateFlags::empty(), SIZE as i64, 1 << 20).expect("space");
        });
    });
}

#[test]
fn holes_and_zeros() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        meanwhile(s, "a hole", Right, |file, _| punch(file, FAR, 64 << 10));
        meanwhile(s, "a hole that begins and ends within a block", Right, |file, _| punch(file, FAR + 5, 100_000));
        meanwhile(s, "nothing but a hole", Right, |file, _| punch(file, 0, SIZE + (1 << 20)));
        meanwhile(s, "zeros", Right, |file, _| {
            let mode = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file, mode, FAR as i64 + 5, 100_000).expect("zeros");
        });
        meanwhile(s, "space behind the end", Right, |file, _| {
            fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, SIZE as i64, 1 << 20).expect("space");
        });
        let mut program = None;
        meanwhile(s, "another file's blocks", Right, |_, path| {
            noise(&path.with_extension("other"), 1 << 20);
            let program = program.insert(XfsIo::open(path));
            program.tell(&format!("reflink {} 0 {FAR} 65536", path.with_extension("other").display()));
        });
        meanwhile(s, "another file's bytes", Right, |file, path| {
            let other = File::open(path.with_extension("other")).expect("open");
            let mut to = FAR as i64 + 5;
            let copied = nix::fcntl::copy_file_range(&other, None, file, Some(&mut to), 100_000);
            assert_eq!(copied.expect("copied"), 100_000);
        });
    });
}

#[test]
fn what_moves_the_rest_of_the_image() {
    on_both(|s| {
        if s.fs != Fs::Xfs {
            return; // Btrfs moves nothing.
        }
        let _armed = Armed::directory(&s.dir());
        let collapse =
            |file: &File| fallocate(file, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 1 << 20, 65536).expect("out");
        let insert = |file: &File| fallocate(file, FallocateFlags::FALLOC_FL_INSERT_RANGE, 1 << 20, 65536).expect("in");
        meanwhile(s, "collapse", RESIZED, |file, _| collapse(file));
        meanwhile(s, "insert", RESIZED, |file, _| insert(file));
        meanwhile(s, "collapse and insert", RESIZED, |file, _| {
            collapse(file);
            insert(file);
        });
        meanwhile(s, "insert and collapse", RESIZED, |file, _| {
            insert(file);
            collapse(file);
        });
    });
}

/// What is mapped is cloned before the mapping exists; a mapping that is there at the end may have grown since.
#[test]
fn mappings() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        // It runs before: the look that would find the mapping comes a moment after T0.
        let mut program = XfsIo::open_to_read(Path::new("/dev/null"));
        meanwhile(s, "mapped, written and unmapped", Right, |_, path| {
            program.tell(&format!("open {}", path.display()));
            program.tell(&format!("mmap -rw {FAR} 65536"));
            program.tell(&format!("mwrite {FAR} 65536"));
            program.tell("munmap");
        });
        drop(program);
        let mut program = None;
        meanwhile(s, "mapped, and still so at the end", Broken(&[MAPPED]), |_, path| {
            let program = program.insert(XfsIo::open(path));
            program.tell(&format!("mmap -rw {FAR} 65536"));
            program.tell("close");
        });
        drop(program);
        let mut program = None;
        meanwhile(s, "mapped for reading", Right, |_, path| {
            let program = program.insert(XfsIo::open_to_read(path));
            program.tell(&format!("mmap -r 0 {SIZE}"));
        });
    });
}

#[test]
fn a_loop_device_that_comes_meanwhile() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        let mut device = None;
        // Nothing is waited for while the job runs.
        let one = turn();
        meanwhile(s, "and stays", Broken(&[BACKED]), |_, path| device = Some(LoopDevice::in_turn(&one, path, false)));
        drop(device.take());
        meanwhile(s, "read-only", Right, |_, path| device = Some(LoopDevice::in_turn(&one, path, true)));
        drop(device);
        meanwhile(s, "read-only, and goes", Right, |_, path| drop(LoopDevice::in_turn(&one, path, true)));
        meanwhile(s, "writes, and goes", Broken(&[BACKED, CLOSED]), |_, path| {
            let device = LoopDevice::in_turn(&one, path, false);
            let file = OpenOptions::new().write(true).open(&device.0).expect("open");
            file.write_all_at(&[7; 65536], FAR).and_then(|()| file.sync_all()).expect("written");
        });
    });
}

const BACKED: &str = "is backed by it and can be written";
const CLOSED: &str = "has closed what was opened for writing after the point in time";
const MAPPED: &str = "has it mapped shared";
const GONE: Becomes = Broken(&[CLOSED]);

#[test]
fn who_comes_and_goes_meanwhile() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        meanwhile(s, "a mapping that grows", Broken(&[MAPPED, CLOSED]), |_, path| {
            let mut program = XfsIo::open(path);
            program.tell(&format!("mmap -rw {FAR} 4096"));
            program.tell("mremap -m 262144");
            program.tell(&format!("mwrite {FAR} 262144"));
            program.tell("munmap");
        });
        meanwhile(s, "a writer", GONE, |_, path| drop(Other::opens("<>", path)));
        meanwhile(s, "a reader", Right, |_, path| {
            let mut program = XfsIo::open_to_read(path);
            program.tell(&format!("pread {FAR} 65536"));
            program.tell(&format!("mmap -r 0 {SIZE}"));
        });
        let mut writer = None;
        meanwhile(s, "a writer that stays", Right, |_, path| writer = Some(Other::opens("<>", path)));
        // As a VM does that is shut down.
        let was_there = File::create(s.path("vm.img")).map(|_| Other::opens("<>", &s.path("vm.img"))).expect("created");
        meanwhile(s, "a writer that was there before", Right, |_, _| drop(was_there));
    });
}

/// It probes the descriptors of those who have the image open; each probe is an access to the job's eyes, and asks for
/// nothing.
#[test]
fn a_check_beside_a_job() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        let check = |name: &str, act: &dyn Fn(&Path)| {
            let promoted = meanwhile_of(8 * SIZE, s, name, Right, |_, path| {
                act(path);
                assert!(s.path("vm.snap.partial").exists(), "{:?}: it has ended too early for a test", s.fs);
            });
            assert!(promoted.is_some_and(|clusters| clusters < 100), "{:?}, {name}: {promoted:?}", s.fs);
        };
        check("of the image", &|_| {
            let image = s.run(&["check", "vm.img"]);
            assert!(String::from_utf8_lossy(&image.stdout).contains("yes  guard"), "{image:?}");
        });
        let all = std::cell::OnceCell::new();
        check("of the directory", &|path| {
            let open = |read, flags| OpenOptions::new().read(read).write(true).custom_flags(flags).open(path);
            let ways = [(false, 0), (true, libc::O_DIRECT), (false, libc::O_DIRECT)];
            // Until all is over, as above.
            all.set(ways.map(|(r, f)| open(r, f).expect("open"))).expect("once");
            s.exits(0, &["check", "."]);
        });
    });
}

/// Does something between the first look and T0, and something else after T0; nobody arms anything here but the job itself.
/// The snapshot is right, or the job has another end than `0`.
fn around_t0<T>(before: impl Fn(&Path) -> T, after: impl Fn(T)) {
    on_both(|s| {
        let (image, as_at_t0) = (s.path("vm.img"), s.outside("t0"));
        for round in 0..support::rounds(20) {
            noise(&image, SIZE);
            fs::copy(&image, &as_at_t0).expect("a copy");
            let mut job = s.start(&slowly(&["snapshot", "--consistency", "guard", "vm.img", "vm.snap"]));
            // The first thing that is made, after the first look.
            assert!(until(|| s.path("vm.snap.journal").exists()), "{}", job.end().stderr);
            let something = before(&image);
            job.wait_for("started");
            after(something);
            let end = job.end();
            println!("{:?}, round {round}: {:?} {}", s.fs, end.code, end.stderr);
            match end.code {
                Some(0) => assert_same(&as_at_t0, &s.path("vm.snap")),
                Some(1 | 6) => assert!(!s.path("vm.snap").exists(), "{}", end.stderr),
                other => panic!("{other:?}: {}", end.stderr),
            }
            let _ = fs::remove_file(s.path("vm.snap"));
            s.run(&["abort", "vm.snap"]);
        }
    });
}

#[test]
fn a_writer_that_comes_between_the_first_look_and_t0() {
    around_t0(|path| OpenOptions::new().write(true).open(path).expect("open"), |file| write(&file, FAR, BLOCK));
}

#[test]
fn a_mapping_that_comes_between_the_first_look_and_t0() {
    let map = |path: &Path| {
        let mut program = XfsIo::open(path);
        program.tell(&format!("mmap -rw {FAR} 65536"));
        program
    };
    around_t0(map, |mut program| {
        program.tell(&format!("mwrite {FAR} 65536"));
        program.tell("munmap");
    });
}
