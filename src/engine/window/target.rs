//! One image of the window: its plan, its calls, what is done of it and what is told of that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cbw::{self, Clusters};
use crate::disk::{CallCost, Disk, DiskFile, FsKind};
use crate::engine::claims::Claims;
use crate::engine::clone::{Cloner, Tally};
use crate::engine::compare;
use crate::engine::flusher::{Flush, Flusher};
use crate::engine::job::{self, Job};
use crate::engine::report::{Finished, Started};
use crate::error::{Error, Kind, Result};
use crate::extent::Extent;
use crate::hold::{HoldKind, T0};
use crate::plan::chunk::{Planner, Step, WALK_BATCH};
use crate::plan::pacer::Pacer;
use crate::quiesce::freezer::Quiescence;
use crate::range::{ByteRange, CloneRange, Geometry, PowerOfTwo};

/// How much is written back at a time between two looks at what the hold demands.
const WRITE_BACK: u64 = 2 << 20;

/// How long a flush is waited for between two looks at what the hold demands.
const PATIENCE: Duration = Duration::from_micros(200);

/// What the window did.
pub struct Work {
    pub(super) guests: bool,
    pub(super) tally: Tally,
    pub(super) extents: u64,
    pub(super) every_extent_counted: bool,
    pub(super) skipped: u64,
    pub(super) promoted: u64,
    pub(super) felt: Option<cbw::Tally>,
}

impl Work {
    /// The report of a job that did this, in a window of that length.
    pub fn finished(
        self,
        started: Started,
        quiescence: Option<Quiescence>,
        window: Duration,
        began: Instant,
    ) -> Finished {
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
            quiescence,
            skipped_bytes: self.skipped,
            copied_bytes: self.tally.copied,
            window,
            elapsed: began.elapsed(),
        }
    }
}

/// An image and its partial file, of the same size.
pub struct Target<'a, D: Disk> {
    pub(super) job: &'a Job<'a, D>,
    pub(super) partial: Arc<D::File>,
    pub(super) geometry: Geometry,
    total_extents: Option<u64>,
    pub(super) clusters: Arc<Clusters>,
    /// Whether the maps are compared, to clone only what differs.
    pub(super) compare: bool,
    planner: Planner,
    pub(super) pacer: Pacer,
    pub(super) work: Work,
    claims: Box<dyn Claims<D::File>>,
    /// The background's position: what is before it was written back shortly before it was cloned.
    written_back_to: u64,
    /// Where what is being written back ends.
    writing_back_to: Option<u64>,
    flusher: Box<dyn Flusher>,
}

impl<'a, D: Disk> Target<'a, D> {
    /// A target of which the clusters that are not done are to be cloned.
    ///
    /// # Errors
    /// Failed where the file system cannot be looked at.
    pub fn new(
        job: &'a Job<'a, D>,
        kind: HoldKind,
        partial: Arc<D::File>,
        clusters: Arc<Clusters>,
        compare: bool,
        t0: &T0,
        claims: Box<dyn Claims<D::File>>,
    ) -> Result<Self> {
        let hint = "check the kernel's log, then run the same command again";
        let cannot = |e| Error::io(Kind::Failed, "cannot look at the image's file system", hint, e);
        let fs = job.image.fs().map_err(cannot)?;
        let guests = kind.has_guests();
        let latency = job.options.latency.unwrap_or_else(|| default_latency(kind, fs.kind));
        let resumed = clusters.done_bytes() > 0;
        let flusher = (job.make_flusher)(Arc::clone(&job.image), Arc::clone(&partial));
        Ok(Self {
            job,
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
            claims,
            flusher,
            written_back_to: 0,
            writing_back_to: None,
        })
    }

    /// Whether what is done can be written down; looked at before anything is.
    ///
    /// # Errors
    /// Failed where there is no thread for it.
    pub(super) fn is_fit(&self) -> Result<()> {
        let hint = "check the limit of processes, then run the same command again";
        let none = || Error::new(Kind::Failed, "there is no thread that writes the journal", hint);
        if self.claims.failed() { Err(none()) } else { Ok(()) }
    }

    /// What was done, and the claims.
    pub(super) fn into_parts(self) -> (Work, Box<dyn Claims<D::File>>) {
        (self.work, self.claims)
    }

    /// Claims the whole clusters of `from..end`; where the next claim begins.
    pub(super) fn claim_up_to(&mut self, from: u64, end: u64) -> Result<u64> {
        let cluster = self.job.options.cluster;
        let up_to = if end >= self.geometry.size { end } else { cluster.align_down(end) };
        match ByteRange::new(from, up_to) {
            Some(range) => {
                self.done(range)?;
                Ok(up_to)
            }
            None => Ok(from),
        }
    }

    pub(super) fn done(&mut self, range: ByteRange) -> Result<()> {
        self.clusters.finish(range);
        self.claims.done(range);
        if self.claims.failed() {
            // The reason comes with the claims' end.
            let hint = "check the kernel's log and the free space, then run the same command again";
            return Err(Error::new(Kind::Failed, "cannot make the cloned data durable", hint));
        }
        Ok(())
    }

    /// Compares the maps of `open`, whole clusters: what has to be cloned. The clusters that are proved equal are done: whoever waits for one
    /// waits for no clone call. They are claimed with all of `open`, as one range.
    pub(super) fn compared(&mut self, open: ByteRange) -> Result<Vec<CloneRange>> {
        let compared = compare::compare(&*self.job.image, &*self.partial, open)?;
        self.work.skipped += compared.equal_bytes;
        match compared.extents {
            Some(extents) => self.work.extents += extents,
            None => self.work.every_extent_counted = false,
        }
        let cluster = self.job.options.cluster;
        let mut equal = open.start();
        for range in &compared.differing {
            if let Some(equal) = ByteRange::new(equal, cluster.align_down(range.start())) {
                self.clusters.finish(equal);
            }
            equal = cluster.align_up(range.end());
        }
        if let Some(equal) = ByteRange::new(equal, open.end()) {
            self.clusters.finish(equal);
        }
        Ok(compared.differing.into_iter().filter_map(|range| self.geometry.cover(range)).collect())
    }

    /// The next call's range, a prefix of `open`, and its extents where they are known.
    pub(super) fn plan(&mut self, open: ByteRange) -> Result<(ByteRange, Option<u64>)> {
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

    /// Clones what somebody waits for. There is nothing to be learnt from it where nobody counts: a call of a few extents is mostly a call, and by
    /// thousands they would make an extent seem to cost twice what it does.
    pub(super) fn clone_promoted(&mut self, piece: ByteRange) -> Result<()> {
        self.clone_and_learn(piece, None, false)
    }

    pub(super) fn clone_piece(&mut self, piece: ByteRange, extents: Option<u64>) -> Result<()> {
        self.clone_and_learn(piece, extents, true)
    }

    fn clone_and_learn(&mut self, piece: ByteRange, extents: Option<u64>, uncounted: bool) -> Result<()> {
        let Some(range) = self.geometry.cover(piece) else { return Ok(()) };
        let cost = self.clone(range, true)?;
        let extents = extents.or_else(|| self.count(range.bytes()));
        let blocks = range.bytes().len().div_ceil(self.geometry.block.get());
        if uncounted || extents.is_some() {
            self.pacer.observe(extents, blocks, cost.cpu, cost.wall);
        }
        if !self.compare {
            match extents {
                Some(extents) => self.work.extents += extents,
                None => self.work.every_extent_counted = false,
            }
        }
        Ok(())
    }

    /// What is asked for, with as much of what lies beside it as a promotion may clone, or that part of it. What is dirty was written before T0,
    /// or to what is done: little is left of it there.
    pub(super) fn with_neighbours(&self, asked: ByteRange, part: f64) -> ByteRange {
        // There are at most as many extents as blocks.
        let most = self.pacer.promotion(part).saturating_mul(self.geometry.block.get());
        self.clusters.open_around(asked, PowerOfTwo::at_most(most.min(self.job.options.chunk)))
    }

    /// Clones a range; `may_copy` what cannot be shared.
    fn clone(&mut self, range: CloneRange, may_copy: bool) -> Result<CallCost> {
        let mut tally = std::mem::take(&mut self.work.tally);
        let cost = self.cloner(may_copy).clone(range, &mut tally);
        self.work.tally = tally;
        cost
    }

    /// Clones the whole image by a single call. Any second call would show a second instant, so nothing is cut and nothing is
    /// copied.
    pub(super) fn whole_in_one_call(&mut self) -> Result<()> {
        let whole = self.geometry.whole().ok_or_else(|| {
            let what = "the image is empty: there is nothing to snapshot";
            Error::new(Kind::Refused, what, "check that this is the right file")
        })?;
        self.work.every_extent_counted = false;
        self.clone(whole, false)?;
        self.done(whole.bytes())
    }

    /// Where guests write, dirty data is written back before the call, which would else do that with the image's lock held
    /// (DESIGN section 6). False where that is not done yet, and what has been planned may have been overtaken since. What
    /// comes next is written meanwhile: a cluster that is pending is not written to any more.
    pub(super) fn written_back(&mut self, piece: ByteRange) -> Result<bool> {
        if !self.work.guests {
            return Ok(true);
        }
        if let Some(end) = self.writing_back_to
            && (self.flusher.finished(if self.written_back_to < piece.end() { PATIENCE } else { Duration::ZERO })?)
        {
            self.written_back_to = end;
            self.writing_back_to = None;
        }
        let next = self.written_back_to.max(piece.start());
        let end = (next + WRITE_BACK).min(self.geometry.size);
        if self.writing_back_to.is_none()
            && let Some(step) = ByteRange::new(next, end)
        {
            self.flusher.start(Flush::Range(step));
            self.writing_back_to = Some(step.end());
        }
        Ok(self.written_back_to >= piece.end())
    }

    /// Has the maps show all that was written.
    pub(super) fn start_flush(&mut self) {
        self.flusher.start(Flush::Maps(self.geometry));
    }

    pub(super) fn is_flushed(&mut self) -> Result<bool> {
        self.flusher.finished(PATIENCE)
    }

    /// The extents of a piece that was cloned without a walk. XFS told the sum at the start; Btrfs counts for a twentieth of
    /// what cloning costs (0.25 us an extent against 5, measured), because a count need not say which are shared.
    fn count(&self, piece: ByteRange) -> Option<u64> {
        // A refresh has walked the map already.
        let known = self.compare || self.total_extents.is_some();
        if known { None } else { self.job.image.count(piece).ok() }
    }

    fn cloner(&self, may_copy: bool) -> Cloner<'_, D::File> {
        let image = &*self.job.image;
        let floor = self.job.options.cluster.get();
        Cloner { image, partial: &self.partial, geometry: self.geometry, floor, may_copy }
    }

    /// Extents seen; where only their sum is known, the part of it that the bytes done are of the image.
    pub(super) fn extents_so_far(&self) -> u64 {
        let share =
            |total: u64| u128::from(total) * u128::from(self.clusters.done_bytes()) / u128::from(self.geometry.size);
        self.total_extents.map_or(self.work.extents, |total| share(total) as u64)
    }
}

/// What a call may take where the user says nothing.
fn default_latency(hold: HoldKind, fs: FsKind) -> Duration {
    match (hold.answers_accesses(), fs) {
        (true, FsKind::Btrfs) => job::LATENCY_WATCHED_BTRFS,
        (true, _) => job::LATENCY_WATCHED,
        (false, _) if hold.has_guests() => job::LATENCY_GUESTS,
        (false, _) => job::LATENCY_FROZEN,
    }
}
