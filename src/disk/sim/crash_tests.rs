//! Each modelled property of a crash.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use super::{Faults, IMAGE, Setup, SimDisk};
use crate::disk::{Access, Disk, DiskFile};
use crate::range::{Geometry, PowerOfTwo};

const A: &str = "a";
const SEEDS: u64 = 300;

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
}

/// A disk with the durable file `a`: 1024 bytes of 1.
fn with_a(faults: Faults) -> SimDisk {
    let disk = SimDisk::new(Setup::new(5).with(faults));
    disk.add_file(A, &[1; 1024]);
    disk
}

/// What `see` finds after each of many power cuts.
fn outcomes<T: Ord>(disk: &SimDisk, see: impl Fn(&SimDisk) -> T) -> BTreeSet<T> {
    (0..SEEDS).map(|seed| see(&disk.crash_power(seed))).collect()
}

#[test]
fn what_is_synced_survives_and_what_is_not_is_kept_lost_or_torn() {
    for in_place in [0, 1000] {
        let disk = with_a(Faults { in_place, ..Faults::default() });
        let file = disk.open(name(A), Access::Write).expect("opened");
        file.write_at(0, &[2; 1024]).expect("written");
        let found = outcomes(&disk, |d| d.content(A).expect("there"));
        assert!(found.contains(&vec![1; 1024]) && found.contains(&vec![2; 1024]));
        assert!(found.iter().any(|c| c[..512] != [1; 512] && c[..512] != [2; 512]), "torn inside a block");
        assert!(found.iter().any(|c| c[0] == 1 && c[1023] == 2 || c[0] == 2 && c[1023] == 1), "torn between blocks");
        assert!(found.iter().all(|c| c.iter().all(|b| *b == 1 || *b == 2)));
        file.sync_data().expect("synced");
        assert_eq!(outcomes(&disk, |d| d.content(A).expect("there")), BTreeSet::from([vec![2; 1024]]));
    }
}

#[test]
fn an_append_may_leave_its_size_without_its_data() {
    let disk = with_a(Faults::default());
    let file = disk.open(name(A), Access::Write).expect("opened");
    file.write_at(1024, &[2; 700]).expect("written");
    let found = outcomes(&disk, |d| d.content(A).expect("there"));
    assert!(found.contains(&vec![1; 1024]));
    assert!(found.iter().any(|c| c.len() == 1724 && c[1024..].iter().all(|b| *b == 0)));
    assert!(found.iter().all(|c| c[..1024] == [1; 1024]));
}

#[test]
fn an_append_into_a_synced_block_never_harms_what_is_before_it() {
    let disk = SimDisk::new(Setup::new(5));
    disk.add_file(A, &[1; 700]);
    let file = disk.open(name(A), Access::Write).expect("opened");
    file.write_at(700, &[2; 100]).expect("written");
    assert!(outcomes(&disk, |d| d.content(A).expect("there")).iter().all(|c| c[..700] == [1; 700]));
}

#[test]
fn fdatasync_covers_data_and_fsync_the_attributes_too() {
    let disk = with_a(Faults::default());
    let file = disk.open(name(A), Access::Write).expect("opened");
    file.set_record(Some(b"r")).expect("set");
    file.set_mode(0o400).expect("set");
    file.sync_data().expect("synced");
    let see = |d: &SimDisk| {
        let file = d.open(name(A), Access::Read).expect("opened");
        (file.record().expect("no error").is_some(), file.stat().expect("no error").mode)
    };
    assert_eq!(outcomes(&disk, see).len(), 4, "each kept or lost");
    file.sync_all().expect("synced");
    assert_eq!(outcomes(&disk, see), BTreeSet::from([(true, 0o400)]));
}

#[test]
fn names_are_durable_only_after_sync_names() {
    let disk = with_a(Faults::default());
    let file = disk.create_new(name("b")).expect("created");
    file.write_at(0, b"b").expect("written");
    file.sync_all().expect("synced");
    let both = vec!["a".into(), "b".into()];
    assert_eq!(outcomes(&disk, SimDisk::names), BTreeSet::from([vec!["a".into()], both.clone()]));
    disk.sync_names().expect("synced");
    assert_eq!(outcomes(&disk, SimDisk::names), BTreeSet::from([both]));

    disk.rename(name("b"), name(A), true).expect("renamed");
    let see = |d: &SimDisk| (d.names().len(), d.content(A).expect("there").len());
    assert_eq!(outcomes(&disk, see), BTreeSet::from([(1, 1), (2, 1024)]), "the old one comes back whole");
    disk.sync_names().expect("synced");
    assert_eq!(outcomes(&disk, see), BTreeSet::from([(1, 1)]));
    disk.unlink(name(A)).expect("unlinked");
    assert_eq!(outcomes(&disk, |d| d.names().len()), BTreeSet::from([0, 1]));
}

#[test]
fn a_clone_is_durable_only_after_fdatasync() {
    let disk = SimDisk::new(Setup::new(5));
    disk.add_file(IMAGE, &[1; 16 * 512]);
    let (image, target) = (disk.image().expect("opened"), disk.create_new(name("t")).expect("created"));
    target.set_len(16 * 512).expect("resized");
    target.sync_all().expect("synced");
    disk.sync_names().expect("synced");
    let geometry = Geometry { size: 16 * 512, block: PowerOfTwo::new(512).expect("a power of two") };
    target.clone_range(&image, geometry.whole().expect("not empty")).expect("cloned");
    let cloned = |d: &SimDisk| d.content("t").expect("there").chunks(512).filter(|c| c[0] == 1).count();
    let found = outcomes(&disk, cloned);
    assert!(found.contains(&0) && found.contains(&16) && found.len() > 4, "{found:?}");
    let whole = |d: &SimDisk| d.content("t").expect("there").chunks(512).all(|c| c == [0; 512] || c == [1; 512]);
    assert_eq!(outcomes(&disk, whole), BTreeSet::from([true]), "a cloned block is not torn");
    target.sync_data().expect("synced");
    assert_eq!(outcomes(&disk, |d| d.shares_all_blocks(IMAGE, "t")), BTreeSet::from([true]));
}

#[test]
fn after_a_failed_sync_the_next_succeeds_and_the_data_is_lost_all_the_same() {
    let disk = with_a(Faults { sync_eio: 1000, ..Faults::default() });
    let file = disk.open(name(A), Access::Write).expect("opened");
    file.write_at(0, &[2; 1024]).expect("written");
    assert_eq!(file.sync_data().expect_err("lost").raw_os_error(), Some(libc::EIO));
    let lost: BTreeSet<bool> = (0..20)
        .map(|_| {
            disk.set_faults(Faults { sync_eio: 1000, ..Faults::default() });
            file.write_at(0, &[2; 1024]).expect("written");
            file.sync_data().expect_err("lost");
            disk.set_faults(Faults::default());
            file.sync_data().expect("it says");
            assert_eq!(disk.content(A), Some(vec![2; 1024]), "it can still be read");
            let lost = disk.crash_power(1).content(A) != Some(vec![2; 1024]);
            file.write_at(0, &[1; 1024]).expect("written");
            file.sync_data().expect("synced");
            lost
        })
        .collect();
    assert!(lost.contains(&true));
}

#[test]
fn a_power_cut_is_another_boot_unless_it_is_forgetful() {
    let disk = with_a(Faults::default());
    let facts = |d: &SimDisk| {
        let file = d.open(name(A), Access::Read).expect("opened");
        let (host, fs, stat) = (d.host(), file.fs().expect("no error"), file.stat().expect("no error"));
        (host.boot_id, fs.mount_instance, stat.dev)
    };
    let (before, after) = (facts(&disk), facts(&disk.crash_power(1)));
    assert!(before.0 != after.0 && before.1 != after.1 && before.2 != after.2);
    assert_eq!(facts(&disk.crash_forgetful(1)), before);
    assert_eq!(facts(&disk.crash_kill()), before);
    assert_ne!(disk.crash_kill().host().pid, disk.host().pid);
}

#[test]
fn a_kill_keeps_the_data_and_loses_the_lock_and_the_lease() {
    let disk = with_a(Faults::default());
    let file = disk.open(name(A), Access::Write).expect("opened");
    file.write_at(0, &[2; 10]).expect("written");
    assert!(file.try_lock().expect("no error") && file.try_own().expect("no error"));
    let after = disk.crash_kill();
    assert_eq!(after.content(A), disk.content(A));
    let again = after.open(name(A), Access::Write).expect("no lease");
    assert!(again.try_lock().expect("no error"));
    assert_eq!(after.steps(), 0);
    assert!(outcomes(&after, |d| d.content(A).expect("there")).len() > 1, "a kill makes nothing durable");
}

/// Some of everything, errors and all.
fn busy(seed: u64, stop: Option<u64>) -> SimDisk {
    let disk = SimDisk::new(Setup::new(seed).with(Faults::random(seed)));
    disk.add_image(24 * 512 + 77);
    if let Some(stop) = stop {
        disk.stop_after(stop);
    }
    let run = || -> std::io::Result<()> {
        let (image, target) = (disk.image()?, disk.create_new(name("t.partial"))?);
        let size = image.stat()?.size;
        target.set_len(size)?;
        let geometry = Geometry { size, block: PowerOfTwo::new(512).expect("a power of two") };
        let (low, high) = geometry.whole().and_then(|w| w.halves(geometry.block)).expect("two halves");
        target.clone_range(&image, low)?;
        disk.guest_write(IMAGE, 9000, &[7; 1000]);
        target.clone_range(&image, high)?;
        target.write_at(100, &[8; 900])?;
        target.set_len(5000)?;
        target.set_record(Some(b"done"))?;
        target.sync_all()?;
        disk.rename(name("t.partial"), name("t"), false)?;
        disk.sync_names()
    };
    drop(run());
    disk
}

#[test]
fn one_seed_is_one_run() {
    let (mut differ, mut all) = (0, 0);
    for seed in 0..100 {
        let (one, two) = (busy(seed, None), busy(seed, None));
        assert_eq!(one.trace(1000), two.trace(1000), "seed {seed}");
        assert!(one.trace(1000).lines().count() as u64 >= one.steps());
        for crash in 0..5 {
            let (a, b) = (one.crash_power(crash), two.crash_power(crash));
            assert_eq!((a.names(), a.content("t"), a.content(IMAGE)), (b.names(), b.content("t"), b.content(IMAGE)));
            all += 1;
            differ += u64::from(a.content(IMAGE) != one.content(IMAGE));
        }
    }
    assert!(differ > 0 && differ < all);
}

#[test]
fn a_crash_at_any_step_gives_a_sound_disk_that_can_crash_again() {
    for seed in 0..60 {
        for stop in 1..=busy(seed, None).steps() {
            let disk = busy(seed, Some(stop));
            assert!(disk.stopped(), "seed {seed} step {stop}: runs agree up to the stop\n{}", disk.trace(20));
            for after in [disk.crash_kill(), disk.crash_power(stop), disk.crash_forgetful(stop)] {
                assert!(!after.stopped() && after.content(IMAGE).is_some());
                let again = after.crash_power(seed);
                assert!(again.content(IMAGE).is_some_and(|c| c.len() == 24 * 512 + 77));
            }
        }
    }
}
