//! No more operations a second than asked.

use std::time::Duration;

use crate::clock;

/// One thread's share of the rate.
#[derive(Debug)]
pub struct Pace {
    /// Nanoseconds from one operation to the next; 0 for as fast as it goes.
    interval: u64,
    next: u64,
}

impl Pace {
    /// Its share of `rate` operations a second, which `threads` have together.
    pub fn new(rate: Option<u64>, threads: u32) -> Self {
        let interval = rate.map_or(0, |rate| u64::from(threads) * 1_000_000_000 / rate.max(1));
        Self { interval, next: 0 }
    }

    /// How long to wait before the next operation; nothing where it may begin.
    pub fn wait(&self) -> Option<Duration> {
        if self.interval == 0 {
            return None;
        }
        self.next.checked_sub(clock::now()).filter(|left| *left > 0).map(Duration::from_nanos)
    }

    /// An operation begins. What a stall has kept from being done is made up for ten operations at most.
    pub fn begun(&mut self) {
        if self.interval > 0 {
            let earliest = clock::now().saturating_sub(10 * self.interval);
            self.next = (self.next + self.interval).max(earliest);
        }
    }
}
