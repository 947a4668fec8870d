use super::*;
use crate::range::PowerOfTwo;

const MS: Duration = Duration::from_millis(1);
const LIMITS: Limits = Limits { waiting: 3, deadline: Duration::from_millis(100) };

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("not empty")
}

fn watching() -> (Accesses<u32>, Arc<Clusters>) {
    let clusters = Arc::new(Clusters::new(4096 * 10, PowerOfTwo::new(4096).expect("a power of two")));
    let mut accesses = Accesses::new(LIMITS);
    accesses.gather();
    accesses.watch(vec![Arc::clone(&clusters)], vec![]);
    (accesses, clusters)
}

#[test]
fn before_t0_everybody_passes_and_while_the_images_are_gathered_everybody_waits() {
    let mut accesses = Accesses::<u32>::new(LIMITS);
    assert_eq!(accesses.arrive(1, 0, range(0, 1), MS), Some(1));
    assert!(accesses.is_passing());
    accesses.gather();
    assert!(!accesses.is_passing());
    assert_eq!(accesses.arrive(2, 0, range(0, 1), MS), None);
    assert_eq!((accesses.wanted(), accesses.ready(MS)), (None, vec![]), "T0 is not set yet");
    let clusters = Arc::new(Clusters::new(4096, PowerOfTwo::new(4096).expect("a power of two")));
    clusters.finish(range(0, 4096));
    accesses.watch(vec![clusters], vec![]);
    assert_eq!(accesses.ready(3 * MS), [2]);
    assert_eq!(accesses.tally(), Tally { seen: 1, waited: 1, longest: 2 * MS });
}

#[test]
fn an_access_waits_for_all_of_its_clusters_and_for_no_others() {
    let (mut accesses, clusters) = watching();
    clusters.finish(range(0, 4096));
    assert_eq!(accesses.arrive(1, 0, range(100, 4096), MS), Some(1));
    assert_eq!(accesses.arrive(2, 0, range(100, 4097), MS), None);
    assert_eq!(accesses.arrive(3, 0, range(8192, 16384), MS), None);
    assert_eq!(accesses.wanted(), Some((0, range(4096, 4097))));
    clusters.finish(range(4096, 12288));
    assert_eq!(accesses.wanted(), Some((0, range(12288, 16384))));
    assert_eq!(accesses.ready(MS), [2]);
    clusters.finish(range(12288, 16384));
    assert_eq!(accesses.ready(MS), [3]);
    assert_eq!(accesses.waiting(), 0);
    let beyond = range(4096 * 10, 4096 * 11);
    assert_eq!(accesses.arrive(4, 0, beyond, MS), Some(4), "what grows the image is not in the snapshot");
}

#[test]
fn large_and_small_accesses_take_turns() {
    let (mut accesses, clusters) = watching();
    assert_eq!(accesses.arrive(1, 0, range(0, 4096 * 8), MS), None);
    assert_eq!(accesses.arrive(2, 0, range(4096 * 8, 4096 * 8 + 512), 2 * MS), None);
    assert!(accesses.is_wanted());
    assert_eq!(accesses.wanted(), Some((0, range(0, 4096 * 8))));
    clusters.finish(range(0, 4096));
    assert_eq!(accesses.wanted(), Some((0, range(4096 * 8, 4096 * 8 + 512))));
    clusters.finish(range(4096 * 8, 4096 * 9));
    assert_eq!(accesses.ready(3 * MS), [2]);
    for part in 1..8 {
        assert_eq!(accesses.wanted(), Some((0, range(4096 * part, 4096 * 8))));
        clusters.finish(range(4096 * part, 4096 * (part + 1)));
    }
    assert!(!accesses.is_wanted());
    assert_eq!((accesses.wanted(), accesses.ready(3 * MS)), (None, vec![1]));
}

#[test]
fn nobody_goes_on_before_what_has_to_be_first() {
    let clusters: Arc<Clusters> =
        Arc::new(Clusters::new(4096 * 10 - 5, PowerOfTwo::new(4096).expect("a power of two")));
    let mut accesses = Accesses::new(LIMITS);
    accesses.gather();
    let tail = range(4096 * 9, 4096 * 10 - 5);
    accesses.watch(vec![Arc::clone(&clusters)], vec![(0, tail)]);
    clusters.finish(range(0, 4096));
    assert_eq!(accesses.arrive(1, 0, range(0, 1), MS), None);
    assert_eq!(accesses.wanted(), Some((0, tail)));
    clusters.finish(tail);
    assert_eq!((accesses.ready(MS), accesses.wanted()), (vec![1], None));
}

#[test]
fn at_the_deadline_the_snapshot_breaks_and_nobody_waits_ever_after() {
    let (mut accesses, _) = watching();
    assert_eq!(accesses.arrive(1, 0, range(0, 1), MS), None);
    assert_eq!(accesses.due(), Some(101 * MS));
    accesses.expire(100 * MS);
    assert_eq!(accesses.broken(), None);
    accesses.expire(101 * MS);
    assert!(accesses.broken().expect("broken").contains("100ms"));
    assert_eq!(accesses.ready(101 * MS), [1]);
    assert_eq!(accesses.arrive(2, 0, range(0, 1), 102 * MS), Some(2));
    accesses.break_off("another reason");
    assert!(!accesses.end());
    assert!(accesses.broken().expect("sticky").contains("100ms"), "the first reason counts");
}

#[test]
fn who_may_go_on_by_the_deadline_breaks_nothing() {
    let (mut accesses, clusters) = watching();
    assert_eq!(accesses.arrive(1, 0, range(0, 1), MS), None);
    clusters.finish(range(0, 4096));
    accesses.expire(101 * MS);
    assert_eq!(accesses.broken(), None);
    assert_eq!(accesses.ready(101 * MS), [1]);
}

#[test]
fn who_waits_for_t0_for_too_long_breaks_the_snapshot() {
    let mut accesses = Accesses::<u32>::new(LIMITS);
    accesses.gather();
    assert_eq!(accesses.arrive(1, 0, range(0, 1), MS), None);
    accesses.expire(101 * MS);
    assert!(accesses.broken().is_some());
    assert_eq!(accesses.ready(101 * MS), [1]);
}

#[test]
fn too_many_waiting_break_the_snapshot() {
    let (mut accesses, _) = watching();
    for access in 0..3 {
        assert_eq!(accesses.arrive(access, 0, range(0, 1), MS), None);
    }
    assert_eq!(accesses.arrive(3, 0, range(0, 1), MS), Some(3));
    assert!(accesses.broken().is_some());
    assert_eq!(accesses.ready(MS), [0, 1, 2]);
}

#[test]
fn when_it_is_over_everybody_goes_on() {
    let (mut accesses, _) = watching();
    assert_eq!(accesses.arrive(1, 0, range(0, 1), MS), None);
    assert!(accesses.end());
    accesses.break_off("too late to matter");
    assert_eq!(accesses.broken(), None);
    assert_eq!(accesses.ready(MS), [1]);
}

#[test]
fn accesses_that_are_not_to_be_made_leave_the_snapshot_whole() {
    let (mut accesses, clusters) = watching();
    assert_eq!(accesses.arrive(1, 0, range(0, 1), MS), None);
    assert_eq!(accesses.arrive(2, 0, range(4096, 4097), 2 * MS), None);
    assert_eq!(accesses.arrive(3, 0, range(8192, 8193), 3 * MS), None);
    clusters.finish(range(0, 4096));
    assert_eq!(accesses.overdue(102 * MS), [2], "the first one may go on, the third has time");
    assert_eq!(accesses.withdraw(0, range(0, 8192)), Vec::<u32>::new());
    assert_eq!(accesses.withdraw(0, range(8000, 8193)), [3]);
    assert_eq!((accesses.ready(102 * MS), accesses.broken()), (vec![1], None));
}

#[test]
fn an_access_that_is_forgotten_is_waited_for_by_nobody() {
    let (mut accesses, _) = watching();
    assert_eq!(accesses.arrive(1, 0, range(0, 1), MS), None);
    assert_eq!(accesses.arrive(2, 0, range(4096, 4097), 2 * MS), None);
    accesses.forget(|it| *it == 1);
    assert_eq!(
        (accesses.all_wanted(9), accesses.due()),
        (vec![(0, range(4096, 4097))], Some(2 * MS + LIMITS.deadline))
    );
    accesses.break_off("for once");
    assert_eq!(accesses.ready(MS), [2]);
}

#[test]
fn before_t0_it_is_the_snapshot_that_is_given_up() {
    let mut accesses = Accesses::<u32>::new(LIMITS);
    accesses.gather();
    assert_eq!(accesses.arrive(1, 0, range(0, 1), MS), None);
    assert_eq!(accesses.overdue(101 * MS), Vec::<u32>::new());
    assert!(accesses.broken().is_some());
    assert_eq!(accesses.ready(101 * MS), [1]);
}
