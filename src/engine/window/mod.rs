//! The window: from T0 to the last clone. Walks and clones on one thread, and does what the hold demands first.

mod demands;
mod target;

use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::engine::claims::Claims;
use crate::engine::job::Job;
use crate::engine::report::{Event, Progress};
use crate::engine::room;
use crate::engine::turns::{self, Turn, Turns};
use crate::error::{Error, Kind, Result};
use crate::hold::Hold;
use crate::range::ByteRange;

pub use target::{Target, Work};

/// How much of the image a refresh compares before it clones what differs: bounds the list of differences, at most one a
/// block.
const COMPARE: u64 = 64 << 20;

/// The same where guests may wait: two walks of at most 1024 extents, about a microsecond each (KERNEL.md).
const COMPARE_GUESTS: u64 = 4 << 20;

/// How often progress is told and the free space is looked at.
const TICK: Duration = Duration::from_millis(100);

/// The window over one or several images.
pub struct Window<'a, D: Disk> {
    /// The hold.
    pub hold: &'a mut dyn Hold,
    targets: Vec<Target<'a, D>>,
    began: Instant,
    /// By the disk's clock.
    ticked: Duration,
    leave_by: Option<Instant>,
    turns: Turns,
}

/// What a window did of an image, and the claims about it.
pub type Done<D> = (Work, Box<dyn Claims<<D as Disk>::File>>);

impl<'a, D: Disk> Window<'a, D> {
    /// A window over these images, at least one, in the order in which the hold counts them.
    pub fn new(targets: Vec<Target<'a, D>>, hold: &'a mut dyn Hold, began: Instant) -> Self {
        let ticked = targets[0].job.disk.clock();
        Self { hold, targets, began, ticked, leave_by: None, turns: Turns::default() }
    }

    /// Clones until nothing is pending.
    ///
    /// # Errors
    /// Interrupted, broken or failed, as [`crate::engine::job::run`] says.
    pub fn run(&mut self) -> Result<()> {
        self.targets.iter().try_for_each(Target::is_fit)?;
        if self.hold.kind().one_call() {
            self.targets.iter_mut().try_for_each(Target::whole_in_one_call)?;
            return self.tick(true);
        }
        let result = self.in_turns();
        self.turns.end(self.job().disk);
        result
    }

    fn in_turns(&mut self) -> Result<()> {
        for image in 0..self.targets.len() {
            if self.targets[image].compare {
                self.targets[image].start_flush();
                while !self.targets[image].is_flushed()? {
                    self.step()?;
                }
            }
        }
        for image in 0..self.targets.len() {
            self.clone_image(image)?;
        }
        self.tick(true)
    }

    fn clone_image(&mut self, image: usize) -> Result<()> {
        let Target { compare, job, work, .. } = &self.targets[image];
        let most = if work.guests { COMPARE_GUESTS } else { COMPARE };
        let (compare, limit) = (*compare, if *compare { job.options.chunk.min(most) } else { job.options.chunk });
        let mut from = 0;
        while let Some(open) = self.targets[image].clusters.next_open(from, limit) {
            self.targets[image].clusters.begin(open);
            if compare {
                self.refresh(image, open)?
            } else {
                self.runs(image, open, Some(open.start()))?
            }
            from = open.end();
        }
        Ok(())
    }

    /// What the window did, image by image.
    pub fn into_done(self) -> Vec<Done<D>> {
        let felt = self.hold.felt();
        let parts = self.targets.into_iter().map(Target::into_parts);
        parts.map(|(work, claims)| (Work { felt, ..work }, claims)).collect()
    }

    /// Disk, observer and stop are the same for all images.
    fn job(&self) -> &'a Job<'a, D> {
        self.targets[0].job
    }

    /// Compares the maps of `open` and clones what they do not prove equal. What was promoted meanwhile was cloned, and not skipped.
    fn refresh(&mut self, image: usize, open: ByteRange) -> Result<()> {
        self.step()?;
        let mut rest = Some(open);
        while let Some(part) = rest.and_then(|rest| self.targets[image].clusters.open_part(rest)) {
            for range in self.targets[image].compared(part)? {
                self.runs(image, range.bytes(), None)?;
            }
            self.done(image, part)?;
            rest = open.split(part.end()).1;
            // Where guests have promoted every other cluster there are many parts.
            self.step()?;
        }
        Ok(())
    }

    /// Clones a range call by call. With `claim_from` everything from there to a call's end is done after it.
    fn runs(&mut self, image: usize, range: ByteRange, claim_from: Option<u64>) -> Result<()> {
        let mut rest = Some(range);
        let mut claimed = claim_from;
        while rest.is_some() {
            self.step()?;
            let target = &mut self.targets[image];
            // What was promoted meanwhile is in the snapshot, and its writer was let go: a second clone would take what it
            // wrote. From here to the end of the call nobody is let go.
            let Some(open) = rest.and_then(|r| target.clusters.open_part(r)) else { break };
            let (piece, extents) = target.plan(open)?;
            if !target.written_back(piece)? {
                continue;
            }
            self.call(image, |target| target.clone_piece(piece, extents))?;
            rest = range.split(piece.end()).1;
            if let Some(from) = claimed {
                claimed = Some(self.claim_up_to(image, from, piece.end())?);
            }
            let pause = self.targets[image].pacer.pause();
            self.rest(pause)?;
        }
        // The rest, if any, was promoted.
        match claimed {
            Some(from) => self.claim_up_to(image, from, range.end()).map(drop),
            None => Ok(()),
        }
    }

    /// Makes a clone call of an image, of which the hold is told before and after.
    fn call(&mut self, image: usize, clone: impl FnOnce(&mut Target<'a, D>) -> Result<()>) -> Result<()> {
        self.hold.calling(image);
        let cloned = clone(&mut self.targets[image]);
        self.hold.called(image);
        cloned
    }

    /// All of a range is in the snapshot, as the hold is told.
    fn done(&mut self, image: usize, range: ByteRange) -> Result<()> {
        self.targets[image].done(range)?;
        self.hold.done(image, range);
        Ok(())
    }

    /// Claims the whole clusters of `from..end`; where the next claim begins.
    fn claim_up_to(&mut self, image: usize, from: u64, end: u64) -> Result<u64> {
        let up_to = self.targets[image].claim_up_to(from, end)?;
        if let Some(claimed) = ByteRange::new(from, up_to) {
            self.hold.done(image, claimed);
        }
        Ok(up_to)
    }

    /// Leaves the image to the guests for this time, in which what they wait for is cloned. A pause that ended with the first of
    /// them would be none: with the next call it would be the second one's turn to wait.
    fn rest(&mut self, time: Duration) -> Result<()> {
        let disk = self.job().disk;
        let until = disk.clock() + time;
        let mut left = time;
        while !left.is_zero() {
            self.idle(left);
            if !self.meet_demands()? {
                break; // Nobody came: it has lasted to its end.
            }
            left = until.saturating_sub(disk.clock());
        }
        Ok(())
    }

    fn idle(&mut self, time: Duration) {
        let disk = self.job().disk;
        self.hold.idle(time, &|time| disk.wait(time));
    }

    /// Between two calls: what the hold demands, whether to stop, now and then the news, and whose turn it is.
    fn step(&mut self) -> Result<()> {
        loop {
            self.meet_demands()?;
            if (self.job().stop)() {
                return Err(demands::interrupted("the job was told to stop"));
            }
            self.tick(false)?;
            if self.leave_by.is_some() {
                return Ok(()); // Somebody waits for this job.
            }
            match self.turns.ask(self.job().disk, Instant::now()) {
                Turn::Ours => return Ok(()),
                Turn::Theirs => self.idle(turns::POLL),
                Turn::GivenUp => self.job().observer.on(Event::Warning(turns::GIVEN_UP.into())),
            }
        }
    }

    fn tick(&mut self, last: bool) -> Result<()> {
        let now = self.job().disk.clock();
        if !last && now.saturating_sub(self.ticked) < TICK {
            return Ok(());
        }
        self.ticked = now;
        let mut progress = Progress { elapsed: self.began.elapsed(), ..Progress::default() };
        for target in &self.targets {
            progress.done_bytes += target.clusters.done_bytes();
            progress.bytes += target.geometry.size;
            progress.extents += target.extents_so_far();
            progress.calls += target.work.tally.calls;
            progress.longest_call = progress.longest_call.max(target.work.tally.longest);
        }
        self.job().observer.on(Event::Progress(progress));
        if last {
            return Ok(());
        }
        let space = self.targets.iter().try_for_each(|target| room::enough_space(target.job));
        space.map_err(|e| Error { kind: Kind::Interrupted, hint: format!("{}; then ", e.hint), ..e })
    }
}
