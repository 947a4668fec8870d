//! The ways to write that a mode means, opened.

use std::fs::File;
use std::ops::Range;

use anyhow::{Context, Result, ensure};

use super::{Options, buffer_size, region, unit};
use crate::engine::{Engine, Synchronous};
use crate::image::Image;
use crate::sys::aio::Aio;
use crate::sys::uring::Uring;

/// The largest piece of the page cache that the kernel handles as one.
const FOLIO: u64 = 2 << 20;

/// How writes are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// pwrite(2) through the page cache, of any number of sectors.
    Buffered,
    /// pwrite(2) past it.
    Direct,
    /// libaio past it, several under way.
    Libaio,
    /// io_uring past it, several under way.
    Uring,
    /// As that, with the file and the buffers registered.
    UringFixed,
    /// As [`Mode::Direct`], with a hole punched every fourth time.
    Punch,
    /// Each of them in turn.
    Mix,
    /// Each of them in turn but [`Mode::UringFixed`]: the image stays among the process's open files.
    MixOpen,
}

impl Mode {
    /// Every mode but the mixes.
    const PLAIN: [Self; 6] = [Self::Buffered, Self::Direct, Self::Libaio, Self::Uring, Self::UringFixed, Self::Punch];

    /// Whether it needs the image opened through the page cache, and past it.
    pub fn needs(self) -> (bool, bool) {
        (matches!(self, Self::Buffered | Self::Mix | Self::MixOpen), self != Self::Buffered)
    }
}

/// A way to write to a part of an image.
pub struct Way {
    /// What takes the writes.
    pub engine: Box<dyn Engine>,
    /// What holes are punched through, where they are.
    pub punch: Option<File>,
    /// The alignment of offsets and lengths, in bytes.
    pub unit: u64,
    /// The part, in bytes.
    pub region: Range<u64>,
}

/// Opens what a mode means.
///
/// In a mix, writes through the page cache have the lower half of the span and those past it the upper one: the kernel
/// promises nothing where both meet in one piece of the page cache, and no guest does that to its disk.
pub fn open(options: &Options, image: &Image) -> Result<Vec<Way>> {
    if !matches!(options.mode, Mode::Mix | Mode::MixOpen) {
        return Ok(vec![way(options, image, options.mode, region(options, image, unit(options.mode.needs().1))?)?]);
    }
    let all = region(options, image, unit(true))?;
    let middle = (all.start + (all.end - all.start) / 2).next_multiple_of(FOLIO);
    ensure!(all.start + FOLIO <= middle && middle < all.end, "a mix needs a span of 6 MiB or more");
    let half = |mode: Mode| if mode.needs().1 { middle..all.end } else { all.start..middle };
    let wanted = |mode: &Mode| options.mode == Mode::Mix || *mode != Mode::UringFixed;
    Mode::PLAIN.into_iter().filter(wanted).map(|mode| way(options, image, mode, half(mode))).collect()
}

fn way(options: &Options, image: &Image, mode: Mode, region: Range<u64>) -> Result<Way> {
    let (_, direct) = mode.needs();
    let file = image.handle(direct)?;
    let size = buffer_size(options)?;
    let punch = if mode == Mode::Punch { Some(image.handle(direct)?) } else { None };
    let engine: Box<dyn Engine> = match mode {
        Mode::Libaio => Box::new(Aio::new(file, options.depth, size).context("set up libaio")?),
        Mode::Uring | Mode::UringFixed => {
            let fixed = mode == Mode::UringFixed;
            Box::new(Uring::new(file, options.depth, size, fixed).context("set up io_uring")?)
        }
        Mode::Buffered | Mode::Direct | Mode::Punch | Mode::Mix | Mode::MixOpen => {
            Box::new(Synchronous::new(file, size))
        }
    };
    Ok(Way { engine, punch, unit: unit(direct), region })
}
