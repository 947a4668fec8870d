//! Writes that depend on each other: each goes to the next image and is submitted after the one before it has ended, as a
//! database orders its log and its tables on two disks.

use anyhow::{Result, ensure};

use super::pace::Pace;
use super::ways::Mode;
use super::{Options, buffer_size, region, unit};
use crate::engine::{Engine, Synchronous};
use crate::image::Image;
use crate::log::{Kind, Log};
use crate::random::Random;
use crate::sector::{self, SECTOR};
use crate::stop::Stop;

/// The one thread that writes.
pub struct Chain<'a> {
    links: Vec<Link>,
    unit: u64,
    max_write: u64,
    random: Random,
    pace: Pace,
    log: &'a Log,
    stop: &'a Stop,
}

/// One of the images.
struct Link {
    engine: Synchronous,
    /// Where its first unit is, in bytes.
    start: u64,
    /// How many there are.
    units: u64,
}

impl<'a> Chain<'a> {
    /// Writes to all of the images in turn. A write through the page cache has ended when it is on the disk.
    ///
    /// # Errors
    /// A mode that has several writes under way, a span outside an image, what dup(2) says.
    pub fn new(options: &Options, images: &[Image], log: &'a Log, stop: &'a Stop) -> Result<Self> {
        let possible = matches!(options.mode, Mode::Buffered | Mode::Direct);
        ensure!(possible, "writes that depend on each other are made in mode buffered or direct");
        let direct = options.mode == Mode::Direct;
        let unit = unit(direct);
        let size = buffer_size(options)?;
        let link = |image: &Image| {
            let region = region(options, image, unit)?;
            let file = image.handle(direct)?;
            let engine = if direct { Synchronous::new(file, size) } else { Synchronous::durable(file, size) };
            Ok(Link { engine, start: region.start, units: (region.end - region.start) / unit })
        };
        let links = images.iter().map(link).collect::<Result<Vec<Link>>>()?;
        let (random, pace) = (Random::new(options.seed), Pace::new(options.rate, 1));
        Ok(Self { links, unit, max_write: options.max_write, random, pace, log, stop })
    }

    /// Writes until it is to stop.
    ///
    /// # Errors
    /// Where the log is full.
    pub fn run(mut self) -> Result<()> {
        let mut ended = Vec::new();
        for turn in (0..self.links.len()).cycle() {
            let asked = self.pace.wait().is_some_and(|wait| self.stop.wait(Some(wait))) || self.stop.asked();
            if asked {
                break;
            }
            self.pace.begun();
            let Link { engine, start, units } = &mut self.links[turn];
            let count = 1 + self.random.below((self.max_write / self.unit).clamp(1, *units));
            let offset = *start + self.random.below(*units - count + 1) * self.unit;
            let piece = offset..offset + count * self.unit;
            let length = (count * self.unit) as usize;
            let generation = self.log.take()?;
            sector::put_all(&mut engine.buffer(0)[..length], offset / SECTOR as u64, generation, 0);
            self.log.begin(generation, Kind::Write, turn as u16, 0, &piece);
            engine.write(0, offset, length)?;
            engine.wait(&mut ended)?;
            self.log.end(generation, ended.drain(..).all(|it| it.result.is_ok()));
        }
        Ok(())
    }
}
