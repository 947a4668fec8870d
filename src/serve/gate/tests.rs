//! Writers in threads of their own, and the job in this one.

use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::*;
use crate::range::PowerOfTwo;

const CLUSTER: u64 = 4096;
const LONG: Duration = Duration::from_secs(600);

fn range(cluster: u64) -> ByteRange {
    ByteRange::at(cluster * CLUSTER, CLUSTER).expect("not empty")
}

fn unit() -> PowerOfTwo {
    PowerOfTwo::new(CLUSTER).expect("a power of two")
}

/// A gate with a job that watches ten clusters, and what it is told.
fn watched(deadline: Duration) -> (Arc<Gate>, Watch, Receiver<News>) {
    watched_by(&Arc::default(), deadline, OnError::BreakSnapshot)
}

/// The same with a job at this gate.
fn watched_by(gate: &Arc<Gate>, deadline: Duration, on_error: OnError) -> (Arc<Gate>, Watch, Receiver<News>) {
    let (tell, told) = channel();
    let watch = gate.watch(deadline, on_error, Box::new(move |news| drop(tell.send(news)))).expect("a job");
    watch.gather(10 * CLUSTER, unit()).expect("nobody writes");
    watch.watch().expect("T0");
    (Arc::clone(gate), watch, told)
}

/// A write in a thread of its own; what it returns ends with the write.
fn write(gate: &Arc<Gate>, cluster: u64) -> Receiver<()> {
    let (gate, (done, ended)) = (Arc::clone(gate), channel());
    thread::spawn(move || {
        drop(gate.enter(range(cluster)));
        drop(done);
    });
    ended
}

/// The same, with its error.
fn fails(gate: &Arc<Gate>, cluster: u64) -> thread::JoinHandle<Option<i32>> {
    let gate = Arc::clone(gate);
    thread::spawn(move || gate.enter(range(cluster)).map(drop).err().and_then(|e| e.raw_os_error()))
}

fn has_ended(write: &Receiver<()>) -> bool {
    write.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected)
}

fn ends(write: &Receiver<()>) {
    assert!(write.recv_timeout(LONG) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected), "it still waits");
}

#[test]
fn without_a_job_everybody_goes_on() {
    let gate = Arc::new(Gate::default());
    let [one, two] = [gate.enter(range(0)), gate.enter(range(0))].map(|passing| passing.expect("on"));
    assert!(gate.try_enter(range(0)).is_some());
    drop((one, two));
    assert_eq!(gate.lock().writing, 0);
}

#[test]
fn a_write_waits_for_its_cluster_and_the_job_is_told() {
    let (gate, watch, told) = watched(LONG);
    assert!(gate.try_enter(range(3)).is_none());
    let three = write(&gate, 3);
    assert_eq!(told.recv_timeout(LONG), Ok(News::Wanted(range(3))));
    let five = write(&gate, 5);
    watch.done(range(2));
    assert!(!has_ended(&three) && !has_ended(&five));
    watch.done(range(3));
    ends(&three);
    assert!(gate.try_enter(range(3)).is_some() && told.try_recv().is_err(), "five is told of when three is answered");
    watch.promoted();
    assert_eq!(told.recv_timeout(LONG), Ok(News::Wanted(range(5))));
    watch.done(ByteRange::new(0, 10 * CLUSTER).expect("all"));
    ends(&five);
    let (why, tally) = watch.end();
    assert_eq!((why, tally.waited), (None, 2));
    assert!(gate.try_enter(range(9)).is_some());
}

#[test]
fn t0_waits_for_the_writes_on_their_way_and_later_ones_wait_for_it() {
    let gate = Arc::new(Gate::default());
    let watch = gate.watch(LONG, OnError::BreakSnapshot, Box::new(|_| ())).expect("the only job");
    let before = gate.enter(range(0));
    let gathers = thread::spawn(move || {
        watch.gather(10 * CLUSTER, unit()).expect("it ends in time");
        watch
    });
    // From the moment on at which nobody may pass, it is being gathered.
    while gate.try_enter(range(0)).is_some() {
        thread::yield_now();
    }
    let later = write(&gate, 1);
    assert!(!gathers.is_finished() && !has_ended(&later));
    drop(before);
    let watch = gathers.join().expect("no panic");
    watch.watch().expect("T0");
    assert!(!has_ended(&later), "its cluster is not done");
    watch.done(range(1));
    ends(&later);
}

#[test]
fn a_clone_call_waits_for_writes_and_writes_for_it() {
    let (gate, watch, _told) = watched(LONG);
    watch.done(range(0));
    watch.calling();
    assert!(gate.is_calling() && gate.try_enter(range(0)).is_none());
    let held = write(&gate, 0);
    thread::yield_now();
    assert!(!has_ended(&held));
    watch.called();
    ends(&held);
    assert!(!gate.is_calling());
}

#[test]
fn a_job_that_goes_lets_everybody_go_on_and_another_may_come() {
    let (gate, watch, _told) = watched(LONG);
    let held = write(&gate, 7);
    watch.calling();
    drop(watch);
    ends(&held);
    assert!(!gate.is_calling() && gate.watch(LONG, OnError::BreakSnapshot, Box::new(|_| ())).is_ok());
}

#[test]
fn at_the_deadline_the_snapshot_breaks_and_not_the_write() {
    let (gate, watch, told) = watched(Duration::from_millis(10));
    drop(gate.enter(range(4)));
    assert_eq!(told.recv_timeout(LONG), Ok(News::Wanted(range(4))));
    assert!(matches!(told.recv_timeout(LONG), Ok(News::Broken(why)) if why.contains("--guest-deadline")));
    assert!(gate.try_enter(range(5)).is_some());
    assert!(watch.end().0.is_some_and(|why| why.contains("--guest-deadline")));
}

/// What the write overwrites is kept: it waits in the kernel then, and nothing is lost by that.
#[test]
fn a_call_that_takes_longer_than_the_deadline_costs_nobody_anything() {
    for on_error in [OnError::BreakSnapshot, OnError::BreakGuestWrite] {
        let deadline = Duration::from_millis(10);
        let (gate, watch, told) = watched_by(&Arc::default(), deadline, on_error);
        watch.done(range(0));
        watch.calling();
        assert!(gate.enter(range(0)).is_ok(), "{on_error:?}");
        assert!(watch.tally().longest >= deadline * 4 / 5, "it was seen");
        assert!(gate.is_calling() && gate.try_enter(range(0)).is_some(), "nobody waits for that call any more");
        watch.called();
        watch.calling();
        assert!(gate.try_enter(range(0)).is_none(), "but for the next one");
        watch.called();
        watch.done(ByteRange::new(0, 10 * CLUSTER).expect("all"));
        assert!(watch.end().0.is_none() && told.try_recv().is_err(), "{on_error:?}");
    }
}

#[test]
fn a_write_that_does_not_come_to_its_end_is_no_t0() {
    let gate = Arc::new(Gate::default());
    let watch = gate.watch(Duration::from_millis(10), OnError::BreakSnapshot, Box::new(|_| ())).expect("the only job");
    let _hangs = gate.enter(range(0));
    assert!(watch.gather(10 * CLUSTER, unit()).is_err());
    assert!(gate.try_enter(range(1)).is_some());
    assert!(watch.watch().is_err());
}

#[test]
fn what_was_not_cloned_whole_is_broken() {
    let (_gate, watch, _told) = watched(LONG);
    watch.done(range(0));
    assert!(watch.end().0.is_some_and(|why| why.contains("before everything was cloned")));
}

/// Each keeps what it needs while the other does.
#[test]
fn of_two_jobs_both_are_told_before_either_is_done() {
    let (gate, first, told_first) = watched(LONG);
    let (_, second, told_second) = watched_by(&gate, LONG, OnError::BreakSnapshot);
    let write = write(&gate, 3);
    for told in [told_first, told_second] {
        assert_eq!(told.recv_timeout(LONG), Ok(News::Wanted(range(3))));
    }
    first.done(range(3));
    assert!(!has_ended(&write));
    second.done(range(3));
    ends(&write);
    assert!(gate.lock().answered.is_empty());
}

#[test]
fn a_write_that_one_job_refuses_waits_for_no_other() {
    let (gate, first, told_first) = watched_by(&Arc::default(), LONG, OnError::BreakGuestWrite);
    let (_, second, told_second) = watched_by(&gate, LONG, OnError::BreakSnapshot);
    let write = fails(&gate, 3);
    for told in [&told_first, &told_second] {
        assert_eq!(told.recv_timeout(LONG), Ok(News::Wanted(range(3))));
    }
    assert_eq!(second.waiting(), [range(3)]);
    first.cannot_keep(range(3), "it is full", libc::ENOSPC);
    assert_eq!(write.join().expect("no panic"), Some(libc::ENOSPC));
    assert!(first.waiting().is_empty() && second.waiting().is_empty() && gate.lock().answered.is_empty());
    // Nobody waits for it, whose time could be up.
    second.promoted();
    assert!(told_second.try_recv().is_err() && gate.lock().jobs.values().all(|job| job.machine.due().is_none()));
}

#[test]
fn the_deadlines_of_two_jobs_do_not_add_up() {
    let (gate, first, told_first) = watched(LONG);
    let (_, second, told_second) = watched_by(&gate, LONG, OnError::BreakSnapshot);
    let write = write(&gate, 3);
    for told in [told_first, told_second] {
        assert_eq!(told.recv_timeout(LONG), Ok(News::Wanted(range(3))));
    }
    let due = || -> Vec<_> { gate.lock().jobs.values().map(|job| job.machine.due()).collect() };
    let before = due();
    assert!(before[0].is_some() && before[0] == before[1], "{before:?}");
    drop(first);
    assert!(!has_ended(&write) && due() == before[1..], "the other one's is what it was");
    drop(second);
    ends(&write);
    assert!(gate.lock().answered.is_empty());
}

/// The write fails by the one, and the other has nobody who waits.
#[test]
fn at_the_deadline_of_both_the_write_fails_and_no_snapshot_breaks() {
    let deadline = Duration::from_millis(10);
    let gate = Arc::default();
    let [(_, breaks, _), (_, fails, _)] =
        [OnError::BreakSnapshot, OnError::BreakGuestWrite].map(|on_error| watched_by(&gate, deadline, on_error));
    let error = gate.enter(range(3)).map(drop).err().and_then(|e| e.raw_os_error());
    assert_eq!(error, Some(libc::ETIMEDOUT));
    for watch in [breaks, fails] {
        assert!(watch.point().expect("T0").fate.lost().is_none() && watch.waiting().is_empty());
    }
    assert!(gate.lock().answered.is_empty());
}

/// One that waits for a call, and for what is not done.
#[test]
fn a_write_waits_for_the_call_of_one_job_and_the_clusters_of_another() {
    let (gate, first, _) = watched(LONG);
    let (_, second, told) = watched_by(&gate, LONG, OnError::BreakSnapshot);
    first.done(range(3));
    first.calling();
    let write = write(&gate, 3);
    assert_eq!(told.recv_timeout(LONG), Ok(News::Wanted(range(3))));
    second.done(range(3));
    thread::yield_now();
    assert!(!has_ended(&write));
    first.called();
    ends(&write);
}

#[test]
fn the_parts_of_a_write_wait_together_no_longer_than_one_may() {
    let (gate, watch, told) = watched(LONG);
    let mut waited = Duration::ZERO;
    watch.done(range(3));
    drop(gate.enter_with(range(3), &mut waited));
    assert!(waited < LONG && told.try_recv().is_err());
    // The next part: those before have taken all the time there is.
    waited = LONG;
    drop(gate.enter_with(range(4), &mut waited));
    assert!(matches!(told.recv_timeout(LONG), Ok(News::Wanted(it)) if it == range(4)));
    assert!(matches!(told.recv_timeout(LONG), Ok(News::Broken(_))));
    assert!(waited >= LONG);
}

/// Somebody who looks at the time for others finds that it has all of it.
#[test]
fn what_need_not_be_done_gives_up_at_the_deadline_and_breaks_nothing() {
    for on_error in [OnError::BreakSnapshot, OnError::BreakGuestWrite] {
        let (gate, watch, told) = watched_by(&Arc::default(), Duration::from_millis(10), on_error);
        let mut waited = Duration::ZERO;
        let gives_up =
            |cluster, waited: &mut Duration| gate.enter_in_time(range(cluster), waited).expect("no error").is_none();
        assert!(gives_up(3, &mut waited) && waited >= Duration::from_millis(8));
        assert_eq!(told.try_recv(), Ok(News::Wanted(range(3))));
        // No time is left: only what need not wait is done.
        assert!(gives_up(4, &mut waited));
        watch.done(range(5));
        assert!(!gives_up(5, &mut waited));
        assert!(watch.waiting().is_empty() && gate.lock().answered.is_empty() && told.try_recv().is_err());
        assert!(watch.tally().longest >= Duration::from_millis(8), "it was seen");
        watch.done(ByteRange::new(0, 10 * CLUSTER).expect("all"));
        assert_eq!(watch.end().0, None);
    }
}

#[test]
fn what_need_not_be_done_is_never_overdue_and_fails_where_it_is_refused() {
    let (gate, watch, told) = watched_by(&Arc::default(), LONG, OnError::BreakGuestWrite);
    let discard = thread::spawn({
        let gate = Arc::clone(&gate);
        move || {
            gate.enter_in_time(range(3), &mut Duration::default()).map(|on| on.is_some()).map_err(|e| e.raw_os_error())
        }
    });
    assert_eq!(told.recv_timeout(LONG), Ok(News::Wanted(range(3))));
    let late = gate.now() + 2 * LONG;
    assert!(gate.lock().jobs.values_mut().all(|job| job.expire(late).is_empty()));
    watch.cannot_keep(range(3), "it is full", libc::ENOSPC);
    assert_eq!(discard.join().expect("no panic"), Err(Some(libc::ENOSPC)));
}

#[test]
fn one_that_is_lost_and_still_read_is_in_nobodys_way() {
    let gate = Arc::new(Gate::default());
    let watch = || gate.watch(LONG, OnError::BreakSnapshot, Box::new(|_| ()));
    let mut all: Vec<_> = (0..JOBS).map(|_| watch().expect("a place")).collect();
    assert!(watch().is_err());
    all[0].break_off("it was ended");
    all.push(watch().expect("its place"));
    assert!(watch().is_err());
}

/// A watch of one that is to be told when a write fails, and the error of a write to this cluster.
fn guest_write_breaks(deadline: Duration, then: impl FnOnce(&Watch)) -> Option<i32> {
    let (gate, watch, told) = watched_by(&Arc::default(), deadline, OnError::BreakGuestWrite);
    watch.done(range(0));
    let write = fails(&gate, 4);
    assert_eq!(told.recv_timeout(LONG), Ok(News::Wanted(range(4))));
    then(&watch);
    let error = write.join().expect("no panic");
    assert!(gate.try_enter(range(0)).is_some() && gate.try_enter(range(5)).is_none(), "it is watched on");
    let point = watch.point().expect("T0");
    assert!(point.fate.lost().is_none() && gate.lock().answered.is_empty());
    error
}

#[test]
fn where_the_user_says_so_the_write_fails_and_the_snapshot_stays() {
    assert_eq!(guest_write_breaks(Duration::from_millis(10), |_| ()), Some(libc::ETIMEDOUT));
    let full = |watch: &Watch| watch.cannot_keep(range(4), "it is full", libc::ENOSPC);
    assert_eq!(guest_write_breaks(LONG, full), Some(libc::ENOSPC));
}

#[test]
fn what_cannot_be_kept_is_known_before_the_write_goes_on() {
    let (gate, watch, told) = watched(LONG);
    let point = watch.point().expect("T0");
    let write = thread::spawn({
        let (gate, fate) = (Arc::clone(&gate), Arc::clone(&point.fate));
        move || {
            let _on = gate.enter(range(4)).expect("on");
            fate.lost().map(str::to_owned)
        }
    });
    assert_eq!(told.recv_timeout(LONG), Ok(News::Wanted(range(4))));
    watch.cannot_keep(range(4), "it is full", libc::ENOSPC);
    assert_eq!(write.join().expect("no panic").as_deref(), Some("it is full"));
    assert_eq!(told.recv_timeout(LONG), Ok(News::Broken("it is full".into())));
    drop(watch);
    assert_eq!(point.fate.lost(), Some("it is full"));
}

/// Writers by the dozen, calls and clones between them: whoever writes to a cluster finds it done, and nobody is left waiting.
#[test]
fn many_writers_and_a_job_after_the_other() {
    let gate = Arc::new(Gate::default());
    for _ in 0..20 {
        let (tell, told) = channel();
        let watch = gate
            .watch(LONG, OnError::BreakSnapshot, Box::new(move |news| drop(tell.send(news))))
            .expect("the only job");
        let writers: Vec<_> = (0..24).map(|n| write(&gate, n % 10)).collect();
        watch.gather(10 * CLUSTER, unit()).expect("they end in time");
        watch.watch().expect("T0");
        for cluster in 0..10 {
            let began = gate.now();
            watch.calling();
            let writing = gate.lock().writing;
            // Who is not run for that long is not waited for any longer.
            assert!(writing == 0 || gate.now() - began >= watch::DRAIN, "{writing} beside a call");
            watch.called();
            if let Ok(News::Wanted(wanted)) = told.try_recv() {
                watch.done(wanted);
                watch.promoted();
            }
            watch.done(range(cluster));
        }
        assert_eq!(watch.end().0, None);
        writers.iter().for_each(ends);
    }
}
