//! CPU time of the calling thread: what a clone call costs, apart from what it waits for.

use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// CPU time that the calling thread has used since it began, to the nanosecond as far as the kernel accounts it.
///
/// # Errors
/// What clock_gettime(2) says of CLOCK_THREAD_CPUTIME_ID; Linux has none for it.
pub fn thread_time() -> io::Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

#[cfg(test)]
mod tests {
    use super::thread_time;

    #[test]
    fn thread_time_never_runs_backwards() {
        let before = thread_time().expect("Linux has this clock");
        let after = thread_time().expect("Linux has this clock");
        assert!(before <= after);
    }
}
