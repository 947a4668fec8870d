//! What each sector of a snapshot, with the log, allows T0 to be.

use crate::bits::Bits;
use crate::log::{History, Kind};
use crate::sector::SECTOR;

/// What a sector of a snapshot holds, in four bytes: a generation, or one of a few other things.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found(u32);

impl Found {
    /// Zeros.
    pub const ZEROS: Self = Self(u32::MAX);
    /// Neither a stamp nor zeros.
    pub const TORN: Self = Self(u32::MAX - 1);
    /// The stamp of another sector.
    pub const MISPLACED: Self = Self(u32::MAX - 2);
    /// Nothing: the snapshot is shorter or longer than the image.
    pub const MISSING: Self = Self(u32::MAX - 3);
    /// A generation that no log has room for.
    pub const UNKNOWN: Self = Self(u32::MAX - 4);

    /// The stamp of that generation.
    pub fn generation(generation: u64) -> Self {
        u32::try_from(generation).ok().filter(|it| *it < Self::UNKNOWN.0).map_or(Self::UNKNOWN, Self)
    }

    /// The generation, where it is a stamp in its place.
    pub fn stamped(self) -> Option<u32> {
        (self.0 < Self::UNKNOWN.0).then_some(self.0)
    }

    /// As the report has it.
    pub fn words(self) -> String {
        match self {
            Self::ZEROS => "zeros".to_owned(),
            Self::TORN => "torn".to_owned(),
            Self::MISPLACED => "another sector's stamp".to_owned(),
            Self::MISSING => "missing".to_owned(),
            Self::UNKNOWN => "an impossible generation".to_owned(),
            Self(generation) => generation.to_string(),
        }
    }
}

/// A snapshot of one image, sector by sector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shot {
    /// What each holds.
    pub found: Vec<Found>,
}

/// A sector holds what generation `since` put there, until generation `until` had ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Which sector of the image.
    pub sector: u32,
    /// 0 for what was there before the first operation.
    pub since: u32,
    /// [`Claim::EVER`] where nothing has certainly replaced it.
    pub until: u32,
}

impl Claim {
    /// No generation ended it.
    pub const EVER: u32 = u32::MAX;
}

/// Nothing claimed yet: the generation found has not been met in the log, or the sector is not zeros at this point of it.
const NO: u32 = u32::MAX;
/// The claim of this sector is complete.
const OVER: u32 = u32::MAX - 1;

/// All claims of one image's snapshot. A sector without one is wrong at any T0. A stamped sector has one at most, a sector
/// of zeros may have several, which do not overlap.
///
/// One pass over the log, in which `since` has, sector by sector, the generation that put there what was found, once it is met.
pub fn claims(history: &History, image: usize, shot: &Shot) -> Vec<Claim> {
    let base = &history.images[image].1;
    let mut since: Vec<u32> = (0..).zip(&shot.found).map(|(sector, found)| from_base(base, sector, *found)).collect();
    let mut claims = Vec::new();
    for (generation, record) in (0..).zip(&history.records) {
        if usize::from(record.image) != image || !record.changes() {
            continue;
        }
        let settles = record.settled() != u64::MAX;
        let first = record.offset as usize / SECTOR;
        let last = (first + record.length as usize / SECTOR).min(since.len());
        let touched = since[first..last].iter_mut().zip(&shot.found[first..last]);
        for (sector, (since, found)) in (first as u32..).zip(touched) {
            let zeros = *found == Found::ZEROS;
            let makes_it = if zeros {
                record.kind == Kind::Punch
            } else {
                record.kind == Kind::Write && found.stamped() == Some(generation)
            };
            match *since {
                OVER => {}
                NO if makes_it => *since = generation,
                NO => {}
                // Zeros made zeros once more.
                _ if makes_it => {}
                begun if settles => {
                    claims.push(Claim { sector, since: begun, until: generation });
                    *since = if zeros { NO } else { OVER };
                }
                _ => {}
            }
        }
    }
    let open = (0..).zip(&since).filter(|(_, since)| !matches!(**since, NO | OVER));
    claims.extend(open.map(|(sector, since)| Claim { sector, since: *since, until: Claim::EVER }));
    claims
}

/// Whether what was found is what was there before the first operation.
fn from_base(base: &Bits, sector: u64, found: Found) -> u32 {
    let stamped = base.get(sector);
    let was = (found == Found::ZEROS && !stamped) || (found == Found::generation(0) && stamped);
    if was { 0 } else { NO }
}
