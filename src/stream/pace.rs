//! At most so many bytes a second.

use std::thread;
use std::time::{Duration, Instant};

/// How much may be sent at once after a time in which nothing was.
const BURST: Duration = Duration::from_millis(100);

/// Keeps whoever sends to a limit.
#[derive(Debug)]
pub struct Pace {
    /// Bytes a second; none without a limit.
    limit: Option<u64>,
    /// When all that was sent may have been.
    due: Instant,
}

impl Pace {
    /// A limit, in bytes a second.
    pub fn new(limit: Option<u64>) -> Self {
        Self { limit: limit.filter(|limit| *limit > 0), due: Instant::now() }
    }

    /// Waits until so many bytes more may be sent.
    pub fn wait(&mut self, bytes: u64) {
        let wait = self.take(bytes, Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
    }

    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(limit) = self.limit else { return Duration::ZERO };
        let wait = self.due.saturating_duration_since(now);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        self.due = self.due.max(earliest) + Duration::from_secs_f64(bytes as f64 / limit as f64);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_waited_for_and_idle_time_is_not_saved_up() {
        let begun = Instant::now();
        let mut pace = Pace { limit: Some(1000), due: begun };
        assert_eq!(pace.take(500, begun), Duration::ZERO);
        assert_eq!(pace.take(500, begun), Duration::from_millis(500));
        assert_eq!(pace.take(1, begun + Duration::from_secs(1)), Duration::ZERO);
        let later = begun + Duration::from_secs(100);
        assert_eq!(pace.take(1000, later), Duration::ZERO);
        assert_eq!(pace.take(1, later), Duration::from_millis(900));
        let mut free = Pace::new(None);
        assert_eq!(free.take(u64::MAX, begun), Duration::ZERO);
    }
}
