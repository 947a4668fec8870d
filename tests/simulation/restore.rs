//! Restores, killed or cut off at every step: there is the image as it was, or as the snapshot is, or no image at all; and whoever goes on
//! comes to the snapshot.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use jiff::Timestamp;
use rclone_img::disk::sim::{Faults, IMAGE, Setup, SimDisk, SimFile};
use rclone_img::disk::{Access, Disk, DiskFile, Stat};
use rclone_img::engine::restore::intent::VERSION;
use rclone_img::engine::restore::{Found, Intent, Names, Restore, Toward, look, own};
use rclone_img::error::{Error, Kind, Result};
use rclone_img::range::{ByteRange, Geometry};

use crate::harness::Crash;

const SNAPSHOT: &str = "a.snap";
const SOURCE: &str = "image.restore-source";
const PATIENCE: Duration = Duration::from_secs(30);
const SIZE: u64 = 48 * 4096;

/// An image that was changed since its snapshot, by a few writes and discards and perhaps a new size.
fn begin(seed: u64) -> (SimDisk, Vec<u8>, Vec<u8>) {
    let disk = SimDisk::new(Setup::new(seed).with(Faults { ..Faults::shapes(seed) }));
    disk.add_file(IMAGE, &(0..SIZE).map(|at| (at / 1000 + seed) as u8 | 1).collect::<Vec<_>>());
    let size = SIZE - seed % 3 * 5000;
    let image = disk.image().expect("there");
    let snapshot = disk.create_new(OsStr::new(SNAPSHOT)).expect("new");
    let geometry = Geometry { size: SIZE, block: image.fs().expect("facts").block };
    snapshot.set_len(SIZE).expect("sized");
    let mut rest = geometry.whole().map(|it| it.bytes());
    while let Some(left) = rest {
        let (piece, later) = left.split(left.start() + 16 * 4096);
        rest = later;
        let clone = piece.and_then(|it| geometry.cover(it)).expect("a piece");
        if snapshot.clone_range(&image, clone).is_err() {
            let mut bytes = vec![0; clone.bytes().len() as usize];
            image.read_at(clone.bytes().start(), &mut bytes).expect("read");
            snapshot.write_at(clone.bytes().start(), &bytes).expect("copied");
        }
    }
    snapshot.set_len(size).expect("sized");
    let parts = snapshot.sync_all().and_then(|()| image.sync_all()).and_then(|()| disk.sync_names());
    parts.expect("durable");
    for nth in 0..6 {
        let at = (seed * 31 + nth * 7919) % (SIZE - 9000);
        disk.guest_write(IMAGE, at, &vec![(nth + 100) as u8; 1 + (at % 9000) as usize]);
    }
    disk.guest_discard(IMAGE, ByteRange::at(seed % 20 * 4096, 8192).expect("not empty"));
    disk.guest_flush(IMAGE);
    let [was, becomes] = [IMAGE, SNAPSHOT].map(|name| disk.content(name).expect("there"));
    (disk, was, becomes)
}

fn names() -> Names {
    Names::new(OsStr::new(IMAGE))
}

/// With the source's name, of an image that is there.
fn intent(disk: &SimDisk, image: &SimFile) -> Intent {
    let source = disk.stat(OsStr::new(SNAPSHOT)).ok().flatten().expect("there").id();
    Intent {
        begun: 0,
        v: VERSION,
        image: image.stat().expect("its number").id(),
        source,
        job: None,
        source_was: None,
        snapshot: SNAPSHOT.into(),
        snapshot_bytes: SNAPSHOT.into(),
        kept: None,
        kept_is: None,
        began: Timestamp::UNIX_EPOCH,
    }
}

fn restore(disk: &SimDisk) -> Result<()> {
    let image = disk.open(OsStr::new(IMAGE), Access::Write).expect("there");
    let intent = intent(disk, &image);
    let failed = |e| Error::io(Kind::Failed, "name the source", "", e);
    // One that was cut off before it had an intent.
    disk.unlink(OsStr::new(SOURCE)).map_err(failed)?;
    disk.link(OsStr::new(SNAPSHOT), OsStr::new(SOURCE)).map_err(failed)?;
    own(&image, OsStr::new(IMAGE))?;
    let restore = Restore::begin(disk, &names(), &intent, &image, &image.stat().expect("the image"))?;
    roll(disk, restore, &image)
}

fn go_on(disk: &SimDisk) -> Result<()> {
    let restore = Restore::take(disk, &names(), &look(disk, &names())?)?;
    let image = restore.own(Toward::Snapshot)?;
    roll(disk, restore, &image)
}

fn roll(disk: &SimDisk, restore: Restore<'_, SimDisk>, image: &SimFile) -> Result<()> {
    let snapshot = disk.open(OsStr::new(SOURCE), Access::Read).expect("there");
    let owned = restore.owned(image, PATIENCE);
    restore.roll(&owned, &snapshot, |_| Ok(()))?;
    restore.complete(&owned)
}

/// As `resume` does.
fn resume(disk: &SimDisk) -> Result<()> {
    let found = look(disk, &names())?;
    match &found {
        Found::Nothing => restore(disk),
        Found::Empty | Found::Intended(_) => {
            Restore::take(disk, &names(), &found)?.forget()?;
            restore(disk)
        }
        Found::Begun(_) => {
            // Whoever removes the snapshot in the middle takes nothing away.
            disk.unlink(OsStr::new(SNAPSHOT)).expect("removed");
            go_on(disk)
        }
        Found::Done(_) => Restore::take(disk, &names(), &found)?.put_back(),
        Found::Astray(_) | Found::Anothers => panic!("nobody has touched it"),
        Found::Foreign => {
            // Cut off before anything was done; a person removes it.
            disk.unlink(OsStr::new("image.restore")).expect("removed");
            restore(disk)
        }
    }
}

fn check(disk: &SimDisk, was: &[u8], becomes: &[u8], when: &str) {
    // A mixture has no name that a VM knows.
    if let Some(is) = disk.content(IMAGE) {
        assert!(is == was || is == becomes, "a mixture {when}: {}", disk.trace(20));
        if disk.content("image.restoring").is_none() && is != was {
            return;
        }
    }
    assert!(disk.content(SNAPSHOT).is_some_and(|is| is == becomes), "the snapshot {when}");
}

/// Every step is once the last one.
pub fn every_step(seed: u64, crash: Crash) {
    let (disk, _, _) = begin(seed);
    let before = disk.steps();
    restore(&disk).expect("nothing fails");
    let steps = disk.steps() - before;
    for step in 1..=steps {
        let (disk, was, becomes) = begin(seed);
        disk.stop_after(before + step);
        let ended = restore(&disk);
        assert!(ended.is_err() || step == steps, "step {step} of {steps} did not stop it");
        let when = format!("after step {step} of {steps} of seed {seed}");
        let disk = match crash {
            Crash::Kill => disk.crash_kill(),
            _ => disk.crash_power(seed ^ step),
        };
        check(&disk, &was, &becomes, &when);
        // Where the image has its name again it may be written to at once, and is never rolled back then.
        if look(&disk, &names()).is_ok_and(|found| matches!(found, Found::Done(_))) && disk.content(IMAGE).is_some() {
            disk.guest_write(IMAGE, 0, b"a VM was started");
            resume(&disk).expect("nothing fails");
            assert!(disk.content(IMAGE).is_some_and(|is| is.starts_with(b"a VM")), "{when}");
        } else {
            resume(&disk).unwrap_or_else(|e| panic!("{when}: {e}; {}", disk.trace(20)));
            assert!(disk.content(IMAGE).is_some_and(|is| is == becomes), "{when}: {}", disk.trace(20));
        }
        let left: Vec<OsString> = disk.names().into_iter().filter(|name| name != IMAGE && name != SNAPSHOT).collect();
        assert!(left.is_empty(), "{left:?} {when}");
    }
}

/// Who has found the image by its name, but has not come to the lease, is found before there is a mixture.
pub fn who_opens_it_in_the_last_moment_is_found(seed: u64) {
    let (disk, was, _) = begin(seed);
    let image = disk.open(OsStr::new(IMAGE), Access::Write).expect("there");
    own(&image, OsStr::new(IMAGE)).expect("nobody has it");
    disk.count_opener(OsStr::new(IMAGE));
    let begun = Restore::begin(&disk, &names(), &intent(&disk, &image), &image, &image.stat().expect("the image"));
    assert_eq!(begun.err().map(|e| e.kind), Some(Kind::Refused));
    assert_eq!((look(&disk, &names()).expect("looked"), disk.content(IMAGE)), (Found::Nothing, Some(was)));
}

/// Whoever has written to it since it was looked at, or has given its name to another file, loses nothing: neither is kept anywhere.
pub fn what_is_not_what_was_looked_at_is_left_alone(seed: u64) {
    let (disk, was, _) = begin(seed);
    let image = disk.open(OsStr::new(IMAGE), Access::Write).expect("there");
    own(&image, OsStr::new(IMAGE)).expect("nobody has it");
    disk.link(OsStr::new(SNAPSHOT), OsStr::new(SOURCE)).expect("a link");
    let looked = image.stat().expect("the image");
    let earlier = Stat { mtime_ns: looked.mtime_ns - 1, ..looked };
    let begun = Restore::begin(&disk, &names(), &intent(&disk, &image), &image, &earlier);
    assert_eq!(begun.err().map(|e| e.kind), Some(Kind::Refused));
    assert_eq!((look(&disk, &names()).expect("looked"), disk.content(IMAGE)), (Found::Nothing, Some(was)));
    disk.unlink(OsStr::new(SOURCE)).expect("its own");
    // Another file has the image's name by then.
    let intent = intent(&disk, &image);
    disk.unlink(OsStr::new(IMAGE)).expect("gone");
    disk.link(OsStr::new(SNAPSHOT), OsStr::new(IMAGE)).expect("another");
    let other = disk.content(IMAGE);
    let begun = Restore::begin(&disk, &names(), &intent, &image, &looked);
    assert_eq!(begun.err().map(|e| e.kind), Some(Kind::Refused));
    assert_eq!((look(&disk, &names()).expect("looked"), disk.content(IMAGE)), (Found::Nothing, other));
}

/// What somebody has put in the source's place, and has no other name, is his.
pub fn what_is_put_in_the_sources_place_stays(seed: u64) {
    let (disk, ..) = begin(seed);
    let image = disk.open(OsStr::new(IMAGE), Access::Write).expect("there");
    own(&image, OsStr::new(IMAGE)).expect("nobody has it");
    disk.link(OsStr::new(SNAPSHOT), OsStr::new(SOURCE)).expect("a link");
    let restore = Restore::begin(&disk, &names(), &intent(&disk, &image), &image, &image.stat().expect("the image"))
        .expect("begun");
    let snapshot = disk.open(OsStr::new(SOURCE), Access::Read).expect("there");
    let owned = restore.owned(&image, PATIENCE);
    restore.roll(&owned, &snapshot, |_| Ok(())).expect("nothing fails");
    disk.unlink(OsStr::new(SOURCE)).expect("gone");
    disk.create_new(OsStr::new(SOURCE)).expect("somebody's own");
    restore.complete(&owned).expect("nothing fails");
    assert!(disk.content(SOURCE).is_some());
}

/// Who opens it later waits, and is let in on what the snapshot is; only where that takes too long it ends, and so it does where nobody has looked
/// for so long that he may have been let in. One who would not wait is of no concern before there is a mixture; afterwards the lease cannot be made whole
/// without a moment in which everybody is let in.
pub fn who_opens_it_later_waits(seed: u64) {
    let aside = OsStr::new("image.restoring");
    for (waits, when, time, ends_well) in [
        (true, 1, Duration::ZERO, true),
        (true, 1, PATIENCE, false),
        (false, 0, PATIENCE, true),
        (false, 1, Duration::ZERO, true),
        (false, 1, PATIENCE, false),
        (true, 2, PATIENCE, false),
    ] {
        let (disk, _, becomes) = begin(seed);
        let image = disk.open(OsStr::new(IMAGE), Access::Write).expect("there");
        own(&image, OsStr::new(IMAGE)).expect("nobody has it");
        if when == 0 {
            disk.break_lease(OsStr::new(IMAGE), waits);
        }
        let restore =
            Restore::begin(&disk, &names(), &intent(&disk, &image), &image, &image.stat().expect("the image"))
                .expect("begun");
        let snapshot = disk.open(OsStr::new(SNAPSHOT), Access::Read).expect("there");
        let owned = restore.owned(&image, PATIENCE);
        if when == 1 {
            disk.break_lease(aside, waits);
        }
        let late = when == 2;
        let wait = |_| {
            if late {
                disk.break_lease(aside, waits);
            }
            disk.wait(time);
            Ok(())
        };
        let ended = restore.roll(&owned, &snapshot, wait).and_then(|_| restore.complete(&owned));
        assert_eq!(ended.is_ok(), ends_well, "{waits} {when}");
        assert_eq!(disk.content(IMAGE).is_some_and(|is| is == becomes), ends_well);
    }
}

/// A map that cannot be read ends a restore as every other call does that fails: it can be gone on with, and is not broken.
pub fn a_map_that_cannot_be_read_is_no_broken_job(seed: u64) {
    let (disk, _, becomes) = begin(seed);
    let image = disk.open(OsStr::new(IMAGE), Access::Write).expect("there");
    disk.link(OsStr::new(SNAPSHOT), OsStr::new(SOURCE)).expect("a link");
    let restore = Restore::begin(&disk, &names(), &intent(&disk, &image), &image, &image.stat().expect("the image"))
        .expect("begun");
    disk.set_faults(Faults { map_eio: 300, ..Faults::default() });
    let ended = roll(&disk, restore, &image);
    disk.set_faults(Faults::default());
    if let Err(error) = ended {
        assert!(error.kind == Kind::Failed && error.hint.contains("resume"), "{error}");
        drop(image);
        resume(&disk).expect("nothing fails");
    }
    assert!(disk.content(IMAGE).is_some_and(|is| is == becomes));
}
