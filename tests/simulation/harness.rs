//! One machine with an image, a guest and a job, and what must be true of them.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rclone_img::cbw::Clusters;
use rclone_img::disk::sim::{Faults, IMAGE, Setup, SimDisk, SimFile};
use rclone_img::disk::{Access, Disk, DiskFile, FsKind, Stat};
use rclone_img::engine::abort::{Aborted, Done, abort};
use rclone_img::engine::claims::Inline;
use rclone_img::engine::flusher;
use rclone_img::engine::job::{self, Job, MinFree, Options};
use rclone_img::engine::names::Names;
use rclone_img::engine::recover::Wish;
use rclone_img::engine::report::{Finished, Nobody};
use rclone_img::error::{Error, Kind, Result};
use rclone_img::hold::{Demand, Hold, HoldKind, T0};
use rclone_img::range::{ByteRange, PowerOfTwo};
use rclone_img::record::{Record, Verdict};

use crate::guard::SimGuard;

/// How a machine stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// SIGKILL of the job.
    Kill,
    /// A power cut.
    Power,
    /// A power cut that left boot id and mount as they were.
    Forgetful,
}

/// Chance from a seed.
#[derive(Clone)]
pub struct Chance(u64);

impl From<u64> for Chance {
    fn from(seed: u64) -> Self {
        Self(seed)
    }
}

impl Chance {
    /// Short ones make calls of a block; with long ones what lies beside a promotion goes with it.
    pub fn latency(&mut self) -> Duration {
        let most = if self.below(2) == 0 { 200 } else { 5000 };
        Duration::from_micros(1 + self.below(most))
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }
}

/// The image at a T0.
pub struct Instant {
    pub at: Timestamp,
    pub content: Vec<u8>,
    /// What the guest's accesses in flight write: each byte of them is in the snapshot or not.
    pub in_flight: Vec<(ByteRange, Vec<u8>)>,
}

impl Instant {
    fn allows(&self, snapshot: &[u8]) -> bool {
        let either = |at: u64, byte: u8| {
            self.in_flight.iter().any(|(range, bytes)| {
                let within = range.start() <= at && at < range.end();
                within && bytes[(at - range.start()) as usize] == byte
            })
        };
        let same = |(at, (was, is)): (usize, (&u8, &u8))| was == is || either(at as u64, *is);
        self.content.len() == snapshot.len() && self.content.iter().zip(snapshot).enumerate().all(same)
    }
}

/// The image at every T0 that was ever set.
pub type Instants = Rc<RefCell<Vec<Instant>>>;

/// A hold over the simulated image. With `writes`, a guest writes while the job runs, each time after its clusters were
/// promoted: copy-before-write.
struct SimHold {
    kind: HoldKind,
    disk: SimDisk,
    image: Arc<SimFile>,
    instants: Instants,
    chance: Chance,
    clusters: Vec<Arc<Clusters>>,
    /// What a server that has clusters of its own knows to be done: what it was told.
    told: Option<Clusters>,
    writes: u64,
    leaves_after: u64,
    waiting: Option<(ByteRange, Vec<u8>)>,
    /// It was asked for what is done, and nobody was told.
    in_vain: bool,
}

impl Hold for SimHold {
    fn kind(&self) -> HoldKind {
        self.kind
    }

    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn begin(&mut self, clusters: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        self.clusters = clusters.to_vec();
        let told = Clusters::new(clusters[0].size(), clusters[0].cluster());
        (0..told.size()).step_by(told.cluster().get() as usize).for_each(|at| {
            let range = ByteRange::at(at, told.cluster().get().min(told.size() - at)).expect("not empty");
            if clusters[0].open_part(range).is_none() {
                told.finish(range);
            }
        });
        self.told = Some(told);
        let failed = |e| Error::io(Kind::Failed, "cannot flush the image", "check the kernel's log", e);
        self.image.sync_data().map_err(failed)?;
        let image = self.image.stat().map_err(failed)?;
        let at = self.disk.host().now;
        let content = self.disk.content(IMAGE).expect("the image is there");
        self.instants.borrow_mut().push(Instant { at, content, in_flight: Vec::new() });
        Ok(vec![T0 { at, image }])
    }

    fn demand(&mut self) -> Demand {
        if self.leaves_after > 0 {
            self.leaves_after -= 1;
            if self.leaves_after == 0 {
                return Demand::Leave(Duration::ZERO);
            }
        }
        if let Some((range, _)) = self.waiting {
            return Demand::Promote(0, range);
        }
        if self.writes == 0 || self.chance.below(3) > 0 {
            return Demand::Nothing;
        }
        self.writes -= 1;
        let size = self.image.stat().map_or(0, |s| s.size);
        if size == 0 {
            return Demand::Nothing; // The machine has stopped.
        }
        let start = self.chance.below(size);
        let len = 1 + self.chance.below(2000).min(size - start - 1);
        let Some(range) = ByteRange::at(start, len) else { return Demand::Nothing };
        let byte = self.chance.below(256) as u8;
        self.waiting = Some((range, vec![byte; len as usize]));
        Demand::Promote(0, range)
    }

    fn done(&mut self, _: usize, range: ByteRange) {
        self.told.iter().for_each(|told| told.finish(range));
    }

    fn promoted(&mut self, _: usize, range: ByteRange) {
        // The first part may be all that there is of it yet.
        if self.clusters[0].open_part(range).is_some() {
            return;
        }
        // Whoever asks is let go by what is told; what was done without a word (a refresh found it equal) is told when it is asked for.
        if self.told.as_ref().is_some_and(|told| told.open_part(range).is_some()) {
            assert!(
                !std::mem::replace(&mut self.in_vain, true),
                "{range:?} is done, and nobody is told however often he asks"
            );
            return;
        }
        self.in_vain = false;
        let (wanted, bytes) = self.waiting.take().expect("somebody waited");
        assert_eq!(wanted, range);
        self.disk.guest_write(IMAGE, range.start(), &bytes);
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }

    fn release(&mut self) {}
}

/// The simulated file system's block.
const BLOCK: u64 = 512;

/// A job and its circumstances, from a seed.
pub struct Scenario {
    seed: u64,
    faults: Faults,
    quiet: bool,
}

impl Scenario {
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self { seed, faults, quiet: false }
    }

    /// The same without writes while the job runs. After a power cut the image may have new data under an old change time
    /// (KERNEL.md), which the boot id tells; where that is forgotten nothing would.
    pub fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    /// The world before the job.
    pub fn begin(&self) -> World {
        let mut chance = Chance(self.seed);
        let block = BLOCK;
        let kind = if chance.below(2) == 0 { FsKind::Xfs } else { FsKind::Btrfs };
        let disk = SimDisk::new(Setup { seed: self.seed, block, kind, faults: self.faults });
        let size = (1 + chance.below(48)) * block + if chance.below(2) == 0 { 0 } else { chance.below(block) };
        disk.add_image(size);
        let hold = match chance.below(8) {
            0 => HoldKind::Atomic,
            1 => HoldKind::None,
            2..4 => HoldKind::Guard,
            _ => HoldKind::Frozen,
        };
        let mut world = World {
            disk,
            names: Names::new(OsStr::new("snap")).expect("short"),
            options: Options {
                chunk: block << chance.below(6),
                latency: Some(chance.latency()),
                cluster: PowerOfTwo::new(block << chance.below(3)).expect("a power of two"),
                wish: Wish::default(),
                writable: chance.below(2) == 0,
                min_free: MinFree::Bytes(0),
            },
            hold,
            writes: match hold {
                HoldKind::Frozen if !self.quiet && chance.below(2) == 0 => chance.below(12),
                HoldKind::Guard if !self.quiet => chance.below(40),
                _ => 0,
            },
            leaves_after: if chance.below(4) == 0 { 1 + chance.below(20) } else { 0 },
            gentle: false,
            every: 1 + chance.below(4) as u32,
            instants: Rc::default(),
            chance,
            faults: self.faults,
        };
        // A third of the worlds have an older snapshot, to be refreshed or replaced.
        match world.chance.below(6) {
            0 | 1 => world.older_snapshot(Wish { refresh: true, ..Wish::default() }),
            2 => world.older_snapshot(Wish { force: true, ..Wish::default() }),
            _ => {}
        }
        world
    }

    /// How many steps the job takes.
    pub fn steps(&self) -> u64 {
        let mut world = self.begin();
        let before = world.disk.steps();
        let _ = world.run();
        world.disk.steps() - before
    }
}

/// The machine.
pub struct World {
    pub disk: SimDisk,
    names: Names,
    options: Options,
    hold: HoldKind,
    writes: u64,
    leaves_after: u64,
    /// The guest does nothing that breaks a snapshot.
    gentle: bool,
    every: u32,
    instants: Instants,
    chance: Chance,
    faults: Faults,
}

impl World {
    fn older_snapshot(&mut self, wish: Wish) {
        self.disk.set_faults(Faults::default());
        self.gentle = true;
        let (writes, leaves) = (std::mem::take(&mut self.writes), std::mem::take(&mut self.leaves_after));
        self.run().expect("an older snapshot");
        (self.writes, self.leaves_after) = (writes, leaves);
        self.gentle = false;
        self.disk.set_faults(self.faults);
        self.options.wish = wish;
        for _ in 0..4 {
            let seed = self.chance.below(u64::MAX);
            self.guest(seed);
        }
    }

    /// Stops the machine after so many steps from here.
    pub fn stop_after(&self, steps: u64) {
        self.disk.stop_after(self.disk.steps() + steps);
    }

    /// Runs the job as the user's command would.
    pub fn run(&mut self) -> Result<Finished> {
        let failed = |e| Error::io(Kind::Failed, "cannot open the image", "check the path", e);
        // A job shares its image between threads on the kernel's disk; here there is one.
        #[allow(clippy::arc_with_non_send_sync)]
        let image = Arc::new(self.disk.image().map_err(failed)?);
        let (disk, instants, chance) = (self.disk.clone(), Rc::clone(&self.instants), self.chance.clone());
        let mut hold: Box<dyn Hold> = if self.hold == HoldKind::Guard {
            Box::new(SimGuard::new(disk, Arc::clone(&image), instants, chance, self.writes, self.gentle))
        } else {
            Box::new(SimHold {
                kind: self.hold,
                disk,
                image: Arc::clone(&image),
                instants,
                chance,
                clusters: Vec::new(),
                told: None,
                writes: self.writes,
                leaves_after: self.leaves_after,
                waiting: None,
                in_vain: false,
            })
        };
        let every = self.every;
        let job = Job {
            disk: &self.disk,
            dir: std::path::Path::new("/"),
            names: &self.names,
            image,
            image_path: b"/image",
            options: &self.options,
            why: "the test's",
            observer: &Nobody,
            stop: &|| false,
            make_claims: &|recorder| Box::new(Inline::new(recorder, every)),
            make_flusher: &|image, partial| Box::new(flusher::Inline::new(image, partial)),
        };
        let before = self.disk.content(IMAGE);
        let result = job::run(&[job], hold.as_mut()).map(|mut all| all.swap_remove(0));
        drop(hold);
        // After an EIO of a clone the source reads as zeros; that is the device's doing.
        if self.writes == 0 && self.faults.clone_eio == 0 {
            assert!(self.disk.content(IMAGE) == before, "the job changed the image");
        }
        self.chance.below(2);
        // A larger cluster can be equal in part.
        if let Ok(end) = &result
            && self.options.cluster.get() == BLOCK
        {
            let (size, promoted) = (end.started.bytes, end.promoted * BLOCK);
            let twice = end.skipped_bytes + promoted > size.next_multiple_of(BLOCK);
            assert!(!twice, "{promoted} bytes promoted and {} skipped of {size}", end.skipped_bytes);
        }
        result
    }

    /// The guest writes, discards or flushes while no job runs.
    pub fn guest(&self, seed: u64) {
        let mut chance = Chance(seed);
        let Some(size) = self.disk.content(IMAGE).map(|c| c.len() as u64) else { return };
        for _ in 0..chance.below(4) {
            let start = chance.below(size);
            let len = 1 + chance.below(1500).min(size - start - 1);
            match chance.below(5) {
                0 => self.disk.guest_flush(IMAGE),
                1 if len >= 1024 => {
                    // A discard is of whole blocks.
                    let range = ByteRange::new(start.next_multiple_of(512), (start + len) & !511);
                    if let Some(range) = range {
                        self.disk.guest_discard(IMAGE, range);
                    }
                }
                _ => self.disk.guest_write(IMAGE, start, &vec![chance.below(256) as u8; len as usize]),
            }
        }
    }

    /// The machine stops and comes up again.
    pub fn crash(&mut self, how: Crash, seed: u64) {
        self.disk = match how {
            Crash::Kill => self.disk.crash_kill(),
            Crash::Power => self.disk.crash_power(seed),
            Crash::Forgetful => self.disk.crash_forgetful(seed),
        };
    }

    /// A file at DST with a valid record has the bytes of its T0.
    pub fn check(&self, when: &str) {
        let Some(record) = self.record() else { return };
        let content = self.disk.content("snap").expect("it has a record");
        let stat = self.disk.stat(OsStr::new("snap")).expect("no faults in looking").expect("it is there");
        if !self.stands(&record, stat) {
            return;
        }
        if self.hold == HoldKind::None {
            return; // Not a point in time, and not promised.
        }
        let instants = self.instants.borrow();
        let known: Vec<_> = instants.iter().filter(|instant| instant.at == record.t0).collect();
        assert!(!known.is_empty(), "{when}: no T0 was ever {}\n{}", record.t0, self.disk.trace(80));
        assert!(
            known.iter().any(|instant| instant.allows(&content)),
            "{when}: the snapshot of {} has not the bytes of its T0\n{}",
            record.t0,
            self.disk.trace(80)
        );
    }

    fn record(&self) -> Option<Record> {
        let file = self.disk.open(OsStr::new("snap"), Access::Read).ok()?;
        Record::from_bytes(&file.record().ok()??)
    }

    /// With nothing going wrong any more, the same command comes to an end with a snapshot.
    pub fn heal(&mut self, when: &str) {
        // Blocks that refuse to be shared are copied; not where a single call makes the instant.
        let clone_never = if self.hold == HoldKind::Atomic { 0 } else { self.faults.clone_never };
        self.disk.set_faults(Faults { clone_never, ..Faults::default() });
        self.leaves_after = 0;
        self.gentle = true;
        let mut last = None;
        for _ in 0..3 {
            match self.run() {
                Ok(finished) => {
                    self.check(when);
                    let record = self.record().expect("a finished snapshot has a record");
                    assert_eq!(record.t0, finished.started.t0, "{when}");
                    let left = self.disk.names();
                    assert_eq!(left.len(), 2, "{when}: {left:?} is left");
                    if finished.copied_bytes == 0 && !finished.started.resumed && self.writes == 0 {
                        let shares = self.disk.shares_all_blocks(IMAGE, "snap");
                        assert!(shares, "{when}: data is not shared, and nobody said so\n{}", self.disk.trace(60));
                    }
                    return;
                }
                // The rename was the last thing to happen: the job was complete, and the snapshot is in place.
                Err(error)
                    if error.kind == Kind::Refused && self.is_valid() && self.options.wish == Wish::default() =>
                {
                    self.check(when);
                    return;
                }
                Err(error) => last = Some(error),
            }
        }
        panic!("{when}: the same command does not come to an end: {last:?}\n{}", self.disk.trace(120));
    }

    fn is_valid(&self) -> bool {
        let stat = self.disk.stat(OsStr::new("snap")).ok().flatten();
        let record = self.record();
        matches!((stat, record), (Some(s), Some(r)) if self.stands(&r, s))
    }

    /// What is looked at by its name does not tell its subvolume.
    fn stands(&self, record: &Record, stat: Stat) -> bool {
        let fs = self.disk.fs_uuid().expect("no faults in looking");
        let id = Stat { subvolume: record.subvolume, ..stat }.id();
        record.verdict((id, fs), stat.size, stat.mtime_ns) == Verdict::Valid
    }

    /// Aborts the job; `old` is what DST had before it.
    pub fn abort(&self, old: Option<&[u8]>) {
        self.disk.set_faults(Faults::default());
        let refreshes = self.options.wish.refresh;
        let was_valid = self.is_valid();
        match abort(&self.disk, &self.names, false) {
            Ok(Done { what: Aborted::PutBack, .. }) => {
                assert_eq!(self.disk.content("snap").as_deref(), old, "what was put back is not what was there");
                assert!(self.is_valid(), "what was put back is no snapshot any more\n{}", self.disk.trace(60));
            }
            Ok(Done { what: Aborted::Removed, .. }) if refreshes => {
                // Only a job that had not got as far as the snapshot may leave it.
                assert_eq!(was_valid, self.is_valid());
            }
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind, Kind::Refused, "{error}"),
        }
        for name in [&self.names.partial, &self.names.journal] {
            let left = self.disk.stat(name).expect("no faults");
            assert!(left.is_none(), "{name:?} is left\n{}", self.disk.trace(60));
        }
        assert!(self.disk.content(IMAGE).is_some(), "the image is gone");
    }
}
