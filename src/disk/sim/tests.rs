//! Each modelled property of a disk that does not crash.

use std::ffi::OsStr;
use std::io;

use super::{Faults, IMAGE, Setup, SimCrash, SimDisk, SimFile};
use crate::disk::{Access, Disk, DiskFile, FsKind};
use crate::extent::{Extent, ExtentFlags};
use crate::range::{ByteRange, CloneRange, Geometry, PowerOfTwo};

const BLOCK: u64 = 512;

/// A disk with an image of 32 blocks of data, all 0x11, and an empty target of the same size.
fn with_target(faults: Faults) -> (SimDisk, SimFile, SimFile) {
    let disk = SimDisk::new(Setup::new(1).with(faults));
    disk.add_file(IMAGE, &[0x11; 32 * BLOCK as usize]);
    let target = disk.create_new(OsStr::new("target")).expect("created");
    target.set_len(32 * BLOCK).expect("resized");
    let image = disk.image().expect("opened");
    (disk, image, target)
}

/// A range for calls, right or wrong: as of a file system with blocks of one byte.
fn range(start: u64, end: u64) -> CloneRange {
    let anything = Geometry { size: u64::MAX, block: PowerOfTwo::new(1).expect("a power of two") };
    anything.cover(bytes(start, end)).expect("not empty")
}

fn bytes(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("not empty")
}

fn map(file: &SimFile, flush: bool) -> Vec<Extent> {
    let mut extents = Vec::new();
    file.map(bytes(0, 1 << 20), 1 << 10, flush, &mut extents).expect("mapped");
    extents
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

#[test]
fn a_clone_shares_blocks_and_copies_holes_as_holes() {
    let disk = SimDisk::new(Setup::new(7));
    disk.add_image(64 * BLOCK - 100);
    let (image, target) = (disk.image().expect("opened"), disk.create_new(OsStr::new("t")).expect("created"));
    target.set_len(64 * BLOCK - 100).expect("resized");
    target.write_at(0, &[1; 5000]).expect("written");
    target.clone_range(&image, range(0, 64 * BLOCK - 100)).expect("cloned");
    assert_eq!(disk.content("t"), disk.content(IMAGE));
    assert!(disk.shares_all_blocks(IMAGE, "t"));
    assert!(map(&target, false).iter().all(|e| e.flags.has(ExtentFlags::SHARED)));
    assert_eq!(map(&target, false).last().map(|e| e.logical.end() % BLOCK), Some(0));

    disk.guest_write(IMAGE, 10, b"guest");
    assert_ne!(disk.content("t"), disk.content(IMAGE));
    assert!(!disk.shares_all_blocks(IMAGE, "t"));
}

#[test]
fn a_shared_block_is_never_overwritten_in_place_and_another_is() {
    let (disk, image, target) = with_target(Faults { in_place: 1000, ..Faults::default() });
    target.clone_range(&image, range(0, 16 * BLOCK)).expect("cloned");
    let before = map(&image, true);
    disk.guest_write(IMAGE, 0, &[0x22; 32 * BLOCK as usize]);
    let after = map(&image, true);
    let at = |extents: &[Extent], offset| {
        extents
            .iter()
            .find(|e| e.logical.covers(bytes(offset, offset + 1)))
            .map(|e| e.physical + offset - e.logical.start())
    };
    assert_ne!(at(&before, 0), at(&after, 0));
    assert_eq!(at(&before, 16 * BLOCK), at(&after, 16 * BLOCK));
    assert_eq!(disk.content("target").map(|c| c[0]), Some(0x11));
}

#[test]
fn a_clone_is_refused_as_the_kernel_refuses_it() {
    let (disk, image, target) = with_target(Faults::default());
    let steps = disk.steps();
    for (start, end) in [(1, BLOCK), (0, BLOCK + 1), (0, 33 * BLOCK), (31 * BLOCK, 32 * BLOCK + 1)] {
        assert_eq!(errno(target.clone_range(&image, range(start, end))), Some(libc::EINVAL), "{start}..{end}");
    }
    assert_eq!(errno(image.clone_range(&target, range(0, BLOCK))), Some(libc::EBADF));
    disk.add_file("odd", &[3; 700]);
    let odd = disk.open(OsStr::new("odd"), Access::Read).expect("opened");
    assert_eq!(errno(target.clone_range(&odd, range(0, 700))), Some(libc::EINVAL), "the target is longer");
    let short = disk.create_new(OsStr::new("short")).expect("created");
    assert_eq!(errno(short.clone_range(&odd, range(0, 700))), Some(libc::EINVAL), "the target is shorter");
    short.set_len(700).expect("resized");
    short.clone_range(&odd, range(0, 700)).expect("cloned");
    let (other, _image, _target) = with_target(Faults::default());
    assert_eq!(errno(target.clone_range(&other.image().expect("opened"), range(0, BLOCK))), Some(libc::EXDEV));
    assert_eq!(disk.steps(), steps + 3, "what is refused is no step");
}

#[test]
fn a_failed_clone_has_done_its_first_part() {
    for (faults, expect) in [
        (Faults { clone_enospc: 1000, ..Faults::default() }, libc::ENOSPC),
        (Faults { clone_eintr: 1000, ..Faults::default() }, libc::EINTR),
        (Faults { clone_einval: 1000, ..Faults::default() }, libc::EINVAL),
    ] {
        let (disk, image, target) = with_target(faults);
        assert_eq!(errno(target.clone_range(&image, range(0, 32 * BLOCK))), Some(expect));
        let content = disk.content("target").expect("there");
        let cloned = content.iter().filter(|b| **b == 0x11).count();
        assert!(cloned > 0 && cloned < content.len(), "{cloned} bytes cloned");
        assert!(content[..cloned].iter().all(|b| *b == 0x11), "a prefix");
    }
}

#[test]
fn after_eio_what_was_dirty_reads_as_zeros_and_the_next_clone_succeeds() {
    let faults = Faults { clone_eio: 1000, ..Faults::default() };
    let (disk, image, target) = with_target(faults);
    disk.guest_write(IMAGE, 0, &[0x22; 32 * BLOCK as usize]);
    assert_eq!(errno(target.clone_range(&image, range(0, 32 * BLOCK))), Some(libc::EIO));
    disk.set_faults(Faults::default());
    target.clone_range(&image, range(0, 32 * BLOCK)).expect("cloned");
    let content = disk.content("target").expect("there");
    assert_eq!(content.iter().filter(|b| **b == 0).count(), BLOCK as usize, "one block is lost");
    assert_eq!(disk.content(IMAGE), Some(content.clone()));
    disk.guest_flush(IMAGE);
    disk.set_faults(faults);
    assert_eq!(errno(target.clone_range(&image, range(0, 32 * BLOCK))), Some(libc::EIO));
    disk.set_faults(Faults::default());
    assert_eq!(disk.content(IMAGE), Some(content.clone()), "what is written back already cannot fail to be");
    assert_eq!(disk.crash_power(3).content(IMAGE), Some(content), "for good");
}

#[test]
fn a_block_that_never_shares_can_be_copied() {
    let (disk, image, target) = with_target(Faults { clone_never: 1000, ..Faults::default() });
    for _ in 0..2 {
        assert_eq!(errno(target.clone_range(&image, range(0, 32 * BLOCK))), Some(libc::ENOSPC));
    }
    let mut bytes = vec![0; 32 * BLOCK as usize];
    assert_eq!(image.read_at(0, &mut bytes).expect("read"), bytes.len());
    target.write_at(0, &bytes).expect("written");
    assert_eq!(disk.content("target"), disk.content(IMAGE));
}

#[test]
fn a_dirty_block_shows_its_old_address_until_a_flush() {
    let (disk, image, target) = with_target(Faults { stale_maps: 1000, ..Faults::default() });
    target.clone_range(&image, range(0, 32 * BLOCK)).expect("cloned");
    let before = map(&image, true);
    disk.guest_write(IMAGE, 3 * BLOCK, b"new");
    assert_eq!(map(&image, false), before, "the map lies");
    assert_ne!(map(&image, true), before);
    disk.guest_write(IMAGE, 5 * BLOCK, b"new");
    let stale = map(&image, false);
    disk.guest_flush(IMAGE);
    assert_ne!(map(&image, false), stale);

    target.set_len(40 * BLOCK).expect("resized");
    target.write_at(35 * BLOCK, b"over a hole").expect("written");
    assert!(map(&target, false).last().is_some_and(|e| e.flags.has(ExtentFlags::DELALLOC)));
    assert!(map(&target, true).last().is_some_and(|e| e.flags.comparable()));
}

#[test]
fn maps_split_extents_but_answer_fewer_than_asked_only_at_the_end() {
    let (_disk, image, _target) = with_target(Faults { split_extents: 500, ..Faults::default() });
    let blocks = |extents: &[Extent]| {
        let all = extents.iter().flat_map(|e| {
            (0..e.logical.len() / BLOCK).map(|i| (e.logical.start() + i * BLOCK, e.physical + i * BLOCK))
        });
        all.collect::<Vec<(u64, u64)>>()
    };
    let counts: Vec<usize> = (0..50).map(|_| map(&image, false).len()).collect();
    assert!(counts.contains(&1) && counts.contains(&2), "{counts:?}");
    let whole = blocks(&map(&image, false));
    for _ in 0..50 {
        let (mut walked, mut at): (Vec<Extent>, u64) = (Vec::new(), 0);
        while at < 32 * BLOCK {
            let mut batch = Vec::new();
            image.map(bytes(at, 32 * BLOCK), 1, false, &mut batch).expect("mapped");
            assert_eq!(batch.len(), 1);
            let (_, rest) = batch[0].logical.split(at);
            at = rest.expect("progress").end();
            walked.extend(batch);
        }
        walked.dedup();
        let mut seen = blocks(&walked);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, whole);
    }
}

#[test]
fn odd_extents_are_flagged_and_clone_as_they_do() {
    let (disk, image, target) = with_target(Faults::default());
    disk.encode(IMAGE, bytes(0, 4 * BLOCK));
    disk.inline(IMAGE, bytes(4 * BLOCK, 5 * BLOCK));
    disk.guest_discard(IMAGE, bytes(8 * BLOCK, 12 * BLOCK));
    disk.preallocate(IMAGE, bytes(8 * BLOCK, 10 * BLOCK));
    let has = |file: &SimFile, flag| map(file, true).iter().any(|e| e.flags.has(flag));
    assert!(has(&image, ExtentFlags::ENCODED) && has(&image, ExtentFlags::DATA_INLINE));
    assert!(has(&image, ExtentFlags::UNWRITTEN));
    target.clone_range(&image, range(0, 32 * BLOCK)).expect("cloned");
    assert!(has(&target, ExtentFlags::ENCODED) && !has(&target, ExtentFlags::UNWRITTEN));
    assert_eq!(disk.content("target"), disk.content(IMAGE));
}

#[test]
fn one_job_has_the_lock_and_a_lease_is_for_one_descriptor_alone() {
    let (disk, image, target) = with_target(Faults::default());
    let other = disk.image().expect("opened");
    assert!(image.try_lock().expect("no error") && image.try_lock().expect("no error"));
    assert!(!other.try_lock().expect("no error") && other.is_locked().expect("no error"));
    assert!(!image.try_own().expect("no error"), "somebody else has it open");
    drop(image);
    assert!(other.try_lock().expect("no error"));

    assert!(target.try_own().expect("no error"));
    assert_eq!(errno(disk.open(OsStr::new("target"), Access::Read)), Some(libc::EAGAIN));
    target.disown().expect("given back");
    drop(disk.open(OsStr::new("target"), Access::Read).expect("opened"));
}

#[test]
fn sizes_names_times_and_attributes() {
    let disk = SimDisk::new(Setup { kind: FsKind::Btrfs, ..Setup::new(1) });
    let (a, b) = (OsStr::new("a"), OsStr::new("b"));
    let file = disk.create_new(a).expect("created");
    assert_eq!(errno(disk.create_new(a)), Some(libc::EEXIST));
    file.set_no_cow(true).expect("empty");
    let created = file.stat().expect("there");
    assert_eq!((created.mode, created.nlink, created.subvolume), (0o600, 1, 5));
    file.write_at(0, &[9; 1000]).expect("written");
    assert_eq!(errno(file.set_no_cow(false)), Some(libc::EINVAL));
    file.set_len(600).expect("cut");
    file.set_len(1000).expect("grown");
    assert_eq!(disk.content("a").map(|c| (c[599], c[600], c.len())), Some((9, 0, 1000)), "new bytes are zeros");
    let written = file.stat().expect("there");
    file.set_record(Some(b"record")).expect("set");
    file.set_mode(0o444).expect("set");
    let marked = disk.stat(a).expect("no error").expect("there");
    assert!(written.mtime_ns > created.mtime_ns && marked.ctime_ns > written.ctime_ns);
    assert_eq!((marked.mtime_ns, marked.mode), (written.mtime_ns, 0o444));
    assert_eq!(file.record().expect("no error").as_deref(), Some(&b"record"[..]));

    drop(disk.create_new(b).expect("created"));
    assert_eq!(errno(disk.rename(a, b, false)), Some(libc::EEXIST));
    disk.rename(a, b, true).expect("renamed");
    assert_eq!((disk.names().len(), disk.content("b").map(|c| c.len())), (1, Some(1000)));
    assert_eq!(errno(disk.rename(a, b, true)), Some(libc::ENOENT));
    disk.unlink(b).expect("gone");
    disk.unlink(b).expect("not there is no error");
    assert_eq!(file.stat().expect("still open").nlink, 0);
}

#[test]
fn a_failed_write_has_done_its_first_bytes() {
    let (disk, _image, target) = with_target(Faults { write_enospc: 1000, ..Faults::default() });
    assert_eq!(errno(target.write_at(0, &[5; 3000])), Some(libc::ENOSPC));
    let content = disk.content("target").expect("there");
    let written = content.iter().position(|b| *b != 5).expect("not all");
    assert!(written > 0 && written < 3000 && content[written..].iter().all(|b| *b == 0));
}

#[test]
fn after_the_stop_everything_fails_but_the_guest_goes_on() {
    let (disk, image, target) = with_target(Faults::default());
    disk.stop_after(disk.steps() + 1);
    let stop = target.clone_range(&image, range(0, 32 * BLOCK)).expect_err("stopped");
    assert!(SimCrash::is(&stop) && disk.stopped());
    let after = [image.stat().map(drop), target.sync_all(), disk.sync_names(), image.try_lock().map(drop)];
    assert!(after.into_iter().all(|r| r.is_err_and(|e| SimCrash::is(&e))));
    assert!(!SimCrash::is(&io::Error::from_raw_os_error(libc::EIO)));
    disk.guest_write(IMAGE, 0, b"goes on");
    assert_eq!(disk.content(IMAGE).map(|c| c[..7].to_vec()), Some(b"goes on".to_vec()));
}
