//! Waiting until a file system has nothing left to do: removing a clone goes on in the background long after `rm`
//! returned, and whatever is measured meanwhile measures both.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::stat::{major, minor};

use super::free;

/// How long everything must stand still.
const STILL: Duration = Duration::from_secs(2);

/// Flushes the file system of `path`, then waits until its free space and its device's counters have stood still for two
/// seconds, at most `bound`. Tells whether they did.
pub fn settle(path: &Path, bound: Duration) -> Result<bool> {
    let folder = File::open(path).with_context(|| format!("open {}", path.display()))?;
    nix::unistd::syncfs(&folder).with_context(|| format!("flush the file system of {}", path.display()))?;
    let end = Instant::now() + bound;
    let mut last = state(path)?;
    let mut since = Instant::now();
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(100));
        let now = state(path)?;
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() >= STILL {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Free bytes, and the device's counters of reads, writes and the like.
fn state(path: &Path) -> Result<(u64, String)> {
    Ok((free(path)?, counters(path)))
}

/// The counters of the device that `path` is on; nothing where it is not known.
fn counters(path: &Path) -> String {
    // Btrfs has a device number of its own, so the device is found by where it is mounted.
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let at = |line: &&str| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path);
    let source = mountinfo.lines().rfind(at).and_then(|line| line.split(" - ").nth(1)?.split(' ').nth(1));
    let number = source.and_then(|source| fs::metadata(source).ok()).map(|device| device.rdev());
    let number = number.or_else(|| fs::metadata(path).ok().map(|it| it.dev()));
    let stat = number.map(|number| format!("/sys/dev/block/{}:{}/stat", major(number), minor(number)));
    stat.and_then(|stat| fs::read_to_string(stat).ok()).unwrap_or_default()
}
