//! Whether a thread that has to look again and again was run all the time, by its own clock.
//!
//! A process that is stopped, alone or with its control group, is told nothing of it. What it finds in its queue afterwards may
//! have waited as long as the queue is not known to have been empty. The clock does not run while the machine is suspended, and
//! neither does a guest.

use std::time::Duration;

/// How much later than it should a thread may look before it counts as stopped: what a busy machine does.
const LATE: Duration = Duration::from_millis(50);

/// A thread's pulse.
#[derive(Clone, Debug)]
pub struct Pulse {
    /// The longest time between two looks that is as it should be.
    beat: Duration,
    last: Duration,
    /// When the queue was last found empty.
    empty: Duration,
    /// How long it stood still, where it has since the queue was last found empty.
    stopped: Option<Duration>,
    /// When it last went on.
    resumed: Duration,
}

impl Pulse {
    /// Of a thread that begins now, with nothing in its queue.
    pub fn new(beat: Duration, now: Duration) -> Self {
        Self { beat, last: now, empty: now, stopped: None, resumed: now }
    }

    /// The thread is alive.
    pub fn beat(&mut self, now: Duration) {
        let gap = now.saturating_sub(self.last);
        if gap > self.beat + LATE {
            self.stopped = self.stopped.max(Some(gap));
            self.resumed = now;
        }
        self.last = now;
    }

    /// The queue was found empty by a look that was begun at this time.
    pub fn emptied(&mut self, at: Duration) {
        self.empty = at;
        self.stopped = None;
    }

    /// Since when something may have waited that is taken from the queue now, where it is not since now.
    pub fn since(&self) -> Option<Duration> {
        self.stopped.map(|_| self.empty)
    }

    /// How long it stood still, where it has since the queue was last found empty.
    pub fn stopped(&self) -> Option<Duration> {
        self.stopped
    }

    /// When it last went on, or began.
    pub fn resumed(&self) -> Duration {
        self.resumed
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Pulse};

    const fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn who_stood_still_counts_from_when_the_queue_was_empty() {
        let mut pulse = Pulse::new(ms(50), ms(1000));
        pulse.emptied(ms(1010));
        pulse.beat(ms(1060));
        assert_eq!((pulse.stopped(), pulse.since(), pulse.resumed()), (None, None, ms(1000)));
        pulse.beat(ms(9000));
        assert_eq!((pulse.stopped(), pulse.since(), pulse.resumed()), (Some(ms(7940)), Some(ms(1010)), ms(9000)));
        pulse.beat(ms(9001));
        assert_eq!(pulse.since(), Some(ms(1010)), "what is behind the first one has waited as well");
        pulse.emptied(ms(9002));
        assert_eq!((pulse.stopped(), pulse.since()), (None, None));
    }
}
