//! What `status` shows of a job that runs now: what the job's own process tells of itself.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};

use super::words;
use crate::hold::guard::show;
use crate::hold::guard::table::{Figures, Shown};
use crate::journal::format::Header;

/// The time that is left if the rest goes as what was done; nothing can be said of the first moment.
fn left(figures: &Figures) -> Option<Duration> {
    let (done, rest) = (figures.done_bytes, figures.bytes - figures.done_bytes);
    let left = figures.since_t0.as_secs_f64() * rest as f64 / done as f64;
    (done > 0).then(|| Duration::try_from_secs_f64(left).ok()).flatten()
}

/// Lines below the job's own, of all its images together; empty where there is nothing to be told.
pub fn person(header: &Header) -> String {
    if !header.hold.answers_accesses() {
        return String::new();
    }
    match show::of(header.pid, header.pid_start) {
        Ok(Some(shown)) => text(&shown),
        Ok(None) => "  it tells nothing of itself yet\n".into(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(), // It has just ended.
        Err(e) => format!("  its process cannot be looked into ({e}): run as root to see how it stands\n"),
    }
}

fn text(shown: &Shown) -> String {
    let f = &shown.figures;
    if shown.taken_over {
        return "  its supervisor has let the guest's accesses go on: the snapshot is lost\n".into();
    }
    if f.clusters == 0 {
        return "  before its T0: no access waits\n".into();
    }
    let left = left(f).map_or_else(String::new, |left| format!("; about {} left", words::time(left)));
    format!(
        "  {} of {} done, {} of them out of turn; {} seen, {} waited, {} now, the longest {}{left}\n",
        f.done,
        words::count(f.clusters, "cluster"),
        f.promoted,
        words::count_of(f.seen, "access", "accesses"),
        f.waited,
        f.waiting,
        words::time(f.longest),
    )
}

/// The same for programs: null where the job's hold sees no accesses, or where the process cannot be looked into.
pub fn object(header: &Header) -> Value {
    let shown = header.hold.answers_accesses().then(|| show::of(header.pid, header.pid_start));
    let Some(Ok(Some(Shown { figures: f, watching, taken_over }))) = shown else { return Value::Null };
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    json!({
        "watching": watching, "taken_over": taken_over, "done_bytes": f.done_bytes, "bytes": f.bytes,
        "clusters_done": f.done, "clusters": f.clusters, "promoted": f.promoted, "accesses": f.seen,
        "waited": f.waited, "waiting": f.waiting, "longest_wait_ms": ms(f.longest), "since_t0_ms": ms(f.since_t0),
        "left_ms": left(&f).map(ms),
    })
}

#[cfg(test)]
mod tests {
    use super::{Duration, Figures, Shown, text};

    #[test]
    fn a_live_job_is_told_in_a_line() {
        let check = |figures: Figures, taken_over: bool, expect: &str| {
            assert_eq!(text(&Shown { figures, watching: true, taken_over }), format!("  {expect}\n"));
        };
        let figures = Figures {
            done_bytes: 250,
            bytes: 1000,
            done: 3,
            clusters: 10,
            promoted: 2,
            seen: 1,
            waited: 1,
            waiting: 0,
            longest: Duration::from_millis(12),
            since_t0: Duration::from_secs(5),
        };
        let told = "3 of 10 clusters done, 2 of them out of turn; 1 access seen, 1 waited, 0 now, the longest 12.0 ms; about 15.0 s left";
        check(figures, false, told);
        check(figures, true, "its supervisor has let the guest's accesses go on: the snapshot is lost");
        check(Figures::default(), false, "before its T0: no access waits");
    }
}
