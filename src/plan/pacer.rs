//! From what calls cost to what the next may cost, and how long to pause before it.
//!
//! The cost of an extent is learnt from the calls' own CPU time; wall time beyond it is waiting, for the file system's log
//! or the device, and is answered by backing off where guests are. The caller brings the time.

use std::time::Duration;

/// Part of the latency budget that a call is planned to use: the rest is for what the estimate does not know.
const AIM: f64 = 0.7;

/// The same where guests are, who wait for the call that runs, for somebody else's promotion and for their own: with 0.7 of 1 ms most
/// calls took 0.5 to 1 ms, and 99 in a hundred accesses 2.2 to 2.5; with 0.5 and the promotions below it was 1.8 to 2.0, with this 1.8
/// to 1.9 (XFS, BENCHMARKS.md).
const AIM_GUESTS: f64 = 0.35;

/// Calls with fewer extents tell more of the call than of the extents (~13 us a call against 5 to 11 us an extent).
const LEARN_FROM: u64 = 16;

/// How much of a new measurement enters the running estimate.
const WEIGHT: f64 = 0.2;

/// The least and the most that an extent is believed to cost, in nanoseconds: no single odd call makes chunks of one block
/// or of a million extents.
const BELIEVED: (f64, f64) = (1_000.0, 1_000_000.0);

/// Where guests are, as much work as one call may have is followed by a pause of this part of it, in which they have the
/// image's lock to themselves; what they write is cloned out of turn and leaves short runs, so a call is often far shorter
/// than it may be, and a pause after each would be most of the window.
const GUEST_PART: f64 = 0.5;

/// The longest such pause: 1 ms ones took the p99.9 of a guest from 9-12 ms to 2-6 ms (KERNEL.md, fanotify pre-content events, last
/// measurement).
const GUEST_PAUSE: Duration = Duration::from_millis(1);

/// What a guest waits for is cloned with what lies beside it, as much as this part of the latency budget is worth: a call takes a
/// lock that direct I/O has for longer than a few extents take, and what is left between single clusters would be calls of a few
/// extents, too. With a budget of 1 ms on XFS this is 16 extents: 2 at a time took a window of 8.9 s, 16 took 5.2 s, and 64 took 4.1 s; 32
/// have a p99 beyond 2 ms (BENCHMARKS.md).
const PROMOTION_PART: f64 = 0.2;

/// The most that such a call is to take: with long budgets there are few of them.
const LONGEST_PROMOTION: Duration = Duration::from_millis(2);

/// What a call takes besides, beside a guest's direct I/O.
const CALL: Duration = Duration::from_micros(100);

/// They go on for about as long as so many calls of the background may take, if guests ask as long, before it has its turn: they get
/// as much done.
const PROMOTIONS_FIRST: u32 = 2;

/// The longest that this is to take: between two rounds a job looks whether it was told to stop.
const LONGEST_ROUND: Duration = Duration::from_millis(100);

/// Wall time above this many times the CPU time is a log or a device that is behind.
const BEHIND: u32 = 3;

/// The longest pause to let the device catch up.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// The running estimate.
pub struct Pacer {
    latency: Duration,
    guests: bool,
    per_extent_ns: f64,
    /// The CPU time and the wall time of the last call.
    last: (Duration, Duration),
    /// Wall time of calls since the last pause.
    worked: Duration,
}

impl Pacer {
    /// A pacer that has seen no call. `latency` is what one call may take, `per_extent` what an extent usually costs on this
    /// file system.
    pub fn new(latency: Duration, per_extent: Duration, guests: bool) -> Self {
        // Twice the usual cost to begin with: the first calls are rather too small than too large.
        let per_extent_ns = per_extent.as_nanos() as f64 * 2.0;
        Self { latency, guests, per_extent_ns, last: (Duration::ZERO, Duration::ZERO), worked: Duration::ZERO }
    }

    /// How many promotions there may be in a row; at least one.
    pub fn promotions(&self) -> u32 {
        let all = (self.latency * PROMOTIONS_FIRST).min(LONGEST_ROUND);
        u32::try_from(all.as_nanos() / (self.promotion_time() + CALL).as_nanos()).unwrap_or(u32::MAX).max(1)
    }

    /// How many extents are cloned for a guest in one call where it waits for fewer, if only `part` of the time for that may be
    /// taken; at least one.
    pub fn promotion(&self, part: f64) -> u64 {
        ((self.promotion_time().as_nanos() as f64 * part / self.per_extent_ns) as u64).max(1)
    }

    fn promotion_time(&self) -> Duration {
        self.latency.mul_f64(PROMOTION_PART).min(LONGEST_PROMOTION)
    }

    /// How many extents the next call may have; at least one.
    pub fn budget(&self) -> u64 {
        ((self.latency.as_nanos() as f64 * self.aim() / self.per_extent_ns) as u64).max(1)
    }

    fn aim(&self) -> f64 {
        if self.guests { AIM_GUESTS } else { AIM }
    }

    /// A call of `blocks` blocks was made; `extents` of them, where known.
    pub fn observe(&mut self, extents: Option<u64>, blocks: u64, cpu_time: Duration, wall: Duration) {
        // There are at most as many extents as blocks: where nobody counted, an extent costs at least this much.
        let (count, at_least) = extents.map_or((blocks, true), |extents| (extents, false));
        let (measured, budget) = (cpu_time.as_nanos() as f64 / count.max(1) as f64, self.budget());
        // Where calls have become that small, they are all that there is to learn from.
        if count >= LEARN_FROM.min(budget) && (!at_least || measured > self.per_extent_ns) {
            // What a guest waits for is a call of a few extents, of which an interrupt can make ten times as many: it says little
            // of one of hundreds.
            let weight = WEIGHT * (4.0 * count as f64 / budget as f64).min(1.0);
            self.per_extent_ns += weight * (measured - self.per_extent_ns);
            // A call that overran says so at once.
            if cpu_time > self.latency && count * 2 >= budget {
                self.per_extent_ns = self.per_extent_ns.max(measured);
            }
        }
        self.per_extent_ns = self.per_extent_ns.clamp(BELIEVED.0, BELIEVED.1);
        self.last = (cpu_time, wall);
    }

    /// How long to wait now that a call of the background was made and observed; nothing where nobody else uses the image. What
    /// a guest waited for owes no pause.
    pub fn pause(&mut self) -> Duration {
        if !self.guests {
            return Duration::ZERO;
        }
        let (cpu, wall) = self.last;
        let waited = wall.saturating_sub(cpu);
        self.worked += wall;
        if wall > cpu * BEHIND && waited > GUEST_PAUSE {
            self.worked = Duration::ZERO;
            return waited.min(LONGEST_PAUSE);
        }
        if self.worked < self.latency.mul_f64(self.aim()) {
            return Duration::ZERO;
        }
        std::mem::take(&mut self.worked).mul_f64(GUEST_PART).min(GUEST_PAUSE)
    }

    /// How long cloning this many extents would take.
    pub fn estimate(&self, extents: u64) -> Duration {
        Duration::from_nanos((extents as f64 * self.per_extent_ns) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XFS: Duration = Duration::from_micros(11);

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn the_budget_follows_the_measured_cost() {
        let mut pacer = Pacer::new(Duration::from_millis(5), XFS, true);
        let first = pacer.budget();
        for _ in 0..100 {
            pacer.observe(Some(100), 100, us(500), us(500));
        }
        assert!(pacer.budget() > first);
        assert!((345..=350).contains(&pacer.budget()), "{}", pacer.budget());
    }

    #[test]
    fn a_call_that_overran_shrinks_the_next_at_once() {
        let mut pacer = Pacer::new(Duration::from_millis(5), XFS, true);
        pacer.observe(Some(100), 100, us(50_000), us(50_000));
        assert_eq!(pacer.budget(), 3);
        let mut pacer = Pacer::new(Duration::from_millis(5), XFS, true);
        pacer.observe(None, 100, us(50_000), us(50_000));
        assert_eq!(pacer.budget(), 3);
    }

    #[test]
    fn odd_calls_make_small_ones_neither_for_long_nor_for_ever() {
        let mut pacer = Pacer::new(Duration::from_millis(5), XFS, true);
        for _ in 0..100 {
            pacer.observe(Some(100), 100, us(1_100), us(1_100));
        }
        let usual = pacer.budget();
        // What a guest waited for, lengthened ten times by an interrupt.
        pacer.observe(None, 16, us(1_760), us(1_760));
        assert!(pacer.budget() > usual / 2, "{} of {usual}", pacer.budget());
        // A machine that stood still for a while: calls of a single extent or two, from which it must find back.
        pacer.observe(Some(usual), usual, us(900_000), us(900_000));
        assert!(pacer.budget() < 4);
        for _ in 0..100 {
            let extents = pacer.budget();
            pacer.observe(Some(extents), extents, us(13 + 11 * extents), us(13 + 11 * extents));
        }
        assert!(pacer.budget() > usual / 2, "{} of {usual}", pacer.budget());
    }

    #[test]
    fn the_budget_is_never_nothing() {
        let mut pacer = Pacer::new(Duration::from_millis(1), XFS, false);
        pacer.observe(Some(16), 16, us(10_000_000), us(10_000_000));
        assert_eq!(pacer.budget(), 1);
    }

    #[test]
    fn a_device_that_is_behind_is_given_time_only_where_guests_are() {
        let mut pacer = Pacer::new(Duration::from_millis(5), XFS, true);
        pacer.observe(Some(100), 100, us(1_000), us(90_000));
        assert_eq!(pacer.pause(), Duration::from_millis(89));
        pacer.observe(Some(100), 100, us(1_000), us(900_000));
        assert_eq!(pacer.pause(), LONGEST_PAUSE);
        pacer.observe(Some(100), 100, us(4_000), us(4_100));
        assert_eq!(pacer.pause(), GUEST_PAUSE);
        let mut alone = Pacer::new(Duration::from_millis(5), XFS, false);
        alone.observe(Some(100), 100, us(1_000), us(90_000));
        assert_eq!(alone.pause(), Duration::ZERO);
    }

    #[test]
    fn promotions_in_a_row_take_about_as_long_as_two_calls() {
        let promotions = |ms| Pacer::new(Duration::from_millis(ms), XFS, true).promotions();
        assert_eq!(
            (promotions(0), promotions(1), promotions(5), promotions(50), promotions(10_000)),
            (1, 6, 9, 47, 47)
        );
    }

    #[test]
    fn a_promotion_takes_a_part_of_the_budget_and_never_long() {
        let promotion = |ms, part| Pacer::new(Duration::from_millis(ms), XFS, true).promotion(part);
        // Twice the usual cost of 11 us is believed at first.
        assert_eq!([0, 1, 5, 50].map(|ms| promotion(ms, 1.0)), [1, 9, 45, 90]);
        assert_eq!([0.0, 0.01, 0.5].map(|part| promotion(5, part)), [1, 1, 22]);
    }

    #[test]
    fn short_calls_share_a_pause() {
        let mut pacer = Pacer::new(Duration::from_millis(5), XFS, true);
        let mut pauses = (0..8).map(|_| {
            pacer.observe(Some(16), 16, us(750), us(750));
            pacer.pause()
        });
        let (short, none) = (GUEST_PAUSE, Duration::ZERO);
        assert_eq!(pauses.by_ref().take(3).collect::<Vec<_>>(), [none, none, short]);
        assert_eq!(pauses.filter(|pause| !pause.is_zero()).count(), 1);
    }
}
