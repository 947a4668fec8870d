//! What `status` shows of a job that runs now: what the job's own process tells of itself.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};

use super::words;
use crate::hold::HoldKind;
use crate::hold::guard::show;
use crate::hold::guard::table::{Figures, Shown};
use crate::journal::format::Header;

/// The time that is left if the rest goes as what was done; nothing can be said of the first moment.
fn left(figures: &Figures) -> Option<Duration> {
    let (done, rest) = (figures.done_bytes, figures.bytes - figures.done_bytes);
    let left = figures.since_t0.as_secs_f64() * rest as f64 / done as f64;
    (done > 0).then(|| Duration::try_from_secs_f64(left).ok()).flatten()
}

/// How far the job is, in a few words, and a line below its own on how the guest fares; each empty where there is nothing to
/// be told. Of a job of several images both are of all of them.
pub fn person(header: &Header) -> (String, String) {
    if !header.hold.answers_accesses() {
        return Default::default();
    }
    match show::of(header.pid, header.pid_start) {
        Ok(Some(shown)) => text(&shown, header.hold, !header.group.is_alone()),
        Ok(None) => (String::new(), "  before its point in time: no access waits\n".into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Default::default(), // It has just ended.
        Err(e) => {
            let why = format!("  its process cannot be looked into ({e}): run as root to see how it stands\n");
            (String::new(), why)
        }
    }
}

fn text(shown: &Shown, hold: HoldKind, several: bool) -> (String, String) {
    let f = &shown.figures;
    if shown.taken_over {
        let lost = "  its supervisor has let the guest's accesses go on: the snapshot is lost\n";
        return (String::new(), lost.into());
    }
    if f.clusters == 0 {
        return (String::new(), "  before its point in time: no access waits\n".into());
    }
    let done = u128::from(f.done_bytes) * 100 / u128::from(f.bytes.max(1));
    let left = left(f).map_or_else(String::new, |left| format!(", about {} left", words::time(left)));
    let of = if several { " of all its images" } else { "" };
    let promoted = format!("{} cloned out of turn for it", words::count(f.promoted, "cluster"));
    let guest = match hold.wants_a_worker() {
        true => format!(
            "  guest: {} seen, {} had to wait, {} now; the longest {}; {promoted}\n",
            words::count_of(f.seen, "access", "accesses"),
            f.waited,
            f.waiting,
            words::time(f.longest),
        ),
        // The server answers it, and says so at the end.
        false => format!("  guest: {promoted}\n"),
    };
    (format!("{done} % of {}{of}{left}", words::bytes(f.bytes)), guest)
}

/// The same for programs: null where the job's hold sees no accesses, or where the process cannot be looked into.
pub fn object(header: &Header) -> Value {
    let shown = header.hold.answers_accesses().then(|| show::of(header.pid, header.pid_start));
    let Some(Ok(Some(Shown { figures: f, watching, taken_over }))) = shown else { return Value::Null };
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let mut object = json!({
        "done_bytes": f.done_bytes, "bytes": f.bytes, "clusters_done": f.done, "clusters": f.clusters,
        "promoted": f.promoted, "since_t0_ms": ms(f.since_t0), "left_ms": left(&f).map(ms),
    });
    if header.hold.wants_a_worker() {
        (object["watching"], object["taken_over"], object["accesses"]) =
            (watching.into(), taken_over.into(), f.seen.into());
        (object["waited"], object["waiting"]) = (f.waited.into(), f.waiting.into());
        object["longest_wait_ms"] = ms(f.longest).into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::{Duration, Figures, HoldKind, Shown, text};

    #[test]
    fn a_live_job_is_told_in_two_lines() {
        let check = |figures: Figures, taken_over: bool, expect: &str| {
            let (done, guest) = text(&Shown { figures, watching: true, taken_over }, HoldKind::Guard, false);
            assert_eq!(format!("{done}{guest}"), format!("{expect}\n"));
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
        let told = "25 % of 1000 B, about 15.0 s left  guest: 1 access seen, 1 had to wait, 0 now; the longest 12.0 ms; \
                    2 clusters cloned out of turn for it";
        check(figures, false, told);
        check(figures, true, "  its supervisor has let the guest's accesses go on: the snapshot is lost");
        check(Figures::default(), false, "  before its point in time: no access waits");
        let served = text(&Shown { figures, watching: false, taken_over: false }, HoldKind::Filter, true);
        let told = "25 % of 1000 B of all its images, about 15.0 s left  guest: 2 clusters cloned out of turn for it\n";
        assert_eq!(served.0 + &served.1, told);
    }
}
