//! What others on the file system feel: a thread that reads the image and one that writes another file, each 4 KiB at a
//! time past the page cache, up to a thousand times a second, with a clock beside every access.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::image::{Aligned, BLOCK, Random, direct};

/// How often each thread wants to access the disk.
const EVERY: Duration = Duration::from_millis(1);

/// How large the writer's file is.
const OTHER_BYTES: u64 = 16 << 20;

/// One access.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// When it was begun, from the start of the probes.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
}

/// The accesses of one thread, in order.
#[derive(Debug, Default)]
pub struct Accesses(pub Vec<Access>);

impl Accesses {
    /// The longest.
    pub fn longest(&self) -> Duration {
        self.0.iter().map(|access| access.took).max().unwrap_or_default()
    }

    /// What one access in a thousand exceeds. An access that took ten seconds kept ten thousand others from being made;
    /// they count as well, each as long as it would have had to wait, or else a stall would hide behind being alone.
    pub fn p999(&self) -> Duration {
        let mut all = Vec::new();
        for access in &self.0 {
            let mut took = access.took;
            all.push(took);
            while took > EVERY {
                took -= EVERY;
                all.push(took);
            }
        }
        all.sort_unstable();
        let rank = (all.len() * 999).div_ceil(1000);
        rank.checked_sub(1).map_or(Duration::ZERO, |index| all[index])
    }

    /// The longest access that was under way in each of the `slots` parts of the time from `start` to `end`.
    pub fn worst(&self, start: Duration, end: Duration, slots: usize) -> Vec<Duration> {
        let mut worst = vec![Duration::ZERO; slots];
        let slot = (end.saturating_sub(start) / slots.max(1) as u32).max(Duration::from_nanos(1));
        let index = |at: Duration| (at.saturating_sub(start).as_nanos() / slot.as_nanos()) as usize;
        for access in self.0.iter().filter(|it| it.at + it.took >= start && it.at < end) {
            for place in worst.iter_mut().take(index(access.at + access.took) + 1).skip(index(access.at)) {
                *place = (*place).max(access.took);
            }
        }
        worst
    }
}

/// The two threads at work.
pub struct Probes {
    stop: Arc<AtomicBool>,
    started: Instant,
    reader: Option<JoinHandle<Result<Accesses>>>,
    writer: Option<JoinHandle<Result<Accesses>>>,
}

/// What the two threads felt.
pub struct Felt {
    /// The reads of the image.
    pub reads: Accesses,
    /// The writes to the other file.
    pub writes: Accesses,
}

impl Probes {
    /// Starts to read `image` and to write `other`, which is made if it is not there.
    pub fn start(image: &Path, other: &Path) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let started = Instant::now();
        let source = direct(image, false)?;
        let size = source.metadata()?.len();
        let target = prepared(other)?;
        let reader = spawn(&stop, started, size, move |block, at| source.read_exact_at(block, at))?;
        let writer = spawn(&stop, started, OTHER_BYTES, move |block, at| target.write_all_at(block, at))?;
        Ok(Self { stop, started, reader: Some(reader), writer: Some(writer) })
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends both threads and tells what they felt.
    pub fn stop(mut self) -> Result<Felt> {
        self.stop.store(true, Ordering::Release);
        let join = |handle: Option<JoinHandle<Result<Accesses>>>| {
            handle.and_then(|it| it.join().ok()).unwrap_or_else(|| Err(anyhow!("a probe thread panicked")))
        };
        let reads = join(self.reader.take()).context("time reads of the image")?;
        let writes = join(self.writer.take()).context("time writes to another file")?;
        Ok(Felt { reads, writes })
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for handle in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            let _ = handle.join();
        }
    }
}

/// Opens the writer's file, written in full so that the timed writes allocate nothing.
fn prepared(other: &Path) -> Result<File> {
    if !other.exists() {
        std::fs::write(other, vec![0; OTHER_BYTES as usize]).with_context(|| format!("write {}", other.display()))?;
    }
    let file = direct(other, true)?;
    file.sync_all().with_context(|| format!("sync {}", other.display()))?;
    Ok(file)
}

fn spawn(
    stop: &Arc<AtomicBool>,
    started: Instant,
    size: u64,
    access: impl Fn(&mut [u8], u64) -> std::io::Result<()> + Send + 'static,
) -> Result<JoinHandle<Result<Accesses>>> {
    let stop = Arc::clone(stop);
    let body = move || {
        let mut buffer = Aligned::new();
        let mut random = Random::new();
        let mut done = Vec::new();
        while !stop.load(Ordering::Acquire) {
            let begun = Instant::now();
            access(buffer.block(), random.below(size / BLOCK) * BLOCK)?;
            let took = begun.elapsed();
            done.push(Access { at: begun - started, took });
            thread::sleep(EVERY.saturating_sub(took));
        }
        Ok(Accesses(done))
    };
    thread::Builder::new().name("probe".to_owned()).spawn(body).context("start a probe thread")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn accesses(list: &[(u64, u64)]) -> Accesses {
        Accesses(list.iter().map(|(at, took)| Access { at: ms(*at), took: ms(*took) }).collect())
    }

    #[test]
    fn a_stall_fills_every_slot_it_lasts() {
        let felt = accesses(&[(0, 1), (25, 50), (90, 2)]);
        let expect = [1, 50, 50, 50, 2].map(ms);
        assert_eq!(felt.worst(ms(0), ms(100), 5), expect);
    }

    #[test]
    fn accesses_outside_the_window_do_not_count() {
        let felt = accesses(&[(0, 5), (200, 5)]);
        assert_eq!(felt.worst(ms(50), ms(100), 2), [ms(0), ms(0)]);
    }

    #[test]
    fn one_long_stall_among_many_short_accesses_shows_in_the_percentile() {
        let mut list: Vec<(u64, u64)> = (0..10_000).map(|n| (n * 2, 1)).collect();
        list.push((20_000, 4000));
        assert!(accesses(&list).p999() > ms(3900));
        list.pop();
        assert_eq!(accesses(&list).p999(), ms(1));
    }

    #[test]
    fn nothing_felt_is_zero() {
        assert_eq!((Accesses::default().longest(), Accesses::default().p999()), (ms(0), ms(0)));
    }
}
