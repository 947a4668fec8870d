//! Jobs of several images: all snapshots are in place and of one instant, or none is; whatever stopped the job, whichever of
//! its snapshots somebody goes on with, or takes back.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::rc::Rc;
use std::sync::Arc;

use jiff::Timestamp;
use rclone_img::cbw::Clusters;
use rclone_img::disk::sim::{Faults, IMAGE, Setup, SimDisk, SimFile};
use rclone_img::disk::{Access, Disk, DiskFile, FsKind};
use rclone_img::engine::abort::{self, Aborted};
use rclone_img::engine::claims::Inline;
use rclone_img::engine::commit;
use rclone_img::engine::flusher;
use rclone_img::engine::inspect::{Condition, inspect};
use rclone_img::engine::job::{self, Job, MinFree, Options};
use rclone_img::engine::names::Names;
use rclone_img::engine::recover::Wish;
use rclone_img::engine::report::{Event, Finished, Nobody, Observer};
use rclone_img::error::{Error, Kind, Result};
use rclone_img::hold::{Demand, Hold, HoldKind, T0};
use rclone_img::journal::file as journal_file;
use rclone_img::journal::format::State;
use rclone_img::range::{ByteRange, PowerOfTwo};
use rclone_img::record::{Record, Verdict};

use crate::harness::{Chance, Crash};

/// The images of a job at its T0: which, and its bytes.
#[derive(Clone)]
pub struct Instant {
    at: Timestamp,
    contents: Vec<(usize, Vec<u8>)>,
}

type Instants = Rc<RefCell<Vec<Instant>>>;

/// A hold over some of the images; a guest writes to what was promoted for it.
struct GroupHold {
    kind: HoldKind,
    disk: SimDisk,
    images: Vec<(usize, Arc<SimFile>)>,
    instants: Instants,
    chance: Chance,
    clusters: Vec<Arc<Clusters>>,
    writes: u64,
    waiting: Option<(usize, ByteRange)>,
}

impl Hold for GroupHold {
    fn kind(&self) -> HoldKind {
        self.kind
    }

    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn begin(&mut self, clusters: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        self.clusters = clusters.to_vec();
        let failed = |e| Error::io(Kind::Failed, "cannot flush the image", "check the kernel's log", e);
        let at = self.disk.host().now;
        let mut instants = Vec::new();
        for (_, image) in &self.images {
            image.sync_data().map_err(failed)?;
            instants.push(T0 { at, image: image.stat().map_err(failed)? });
        }
        let content = |(which, _): &(usize, _)| (*which, self.disk.content(image_name(*which)).expect("it is there"));
        self.instants.borrow_mut().push(Instant { at, contents: self.images.iter().map(content).collect() });
        Ok(instants)
    }

    fn demand(&mut self) -> Demand {
        if let Some((place, range)) = self.waiting {
            return Demand::Promote(place, range);
        }
        if self.writes == 0 || self.chance.below(3) > 0 {
            return Demand::Nothing;
        }
        self.writes -= 1;
        let place = self.chance.below(self.images.len() as u64) as usize;
        let size = self.images[place].1.stat().map_or(0, |s| s.size);
        if size == 0 {
            return Demand::Nothing; // The machine has stopped.
        }
        let start = self.chance.below(size);
        let len = 1 + self.chance.below(2000).min(size - start - 1);
        let Some(range) = ByteRange::at(start, len) else { return Demand::Nothing };
        self.waiting = Some((place, range));
        Demand::Promote(place, range)
    }

    fn promoted(&mut self, image: usize, range: ByteRange) {
        assert_eq!(self.waiting, Some((image, range)));
        if self.clusters[image].open_part(range).is_some() {
            return;
        }
        self.waiting = None;
        let bytes = vec![self.chance.below(256) as u8; range.len() as usize];
        self.disk.guest_write(image_name(self.images[image].0), range.start(), &bytes);
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }

    fn release(&mut self) {}
}

/// Whether a run has first put the snapshots of an earlier one into place.
#[derive(Default)]
struct Told(Cell<bool>);

impl Observer for Told {
    fn on(&self, event: Event) {
        self.0.set(self.0.get() || matches!(event, Event::Warning(text) if text.contains("are in place now")));
    }
}

pub fn image_name(which: usize) -> String {
    if which == 0 { IMAGE.into() } else { format!("{IMAGE}{which}") }
}

fn snapshot_name(which: usize) -> String {
    format!("snap{which}")
}

/// A machine with two or three images.
#[derive(Clone)]
pub struct GroupWorld {
    pub disk: SimDisk,
    names: Vec<Names>,
    options: Options,
    hold: HoldKind,
    writes: u64,
    every: u32,
    instants: Instants,
    pub chance: Chance,
    faults: Faults,
    /// How many instants are those of older snapshots.
    older: usize,
}

impl GroupWorld {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut chance = Chance::from(seed);
        let block = 512;
        let kind = if chance.below(2) == 0 { FsKind::Xfs } else { FsKind::Btrfs };
        let disk = SimDisk::new(Setup { seed, block, kind, faults: Faults::default() });
        disk.add_image((1 + chance.below(16)) * block);
        let count = 2 + chance.below(2) as usize;
        for which in 1..count {
            let size = (1 + chance.below(8)) * block - chance.below(2) * chance.below(block);
            let bytes: Vec<u8> = (0..size).map(|_| chance.below(256) as u8).collect();
            disk.add_file(image_name(which), &bytes);
        }
        let hold = if chance.below(2) == 0 { HoldKind::Frozen } else { HoldKind::Guard };
        let mut world = Self {
            disk,
            names: (0..count).map(|w| Names::new(OsStr::new(&snapshot_name(w))).expect("short")).collect(),
            options: Options {
                chunk: block << (2 + chance.below(4)),
                latency: Some(chance.latency()),
                cluster: PowerOfTwo::new(block << chance.below(3)).expect("a power of two"),
                wish: Wish::default(),
                writable: false,
                min_free: MinFree::Bytes(0),
            },
            hold,
            writes: 0,
            every: 1 + chance.below(4) as u32,
            instants: Rc::default(),
            chance,
            faults,
            older: 0,
        };
        let all: Vec<usize> = (0..count).collect();
        let refresh = Wish { refresh: true, ..Wish::default() };
        match world.chance.below(8) {
            0..3 => world.older(&all, refresh),
            3 => world.older(&all, Wish { force: true, ..Wish::default() }),
            4 => world.older(&[count - 1], refresh),
            5 => world.older(&[0], refresh),
            _ => {}
        }
        world.disk.set_faults(world.faults);
        if hold == HoldKind::Guard {
            world.writes = world.chance.below(12);
        }
        world
    }

    fn older(&mut self, which: &[usize], wish: Wish) {
        self.run_some(which, Wish::default()).expect("older snapshots");
        self.older = self.instants.borrow().len();
        self.options.wish = wish;
        let seed = self.chance.below(u64::MAX);
        self.guest(seed);
    }

    /// Where an earlier job has come to its end, its snapshots are the older ones of the next.
    fn settled(&mut self) {
        if self.all().all(|which| !self.journal(which) && self.in_place(which).is_some()) {
            self.older = self.instants.borrow().len();
        }
    }

    fn all(&self) -> std::ops::Range<usize> {
        0..self.names.len()
    }

    /// Runs the job as the user's command would.
    pub fn run(&mut self) -> Result<Vec<Finished>> {
        self.settled();
        let all: Vec<usize> = self.all().collect();
        let result = self.run_some(&all, self.options.wish);
        if result.is_ok() && self.writes == 0 && self.faults.clone_eio == 0 && !self.disk.stopped() {
            for which in all {
                let same = self.disk.content(snapshot_name(which)) == self.disk.content(image_name(which));
                assert!(same, "snapshot {which} shows an instant before the command\n{}", self.disk.trace(80));
            }
        }
        result
    }

    fn run_some(&mut self, which: &[usize], wish: Wish) -> Result<Vec<Finished>> {
        let failed = |e| Error::io(Kind::Failed, "cannot open the image", "check the path", e);
        // A job shares its image between threads on the kernel's disk; here there is one.
        #[allow(clippy::arc_with_non_send_sync)]
        let open = |w: &usize| Ok((*w, Arc::new(self.disk.open(OsStr::new(&image_name(*w)), Access::Read)?)));
        let images = which.iter().map(open).collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
        let mut hold = GroupHold {
            kind: self.hold,
            disk: self.disk.clone(),
            images: images.clone(),
            instants: Rc::clone(&self.instants),
            chance: self.chance.clone(),
            clusters: Vec::new(),
            writes: self.writes,
            waiting: None,
        };
        let (options, every) = (Options { wish, ..self.options.clone() }, self.every);
        let paths: Vec<String> = which.iter().map(|w| format!("/{}", image_name(*w))).collect();
        let job =
            |((which, image), path): (&(usize, Arc<SimFile>), &'_ String)| (*which, Arc::clone(image), path.clone());
        let parts: Vec<_> = images.iter().zip(&paths).map(job).collect();
        let make_claims = |recorder| -> Box<dyn rclone_img::engine::claims::Claims<SimFile>> {
            Box::new(Inline::new(recorder, every))
        };
        let told = Told::default();
        let jobs: Vec<_> = parts
            .iter()
            .map(|(which, image, path)| Job {
                disk: &self.disk,
                dir: std::path::Path::new("/"),
                names: &self.names[*which],
                image: Arc::clone(image),
                image_path: path.as_bytes(),
                options: &options,
                why: "the test's",
                observer: &told,
                stop: &|| false,
                make_claims: &make_claims,
                make_flusher: &|image, partial| Box::new(flusher::Inline::new(image, partial)),
            })
            .collect();
        let before = self.instants.borrow().len();
        let result = job::run(&jobs, &mut hold);
        if told.0.get() {
            self.older = before;
        }
        self.chance.below(2);
        result
    }

    /// `resume` of one of the snapshots.
    pub fn resume(&mut self, which: usize) -> Result<()> {
        let nothing = || Error::new(Kind::Refused, "nothing to resume", "none");
        let file = self.disk.open(&self.names[which].journal, Access::Read).map_err(|_| nothing())?;
        let read = journal_file::read(&file).map_err(|_| nothing())?;
        let header = read.map_err(|_| nothing())?.header;
        drop(file);
        if matches!(header.state, State::Committing | State::Complete) {
            return commit::end_complete(&self.disk, &self.names[which], &Nobody).map(drop);
        }
        self.run_some(&[which], Wish { same_t0_only: true, ..Wish::default() }).map(drop)
    }

    /// Somebody makes a snapshot of one of the images under the name that the job had for it, and is stopped.
    pub fn run_alone(&mut self) {
        self.settled();
        let which = self.chance.below(self.names.len() as u64) as usize;
        let again = 1 + self.chance.below(60);
        if self.of_last().0.contains(&which) {
            // It was in place, and whoever replaces it now takes it from the others.
            self.older = self.instants.borrow().len();
        }
        self.disk.stop_after(self.disk.steps() + again);
        let _ = self.run_some(&[which], self.options.wish);
        self.disk = self.disk.crash_kill();
        // What it has finished is not the job's to replace.
        self.options.wish.refresh |= !self.options.wish.force;
    }

    /// The guest of each image writes while no job runs.
    pub fn guest(&self, seed: u64) {
        let mut chance = Chance::from(seed);
        for which in self.all() {
            let size = self.disk.content(image_name(which)).expect("an image").len() as u64;
            for _ in 0..chance.below(3) {
                let start = chance.below(size);
                let len = 1 + chance.below(1500).min(size - start - 1);
                self.disk.guest_write(image_name(which), start, &vec![chance.below(256) as u8; len as usize]);
            }
        }
    }

    pub fn crash(&mut self, how: Crash, seed: u64) {
        self.disk = match how {
            Crash::Kill => self.disk.crash_kill(),
            Crash::Power => self.disk.crash_power(seed),
            Crash::Forgetful => self.disk.crash_forgetful(seed),
        };
    }

    /// The same machine once more, at rest, for trying something out.
    fn fork(&self) -> Self {
        let disk = self.disk.crash_kill();
        disk.set_faults(Faults::default());
        let instants = Rc::new(RefCell::new(self.instants.borrow().clone()));
        Self { disk, instants, ..self.clone() }
    }

    /// The T0 of a snapshot that is in place, and its bytes.
    fn in_place(&self, which: usize) -> Option<(Timestamp, Vec<u8>)> {
        let name = snapshot_name(which);
        let file = self.disk.open(OsStr::new(&name), Access::Read).ok()?;
        let record = Record::from_bytes(&file.record().ok()??)?;
        let stat = file.stat().ok()?;
        let valid = record.verdict((stat.id(), file.fs().ok()?.uuid), stat.size, stat.mtime_ns) == Verdict::Valid;
        valid.then(|| (record.t0, self.disk.content(&name).expect("it is there")))
    }

    /// Which snapshots of the last job are in place, of how many.
    fn of_last(&self) -> (Vec<usize>, usize) {
        let instants = self.instants.borrow();
        let Some(last) = instants[self.older..].last() else { return (Vec::new(), 0) };
        let there = |which: &usize| self.in_place(*which).is_some_and(|(t0, _)| t0 == last.at);
        let all = last.contents.iter().map(|(which, _)| *which);
        (all.filter(there).collect(), last.contents.len())
    }

    fn condition(&self, which: usize) -> Condition {
        inspect(&self.disk, &self.names[which]).expect("status can always be asked for")
    }

    fn journal(&self, which: usize) -> bool {
        self.disk.stat(&self.names[which].journal).expect("no faults in looking").is_some()
    }

    /// What is in place has the bytes of its T0.
    fn right_bytes(&self, when: &str) {
        for which in self.all() {
            let Some((t0, content)) = self.in_place(which) else { continue };
            let instants = self.instants.borrow();
            let known = instants.iter().filter(|i| i.at == t0).flat_map(|i| &i.contents);
            let mut of_this = known.filter(|(image, _)| *image == which);
            let right = of_this.any(|(_, bytes)| *bytes == content);
            assert!(right, "{when}: snapshot {which} has not the bytes of {t0}\n{}", self.disk.trace(120));
        }
    }

    /// What is in place has the bytes of its T0, and whoever takes the job up again finds all snapshots or none.
    pub fn check(&self, when: &str) {
        self.fork().check_forks(when);
    }

    fn check_forks(&self, when: &str) {
        self.right_bytes(when);
        let (there, of) = self.of_last();
        let half = !there.is_empty() && there.len() < of;
        let mut whole_by_some = false;
        for which in self.all() {
            let complete = matches!(self.condition(which), Condition::Complete(_));
            let mut fork = self.fork();
            let resumed = fork.resume(which);
            let (there, of) = fork.of_last();
            let trace = || format!("{when}, {which} resumed: {resumed:?}: {there:?} of {of}\n{}", fork.disk.trace(120));
            match &resumed {
                // Somebody has taken a snapshot alone since.
                Ok(()) if of <= 1 => assert!(fork.in_place(which).is_some(), "{}", trace()),
                Ok(()) => assert!(there.len() == of && complete, "{}", trace()),
                Err(error) => {
                    assert!(matches!(error.kind, Kind::Refused | Kind::Broken), "{}", trace());
                    assert!(!complete, "status says that it can be put into place: {}", trace());
                    assert!(half || there.is_empty() || there.len() == of, "{}", trace());
                }
            }
            whole_by_some |= resumed.is_ok();
            self.check_abort(which, complete, when);
        }
        assert!(!half || whole_by_some, "{when}: nobody can put the rest into place\n{}", self.disk.trace(120));
    }

    /// Taken back, nothing of the job is left of any of its images; a job that is complete is not taken back.
    fn check_abort(&self, which: usize, complete: bool, when: &str) {
        let fork = self.fork();
        let aborted = abort::abort(&fork.disk, &fork.names[which], false);
        let trace = || format!("{when}, {which} aborted: {aborted:?}\n{}", fork.disk.trace(120));
        let Ok(done) = &aborted else {
            assert!(aborted.as_ref().is_err_and(|e| e.kind == Kind::Refused), "{}", trace());
            assert!(complete || !self.journal(which), "{}", trace());
            return;
        };
        // A snapshot of a job of its own that is complete may be taken back, up to the rename.
        assert!(!complete || done.others.is_empty(), "{}", trace());
        let put_back = done.others.iter().map(|(dst, what)| (String::from_utf8_lossy(dst).into_owned(), *what));
        for (dst, what) in put_back.chain([(format!("/{}", snapshot_name(which)), done.what)]) {
            let member = self.all().find(|w| dst == format!("/{}", snapshot_name(*w))).expect("one of ours");
            if what == Aborted::PutBack {
                assert!(fork.in_place(member).is_some(), "{member} was not put back: {}", trace());
            }
            assert!(!fork.journal(member), "{}", trace());
            let partial = fork.disk.stat(&fork.names[member].partial).expect("no faults in looking");
            assert!(partial.is_none(), "{}", trace());
        }
        fork.right_bytes(when);
        // What was begun for the others goes with it; a journal that never began is nobody's.
        for other in self.all().filter(|other| fork.journal(*other)) {
            let left = fork.condition(other);
            let nothing = match &left {
                Condition::Unreadable(_) => true,
                Condition::Interrupted(job) | Condition::Broken(job) | Condition::Complete(job) => {
                    job.header.epoch == 0 || !self.one_job(which, other)
                }
                _ => false,
            };
            assert!(nothing, "{other} is left as {left:?}: {}", trace());
        }
        let (before, (there, of)) = (self.of_last().0, fork.of_last());
        // Some were in place before: a job that is complete can still be ended.
        assert!(there.is_empty() || there.len() == of || !before.is_empty(), "{there:?} of {of}: {}", trace());
    }

    /// Whether the journals of two snapshots say that they are of one job.
    fn one_job(&self, one: usize, other: usize) -> bool {
        let group = |which| match self.condition(which) {
            Condition::Interrupted(job) | Condition::Broken(job) | Condition::Complete(job) => Some(job.header.group),
            _ => None,
        };
        group(one) == group(other) && group(one).is_some_and(|group| !group.is_alone())
    }

    /// With nothing going wrong any more, the same command comes to an end with all snapshots.
    pub fn heal(&mut self, when: &str) {
        self.disk.set_faults(Faults { clone_never: self.faults.clone_never, ..Faults::default() });
        let mut last = None;
        for _ in 0..4 {
            let result = self.run();
            let mut of_one = self.all().map(|which| self.in_place(which).map(|(t0, _)| t0)).collect::<Vec<_>>();
            of_one.dedup();
            let done = matches!(of_one[..], [Some(_)]);
            match result {
                Ok(_) => assert!(done, "{when}: finished, with {of_one:?}\n{}", self.disk.trace(120)),
                // An earlier run was complete: its snapshots are in place, and not this command's to replace.
                Err(error) if error.kind == Kind::Refused && done && self.options.wish == Wish::default() => {}
                Err(error) => {
                    last = Some(error);
                    continue;
                }
            }
            self.check(when);
            let left = self.disk.names();
            assert_eq!(left.len(), 2 * self.names.len(), "{when}: {left:?} is left\n{}", self.disk.trace(120));
            return;
        }
        panic!("{when}: the same command does not come to an end: {last:?}\n{}", self.disk.trace(120));
    }
}
