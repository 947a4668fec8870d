//! The window: from T0 to the last clone. Walks and clones on one thread, and does what the hold demands first.

mod demands;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cbw::{self, Clusters};
use crate::disk::{Disk, DiskFile};
use crate::engine::claims::Claims;
use crate::engine::clone::{Cloner, Tally};
use crate::engine::compare;
use crate::engine::job::{self, Job};
use crate::engine::report::{Event, Finished, Progress, Started};
use crate::engine::room;
use crate::engine::turns::{self, Turn, Turns};
use crate::error::{Error, Kind, Result};
use crate::extent::Extent;
use crate::hold::{Hold, T0};
use crate::plan::chunk::{Planner, Step, WALK_BATCH};
use crate::plan::pacer::Pacer;
use crate::range::{ByteRange, Geometry};

/// How much of the image a refresh compares before it clones what differs: bounds the list of differences, at most one a
/// block.
const COMPARE: u64 = 64 << 20;

/// The same where guests may wait: two walks of at most 1024 extents, about a microsecond each (KERNEL.md).
const COMPARE_GUESTS: u64 = 4 << 20;

/// How much is written back at a time between two looks at what the hold demands.
const WRITE_BACK: u64 = 2 << 20;

/// How often progress is told and the free space is looked at.
const TICK: Duration = Duration::from_millis(100);

/// What the window did.
pub struct Work {
    guests: bool,
    tally: Tally,
    extents: u64,
    every_extent_counted: bool,
    skipped: u64,
    promoted: u64,
    felt: Option<cbw::Tally>,
}

impl Work {
    /// The report of a job that did this.
    pub fn finished(self, started: Started, began: Instant) -> Finished {
        let counted = self.every_extent_counted.then_some(self.extents);
        Finished {
            extents: started.extents.or(counted),
            started,
            calls: self.tally.calls,
            longest_call: self.tally.longest,
            call_p99: self.tally.p99(),
            longest_guest_wait: match self.felt {
                Some(felt) => Some(felt.longest),
                None => (!self.guests).then_some(Duration::ZERO),
            },
            accesses: self.felt.map(|felt| felt.seen),
            promoted: self.promoted,
            skipped_bytes: self.skipped,
            copied_bytes: self.tally.copied,
            elapsed: began.elapsed(),
        }
    }
}

/// The window's state.
pub struct Window<'a, D: Disk> {
    job: &'a Job<'a, D>,
    /// The hold.
    pub hold: &'a mut dyn Hold,
    partial: &'a D::File,
    geometry: Geometry,
    total_extents: Option<u64>,
    clusters: Arc<Clusters>,
    compare: bool,
    planner: Planner,
    pacer: Pacer,
    work: Work,
    began: Instant,
    ticked: Instant,
    leave_by: Option<Instant>,
    turns: Turns,
    /// The background's position: what is before it was written back shortly before it was cloned.
    written_back_to: u64,
}

impl<'a, D: Disk> Window<'a, D> {
    /// A window over an image and a partial file of the same size.
    ///
    /// # Errors
    /// Failed where the file system cannot be looked at.
    pub fn new(
        job: &'a Job<'a, D>,
        hold: &'a mut dyn Hold,
        partial: &'a D::File,
        clusters: Arc<Clusters>,
        compare: bool,
        t0: &T0,
        began: Instant,
    ) -> Result<Self> {
        let hint = "check the kernel's log, then run the same command again";
        let cannot = |e| Error::io(Kind::Failed, "cannot look at the image's file system", hint, e);
        let fs = job.image.fs().map_err(cannot)?;
        let guests = hold.kind().has_guests();
        let default = if guests { job::LATENCY_GUESTS } else { job::LATENCY_FROZEN };
        let latency = job.options.latency.unwrap_or(default);
        let resumed = clusters.done_bytes() > 0;
        Ok(Self {
            job,
            hold,
            partial,
            geometry: Geometry { size: t0.image.size, block: fs.block },
            total_extents: job.image.extent_count(),
            clusters,
            compare,
            planner: Planner::new(fs.block),
            pacer: Pacer::new(latency, fs.kind.clone_cost_per_extent(), guests),
            work: Work {
                guests,
                tally: Tally::default(),
                extents: 0,
                every_extent_counted: !resumed,
                skipped: 0,
                promoted: 0,
                felt: None,
            },
            began,
            ticked: began,
            leave_by: None,
            turns: Turns::default(),
            written_back_to: 0,
        })
    }

    /// Clones until nothing is pending.
    ///
    /// # Errors
    /// Interrupted, broken or failed, as [`job::run`] says.
    pub fn run(&mut self, claims: &mut dyn Claims<D::File>) -> Result<()> {
        if self.hold.kind().one_call() {
            return self.whole_in_one_call(claims);
        }
        let result = self.in_turns(claims);
        self.turns.end(self.job.disk);
        result
    }

    fn in_turns(&mut self, claims: &mut dyn Claims<D::File>) -> Result<()> {
        if self.compare {
            compare::flush(&*self.job.image, self.partial, self.geometry)?;
        }
        let compare = if self.work.guests { COMPARE_GUESTS } else { COMPARE };
        let limit = if self.compare { self.job.options.chunk.min(compare) } else { self.job.options.chunk };
        let mut from = 0;
        while let Some(open) = self.clusters.next_open(from, limit) {
            self.clusters.begin(open);
            if self.compare {
                self.refresh(open, claims)?
            } else {
                self.runs(open, claims, Some(open.start()))?
            }
            from = open.end();
        }
        self.tick(true)
    }

    /// What the window did.
    pub fn into_work(mut self) -> Work {
        self.work.felt = self.hold.felt();
        self.work
    }

    fn whole_in_one_call(&mut self, claims: &mut dyn Claims<D::File>) -> Result<()> {
        let whole = self.geometry.whole().ok_or_else(|| {
            Error::new(
                Kind::Refused,
                "the image is empty: there is nothing to snapshot",
                "check that this is the right file",
            )
        })?;
        // Any second call would show a second instant, so nothing is cut and nothing is copied.
        let cloner = self.cloner(false);
        let mut tally = std::mem::take(&mut self.work.tally);
        let result = cloner.clone(whole, &mut tally);
        self.work.tally = tally;
        self.work.every_extent_counted = false;
        result?;
        self.clusters.finish(whole.bytes());
        claims.done(whole.bytes());
        self.tick(true)
    }

    /// Compares the maps of `open` and clones what they do not prove equal.
    fn refresh(&mut self, open: ByteRange, claims: &mut dyn Claims<D::File>) -> Result<()> {
        self.step(claims)?;
        let compared = compare::compare(&*self.job.image, self.partial, open)?;
        self.work.skipped += compared.equal_bytes;
        match compared.extents {
            Some(extents) => self.work.extents += extents,
            None => self.work.every_extent_counted = false,
        }
        for range in compared.differing {
            let Some(range) = self.geometry.cover(range) else { continue };
            self.runs(range.bytes(), claims, None)?;
        }
        self.done(open, claims)
    }

    /// Clones a range call by call. With `claim_from` everything from there to a call's end is done after it.
    fn runs(&mut self, range: ByteRange, claims: &mut dyn Claims<D::File>, claim_from: Option<u64>) -> Result<()> {
        let mut rest = Some(range);
        let mut claimed = claim_from;
        while rest.is_some() {
            self.step(claims)?;
            // What was promoted meanwhile is in the snapshot, and its writer was let go: a second clone would take what it
            // wrote. From here to the end of the call nobody is let go.
            let Some(open) = rest.and_then(|r| self.clusters.open_part(r)) else { break };
            let (piece, extents) = self.plan(open)?;
            if !self.written_back(piece)? {
                continue;
            }
            self.clone_piece(piece, extents)?;
            rest = range.split(piece.end()).1;
            if let Some(from) = claimed {
                claimed = Some(self.claim_up_to(from, piece.end(), claims)?);
            }
            let pause = self.pacer.pause();
            if !pause.is_zero() {
                self.idle(pause);
            }
        }
        // The rest, if any, was promoted.
        match claimed {
            Some(from) => self.claim_up_to(from, range.end(), claims).map(drop),
            None => Ok(()),
        }
    }

    /// Claims the whole clusters of `from..end`; where the next claim begins.
    fn claim_up_to(&mut self, from: u64, end: u64, claims: &mut dyn Claims<D::File>) -> Result<u64> {
        let cluster = self.job.options.cluster;
        let up_to = if end >= self.geometry.size { end } else { cluster.align_down(end) };
        match ByteRange::new(from, up_to) {
            Some(range) => {
                self.done(range, claims)?;
                Ok(up_to)
            }
            None => Ok(from),
        }
    }

    fn done(&mut self, range: ByteRange, claims: &mut dyn Claims<D::File>) -> Result<()> {
        self.clusters.finish(range);
        claims.done(range);
        if claims.failed() {
            // The reason comes with the claims' end.
            let hint = "check the kernel's log and the free space, then run the same command again";
            return Err(Error::new(Kind::Failed, "cannot make the cloned data durable", hint));
        }
        Ok(())
    }

    /// The next call's range, a prefix of `open`, and its extents where they are known.
    fn plan(&mut self, open: ByteRange) -> Result<(ByteRange, Option<u64>)> {
        loop {
            match self.planner.step(open, self.pacer.budget()) {
                Step::Clone { range, extents } => return Ok((range, extents)),
                Step::Walk(range) => {
                    let mut extents: Vec<Extent> = Vec::with_capacity(WALK_BATCH);
                    let walked = self.job.image.addresses(range, WALK_BATCH, &mut extents);
                    walked.map_err(|e| compare::cannot_map("image", range, e))?;
                    self.planner.feed(range, &extents);
                }
            }
        }
    }

    fn clone_piece(&mut self, piece: ByteRange, extents: Option<u64>) -> Result<()> {
        let Some(range) = self.geometry.cover(piece) else { return Ok(()) };
        let cloner = self.cloner(true);
        let mut tally = std::mem::take(&mut self.work.tally);
        let cost = cloner.clone(range, &mut tally);
        self.work.tally = tally;
        let cost = cost?;
        let extents = extents.or_else(|| self.count(range.bytes()));
        let blocks = range.bytes().len().div_ceil(self.geometry.block.get());
        self.pacer.observe(extents, blocks, cost.cpu, cost.wall);
        if !self.compare {
            match extents {
                Some(extents) => self.work.extents += extents,
                None => self.work.every_extent_counted = false,
            }
        }
        Ok(())
    }

    /// Where guests write, dirty data is written back before the call, which would else do that with the image's lock held
    /// (DESIGN section 6). A step at a time: false where what has been planned may have been overtaken since.
    fn written_back(&mut self, piece: ByteRange) -> Result<bool> {
        let from = piece.start().max(self.written_back_to);
        let Some(rest) = ByteRange::new(from, piece.end()).filter(|_| self.work.guests) else { return Ok(true) };
        let (step, more) = rest.split(rest.start() + WRITE_BACK);
        if let Some(step) = step {
            self.write_back(step)?;
            self.written_back_to = step.end();
        }
        Ok(more.is_none())
    }

    fn write_back(&self, range: ByteRange) -> Result<()> {
        self.job.image.write_back(range).map_err(|e| {
            let hint = "the image's device may have lost data: check the kernel's log before you rely on the image";
            Error::io(Kind::Broken, format!("dirty data of the image in {range} cannot be written"), hint, e)
        })
    }

    fn idle(&mut self, time: Duration) {
        let disk = self.job.disk;
        self.hold.idle(time, &|time| disk.wait(time));
    }

    /// The extents of a piece that was cloned without a walk. XFS told the sum at the start; Btrfs counts for a twentieth of
    /// what cloning costs (0.25 us an extent against 5, measured), because a count need not say which are shared.
    fn count(&self, piece: ByteRange) -> Option<u64> {
        // A refresh has walked the map already.
        let known = self.compare || self.total_extents.is_some();
        if known { None } else { self.job.image.count(piece).ok() }
    }

    fn cloner(&self, may_copy: bool) -> Cloner<'a, D::File> {
        let image = &*self.job.image;
        let floor = self.job.options.cluster.get();
        Cloner { image, partial: self.partial, geometry: self.geometry, floor, may_copy }
    }

    /// Between two calls: what the hold demands, whether to stop, now and then the news, and whose turn it is.
    fn step(&mut self, claims: &mut dyn Claims<D::File>) -> Result<()> {
        loop {
            self.meet_demands(claims)?;
            if (self.job.stop)() {
                return Err(demands::interrupted("the job was told to stop"));
            }
            self.tick(false)?;
            if self.leave_by.is_some() {
                return Ok(()); // Somebody waits for this job.
            }
            match self.turns.ask(self.job.disk, Instant::now()) {
                Turn::Ours => return Ok(()),
                Turn::Theirs => self.idle(turns::POLL),
                Turn::GivenUp => self.job.observer.on(Event::Warning(turns::GIVEN_UP.into())),
            }
        }
    }

    /// Extents seen; where only their sum is known, the part of it that the bytes done are of the image.
    fn extents_so_far(&self) -> u64 {
        let share =
            |total: u64| u128::from(total) * u128::from(self.clusters.done_bytes()) / u128::from(self.geometry.size);
        self.total_extents.map_or(self.work.extents, |total| share(total) as u64)
    }

    fn tick(&mut self, last: bool) -> Result<()> {
        if !last && self.ticked.elapsed() < TICK {
            return Ok(());
        }
        self.ticked = Instant::now();
        self.job.observer.on(Event::Progress(Progress {
            done_bytes: self.clusters.done_bytes(),
            bytes: self.geometry.size,
            extents: self.extents_so_far(),
            calls: self.work.tally.calls,
            longest_call: self.work.tally.longest,
            elapsed: self.began.elapsed(),
        }));
        if last {
            return Ok(());
        }
        room::enough_space(self.job).map_err(|e| Error { kind: Kind::Interrupted, ..e })
    }
}
