//! The kernel's side of the bargain: what `sys` and `disk::real` rely on, on real XFS and Btrfs.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::support::{BLOCK, Fs, Other, Sandbox, on_both};
use fiemap::{FiemapExtent, FiemapExtentFlags};
use nix::unistd::{Uid, setfsuid};
use rclone_img::disk::real::{RealDisk, RealFile};
use rclone_img::disk::{Access, Disk, DiskFile, FsKind};
use rclone_img::extent::{Extent, ExtentFlags};
use rclone_img::range::{ByteRange, CloneRange, Geometry, PowerOfTwo};
use rclone_img::sys::{fiemap as walker, inode};

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("not empty")
}

fn whole(size: u64) -> CloneRange {
    Geometry { size, block: PowerOfTwo::new(4096).expect("a power of two") }.whole().expect("not empty")
}

fn map(file: &RealFile, range: ByteRange, max: usize) -> Vec<Extent> {
    let mut extents = Vec::new();
    file.map(range, max, true, &mut extents).expect("map");
    extents
}

/// What the fiemap crate says of a file that is synced.
fn oracle(path: &Path) -> Vec<FiemapExtent> {
    fiemap::fiemap(path).expect("open").map(|e| e.expect("fiemap")).collect()
}

/// A file without holes, of so many blocks (a power of two). They are written past the page cache, in an order in which
/// none follows its neighbour, so that few of them merge into one extent. Each is filled with its number's low byte.
fn shuffled(path: &Path, blocks: u64) {
    assert!(blocks.is_power_of_two(), "the order is a permutation of powers of two only");
    let file = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_DIRECT).open(path);
    let file = file.expect("open for O_DIRECT");
    let len = BLOCK as usize;
    let mut buffer = vec![0_u8; 2 * len];
    let aligned = buffer.as_ptr().align_offset(len);
    let mut block = 0;
    for _ in 0..blocks {
        // A linear congruential generator of full period: multiplier 1 mod 4, increment odd.
        block = (block * 1_664_525 + 1_013_904_223) % blocks;
        buffer[aligned..aligned + len].fill(block as u8);
        file.write_all_at(&buffer[aligned..aligned + len], block * BLOCK).expect("write a block");
    }
    file.sync_all().expect("fsync");
}

#[test]
fn the_walk_agrees_with_the_oracle_in_batches_of_any_size() {
    on_both(|s| {
        let kind = s.fs;
        let path = s.path("image");
        shuffled(&path, 4096);
        let oracle = oracle(&path);
        assert!(oracle.len() > 3000, "{kind:?} merged all but {} extents", oracle.len());
        let file = RealFile::open_image(&path).expect("open");
        for batch in [1, 7, 256, 1024, 3000, 5000] {
            let mut extents: Vec<Extent> = Vec::new();
            let mut at = 0;
            while let Some(rest) = ByteRange::new(at, 4096 * 4096) {
                let more = map(&file, rest, batch);
                at = more.last().map_or(rest.end(), |e| e.logical.end());
                let done = more.len() < batch;
                extents.extend(more);
                if done {
                    break;
                }
            }
            let ours = extents.iter().map(|e| (e.logical.start(), e.physical, e.logical.len(), e.flags.bits()));
            let theirs = oracle.iter().map(|e| (e.fe_logical, e.fe_physical, e.fe_length, e.fe_flags.bits()));
            assert!(ours.eq(theirs), "{kind:?} in batches of {batch}");
        }
        let count = walker::count(file.as_fd(), range(0, u64::MAX)).expect("count");
        assert_eq!(count, oracle.len() as u64, "{kind:?}");
        if kind == Fs::Xfs {
            assert_eq!(file.extent_count(), Some(count));
        } else {
            assert_eq!(file.extent_count(), None);
        }
    });
}

#[test]
fn a_ranged_walk_begins_and_ends_at_the_extents_that_touch_the_range() {
    on_both(|s| {
        let kind = s.fs;
        let path = s.path("image");
        fs::write(&path, vec![7; 1 << 20]).expect("write");
        let file = OpenOptions::new().write(true).open(&path).map(RealFile::from).expect("open");
        file.set_len(4 << 20).expect("a hole behind it");
        let file = RealFile::open_image(&path).expect("open");
        let middle = map(&file, range(300_000, 400_000), 10);
        assert_eq!(middle.len(), 1, "{kind:?}");
        assert!(middle[0].logical.start() <= 300_000 && middle[0].logical.end() >= 400_000, "{kind:?}");
        assert_eq!(map(&file, range(2 << 20, 3 << 20), 10), [], "a hole has no extents");
        assert_eq!(map(&file, range(0, 4 << 20), 0), [], "none asked for");
    });
}

/// What `addresses` says, block by block of the first `blocks`; `None` for a hole.
fn by_block(extents: &[Extent], blocks: u64) -> Vec<Option<(u64, u32)>> {
    let at = |offset| {
        let extent = extents.iter().find(|e| e.logical.start() <= offset && offset < e.logical.end())?;
        let moved = if extent.flags.comparable() { offset - extent.logical.start() } else { 0 };
        Some((extent.physical + moved, extent.flags.of_place().bits()))
    };
    (0..blocks).map(|block| at(block * 4096)).collect()
}

/// The whole of `addresses`, from `start` on, in batches of `max`.
fn addresses(file: &RealFile, start: u64, end: u64, max: usize) -> Vec<Extent> {
    let (mut extents, mut at) = (Vec::new(), start);
    while let Some(rest) = ByteRange::new(at, end) {
        let mut more = Vec::new();
        file.addresses(rest, max, &mut more).expect("addresses");
        at = more.last().map_or(rest.end(), |e| e.logical.end());
        let done = more.len() < max;
        extents.extend(more);
        if done {
            break;
        }
    }
    extents
}

#[test]
fn addresses_are_those_of_the_map_whatever_the_file_is_made_of() {
    on_both(|s| {
        let kind = s.fs;
        let path = s.path("image");
        shuffled(&path, 2048);
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        // A hole, unwritten blocks, a long extent overwritten in its middle, a shared part at another offset.
        let fallocate = |mode, from: u64, blocks: u64| {
            nix::fcntl::fallocate(&file, mode, (from * 4096) as i64, (blocks * 4096) as i64).expect("fallocate");
        };
        use nix::fcntl::FallocateFlags as Mode;
        fallocate(Mode::FALLOC_FL_PUNCH_HOLE | Mode::FALLOC_FL_KEEP_SIZE, 100, 50);
        file.set_len(4096 * 4096).expect("a hole at the end");
        fallocate(Mode::empty(), 3200, 100);
        file.write_all_at(&vec![1; 400 * 4096], 3400 * 4096).expect("write");
        file.sync_all().expect("sync");
        file.write_all_at(&[2; 4096], 3500 * 4096).expect("write");
        file.sync_all().expect("sync");
        let snapshot = s.path("snapshot");
        let copy = OpenOptions::new().read(true).write(true).create_new(true).open(&snapshot).expect("create");
        copy.set_len(4096 * 4096).expect("size");
        let (one, other) = (RealFile::from(file), RealFile::from(copy));
        other.clone_range(&one, whole(4096 * 4096)).expect("clone");
        for file in [&one, &other] {
            let truth = by_block(&map(file, range(0, 4096 * 4096), 10_000), 4096);
            let unwritten = truth.iter().flatten().any(|(_, flags)| *flags == ExtentFlags::UNWRITTEN.bits());
            // XFS makes holes of unwritten extents (KERNEL.md).
            assert!(truth.contains(&None) && (unwritten || kind == Fs::Xfs), "{kind:?}");
            for (start, max) in [(0, 1), (0, 2), (0, 700), (0, 10_000), (3450, 100), (120, 3), (4000, 1)] {
                let told = by_block(&addresses(file, start * 4096, 4096 * 4096, max), 4096);
                assert!(told[start as usize..] == truth[start as usize..], "{kind:?} from {start} in batches of {max}");
            }
        }
        assert!(!one.relocating().expect("asked"), "{kind:?}");
    });
}

#[test]
fn compressed_and_inline_data_have_no_address_to_compare() {
    let Some(s) = Sandbox::new(Fs::Btrfs) else { return };
    let path = s.path("compressed");
    fs::write(&path, b"").expect("create");
    let mut btrfs = std::process::Command::new("btrfs");
    btrfs.args(["property", "set"]).arg(&path).args(["compression", "zstd"]);
    assert!(btrfs.status().expect("btrfs").success());
    fs::write(&path, vec![b'x'; 1 << 20]).expect("write");
    let small = s.path("inline");
    fs::write(&small, b"small").expect("write");
    for (path, flag) in [(path, ExtentFlags::ENCODED), (small, ExtentFlags::DATA_INLINE)] {
        let file = RealFile::open_image(&path).expect("open");
        let truth = map(&file, range(0, 1 << 20), 10_000);
        let told = addresses(&file, 0, 1 << 20, 10_000);
        assert!(!told.is_empty() && told.iter().all(|e| e.flags.has(flag) && !e.flags.comparable()), "{told:?}");
        assert_eq!(by_block(&told, 256), by_block(&truth, 256));
    }
}

#[test]
fn a_clone_shares_blocks_up_to_a_tail_that_is_no_whole_block() {
    on_both(|s| {
        let kind = s.fs;
        let size = (1 << 20) + 777;
        let source = s.path("image");
        fs::write(&source, (0..size).map(|i| (i / 511) as u8).collect::<Vec<_>>()).expect("write");
        let disk = RealDisk::open_dir(&s.dir()).expect("open");
        let from = disk.open(OsStr::new("image"), Access::Read).expect("open");
        let to = disk.create_new(OsStr::new("snapshot")).expect("create");
        to.set_len(size as u64).expect("size");
        to.clone_range(&from, whole(size as u64)).expect("clone");
        to.sync_all().expect("fsync");
        assert!(fs::read(&source).expect("read") == fs::read(s.path("snapshot")).expect("read"));
        let extents = oracle(&s.path("snapshot"));
        let shared = extents.iter().filter(|e| e.fe_flags.contains(FiemapExtentFlags::SHARED)).count();
        assert!(shared > 0 && shared == extents.len(), "{kind:?}: {shared} shared extents in {extents:?}");
        let all = range(0, 2 << 20);
        let addresses = |file| map(file, all, 100).iter().map(|e| (e.logical, e.physical)).collect::<Vec<_>>();
        assert_eq!(addresses(&from), addresses(&to), "{kind:?}");
        // The tail inside a longer destination is what the kernel must refuse.
        to.set_len(4 << 20).expect("longer");
        let refused = to.clone_range(&from, whole(size as u64)).expect_err("an unaligned end inside the file");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{kind:?}");
    });
}

#[test]
fn a_change_shows_in_the_stat_and_a_new_file_has_another_identity() {
    on_both(|s| {
        let kind = s.fs;
        let disk = RealDisk::open_dir(&s.dir()).expect("open");
        let name = OsStr::new("image");
        let file = disk.create_new(name).expect("create");
        let before = file.stat().expect("stat");
        assert!(before.regular && before.nlink == 1 && before.mode == 0o600);
        assert_eq!(before.subvolume, if kind == Fs::Btrfs { 5 } else { 0 }, "{kind:?}");
        // Kernels before 6.13 stamp files by the tick, so the first change may show none.
        let changed = (0..10_000_000).any(|i| {
            file.set_mode(0o600 | (i & 1)).expect("chmod");
            file.stat().expect("stat").ctime_ns > before.ctime_ns
        });
        assert!(changed, "{kind:?}");
        drop(file);
        disk.unlink(name).expect("unlink");
        let again = disk.create_new(name).expect("create").stat().expect("stat");
        assert_ne!((again.ino, again.generation), (before.ino, before.generation), "{kind:?}");
    });
}

#[test]
fn a_remount_is_another_instance_of_the_same_file_system() {
    on_both(|s| {
        let kind = s.fs;
        let facts = || RealFile::open_image(&s.dir()).expect("open").fs().expect("facts");
        let before = facts();
        assert_eq!(facts(), before, "{kind:?}");
        assert_eq!(before.kind, if kind == Fs::Xfs { FsKind::Xfs } else { FsKind::Btrfs });
        assert_ne!(before.uuid, [0; 16]);
        assert_eq!(before.block.get(), 4096);
        assert_ne!(before.mount_instance, 0, "{kind:?}");
        s.unmount();
        s.mount();
        let after = facts();
        assert_ne!(after.mount_instance, before.mount_instance, "{kind:?}");
        assert_eq!((after.uuid, after.block), (before.uuid, before.block));
    });
}

#[test]
fn owning_a_file_takes_the_only_descriptor() {
    on_both(|s| {
        let kind = s.fs;
        let disk = RealDisk::open_dir(&s.dir()).expect("open");
        let name = OsStr::new("snapshot");
        let file = disk.create_new(name).expect("create");
        {
            let reader = Other::opens("<", &s.path(name));
            assert!(!file.try_own().expect("ask"), "{kind:?}: a reader");
            drop(reader);
        }
        assert!(file.try_own().expect("ask"), "{kind:?}");
        let late = disk.open(name, Access::Read).expect_err("under a write lease");
        assert_eq!(late.raw_os_error(), Some(libc::EWOULDBLOCK), "{kind:?}");
        file.disown().expect("release");
        let _reader = disk.open(name, Access::Read).expect("open");
        assert!(!file.try_own().expect("ask"), "{kind:?}: a reader in this very process");
    });
}

#[test]
fn a_protected_snapshot_of_ones_own_can_be_opened_for_writing() {
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    fs::set_permissions(s.dir(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let path = s.dir();
    // The kernel keeps this user id by the thread: the rest of the tests stay root.
    let user = std::thread::spawn(move || {
        setfsuid(Uid::from_raw(65_534));
        let disk = RealDisk::open_dir(&path).expect("open");
        let name = OsStr::new("snapshot");
        disk.create_new(name).expect("create").set_mode(0o444).expect("chmod");
        let file = disk.open(name, Access::Write).expect("open for writing");
        file.write_at(0, b"x").expect("write");
        assert_eq!(file.stat().expect("stat").mode, 0o644);
        // Once the first descriptor is closed, also in a process that another test is just starting.
        assert!((0..1_000_000).any(|_| file.try_own().expect("ask")));
    });
    user.join().expect("the user's thread");
}

#[test]
fn no_cow_sticks_to_an_empty_file_and_to_no_other() {
    on_both(|s| {
        let kind = s.fs;
        let disk = RealDisk::open_dir(&s.dir()).expect("open");
        let file = disk.create_new(OsStr::new("image")).expect("create");
        assert!(!file.no_cow().expect("ask"));
        file.set_no_cow(false).expect("clear already");
        if kind == Fs::Xfs {
            file.set_no_cow(true).expect_err("XFS has no such flag");
            return;
        }
        file.set_no_cow(true).expect("set");
        assert!(file.no_cow().expect("ask"));
        let full = disk.create_new(OsStr::new("full")).expect("create");
        full.write_at(0, &[1; 8192]).expect("write");
        let refused = full.set_no_cow(true).expect_err("not empty");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        assert!(!inode::no_cow(full.as_fd()).expect("ask"));
    });
}

#[test]
fn a_record_is_kept_replaced_and_removed() {
    on_both(|s| {
        let kind = s.fs;
        let disk = RealDisk::open_dir(&s.dir()).expect("open");
        let file = disk.create_new(OsStr::new("snapshot")).expect("create");
        assert_eq!(file.record().expect("read"), None, "{kind:?}");
        for record in [&[1_u8; 200][..], &[2; 3]] {
            file.set_record(Some(record)).expect("write");
            assert_eq!(file.record().expect("read").as_deref(), Some(record), "{kind:?}");
        }
        file.set_record(None).expect("remove");
        file.set_record(None).expect("removing none is no error");
        assert_eq!(file.record().expect("read"), None, "{kind:?}");
    });
}
