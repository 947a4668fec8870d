//! The gate that the guest's writes go through, under a scheduler that takes turns away where it likes: what a snapshot has is what was there
//! at T0, or it is known to be lost before anybody could have read anything else; and no write waits for ever, whatever becomes of the job.

use std::sync::Arc;
use std::time::Duration;

use reflink_img_interleavings::range::{ByteRange, PowerOfTwo};
use reflink_img_interleavings::serve::gate::{Gate, News, OnError, Passing, Point, Watch};
use reflink_img_interleavings::threads::{self, Condvar, Mutex};
use reflink_img_interleavings::trial;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

const CLUSTER: u64 = 4096;
const CLUSTERS: usize = 4;
const GUESTS: u64 = 3;
const WRITES: u64 = 4;
const DEADLINE: Duration = Duration::from_secs(1);

/// How often each is tried with either scheduler.
const TIMES: usize = 3000;

fn range(first: usize, count: usize) -> ByteRange {
    ByteRange::at(first as u64 * CLUSTER, count as u64 * CLUSTER).expect("not empty")
}

/// A number for each cluster.
type Cells = [AtomicU64; CLUSTERS];

fn load(cells: &Cells) -> [u64; CLUSTERS] {
    std::array::from_fn(|at| cells[at].load(Ordering::SeqCst))
}

/// An image behind a gate, and how much of the guests is still to come.
struct Scene {
    gate: Arc<Gate>,
    image: Cells,
    /// Whether the deadline may come while a job is about to answer.
    time: bool,
    guests: Mutex<u64>,
    changed: Condvar,
}

impl Scene {
    fn new(time: bool) -> Self {
        Self {
            gate: Arc::default(),
            image: Cells::default(),
            time,
            guests: Mutex::new(GUESTS),
            changed: Condvar::new(),
        }
    }

    /// The guest writes numbers that nobody else does; how many writes failed.
    fn guest(&self, me: u64) -> u64 {
        let mut failed = 0;
        for nth in 1..=WRITES {
            let first = thread_rng().gen_range(0..CLUSTERS);
            let count = if first + 1 < CLUSTERS { thread_rng().gen_range(1..=2) } else { 1 };
            let range = range(first, count);
            let write = |passing: Passing<'_>| {
                self.image[first..first + count].iter().for_each(|it| it.store(me * 100 + nth, Ordering::SeqCst));
                drop(passing);
            };
            let (mut waited, way) = (Duration::default(), thread_rng().gen_range(0..4));
            let entered = match (way, if way == 1 { self.gate.try_enter(range) } else { None }) {
                (1, Some(passing)) => Ok(Some(passing)),
                (0, _) => self.gate.enter_in_time(range, &mut waited),
                _ => self.gate.enter(range).map(Some),
            };
            match entered {
                Ok(passing) => passing.into_iter().for_each(write),
                Err(e) => {
                    assert!(matches!(e.raw_os_error(), Some(libc::ETIMEDOUT | libc::ENOSPC)), "{e}");
                    failed += 1;
                }
            }
        }
        *self.guests.lock().expect("the guests") -= 1;
        self.changed.notify_all();
        failed
    }

    /// Time goes by: as long as there are guests where nobody else helps them, else now and then.
    fn clock(&self, until_the_end: bool) {
        for tick in 0.. {
            if *self.guests.lock().expect("the guests") == 0 || (!until_the_end && (!self.time || tick == 4)) {
                return;
            }
            thread::yield_now();
            threads::pass(DEADLINE / 3);
        }
    }

    fn wait_for_guests(&self) {
        let mut guests = self.guests.lock().expect("the guests");
        while *guests > 0 {
            guests = self.changed.wait(guests).expect("the guests");
        }
    }
}

/// What a job was told.
#[derive(Default)]
struct Ears {
    heard: Mutex<Heard>,
    changed: Condvar,
}

#[derive(Default)]
struct Heard {
    wanted: bool,
    broken: u32,
    over: bool,
}

impl Ears {
    fn tell(&self, news: News) {
        let mut heard = self.heard.lock().expect("what was heard");
        match news {
            News::Wanted(_) => heard.wanted = true,
            News::Broken(_) => heard.broken += 1,
        }
        self.changed.notify_all();
    }

    fn end(&self) {
        self.heard.lock().expect("what was heard").over = true;
        self.changed.notify_all();
    }

    /// Waits until something is wanted; false at the end.
    fn wanted(&self) -> bool {
        let mut heard = self.heard.lock().expect("what was heard");
        while !heard.wanted && heard.broken == 0 && !heard.over {
            heard = self.changed.wait(heard).expect("what was heard");
        }
        std::mem::take(&mut heard.wanted)
    }
}

/// What a job does after T0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Clones all, what is wanted first.
    Snapshot,
    /// Clones what is wanted, until it is told to end.
    Fleece,
    /// The same where there is not always room.
    FullFleece,
    /// Clones this many, and is gone.
    Dies(usize),
    /// Never answers.
    Hangs,
}

/// A point in time: what was there, and what of it is kept.
struct Kept {
    t0: [u64; CLUSTERS],
    kept: Cells,
    point: Point,
}

impl Kept {
    /// A reader, as `serve::view` reads: without a lock, so it looks afterwards whether it was overtaken.
    fn read(&self, image: &Cells, at: usize) {
        let done = || self.point.clusters.open_part(range(at, 1)).is_none();
        let from = |cells: &Cells| cells[at].load(Ordering::SeqCst);
        let first = if done() { None } else { Some(from(image)) };
        let value = first.filter(|_| !done()).unwrap_or_else(|| from(&self.kept));
        if self.point.fate.lost().is_none() {
            assert_eq!(value, self.t0[at], "not as of T0");
        }
    }
}

/// A job, from its first moment to its last; whether its point in time is whole.
fn job(scene: &Scene, way: Way, on_error: OnError) -> bool {
    let ears = Arc::new(Ears::default());
    let tell = Arc::clone(&ears);
    let watch = scene.gate.watch(DEADLINE, on_error, Box::new(move |news| tell.tell(news))).expect("a job");
    thread::yield_now();
    let unit = PowerOfTwo::new(CLUSTER).expect("a power of two");
    let gathered = watch.gather(CLUSTERS as u64 * CLUSTER, unit);
    // Between these two nobody writes.
    let t0 = load(&scene.image);
    let whole = gathered.and_then(|()| watch.watch());
    if let Err(why) = whole {
        assert!(scene.time, "{why}");
        return false;
    }
    let kept = Kept { t0, kept: Cells::default(), point: watch.point().expect("there is one") };
    let mut whole = false;
    // Everything in threads of its own: the scheduler wakes who has opened a scope when its last thread ends, whatever he waits for.
    thread::scope(|scope| {
        scope.spawn(|| (0..2 * CLUSTERS).for_each(|_| kept.read(&scene.image, thread_rng().gen_range(0..CLUSTERS))));
        if matches!(way, Way::Fleece | Way::FullFleece) {
            scope.spawn(|| {
                scene.wait_for_guests();
                ears.end();
            });
        }
        scope.spawn(|| {
            whole = work(scene, way, &watch, &kept, &ears);
            drop(watch);
        });
    });
    assert!(ears.heard.lock().expect("what was heard").broken <= 1, "told twice");
    whole
}

/// What it does after T0.
fn work(scene: &Scene, way: Way, watch: &Watch, kept: &Kept, ears: &Ears) -> bool {
    let clusters = &kept.point.clusters;
    let keep = |at: usize| {
        if clusters.open_part(range(at, 1)).is_none() || kept.point.fate.lost().is_some() {
            return;
        }
        watch.calling();
        if way == Way::FullFleece && thread_rng().gen_ratio(1, 3) {
            watch.called();
            return watch.cannot_keep(range(at, 1), "there is no room", libc::ENOSPC);
        }
        let value = scene.image[at].load(Ordering::SeqCst);
        if kept.point.fate.lost().is_none() {
            assert_eq!(value, kept.t0[at], "overwritten before it was kept");
        }
        kept.kept[at].store(value, Ordering::SeqCst);
        // The server keeps it as soon as it is cloned, a job as soon as it has told so.
        let done_first = thread_rng().gen_bool(0.5);
        if done_first {
            watch.done(range(at, 1));
        }
        watch.called();
        if !done_first {
            watch.done(range(at, 1));
        }
    };
    let keep_wanted = || {
        for wanted in watch.waiting() {
            (0..CLUSTERS).filter(|at| wanted.intersect(range(*at, 1)).is_some()).for_each(keep);
        }
        watch.promoted();
    };
    match way {
        Way::Snapshot | Way::Dies(_) => {
            let until = if let Way::Dies(after) = way { after } else { CLUSTERS };
            for at in 0..until {
                keep_wanted();
                keep(at);
            }
        }
        Way::Fleece | Way::FullFleece => {
            while ears.wanted() {
                keep_wanted();
            }
        }
        Way::Hangs => scene.wait_for_guests(),
    }
    let lost = kept.point.fate.lost().is_some();
    if way == Way::Snapshot && !lost {
        assert_eq!(load(&kept.kept), kept.t0);
        if thread_rng().gen_bool(0.5) {
            // It has much to do yet, but nobody waits for it any more.
            scene.wait_for_guests();
        }
    }
    !lost
}

/// Guests who write while these jobs do their work: which points in time are whole, and how many writes have failed.
fn scene(time: bool, jobs: &[(Way, OnError)]) -> (Vec<bool>, u64) {
    let scene = Scene::new(time);
    let hangs = jobs.iter().any(|(way, _)| *way == Way::Hangs);
    thread::scope(|scope| {
        let guests: Vec<_> = (1..=GUESTS).map(|me| (me, &scene)).collect();
        let guests: Vec<_> = guests.into_iter().map(|(me, scene)| scope.spawn(move || scene.guest(me))).collect();
        let jobs: Vec<_> = jobs.iter().map(|(way, on_error)| scope.spawn(|| job(&scene, *way, *on_error))).collect();
        scene.clock(hangs);
        let failed = guests.into_iter().map(|it| it.join().expect("a guest")).sum();
        (jobs.into_iter().map(|it| it.join().expect("a job")).collect(), failed)
    })
}

fn any(ways: &[Way]) -> Way {
    ways[thread_rng().gen_range(0..ways.len())]
}

#[test]
fn points_in_time_are_whole_and_nobody_waits_for_ever() {
    trial::run(TIMES, || {
        let ways = [any(&[Way::Snapshot, Way::Fleece]), any(&[Way::Snapshot, Way::Fleece])];
        let (whole, failed) = scene(false, &ways.map(|way| (way, OnError::BreakSnapshot)));
        assert!(whole == [true, true] && failed == 0);
    });
}

#[test]
fn what_comes_too_late_is_known_to_be_lost_and_no_write_fails() {
    trial::run(TIMES, || {
        let way = any(&[Way::Snapshot, Way::Fleece, Way::Dies(2), Way::Hangs]);
        let (_, failed) = scene(true, &[(way, OnError::BreakSnapshot), (Way::Snapshot, OnError::BreakSnapshot)]);
        assert_eq!(failed, 0);
    });
}

#[test]
fn where_writes_fail_instead_nothing_is_lost_but_by_the_jobs_end() {
    trial::run(TIMES, || {
        let way = any(&[Way::Snapshot, Way::Fleece, Way::Hangs]);
        scene(true, &[(way, OnError::BreakGuestWrite)]);
    });
}

#[test]
fn one_that_is_gone_holds_nobody() {
    trial::run(TIMES, || {
        let way = Way::Dies(thread_rng().gen_range(0..CLUSTERS));
        let (_, failed) = scene(false, &[(way, OnError::BreakSnapshot), (Way::Fleece, OnError::BreakSnapshot)]);
        assert_eq!(failed, 0);
    });
}

#[test]
fn without_room_writes_fail_and_the_point_in_time_is_whole() {
    trial::run(TIMES, || {
        let jobs = [(Way::FullFleece, OnError::BreakGuestWrite), (Way::Fleece, OnError::BreakSnapshot)];
        assert_eq!(scene(false, &jobs).0, [true, true]);
    });
}
