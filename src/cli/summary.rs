//! What a job says to people. Pure.

use std::time::Duration;

use super::report::Names;
use super::words;
use crate::disk::real::directory_of;
use crate::engine::report::{Finished, Progress, Started};
use crate::hold::HoldKind;
use crate::quiesce::freezer::Quiescence;

/// What goes on, once T0 is set.
pub fn started(names: &Names, started: &Started) -> String {
    let dst = words::name(&names.dst);
    let how = match (started.resumed, started.new_t0) {
        (true, _) => format!("going on to T0 {:.0}, {} done", started.t0, percent(started.done_bytes, started.bytes)),
        (_, true) => format!("new T0 {:.0}, from what was left of an earlier job", started.t0),
        _ => format!("T0 {:.0}", started.t0),
    };
    let why = words::line(&started.why);
    format!("{dst}: {how}; hold {} ({why}){}", started.hold.name(), unmarked(started.hold))
}

/// Where the job stands.
pub fn progress(names: &Names, begun_at: u64, now: &Progress) -> String {
    format!(
        "{}: {} of {} ({}), {}",
        words::name(&names.dst),
        words::bytes(now.done_bytes),
        words::bytes(now.bytes),
        percent(now.done_bytes, now.bytes),
        speed(begun_at, now)
    )
}

/// How fast it goes, how long it will take, and the longest call so far: at most 52 columns at a million extents a second,
/// for a terminal of 80.
pub fn speed(begun_at: u64, now: &Progress) -> String {
    let seconds = now.elapsed.as_secs_f64();
    let rate = if seconds > 0.0 { (now.extents as f64 / seconds) as u64 } else { 0 };
    let left = time_left(begun_at, now).map_or("unknown time".into(), words::time);
    format!("{rate} extents/s, {left} left, longest call {}", words::time(now.longest_call))
}

/// The time left at the speed so far; `None` where nothing was done yet.
pub fn time_left(begun_at: u64, now: &Progress) -> Option<Duration> {
    let done = now.done_bytes.checked_sub(begun_at).filter(|done| *done > 0)?;
    let left = now.bytes.saturating_sub(now.done_bytes);
    Duration::try_from_secs_f64(now.elapsed.as_secs_f64() * left as f64 / done as f64).ok()
}

/// What was made, in figures, and what to do next: three lines.
pub fn finished(names: &Names, end: &Finished) -> String {
    let Started { t0, hold, bytes, new_t0, .. } = end.started;
    let dst = words::name(&names.dst);
    let of = names.src.as_ref().map_or(String::new(), |src| format!(" of {}", words::name(src)));
    let new = if new_t0 { "new T0" } else { "T0" };
    let instant = if hold.point_in_time() { "one point in time" } else { "NOT A POINT IN TIME" };
    let mut figures =
        vec![words::bytes(bytes), end.extents.map_or("extents not counted".into(), |n| words::count(n, "extent"))];
    figures.push(format!("{} (longest {})", words::count(end.calls, "call"), words::time(end.longest_call)));
    let told = |bytes: u64, what: &str| (bytes > 0).then(|| format!("{} {what}", words::bytes(bytes)));
    figures.extend(told(end.skipped_bytes, "shared already"));
    figures.extend(told(end.copied_bytes, "copied because they could not be shared"));
    let frozen = |q: &Quiescence| {
        let how = if q.quiesced { "guest frozen for" } else { "NOT QUIESCED, guest frozen for" };
        format!("{how} {}", words::time(Duration::from_millis(q.frozen_ms)))
    };
    figures.extend(end.quiescence.as_ref().map(frozen));
    let felt = end.longest_guest_wait.filter(|_| hold.answers_accesses());
    figures.extend(felt.map(|wait| format!("longest wait of the guest {}", words::time(wait))));
    figures.push(format!("{} in all", words::time(end.elapsed)));
    format!(
        "{dst}: snapshot{of}, {instant}: {new} {t0:.0}, hold {}\n  {}\n  next: {}",
        hold.name(),
        figures.join(", "),
        next(names, hold)
    )
}

fn next(names: &Names, hold: HoldKind) -> String {
    let (src, dst) = (names.src.as_ref().map_or("SRC".into(), words::shell), words::shell(&names.dst));
    if hold.point_in_time() && names.by_rules {
        format!("back it up; rclone-img list {} shows what there is", words::shell(directory_of(&names.dst)))
    } else if hold.point_in_time() {
        format!("back it up; rclone-img snapshot --refresh {src} {dst} brings it up to date")
    } else {
        format!(
            "do not restore from it if the image was written meanwhile; rclone-img check {src} says what would keep it still"
        )
    }
}

fn unmarked(hold: HoldKind) -> &'static str {
    if hold.point_in_time() { "" } else { "; NOT A POINT IN TIME" }
}

/// Rounded down: 100 % is all of it.
fn percent(part: u64, whole: u64) -> String {
    let percent = (u128::from(part) * 100).checked_div(u128::from(whole)).unwrap_or(100);
    format!("{percent} %")
}

#[cfg(test)]
mod tests {
    use super::{Duration, HoldKind, Progress, Quiescence, finished, progress, started, time_left};
    use crate::cli::report::samples;

    #[test]
    fn the_start() {
        let names = samples::names();
        let mut job = samples::started();
        assert_eq!(
            started(&names, &job),
            "vm.snap: T0 2026-11-21T05:00:00Z; hold frozen (nobody has the image open for writing)"
        );
        (job.resumed, job.done_bytes) = (true, 8191);
        assert!(started(&names, &job).contains("going on to T0 2026-11-21T05:00:00Z, 99 % done"));
        (job.resumed, job.new_t0, job.hold) = (false, true, HoldKind::None);
        assert_eq!(
            started(&names, &job),
            "vm.snap: new T0 2026-11-21T05:00:00Z, from what was left of an earlier job; hold none (nobody has the image \
             open for writing); NOT A POINT IN TIME"
        );
    }

    #[test]
    fn the_middle() {
        let now = Progress {
            done_bytes: 3 << 30,
            bytes: 4 << 30,
            extents: 1_000_000,
            calls: 7,
            longest_call: Duration::from_micros(5100),
            elapsed: Duration::from_secs(10),
        };
        assert_eq!(
            progress(&samples::names(), 1 << 30, &now),
            "vm.snap: 3.0 GiB of 4.0 GiB (75 %), 100000 extents/s, 5.0 s left, longest call 5.1 ms"
        );
        assert_eq!(time_left(3 << 30, &now), None);
        assert_eq!(time_left(u64::MAX, &now), None);
        assert!(progress(&samples::names(), 0, &Progress::default()).contains("0 B of 0 B (100 %), 0 extents/s"));
    }

    #[test]
    fn the_end() {
        let names = samples::names();
        let mut end = samples::finished();
        assert_eq!(
            finished(&names, &end),
            "vm.snap: snapshot of vm.img, one point in time: T0 2026-11-21T05:00:00Z, hold frozen\n  8.0 KiB, 2 extents, \
             3 calls (longest 5.1 ms), 4.0 KiB copied because they could not be shared, 2.5 s in all\n  next: back it up; \
             rclone-img snapshot --refresh vm.img vm.snap brings it up to date"
        );
        end.skipped_bytes = 4096;
        assert!(finished(&names, &end).contains(", 4.0 KiB shared already, "));
        end.copied_bytes = 0;
        assert!(!finished(&names, &end).contains("copied"));
        (end.started.hold, end.longest_guest_wait) = (HoldKind::Guard, Some(Duration::from_micros(7700)));
        assert!(finished(&names, &end).contains(", longest wait of the guest 7.7 ms, 2.5 s in all"));
        end.quiescence = Some(Quiescence { quiesced: true, frozen_ms: 120 });
        assert!(finished(&names, &end).contains(", guest frozen for 120.0 ms, longest"), "{}", finished(&names, &end));
        end.quiescence = Some(Quiescence { quiesced: false, frozen_ms: 120 });
        assert!(finished(&names, &end).contains(", NOT QUIESCED, guest frozen for 120.0 ms,"));
        end.quiescence = None;
        end.started.hold = HoldKind::None;
        end.extents = None;
        let text = finished(&names, &end);
        assert!(
            text.contains("NOT A POINT IN TIME: T0 2026-11-21T05:00:00Z, hold none\n  8.0 KiB, extents not counted,"),
            "{text}"
        );
        assert!(!text.contains("back it up"), "{text}");
    }
}
