//! The values of options: text to plain data, with errors that name the range. Pure.

use std::time::Duration;

use jiff::SignedDuration;

use crate::engine::job;
use crate::hold::choose::GUEST_DEADLINE_MAX;

/// The least `--chunk`: a block of every file system that can clone here.
pub const CHUNK_MIN: u64 = 4 << 10;
/// The greatest `--chunk`.
pub const CHUNK_MAX: u64 = 1 << 40;
/// The least `--cluster`.
pub const CLUSTER_MIN: u64 = 4 << 10;
/// The greatest `--cluster`.
pub const CLUSTER_MAX: u64 = 64 << 20;
/// The least `--latency`.
pub const LATENCY_MIN: Duration = Duration::from_millis(1);
/// The greatest `--latency`.
pub const LATENCY_MAX: Duration = Duration::from_secs(10);
/// The least `--guest-deadline`: below it a busy host breaks snapshots for nothing.
pub const GUEST_DEADLINE_MIN: Duration = Duration::from_millis(100);
/// The least and the greatest `--freeze-timeout`: an agent needs time to answer; nobody should stand still for longer.
pub const FREEZE_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// See [`FREEZE_TIMEOUT_MIN`].
pub const FREEZE_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// The greatest `--wait`.
pub const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// `--min-free`: what must stay free on the file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MinFree {
    /// This many hundredths of the file system, 0 to 99.
    Percent(u8),
    /// This many bytes.
    Bytes(u64),
}

impl From<MinFree> for job::MinFree {
    fn from(wanted: MinFree) -> Self {
        match wanted {
            MinFree::Percent(percent) => Self::Percent(percent.into()),
            MinFree::Bytes(bytes) => Self::Bytes(bytes),
        }
    }
}

/// `--chunk`: bytes, a multiple of 4096 from 4K to 1T.
///
/// # Errors
/// Words that name the range.
pub fn chunk(text: &str) -> Result<u64, String> {
    let bytes = size(text).map_err(|why| format!("{why}; a chunk is 4K to 1T, in multiples of 4096 bytes"))?;
    if (CHUNK_MIN..=CHUNK_MAX).contains(&bytes) && bytes.is_multiple_of(4096) {
        return Ok(bytes);
    }
    Err("a chunk is 4K to 1T, in multiples of 4096 bytes".into())
}

/// `--cluster`: bytes, a power of two from 4K to 64M.
///
/// # Errors
/// Words that name the range.
pub fn cluster(text: &str) -> Result<u64, String> {
    let bytes = size(text).map_err(|why| format!("{why}; a cluster is a power of two from 4K to 64M"))?;
    if (CLUSTER_MIN..=CLUSTER_MAX).contains(&bytes) && bytes.is_power_of_two() {
        return Ok(bytes);
    }
    Err("a cluster is a power of two from 4K to 64M".into())
}

/// A size, not of nothing.
///
/// # Errors
/// Words that name the form.
pub fn bytes(text: &str) -> Result<u64, String> {
    size(text).and_then(|bytes| if bytes > 0 { Ok(bytes) } else { Err("more than nothing".into()) })
}

/// `--latency`: 1ms to 10s.
///
/// # Errors
/// Words that name the range.
pub fn latency(text: &str) -> Result<Duration, String> {
    time(text)
        .filter(|time| (LATENCY_MIN..=LATENCY_MAX).contains(time))
        .ok_or_else(|| "a latency is 1ms to 10s, written like 5ms or 2s".into())
}

/// `--guest-deadline`: 100ms to 30s.
///
/// # Errors
/// Words that name the range.
pub fn guest_deadline(text: &str) -> Result<Duration, String> {
    time(text)
        .filter(|time| (GUEST_DEADLINE_MIN..=GUEST_DEADLINE_MAX).contains(time))
        .ok_or_else(|| "a guest deadline is 100ms to 30s, written like 500ms or 2s".into())
}

/// `--freeze-timeout`: 1s to 10m.
///
/// # Errors
/// Words that name the range.
pub fn freeze_timeout(text: &str) -> Result<Duration, String> {
    time(text)
        .filter(|time| (FREEZE_TIMEOUT_MIN..=FREEZE_TIMEOUT_MAX).contains(time))
        .ok_or_else(|| "a freeze timeout is 1s to 10m, written like 10s or 1m".into())
}

/// `--wait`: 0s to 24h.
///
/// # Errors
/// Words that name the range.
pub fn wait(text: &str) -> Result<Duration, String> {
    time(text).filter(|time| *time <= WAIT_MAX).ok_or_else(|| "a wait is 0s to 24h, written like 30s or 5m".into())
}

/// `--min-free`: a percentage from 0% to 99%, or a size.
///
/// # Errors
/// Words that name the range.
pub fn min_free(text: &str) -> Result<MinFree, String> {
    const RANGE: &str = "a minimum of free space is 0% to 99% in whole percents, or a size like 10G";
    let free = match text.strip_suffix('%') {
        Some(percent) if percent.bytes().all(|b| b.is_ascii_digit()) => {
            percent.parse().ok().filter(|p| *p <= 99).map(MinFree::Percent)
        }
        Some(_) => None,
        None => size(text).ok().map(MinFree::Bytes),
    };
    free.ok_or_else(|| RANGE.into())
}

/// A size in bytes: 64M, 1GiB, 4096. All units are powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let parser = parse_size::Config::new().with_binary();
    parser.parse_size(text).map_err(|error| match error {
        parse_size::Error::PosOverflow => "more than 64 bits hold".into(),
        _ => "not a size like 64M, 1GiB or 4096".into(),
    })
}

/// A time that is not negative: 5ms, 2s, 1m.
fn time(text: &str) -> Option<Duration> {
    Duration::try_from(text.parse::<SignedDuration>().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::{chunk, cluster, latency, min_free, wait};

    fn show<T: std::fmt::Debug>(result: Result<T, String>) -> String {
        result.map_or_else(|error| format!("error: {error}"), |value| format!("{value:?}"))
    }

    #[test]
    fn chunks() {
        let check = |input: &str, expect: &str| assert_eq!(show(chunk(input)), expect, "{input}");
        const RANGE: &str = "a chunk is 4K to 1T, in multiples of 4096 bytes";
        check("64M", "67108864");
        check("64MiB", "67108864");
        check("1GiB", "1073741824");
        check("4096", "4096");
        check("1T", "1099511627776");
        for out in ["0", "1", "4097", "2T", "5000"] {
            check(out, &format!("error: {RANGE}"));
        }
        for bad in ["3G5", "", "M", "-1", "64 potatoes", "0x1000"] {
            check(bad, &format!("error: not a size like 64M, 1GiB or 4096; {RANGE}"));
        }
        check("18446744073709551616", &format!("error: more than 64 bits hold; {RANGE}"));
    }

    #[test]
    fn clusters() {
        let check = |input: &str, expect: &str| assert_eq!(show(cluster(input)), expect, "{input}");
        check("64K", "65536");
        check("64M", "67108864");
        for out in ["0", "2K", "12K", "128M"] {
            check(out, "error: a cluster is a power of two from 4K to 64M");
        }
        check("k9", "error: not a size like 64M, 1GiB or 4096; a cluster is a power of two from 4K to 64M");
    }

    #[test]
    fn times() {
        let check = |input: &str, expect: &str| assert_eq!(show(latency(input)), expect, "{input}");
        check("5ms", "5ms");
        check("2s", "2s");
        check("10s", "10s");
        for out in ["0s", "999us", "11s", "1m", "5", "-5ms", "5ms ago", "", "soon"] {
            check(out, "error: a latency is 1ms to 10s, written like 5ms or 2s");
        }
        let check = |input: &str, expect: &str| assert_eq!(show(wait(input)), expect, "{input}");
        check("0s", "0ns");
        check("1m", "60s");
        check("24h", "86400s");
        for out in ["25h", "-1s", "1", "99999999999999999999s"] {
            check(out, "error: a wait is 0s to 24h, written like 30s or 5m");
        }
    }

    #[test]
    fn free_space() {
        let check = |input: &str, expect: &str| assert_eq!(show(min_free(input)), expect, "{input}");
        check("5%", "Percent(5)");
        check("0%", "Percent(0)");
        check("10G", "Bytes(10737418240)");
        for out in ["100%", "%", "+5%", "5.5%", "-1%", "300%", "lots"] {
            check(out, "error: a minimum of free space is 0% to 99% in whole percents, or a size like 10G");
        }
    }
}
