//! `--json`: one object a line on standard output, each with `v` and `event`, and with `job` where it is of a job.
//!
//! `started`, `progress` and `warning` come while the job runs; the last line, always, is `finished` or `failed`. `job` is
//! null in a `failed` that comes before there is a job. Times end in `_ms` and have microseconds behind the point.
//! A name that is not UTF-8 is given as text with U+FFFD in place of what cannot be written; then, and only then,
//! `src_bytes`, `dst_bytes`, `file_bytes` or `path_bytes` beside it has all of its bytes in hexadecimal.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::report::{End, Names, Watcher};
use crate::engine::report::{Event, Finished, Progress, Started};

/// The version of all the objects; a field may be added without a new one, none may change its meaning.
pub const VERSION: u8 = 1;

/// At most one `progress` in this time; the first comes at once.
const INTERVAL: Duration = Duration::from_secs(1);

/// Writes an object as one line, in one write.
///
/// # Errors
/// What writing says.
pub fn write_line(out: &mut (impl Write + ?Sized), object: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(object)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

/// A job's id as text.
pub fn job_id(job: [u8; 16]) -> String {
    uuid::Uuid::from_bytes(job).hyphenated().to_string()
}

/// Milliseconds, to the microsecond.
pub fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// A name as text, and in hexadecimal where the text is not all of it.
pub fn path(path: &Path) -> (String, Option<String>) {
    let lossy = path.to_str().is_none().then(|| {
        path.as_os_str().as_bytes().iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    });
    (path.to_string_lossy().into_owned(), lossy)
}

#[derive(Serialize)]
struct Line<B> {
    v: u8,
    job: Option<String>,
    event: &'static str,
    #[serde(flatten)]
    body: B,
}

#[derive(Serialize)]
struct StartedBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_bytes: Option<String>,
    dst: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_bytes: Option<String>,
    t0: String,
    hold: &'static str,
    point_in_time: bool,
    new_t0: bool,
    bytes: u64,
    extents: Option<u64>,
}

#[derive(Serialize)]
struct ProgressBody {
    done_bytes: u64,
    bytes: u64,
    extents: u64,
    calls: u64,
    longest_call_ms: f64,
    elapsed_ms: f64,
}

#[derive(Serialize)]
struct WarningBody {
    message: String,
}

#[derive(Serialize)]
struct FinishedBody {
    #[serde(flatten)]
    started: StartedBody,
    calls: u64,
    longest_call_ms: f64,
    call_p99_ms: f64,
    longest_guest_wait_ms: Option<f64>,
    promoted: u64,
    quiesced: bool,
    frozen_ms: Option<u64>,
    thawed: Option<bool>,
    skipped_bytes: u64,
    copied_bytes: u64,
    window_ms: f64,
    elapsed_ms: f64,
}

#[derive(Serialize)]
struct FailedBody<'a> {
    exit: u8,
    error: &'a str,
    hint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    thawed: Option<bool>,
}

impl StartedBody {
    fn new(names: &Names, started: &Started, extents: Option<u64>) -> Self {
        let (src, src_bytes) = names.src.as_deref().map(path).map_or((None, None), |(s, b)| (Some(s), b));
        let (dst, dst_bytes) = path(&names.dst);
        Self {
            src,
            src_bytes,
            dst,
            dst_bytes,
            t0: started.t0.to_string(),
            hold: started.hold.name(),
            point_in_time: started.hold.point_in_time(),
            new_t0: started.new_t0,
            bytes: started.bytes,
            extents,
        }
    }
}

impl ProgressBody {
    fn new(progress: &Progress) -> Self {
        Self {
            done_bytes: progress.done_bytes,
            bytes: progress.bytes,
            extents: progress.extents,
            calls: progress.calls,
            longest_call_ms: ms(progress.longest_call),
            elapsed_ms: ms(progress.elapsed),
        }
    }
}

impl FinishedBody {
    fn new(names: &Names, finished: &Finished, still_frozen: bool) -> Self {
        Self {
            started: StartedBody::new(names, &finished.started, finished.extents),
            calls: finished.calls,
            longest_call_ms: ms(finished.longest_call),
            call_p99_ms: ms(finished.call_p99),
            longest_guest_wait_ms: finished.longest_guest_wait.map(ms),
            promoted: finished.promoted,
            quiesced: finished.quiescence.is_some_and(|known| known.quiesced),
            frozen_ms: finished.quiescence.map(|known| known.frozen_ms),
            thawed: (still_frozen || finished.quiescence.is_some()).then_some(!still_frozen),
            skipped_bytes: finished.skipped_bytes,
            copied_bytes: finished.copied_bytes,
            window_ms: ms(finished.window),
            elapsed_ms: ms(finished.elapsed),
        }
    }
}

/// Writes a job's events as JSON. An error of the output, a closed pipe say, ends the writing and nothing else.
pub struct Json<W> {
    out: Option<W>,
    job: Option<String>,
    still_frozen: bool,
    next: Duration,
}

impl<W: Write> Json<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out: Some(out), job: None, still_frozen: false, next: Duration::ZERO }
    }

    fn line(&mut self, event: &'static str, body: impl Serialize) {
        let line = Line { v: VERSION, job: self.job.clone(), event, body };
        if self.out.as_mut().is_some_and(|out| write_line(out, &line).is_err()) {
            self.out = None;
        }
    }
}

impl<W: Write> Watcher for Json<W> {
    fn event(&mut self, names: &Names, now: Duration, event: &Event) {
        match event {
            Event::Started(started) => {
                self.job = Some(job_id(started.job));
                self.line("started", StartedBody::new(names, started, started.extents));
            }
            Event::Progress(progress) if now >= self.next => {
                self.next = now + INTERVAL;
                self.line("progress", ProgressBody::new(progress));
            }
            Event::Progress(_) | Event::Syncing => {}
            Event::StillFrozen(message) => {
                self.still_frozen = true;
                self.line("warning", WarningBody { message: message.clone() });
            }
            Event::Warning(message) => self.line("warning", WarningBody { message: message.clone() }),
        }
    }

    fn tick(&mut self, _: &Names, _: Duration) {}

    fn end(&mut self, names: &Names, end: &End) {
        match end {
            End::Finished(finished) => {
                self.job = Some(job_id(finished.started.job));
                self.line("finished", FinishedBody::new(names, finished, self.still_frozen));
            }
            End::Failed { exit, error, hint } => {
                let thawed = self.still_frozen.then_some(false);
                self.line("failed", FailedBody { exit: *exit, error, hint, thawed });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::PathBuf;

    use super::{Duration, Event, Json, OsStrExt, Progress, Watcher};
    use crate::cli::report::{End, Names, samples};

    fn check(names: &Names, feed: impl FnOnce(&mut Json<&mut Vec<u8>>), expect: &[&str]) {
        let mut out = Vec::new();
        feed(&mut Json::new(&mut out));
        let text = String::from_utf8(out).expect("JSON is UTF-8");
        assert_eq!(text.lines().collect::<Vec<_>>(), expect, "{names:?}");
    }

    #[test]
    fn a_job_from_started_to_finished() {
        let names = samples::names();
        check(
            &names,
            |json| {
                json.event(&names, Duration::ZERO, &Event::Started(samples::started()));
                for tenths in 0..15 {
                    let now = Duration::from_millis(100 * tenths);
                    let progress = Progress { elapsed: now, bytes: 8192, done_bytes: 4096, ..Progress::default() };
                    json.event(&names, now, &Event::Progress(progress));
                }
                json.event(&names, Duration::ZERO, &Event::Warning("slow \"log\"".into()));
                json.end(&names, &End::Finished(Box::new(samples::finished())));
            },
            &[
                r#"{"v":1,"job":"07070707-0707-0707-0707-070707070707","event":"started","src":"vm.img","dst":"vm.snap","t0":"2026-11-21T05:00:00Z","hold":"frozen","point_in_time":true,"new_t0":false,"bytes":8192,"extents":2}"#,
                r#"{"v":1,"job":"07070707-0707-0707-0707-070707070707","event":"progress","done_bytes":4096,"bytes":8192,"extents":0,"calls":0,"longest_call_ms":0.0,"elapsed_ms":0.0}"#,
                r#"{"v":1,"job":"07070707-0707-0707-0707-070707070707","event":"progress","done_bytes":4096,"bytes":8192,"extents":0,"calls":0,"longest_call_ms":0.0,"elapsed_ms":1000.0}"#,
                r#"{"v":1,"job":"07070707-0707-0707-0707-070707070707","event":"warning","message":"slow \"log\""}"#,
                r#"{"v":1,"job":"07070707-0707-0707-0707-070707070707","event":"finished","src":"vm.img","dst":"vm.snap","t0":"2026-11-21T05:00:00Z","hold":"frozen","point_in_time":true,"new_t0":false,"bytes":8192,"extents":2,"calls":3,"longest_call_ms":5.125,"call_p99_ms":5.0,"longest_guest_wait_ms":0.0,"promoted":0,"quiesced":false,"frozen_ms":null,"thawed":null,"skipped_bytes":0,"copied_bytes":4096,"window_ms":2400.0,"elapsed_ms":2500.0}"#,
            ],
        );
    }

    #[test]
    fn a_guest_that_may_have_been_left_frozen_is_in_the_end() {
        let names = samples::names();
        let mut out = Vec::new();
        let mut json = Json::new(&mut out);
        json.event(&names, Duration::ZERO, &Event::StillFrozen("FROZEN".into()));
        json.end(&names, &End::Finished(Box::new(samples::finished())));
        json.end(&names, &End::Failed { exit: 6, error: "broken".into(), hint: "again".into() });
        let text = String::from_utf8(out).expect("UTF-8");
        assert!(text.contains(r#""event":"warning","message":"FROZEN"}"#), "{text}");
        assert!(text.contains(r#""thawed":false,"#), "{text}");
        assert!(text.contains(r#""exit":6,"error":"broken","hint":"again","thawed":false}"#), "{text}");
    }

    #[test]
    fn a_refusal_has_no_job_yet() {
        let names = samples::names();
        check(
            &names,
            |json| json.end(&names, &End::Failed { exit: 3, error: "vm.snap exists".into(), hint: "--force".into() }),
            &[r#"{"v":1,"job":null,"event":"failed","exit":3,"error":"vm.snap exists","hint":"--force"}"#],
        );
    }

    #[test]
    fn bytes_are_added_only_to_names_that_are_not_text() {
        assert_eq!(super::path(&PathBuf::from("a\nb")), ("a\nb".into(), None));
        let name = PathBuf::from(OsStr::from_bytes(b"a\xff"));
        assert_eq!(super::path(&name), ("a\u{fffd}".into(), Some("61ff".into())));
    }
}
