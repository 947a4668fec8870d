//! Progress for people, on standard error: a bar on a terminal, a line now and then elsewhere.

use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::{End, Names, Watcher};
use super::{summary, words};
use crate::engine::report::{Event, Progress};

/// The first line of progress comes after this time: a short job has none.
const FIRST: Duration = Duration::from_secs(2);
/// And then one in this time.
const EVERY: Duration = Duration::from_secs(5);

/// And the words beside a bar are changed once in this time.
const REDRAW: Duration = Duration::from_millis(100);

/// When the next line is due.
pub(super) struct Pace {
    next: Duration,
}

impl Pace {
    /// The first one has yet to come.
    pub(super) fn new() -> Self {
        Self { next: FIRST }
    }

    /// Whether one is due, after so long.
    pub(super) fn due(&mut self, now: Duration) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + EVERY;
        }
        due
    }
}

/// A line now and then. An error of the output, a closed pipe say, ends the writing and nothing else.
pub struct Lines<W> {
    out: Option<W>,
    pace: Pace,
    begun_at: u64,
    last: Option<Progress>,
}

impl<W: Write> Lines<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out: Some(out), pace: Pace::new(), begun_at: 0, last: None }
    }

    fn line(&mut self, text: &str) {
        let line = format!("{text}\n");
        if self.out.as_mut().is_some_and(|out| out.write_all(line.as_bytes()).is_err()) {
            self.out = None;
        }
    }
}

impl<W: Write> Watcher for Lines<W> {
    fn event(&mut self, names: &Names, now: Duration, event: &Event) {
        match event {
            Event::Started(started) => {
                self.begun_at = started.done_bytes;
                self.line(&summary::started(names, started));
            }
            Event::Progress(progress) => {
                self.last = Some(*progress);
                self.tick(names, now);
            }
            Event::Syncing => {
                self.last = None;
                if now >= FIRST {
                    self.line(&format!("{}: making it durable", words::name(&names.dst)));
                }
            }
            Event::Warning(text) | Event::StillFrozen(text) => self.line(&format!("warning: {}", words::line(text))),
        }
    }

    fn tick(&mut self, names: &Names, now: Duration) {
        let Some(progress) = self.last else { return };
        if self.pace.due(now) {
            self.line(&summary::progress(names, self.begun_at, &progress));
        }
    }

    fn end(&mut self, names: &Names, end: &End) {
        if let End::Finished(finished) = end {
            self.line(&summary::finished(names, finished));
        }
    }
}

/// A bar on a terminal, redrawn by the reporter's thread alone. The bar ignores errors of the terminal.
pub struct Bar {
    bar: ProgressBar,
    begun_at: u64,
    next: Duration,
    last: Option<Progress>,
}

impl Bar {
    /// A bar on standard error; it appears with the first event.
    #[allow(clippy::new_without_default)] // Making one is a deed: it takes the terminal.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{bar:5} {percent:>3} % {binary_bytes}/{binary_total_bytes} {wide_msg}")
        {
            bar.set_style(style);
        }
        Self { bar, begun_at: 0, next: Duration::ZERO, last: None }
    }
}

impl Watcher for Bar {
    fn event(&mut self, names: &Names, now: Duration, event: &Event) {
        match event {
            Event::Started(started) => {
                self.begun_at = started.done_bytes;
                self.bar.set_length(started.bytes);
                self.bar.println(summary::started(names, started));
            }
            Event::Progress(progress) => {
                if self.last.is_none() {
                    self.bar.set_length(progress.bytes);
                }
                self.last = Some(*progress);
                // The bar itself limits how often it is drawn, and does no more than a comparison in between.
                self.bar.set_position(progress.done_bytes);
                self.tick(names, now);
            }
            Event::Syncing => {
                self.last = None;
                self.bar.set_message("making it durable");
            }
            Event::Warning(text) | Event::StillFrozen(text) => {
                self.bar.println(format!("warning: {}", words::line(text)))
            }
        }
    }

    fn tick(&mut self, _: &Names, now: Duration) {
        if now < self.next {
            return;
        }
        self.next = now + REDRAW;
        if let Some(progress) = &self.last {
            self.bar.set_message(summary::speed(self.begun_at, progress));
        }
        self.bar.tick();
    }

    fn end(&mut self, names: &Names, end: &End) {
        self.bar.finish_and_clear();
        if let End::Finished(finished) = end {
            let line = format!("{}\n", summary::finished(names, finished));
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Duration, End, Event, Lines, Pace, Progress, Watcher, Write};
    use crate::cli::report::samples;

    #[test]
    fn a_pipe_gets_a_line_after_two_seconds_and_then_every_five() {
        let mut pace = Pace::new();
        let due: Vec<u64> = (0..20).filter(|s| pace.due(Duration::from_secs(*s))).collect();
        assert_eq!(due, [2, 7, 12, 17]);
    }

    #[test]
    fn a_stalled_job_still_speaks() {
        let (names, mut out) = (samples::names(), Vec::new());
        let mut lines = Lines::new(&mut out);
        lines.event(&names, Duration::ZERO, &Event::Started(samples::started()));
        lines.event(&names, Duration::ZERO, &Event::Progress(Progress::default()));
        lines.event(&names, Duration::ZERO, &Event::Warning("the log\nis slow".into()));
        (1..10).for_each(|s| lines.tick(&names, Duration::from_secs(s)));
        lines.end(&names, &End::Finished(Box::new(samples::finished())));
        let text = String::from_utf8(out).expect("UTF-8");
        let starts: Vec<&str> = text.lines().map(|l| &l[..18.min(l.len())]).collect();
        assert_eq!(
            starts,
            [
                "vm.snap: T0 2026-1",
                "warning: the log\\n",
                "vm.snap: 0 B of 0 ",
                "vm.snap: 0 B of 0 ",
                "vm.snap: snapshot ",
                "  8.0 KiB, 2 exten",
                "  next: back it up"
            ]
        );
    }

    #[test]
    fn a_closed_pipe_is_written_to_once() {
        struct Closed<'a>(&'a mut u32);
        impl Write for Closed<'_> {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                *self.0 += 1;
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut writes = 0;
        let mut lines = Lines::new(Closed(&mut writes));
        (0..3).for_each(|_| lines.event(&samples::names(), Duration::ZERO, &Event::Warning("x".into())));
        assert_eq!(writes, 1);
    }
}
