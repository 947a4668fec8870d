//! Waiting for what others come to by themselves, and not for longer than they may take.

use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked.
const MOMENT: Duration = Duration::from_millis(5);

/// Waits until this is so, but not for longer; whether it is.
pub fn within(limit: Duration, is_so: impl Fn() -> bool) -> bool {
    let until = Instant::now() + limit;
    while !is_so() && Instant::now() < until {
        thread::sleep(MOMENT);
    }
    is_so()
}
