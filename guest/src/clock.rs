//! The clock by which everything here is timed: CLOCK_MONOTONIC, the same for all processes of one boot.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC.
///
/// # Panics
/// Where the kernel has no such clock; every Linux has.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a monotonic clock");
    u64::try_from(Duration::from(time).as_nanos()).expect("a boot of less than 584 years")
}
