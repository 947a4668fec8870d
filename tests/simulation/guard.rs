//! The hold `guard` over the simulated image, on the same machine of accesses as the real one: a guest with several accesses
//! in flight, which go on when the machine says so and happen some time after that.

use std::sync::Arc;
use std::time::Duration;

use rclone_img::cbw::{Accesses, Clusters, Limits, Tally};
use rclone_img::disk::sim::{IMAGE, SimDisk, SimFile};
use rclone_img::disk::{Disk, DiskFile};
use rclone_img::error::{Error, Kind, Result};
use rclone_img::hold::{Demand, Hold, HoldKind, T0};
use rclone_img::range::ByteRange;

use crate::harness::{Chance, Instant, Instants};

/// The most accesses that the guest has in flight.
const IN_FLIGHT: usize = 6;

/// What the guest wants to do.
#[derive(Clone, Debug)]
pub enum Deed {
    Read,
    Write(Vec<u8>),
    Discard,
    /// More bytes at the end: the snapshot breaks.
    Append,
}

/// An access of the guest.
#[derive(Clone, Debug)]
pub struct Deal {
    range: ByteRange,
    deed: Deed,
}

pub struct SimGuard {
    disk: SimDisk,
    image: Arc<SimFile>,
    instants: Instants,
    chance: Chance,
    left: u64,
    machine: Accesses<Deal>,
    /// What may go on and has not happened yet.
    allowed: Vec<Deal>,
    /// The ranges of all accesses that were submitted and have not happened: a guest has no two at the same place.
    busy: Vec<ByteRange>,
    size: u64,
    appends: bool,
    now: Duration,
}

impl SimGuard {
    /// A guest that makes so many accesses; a `gentle` one does nothing that breaks the snapshot.
    pub fn new(
        disk: SimDisk,
        image: Arc<SimFile>,
        instants: Instants,
        mut chance: Chance,
        accesses: u64,
        gentle: bool,
    ) -> Self {
        // Now and then a deadline that is met, and no room.
        let deadline =
            Duration::from_secs(if !gentle && chance.below(10) == 0 { 2 + chance.below(6) } else { 1_000_000 });
        let waiting = if !gentle && chance.below(20) == 0 { 1 } else { IN_FLIGHT };
        let machine = Accesses::new(Limits { waiting, deadline });
        let appends = !gentle && chance.below(10) == 0;
        let (allowed, busy, now) = (Vec::new(), Vec::new(), Duration::ZERO);
        Self { disk, image, instants, chance, left: accesses, machine, allowed, busy, size: 0, appends, now }
    }

    /// Some time goes by: the guest submits accesses, and some that may go on happen.
    fn time_passes(&mut self) {
        self.now += Duration::from_secs(1);
        for _ in 0..self.chance.below(3) {
            self.submit();
        }
        while !self.allowed.is_empty() && self.chance.below(2) == 0 {
            let which = self.chance.below(self.allowed.len() as u64) as usize;
            self.happens(which);
        }
    }

    fn submit(&mut self) {
        let size = self.disk.content(IMAGE).map_or(0, |c| c.len() as u64);
        if self.left == 0 || size == 0 || self.busy.len() >= IN_FLIGHT {
            return;
        }
        self.left -= 1;
        let start = self.chance.below(size);
        let len = 1 + self.chance.below(2000).min(size - start - 1);
        let mut range = ByteRange::at(start, len).expect("not empty");
        let deed = match self.chance.below(8) {
            0 => Deed::Read,
            1 if len >= 1024 => {
                range = ByteRange::new(start.next_multiple_of(512), (start + len) & !511).unwrap_or(range);
                if range.start().is_multiple_of(512) { Deed::Discard } else { Deed::Read }
            }
            2 if self.appends => {
                range = ByteRange::at(size, 512).expect("not empty");
                Deed::Append
            }
            _ => Deed::Write(vec![self.chance.below(256) as u8; range.len() as usize]),
        };
        if self.busy.iter().any(|b| b.intersect(range).is_some()) {
            return;
        }
        self.busy.push(range);
        // The kernel tells an append with a wrong offset.
        let told = if matches!(deed, Deed::Append) { ByteRange::at(0, 1).expect("not empty") } else { range };
        if size != self.size && self.machine.is_watching() {
            self.machine.break_off("the image was resized");
        }
        let passes = self.machine.arrive(Deal { range, deed }, 0, told, self.now);
        self.allowed.extend(passes);
    }

    fn happens(&mut self, which: usize) {
        let Deal { range, deed } = self.allowed.swap_remove(which);
        self.busy.retain(|b| *b != range);
        match deed {
            Deed::Read => {}
            Deed::Write(bytes) => self.disk.guest_write(IMAGE, range.start(), &bytes),
            Deed::Discard => self.disk.guest_discard(IMAGE, range),
            Deed::Append => self.disk.guest_write(IMAGE, range.start(), &vec![7; range.len() as usize]),
        }
    }

    fn answer(&mut self) {
        let ready = self.machine.ready(self.now);
        self.allowed.extend(ready);
    }

    fn why_lost(&mut self) -> Option<String> {
        if self.disk.content(IMAGE).is_some_and(|c| c.len() as u64 != self.size) {
            self.machine.break_off("the image was resized");
        }
        self.machine.expire(self.now);
        self.machine.broken().map(str::to_owned)
    }
}

impl Hold for SimGuard {
    fn kind(&self) -> HoldKind {
        HoldKind::Guard
    }

    fn prepare(&mut self) -> Result<()> {
        (0..self.chance.below(5)).for_each(|_| self.time_passes());
        Ok(())
    }

    fn begin(&mut self, images: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        let failed = |e| Error::io(Kind::Failed, "cannot look at the image", "check the kernel's log", e);
        self.machine.gather();
        self.time_passes();
        let image = self.image.stat().map_err(failed)?;
        let at = self.disk.host().now;
        let content = self.disk.content(IMAGE).expect("the image is there");
        self.size = content.len() as u64;
        if image.size != images[0].size() {
            return Err(Error::new(Kind::Failed, "the image was resized", "run the same command again"));
        }
        // What may go on and has not happened is in flight at T0: the snapshot has it or not.
        let in_flight = self.allowed.iter().filter_map(|deal| match &deal.deed {
            Deed::Write(bytes) => Some((deal.range, bytes.clone())),
            Deed::Discard => Some((deal.range, vec![0; deal.range.len() as usize])),
            Deed::Read | Deed::Append => None,
        });
        self.instants.borrow_mut().push(Instant { at, content, in_flight: in_flight.collect() });
        let tail = ByteRange::new(self.size - self.size % 512, self.size).map(|tail| (0, tail));
        self.machine.watch(images.to_vec(), tail.into_iter().collect());
        self.answer();
        Ok(vec![T0 { at, image }])
    }

    fn demand(&mut self) -> Demand {
        self.time_passes();
        self.answer();
        if let Some(why) = self.why_lost() {
            self.answer();
            return Demand::Broken(why);
        }
        self.machine.wanted().map_or(Demand::Nothing, |(image, range)| Demand::Promote(image, range))
    }

    fn promoted(&mut self, _: usize, _: ByteRange) {
        self.answer();
        self.time_passes();
    }

    fn felt(&self) -> Option<Tally> {
        Some(self.machine.tally())
    }

    fn end(&mut self) -> Result<()> {
        let why = self.why_lost();
        let whole = self.machine.end();
        self.answer();
        match why {
            None if whole => Ok(()),
            why => Err(Error::new(Kind::Broken, why.unwrap_or_default(), "run the same command again")),
        }
    }

    fn release(&mut self) {
        self.machine.end();
        self.answer();
        assert_eq!(self.machine.waiting(), 0, "a guest is left waiting");
        while !self.allowed.is_empty() {
            self.happens(0);
        }
    }
}

impl Drop for SimGuard {
    /// Dead responders' accesses go on.
    fn drop(&mut self) {
        self.release();
    }
}
