//! What is said to take no waiting, which the thread that has the connection does itself: and not for a while where it was not so.
//!
//! Where accesses are watched, or the file system is frozen or busy with itself, the kernel has them wait whatever they ask for, and with
//! this thread waits all that the client has to say.

use std::time::Duration;

use crate::threads::Instant;

/// What takes no waiting takes no longer: 1 MiB from memory takes a quarter of it.
const QUICK: Duration = Duration::from_micros(500);

/// For how long nothing is tried after something took longer.
const PAUSE: Duration = Duration::from_millis(200);

/// For how long at most, where every try takes longer: with a thousand requests a second it is fewer than one in ten thousand that is behind one.
const LONGEST_PAUSE: Duration = Duration::from_millis(12_800);

/// Whether what takes no waiting is tried.
pub struct Quick {
    /// When something took longer, that is the end of its pause.
    until: Option<Instant>,
    /// How long the next pause is.
    pause: Duration,
}

impl Default for Quick {
    fn default() -> Self {
        Self { until: None, pause: PAUSE }
    }
}

impl Quick {
    /// Whether it is tried at the moment.
    pub fn is_tried(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }

    /// Does it, if it is tried at the moment, and finds out whether it took no waiting; what `access` says, false where it is not tried.
    pub fn attempt(&mut self, access: impl FnOnce() -> bool) -> bool {
        if !self.is_tried() {
            return false;
        }
        let began = Instant::now();
        let done = access();
        self.took(began, Instant::now());
        done
    }

    fn took(&mut self, began: Instant, ended: Instant) {
        if ended.saturating_duration_since(began) > QUICK {
            self.until = Some(ended + self.pause);
            self.pause = LONGEST_PAUSE.min(self.pause * 2);
        } else if self.until.is_none_or(|until| ended > until + self.pause) {
            // It has gone well for as long as it would be left alone.
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_millis(3);

    #[test]
    fn what_was_slow_is_left_alone_for_longer_each_time_and_is_forgiven() {
        let (mut quick, origin, mut now) = (Quick::default(), Instant::now(), Duration::ZERO);
        // Something that took so long, and for how long it is left alone.
        let mut pause = |now: Duration, took: Duration| {
            quick.took(origin + now, origin + now + took);
            quick.until.map(|until| until.saturating_duration_since(origin + now + took))
        };
        assert_eq!(pause(now, Duration::ZERO), None);
        for millis in [200, 400, 800, 1600, 3200, 6400, 12_800, 12_800] {
            assert_eq!(pause(now, SLOW), Some(Duration::from_millis(millis)));
            now += SLOW + Duration::from_millis(millis);
            // A few that are quick change nothing.
            pause(now, Duration::ZERO);
        }
        now += LONGEST_PAUSE;
        pause(now, Duration::ZERO);
        assert_eq!(pause(now, SLOW), Some(LONGEST_PAUSE), "it has gone well, but not for long enough");
        now += SLOW + LONGEST_PAUSE * 2 + SLOW;
        pause(now, Duration::ZERO);
        assert_eq!(pause(now, SLOW), Some(PAUSE));
    }

    #[test]
    fn nothing_is_tried_in_a_pause() {
        let mut quick = Quick::default();
        assert!(quick.attempt(|| true) && !quick.attempt(|| false) && quick.is_tried());
        let now = Instant::now();
        quick.took(now, now + Duration::from_secs(3600));
        assert!(!quick.is_tried() && !quick.attempt(|| unreachable!("it is not tried")));
    }
}
