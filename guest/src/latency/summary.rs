//! Figures of a stretch of time. An access belongs to it if it was under way in it.

use std::ops::Range;

use super::{Access, Kind};
use crate::percentiles::{Percentiles, ms};

/// The accesses of a measurement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accesses {
    /// All of them, in no order.
    pub list: Vec<Access>,
    /// From the start of a read or a write to the next, in ns; 0 for as fast as it goes.
    pub every: u64,
    /// From the start of a flush to the next, in ns.
    pub flush_every: u64,
}

/// All the time there is.
pub const ALWAYS: Range<u64> = 0..u64::MAX;

impl Accesses {
    /// The accesses of a kind in `[from, to)`, ns of the clock.
    pub fn within(&self, kind: Kind, window: &Range<u64>) -> impl Iterator<Item = Access> {
        let (kind, from, to) = (kind, window.start, window.end);
        let list = self.list.iter().copied();
        list.filter(move |access| access.kind() == kind && access.end() >= from && access.start() < to)
    }

    /// How many accesses of a kind failed.
    pub fn errors(&self, kind: Kind, window: &Range<u64>) -> u64 {
        self.within(kind, window).filter(|access| access.failed()).count() as u64
    }

    /// Figures of the accesses of a kind, as they were measured, with nothing made up for.
    pub fn raw(&self, kind: Kind, window: &Range<u64>) -> Percentiles {
        Percentiles::of(self.within(kind, window).map(Access::took).collect())
    }

    /// Figures of the accesses of a kind and of those that a stall kept from being made: where an access was to be every
    /// millisecond and one took ten, nine others would have waited for nine, eight, seven. Without a pace it is the
    /// same as [`Accesses::raw`].
    pub fn felt(&self, kind: Kind, window: &Range<u64>) -> Percentiles {
        let every = if kind == Kind::Flush { self.flush_every } else { self.every };
        self.felt_every(kind, window, every)
    }

    /// As [`Accesses::felt`], for a guest that has an access every so many ns; 0 for one that has as many as it can.
    pub fn felt_every(&self, kind: Kind, window: &Range<u64>, every: u64) -> Percentiles {
        if every == 0 {
            return self.raw(kind, window);
        }
        let waits = self.within(kind, window).flat_map(|access| {
            let took = access.took();
            std::iter::once(took)
                .chain((1..).map(move |missed| took.saturating_sub(missed * every)).take_while(|left| *left > 0))
        });
        let mut figures = Percentiles::of(waits.collect());
        figures.count = self.within(kind, window).count() as u64;
        figures
    }

    /// The longest access of a kind that was under way in each of `slots` equal parts of a stretch of time, in ns, for a
    /// chart.
    pub fn worst(&self, kind: Kind, window: &Range<u64>, slots: usize) -> Vec<u64> {
        let mut worst = vec![0; slots];
        let slot = ((window.end - window.start) / slots.max(1) as u64).max(1);
        let index = |at: u64| (at.saturating_sub(window.start) / slot) as usize;
        for access in self.within(kind, window) {
            let last = index(access.end()).saturating_add(1).min(slots);
            for place in worst.iter_mut().take(last).skip(index(access.start())) {
                *place = access.took().max(*place);
            }
        }
        worst
    }

    /// One line of JSON, with what was felt per kind.
    pub fn json(&self) -> String {
        let kinds = Kind::ALL.map(|kind| {
            let Percentiles { count, median, p99, p999, longest } = self.felt(kind, &ALWAYS);
            format!(
                "\"{}\":{{\"count\":{count},\"median_ms\":{},\"p99_ms\":{},\"p999_ms\":{},\"longest_ms\":{},\"errors\":{}}}",
                kind.word(),
                ms(median),
                ms(p99),
                ms(p999),
                ms(longest),
                self.errors(kind, &ALWAYS)
            )
        });
        format!("{{{}}}", kinds.join(","))
    }
}
