//! The measurement's file, its figures, and a short measurement.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::summary::ALWAYS;
use super::{Access, Accesses, Kind, Options, Recorder, read, run};
use crate::fill::fill;
use crate::scratch::Scratch;
use crate::stop::Stop;

/// Accesses of one kind: when, and how long.
fn accesses(kind: Kind, every: u64, list: &[(u64, u64)]) -> Accesses {
    let list = list.iter().map(|(start, took)| Access::new(kind, *start, *took, false)).collect();
    Accesses { list, every, flush_every: 100 }
}

#[test]
fn an_access_is_read_back_from_its_words() {
    for (kind, failed) in [(Kind::Read, false), (Kind::Write, true), (Kind::Flush, false)] {
        let access = Access::from_words(Access::new(kind, 7, 1 << 40, failed).words()).unwrap();
        assert_eq!((access.kind(), access.start(), access.took(), access.failed()), (kind, 7, 1 << 40, failed));
        assert_eq!(access.end(), 7 + (1 << 40));
    }
    assert_eq!(Access::from_words([5, 0]), None);
}

#[test]
fn a_stall_counts_for_what_it_kept_from_being_made() {
    let mut list: Vec<(u64, u64)> = (0..10_000).map(|number| (number * 2, 1)).collect();
    list.push((20_000, 4000));
    let paced = accesses(Kind::Read, 1, &list);
    let felt = paced.felt(Kind::Read, &ALWAYS);
    assert!(felt.p999 > 3900 && felt.longest == 4000 && felt.count == 10_001, "{felt:?}");
    assert_eq!(paced.raw(Kind::Read, &ALWAYS).p999, 1);
    let unpaced = accesses(Kind::Read, 0, &list);
    assert_eq!(unpaced.felt(Kind::Read, &ALWAYS), paced.raw(Kind::Read, &ALWAYS));
    assert_eq!(unpaced.felt_every(Kind::Read, &ALWAYS, 1), felt);
    // Ten, and nine others that would have waited for 9 to 1.
    assert_eq!(accesses(Kind::Write, 1, &[(0, 10)]).felt(Kind::Write, &ALWAYS).median, 5);
    assert_eq!(accesses(Kind::Flush, 1, &[(0, 250)]).felt(Kind::Flush, &ALWAYS).median, 150);
}

#[test]
fn a_window_has_what_was_under_way_in_it_and_no_other_kind() {
    let list = accesses(Kind::Read, 0, &[(0, 5), (40, 20), (60, 1), (99, 50), (100, 70)]);
    assert_eq!(list.raw(Kind::Read, &(50..100)).count, 3);
    assert_eq!(list.raw(Kind::Read, &(50..100)).longest, 50);
    assert_eq!(list.raw(Kind::Write, &ALWAYS).count, 0);
}

#[test]
fn a_stall_fills_every_slot_it_lasts() {
    let list = accesses(Kind::Read, 0, &[(0, 1), (25, 50), (90, 2), (200, 5)]);
    assert_eq!(list.worst(Kind::Read, &(0..100), 5), [1, 50, 50, 50, 2]);
    assert_eq!(list.worst(Kind::Read, &(110..150), 2), [0, 0]);
    assert_eq!(list.worst(Kind::Read, &(0..100), 0), Vec::<u64>::new());
}

#[test]
fn what_is_recorded_is_read_while_it_is_measured_and_after_a_kill() {
    let scratch = Scratch::new();
    let path = scratch.path("out");
    let recorder = Recorder::create(&path, Some(Duration::from_micros(500)), Duration::from_millis(100)).unwrap();
    let list = [Access::new(Kind::Read, 1, 2, false), Access::new(Kind::Flush, 3, 4, true)];
    for access in list {
        recorder.add(access).unwrap();
    }
    let expect = Accesses { list: list.to_vec(), every: 500_000, flush_every: 100_000_000 };
    assert_eq!(read(&path).unwrap(), expect);
    assert_eq!(expect.errors(Kind::Flush, &ALWAYS), 1);
    recorder.close().unwrap();
    assert_eq!(read(&path).unwrap(), expect);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096 + 32);
    std::fs::write(&path, "no measurement").unwrap();
    assert!(read(&path).is_err());
}

#[test]
fn a_measurement_has_all_three_kinds_and_leaves_a_filled_image_as_it_is() {
    let scratch = Scratch::new();
    let path = scratch.path("a");
    fill(&path, 1 << 20, false, 0).unwrap();
    let before = std::fs::read(&path).unwrap();
    let micros = |count| Some(Duration::from_micros(count));
    for (buffered, every, writers) in [(false, None, 1), (true, micros(200), 2), (false, micros(200), 0)] {
        let flush_every = Duration::from_millis(5);
        let (image, out) = (path.clone(), scratch.path("out"));
        let options = Options { image, out, buffered, writers, every, flush_every, seed: 1, longest: None };
        let stop = Stop::new();
        let watched = (Arc::clone(&stop), options.out.clone());
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| writers > 0 || *kind != Kind::Write).collect();
        let wanted = kinds.clone();
        let watcher = thread::spawn(move || {
            while !watched.0.wait(Some(Duration::from_millis(5))) {
                let has = |list: &Accesses, kind| list.within(kind, &ALWAYS).count() > 10;
                if read(&watched.1).is_ok_and(|list| wanted.iter().all(|kind| has(&list, *kind))) {
                    watched.0.ask();
                }
            }
        });
        let felt = run(&options, &stop, || {});
        stop.ask();
        watcher.join().unwrap();
        let felt = felt.unwrap();
        assert_eq!(writers == 0, felt.raw(Kind::Write, &ALWAYS).count == 0);
        for kind in kinds {
            assert_eq!(felt.errors(kind, &ALWAYS), 0);
            assert!(felt.raw(kind, &ALWAYS).median > 0, "{}", felt.json());
        }
        assert!(felt.json().starts_with("{\"read\":{\"count\":"));
        assert!(before == std::fs::read(&path).unwrap());
    }
}
