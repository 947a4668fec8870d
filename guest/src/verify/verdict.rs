//! What is told of snapshots.

use std::ops::RangeInclusive;

use super::TOLD;
use super::claims::{Claim, Found, Shot, claims};
use super::sweep::{Best, Sweep};
use crate::bits::Bits;
use crate::log::History;
use crate::sector::SECTOR;

/// What was found out about the snapshots of one or several images.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Whether one T0 explains all sectors of all snapshots.
    pub good: bool,
    /// The sectors of all snapshots.
    pub sectors: u64,
    /// The sectors that the best T0 does not explain, with all below.
    pub bad: u64,
    /// Those of two writes, or with something that was never stamped.
    pub torn: u64,
    /// Those that no T0 explains: a stamp, or zeros, that the log does not have for that sector.
    pub unknown: u64,
    /// Those with another sector's stamp.
    pub misplaced: u64,
    /// Those that the snapshot lacks, or has beyond the image's size.
    pub missing: u64,
    /// The best T0: any instant of these, ns of the clock. Ends at `u64::MAX` where nothing has happened since.
    pub t0: RangeInclusive<u64>,
    /// The operations that were under way at the first of them.
    pub in_flight: u64,
    /// For writes that depend on each other, the last generation that the snapshots show with all before it; nothing where there
    /// is a write without one that it depends on, or where writes are independent.
    pub prefix: Option<u64>,
    /// Whether the log is of writes that depend on each other.
    pub dependent: bool,
    /// The first bad sectors.
    pub first: Vec<Bad>,
}

/// A bad sector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bad {
    /// Which image.
    pub image: usize,
    /// Its offset, in bytes.
    pub offset: u64,
    /// What it holds.
    pub found: Found,
    /// What it would have to hold at the first instant of T0: one of these generations.
    pub expected: Vec<u64>,
}

/// Judges snapshots, one of each image of the log. T0 is looked for in `range`.
pub fn judge(history: &History, shots: &[Shot], range: RangeInclusive<u64>) -> Verdict {
    let claims: Vec<Vec<Claim>> = (0..).zip(shots).map(|(image, shot)| claims(history, image, shot)).collect();
    let sectors: u64 = shots.iter().map(|shot| shot.found.len() as u64).sum();
    let in_time = |claim: &Claim| match claim.until {
        Claim::EVER => start(history, claim.since)..=u64::MAX,
        until => start(history, claim.since)..=history.records[until as usize].settled(),
    };
    let best = most(&claims, &range, in_time);
    // Without a clock: a write is followed by the next one's start, and that by its end.
    let in_order = |claim: &Claim| match claim.until {
        Claim::EVER => 2 * u64::from(claim.since)..=u64::MAX,
        until => 2 * u64::from(claim.since)..=2 * u64::from(until) + 1,
    };
    let order = history.dependent.then(|| most(&claims, &(0..=u64::MAX), in_order));
    let prefix = order.filter(|order| order.count == sectors).map(|order| order.instants.start() / 2);
    let bad = sectors - best.count;
    let t0 = *best.instants.start();
    let count = |what: Found| shots.iter().flat_map(|shot| &shot.found).filter(|found| **found == what).count() as u64;
    let (torn, misplaced, missing) = (count(Found::TORN), count(Found::MISPLACED), count(Found::MISSING));
    let claimed: u64 = claims.iter().zip(shots).map(|(list, shot)| claimed(list, shot.found.len())).sum();
    Verdict {
        good: bad == 0 && (prefix.is_some() || !history.dependent),
        sectors,
        bad,
        torn,
        unknown: sectors - claimed - torn - misplaced - missing,
        misplaced,
        missing,
        t0: best.instants,
        in_flight: history.records.iter().filter(|it| it.changes() && it.start <= t0 && t0 <= it.settled()).count()
            as u64,
        prefix,
        dependent: history.dependent,
        first: if bad == 0 { Vec::new() } else { first_bad(history, shots, &claims, t0, in_time) },
    }
}

fn start(history: &History, generation: u32) -> u64 {
    history.records[generation as usize].start
}

/// The instants that the most sectors allow. What is allowed at any time is counted, not sorted.
fn most(claims: &[Vec<Claim>], range: &RangeInclusive<u64>, interval: impl Fn(&Claim) -> RangeInclusive<u64>) -> Best {
    let mut sweep = Sweep::default();
    let mut always = 0;
    for claim in claims.iter().flatten() {
        if claim.since == 0 && claim.until == Claim::EVER {
            always += 1;
        } else {
            sweep.add(&interval(claim));
        }
    }
    let best = sweep.best(range);
    Best { count: best.count + always, ..best }
}

/// How many sectors have a claim.
fn claimed(claims: &[Claim], sectors: usize) -> u64 {
    let mut seen = Bits::new(sectors as u64);
    claims.iter().for_each(|claim| seen.set(u64::from(claim.sector)));
    seen.words().iter().map(|word| u64::from(word.count_ones())).sum()
}

fn first_bad(
    history: &History,
    shots: &[Shot],
    claims: &[Vec<Claim>],
    t0: u64,
    interval: impl Fn(&Claim) -> RangeInclusive<u64>,
) -> Vec<Bad> {
    let mut list = Vec::new();
    for (image, (shot, claims)) in shots.iter().zip(claims).enumerate() {
        let mut good = Bits::new(shot.found.len() as u64);
        let explained = claims.iter().filter(|claim| interval(claim).contains(&t0));
        explained.for_each(|claim| good.set(u64::from(claim.sector)));
        let bad = (0..).zip(&shot.found).filter(|(sector, _)| !good.get(*sector)).take(TOLD - list.len());
        let tell = |(sector, found): (u64, &Found)| {
            let offset = sector * SECTOR as u64;
            Bad { image, offset, found: *found, expected: expected(history, image, offset, t0) }
        };
        list.extend(bad.map(tell).collect::<Vec<Bad>>());
    }
    list
}

/// The generations that a sector may show at an instant: the last that was settled before it, and those under way at it.
fn expected(history: &History, image: usize, offset: u64, t0: u64) -> Vec<u64> {
    let mut list = vec![0];
    for (generation, record) in (0..).zip(&history.records) {
        let here = record.changes()
            && usize::from(record.image) == image
            && (record.offset..record.offset + record.length).contains(&offset);
        if here && record.settled() < t0 {
            list.clear();
        }
        if here && record.start <= t0 {
            list.push(generation);
        }
    }
    list
}

impl Verdict {
    /// As one line of JSON.
    pub fn json(&self) -> String {
        let Self { good, sectors, bad, torn, unknown, misplaced, missing, in_flight, .. } = self;
        let or_null = |number: Option<u64>| number.map_or("null".to_owned(), |it| it.to_string());
        let (lo, hi) = (self.t0.start(), or_null(Some(*self.t0.end()).filter(|end| *end != u64::MAX)));
        let prefix = if self.dependent { format!(",\"prefix\":{}", or_null(self.prefix)) } else { String::new() };
        let first: Vec<String> = self.first.iter().map(Bad::json).collect();
        format!(
            "{{\"good\":{good},\"bad\":{bad},\"torn\":{torn},\"unknown\":{unknown},\"misplaced\":{misplaced},\
             \"missing\":{missing},\"t0_lo\":{lo},\"t0_hi\":{hi},\"sectors\":{sectors},\"in_flight\":{in_flight}{prefix},\
             \"first\":[{}]}}",
            first.join(",")
        )
    }
}

impl Bad {
    fn json(&self) -> String {
        let Self { image, offset, found, expected } = self;
        format!("{{\"image\":{image},\"offset\":{offset},\"found\":\"{}\",\"expected\":{expected:?}}}", found.words())
    }
}
