//! One thread that writes stamps at random.

use std::ops::Range;
use std::time::Duration;

use anyhow::Result;

use super::Options;
use super::locks::Locks;
use super::pace::Pace;
use super::ways::Way;
use crate::engine::{self, Ended};
use crate::log::{Kind, Log};
use crate::random::Random;
use crate::sector::{self, SECTOR};
use crate::stop::Stop;

/// After how many operations the next way is taken, where there is more than one.
const TURN: u64 = 16;

/// How often a range is looked for that nobody writes to, before something else is done.
const TRIES: u32 = 16;

/// One thread.
pub struct Writer<'a> {
    id: u32,
    image: u16,
    max_write: u64,
    random: Random,
    ways: Vec<Way>,
    pace: Pace,
    log: &'a Log,
    locks: &'a Locks,
    stop: &'a Stop,
    complained: bool,
}

/// A write under way.
struct Flying {
    generation: u64,
    piece: Range<u64>,
}

impl<'a> Writer<'a> {
    /// Thread `id`, which writes to one image.
    #[expect(clippy::too_many_arguments, reason = "called once, with what all threads share")]
    pub fn new(
        id: u32,
        image: u16,
        options: &Options,
        ways: Vec<Way>,
        pace: Pace,
        log: &'a Log,
        locks: &'a Locks,
        stop: &'a Stop,
    ) -> Self {
        let random = Random::new(options.seed ^ (u64::from(id) << 32));
        Self { id, image, max_write: options.max_write, random, ways, pace, log, locks, stop, complained: false }
    }

    /// Writes until it is to stop.
    ///
    /// # Errors
    /// Where the log is full, or an engine fails as such.
    pub fn run(&mut self) -> Result<()> {
        let mut ways = std::mem::take(&mut self.ways);
        let count = if ways.len() > 1 { TURN } else { u64::MAX };
        while !self.stop.asked() {
            for way in &mut ways {
                self.turn(way, count)?;
            }
        }
        Ok(())
    }

    /// So many operations in one way, and the end of all of them.
    fn turn(&mut self, way: &mut Way, count: u64) -> Result<()> {
        let mut free: Vec<usize> = (0..way.engine.slots()).collect();
        let mut flying: Vec<Option<Flying>> = free.iter().map(|_| None).collect();
        let mut ended = Vec::new();
        let mut left = count;
        loop {
            let mut wait = None;
            while left > 0
                && !self.stop.asked()
                && let Some(slot) = free.last().copied()
            {
                wait = self.pace.wait();
                if wait.is_some() {
                    break;
                }
                let Some(piece) = self.lock_a_piece(way) else {
                    wait = Some(Duration::from_micros(100));
                    break;
                };
                self.pace.begun();
                left -= 1;
                if self.submit(way, slot, &mut flying[slot], piece)? {
                    free.pop();
                }
            }
            if free.len() < flying.len() {
                way.engine.wait(&mut ended)?;
                for Ended { slot, result } in ended.drain(..) {
                    if let Some(it) = flying[slot].take() {
                        let done = matches!(result, Ok(bytes) if bytes as u64 == it.piece.end - it.piece.start);
                        self.end(it, done, &format!("{result:?}"));
                    }
                    free.push(slot);
                }
            } else if left == 0 || self.stop.asked() {
                return Ok(());
            } else if wait.is_some() {
                self.stop.wait(wait);
            }
        }
    }

    /// Submits one operation on a piece that is locked; whether it is under way.
    fn submit(&mut self, way: &mut Way, slot: usize, flying: &mut Option<Flying>, piece: Range<u64>) -> Result<bool> {
        let generation = self.log.take()?;
        let length = piece.end - piece.start;
        if let Some(file) = &way.punch
            && self.random.below(4) == 0
        {
            self.log.begin(generation, Kind::Punch, self.image, self.id, &piece);
            let result = engine::punch(file, piece.start, length);
            self.end(Flying { generation, piece }, result.is_ok(), &format!("{result:?}"));
            return Ok(false);
        }
        let buffer = &mut way.engine.buffer(slot)[..length as usize];
        sector::put_all(buffer, piece.start / SECTOR as u64, generation, self.id);
        self.log.begin(generation, Kind::Write, self.image, self.id, &piece);
        let (offset, it) = (piece.start, Flying { generation, piece });
        match way.engine.write(slot, offset, length as usize) {
            Ok(()) => {
                *flying = Some(it);
                Ok(true)
            }
            Err(error) => {
                self.end(it, false, &error.to_string());
                Ok(false)
            }
        }
    }

    fn end(&mut self, it: Flying, done: bool, what: &str) {
        self.log.end(it.generation, done);
        self.locks.unlock(&sectors(&it.piece));
        if !done && !self.complained {
            self.complained = true;
            eprintln!(
                "writer {}: operation {} at {:?}: {what}; further errors are counted only",
                self.id, it.generation, it.piece
            );
        }
    }

    /// A random piece of the region that no other operation touches, now locked.
    fn lock_a_piece(&mut self, way: &Way) -> Option<Range<u64>> {
        let units = (way.region.end - way.region.start) / way.unit;
        let most = (self.max_write / way.unit).clamp(1, units);
        (0..TRIES).find_map(|_| {
            let length = 1 + self.random.below(most);
            let first = self.random.below(units - length + 1);
            let start = way.region.start + first * way.unit;
            let piece = start..start + length * way.unit;
            self.locks.try_lock(&sectors(&piece)).then_some(piece)
        })
    }
}

fn sectors(piece: &Range<u64>) -> Range<u64> {
    piece.start / SECTOR as u64..piece.end / SECTOR as u64
}
