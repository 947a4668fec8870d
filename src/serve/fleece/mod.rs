//! Fleeces: points in time of which only what the guest overwrites is kept, for as long as somebody reads them.
//!
//! - [`mod@format`]: the map file's bytes. Pure. [`map`] is the file, [`mark`] says that it is whole, [`memory`] what waits to be written, [`sidecar`] where it is kept.
//! - [`areas`]: which parts may be read.
//! - [`keeper`]: the threads that keep what is about to be overwritten, and look for strangers.
//! - [`all`]: those of an image: begun ([`begin`], [`files`]), ended, and taken up from an earlier server ([`takeup`], [`reach`]).

pub mod all;
mod allocated;
pub mod areas;
pub mod begin;
pub mod files;
pub mod format;
pub mod keeper;
pub mod map;
pub mod mark;
pub mod memory;
pub mod reach;
pub mod sidecar;
pub mod takeup;

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::stat::fstat;

use self::areas::Areas;
use self::keeper::Ears;
use self::map::Map;
use self::mark::Moment;
use self::sidecar::Sidecar;
use super::changes::{DIRTY, push};
use super::device::Extents;
use super::gate::{Point, Watch};
use crate::disk::real::RealFile;
use crate::hold::filter::strangers::Strangers;
use crate::hold::holders::{self, Holder};
use crate::range::ByteRange;

/// How it is looked who else has an image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// At all processes where somebody has opened it since the last look.
    Briefly,
    /// At all processes.
    AtAll,
}

/// How often it is looked again where somebody opens it at each look.
const LOOKS: u32 = 3;

/// A fleece.
pub struct Fleece {
    name: String,
    base: Option<String>,
    point: Point,
    watch: Watch,
    sidecar: Arc<Sidecar>,
    map: Arc<Map>,
    areas: Areas,
    ears: Arc<Ears>,
    image: Arc<RealFile>,
    strangers: Mutex<Strangers>,
    deadline: Duration,
    durable: bool,
}

impl Fleece {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known of the point in time.
    pub fn point(&self) -> &Point {
        &self.point
    }

    /// Where it is kept.
    pub fn sidecar(&self) -> &Arc<Sidecar> {
        &self.sidecar
    }

    /// The snapshot from which it tells the changes alone.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// How much of the beginning of a range may be read.
    ///
    /// # Errors
    /// EPERM where nothing may.
    pub fn readable(&self, range: ByteRange) -> io::Result<u64> {
        match self.areas.readable(range) {
            0 => {
                let what = match self.areas.differs(range).1 {
                    false => "it has not changed since the base, and is not kept",
                    true => "a reader has let it go (TRIM)",
                };
                Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("access denied: {what}")))
            }
            some => Ok(some),
        }
    }

    /// What of a range differs from the base, in at most so many pieces; never fails, whatever may be read.
    pub fn changes(&self, range: ByteRange, most: usize) -> Extents {
        let (mut extents, mut rest) = (Extents::new(), Some(range));
        while let Some(left) = rest.filter(|_| extents.len() < most) {
            let (run, differs) = self.areas.differs(left);
            push(&mut extents, run.len() as u32, if differs { DIRTY } else { 0 });
            rest = left.split(run.end()).1;
        }
        extents
    }

    /// The whole clusters of a range are needed no more: nobody reads them, and nothing more is kept of them.
    ///
    /// # Errors
    /// The kernel's; they are as they were then.
    pub fn release(&self, range: ByteRange) -> io::Result<()> {
        let Some(whole) = self.areas.whole(range) else { return Ok(()) };
        self.sidecar.release(whole, &|| self.areas.release(whole))?;
        self.watch.done(whole);
        self.sidecar.punch(whole)
    }

    /// Looks whether somebody writes to the image past this process.
    fn look(&self, how: Look) {
        // Held until it is said: whoever looks next finds nothing more, and must find it lost.
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = None;
        for _ in 0..LOOKS {
            // There is always such a clock; without one what was said before counts.
            let began = Moment::now().ok();
            let (came, opened) = (strangers.came(), strangers.has_opened());
            // Whoever had opened it until then was still there at the look, or is told of as come by now.
            if !came && let Some(before) = before {
                self.map.looked(before);
            }
            if opened {
                self.map.looking();
            }
            let is_there = || !past_us(&self.image).is_ok_and(|past| past.is_none());
            // By its path, which opens nothing.
            if fstat(&*self.image).map_or(0, |stat| stat.st_size.cast_unsigned()) != self.point.clusters.size() {
                self.watch.break_off("somebody has changed the size of the image past its server");
            }
            if came || ((opened || how == Look::AtAll) && is_there()) {
                let why = "somebody had the image open for writing past its server, and may have written to it";
                return self.watch.break_off(why);
            }
            if !opened {
                return began.iter().for_each(|began| self.map.looked(*began));
            }
            // It may have taken a while: who has come and gone meanwhile is found at once.
            before = began;
        }
    }

    /// What is kept is on its disk now, or the fleece is lost.
    fn sync(&self) {
        if let Err(e) = self.sidecar.sync().and_then(|()| self.map.sync()) {
            self.unsynced(&e);
        }
    }

    /// What was kept cannot be put on the disk: how much of it is not there nobody knows, and whoever asks again is told that all is well.
    fn unsynced(&self, error: &io::Error) {
        self.watch.break_off(&format!("what was kept cannot be put on the sidecar's disk: {error}"));
    }

    /// It is no more, for this reason: nobody waits for it, and nobody reads it.
    fn end(&self, why: &str) {
        self.ears.end();
        self.watch.break_off(why);
        self.sidecar.end();
    }
}

/// Who has an image open for writing past this process, which serves it.
///
/// # Errors
/// What listing /proc says.
fn past_us(image: &RealFile) -> io::Result<Option<Holder>> {
    holders::past(image.as_fd(), std::process::id())
}
