//! The reporter: takes a job's events off the engine's hands and shows them, in a thread of its own.
//!
//! The engine never waits for whoever reads the reports. Progress is dropped when the queue is half full, so there is
//! always room for what must not be lost; that waits at most [`SEND_LIMIT`] in the whole job, and at the end the reporter
//! is given [`END_LIMIT`] to write its last line. A pipe that nobody drains stops no clone, and the process still ends.

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::args::Output;
use super::json::Json;
use super::progress::{Bar, Lines};
use crate::engine::report::{Event, Finished, Observer};
use crate::error::{Error, Kind};

/// How long an event that must not be lost may wait for room, once in a job: after that nothing waits any more.
pub const SEND_LIMIT: Duration = Duration::from_secs(2);
/// How long the end of a job waits for its last line to be written.
pub const END_LIMIT: Duration = Duration::from_secs(10);
/// Events in the queue.
const QUEUE: usize = 256;
/// How often a watcher is called when nothing happens: what a moving clock needs.
const TICK: Duration = Duration::from_millis(100);

/// The files of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    /// The image; not known before `resume` has read the journal.
    pub src: Option<PathBuf>,
    /// The snapshot.
    pub dst: PathBuf,
    /// Whether `rotate` keeps and removes it.
    pub by_rules: bool,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub enum End {
    /// The snapshot is there.
    Finished(Box<Finished>),
    /// It is not.
    Failed {
        /// The exit code.
        exit: u8,
        /// What, on which path, why.
        error: String,
        /// What to do.
        hint: String,
    },
}

impl End {
    /// The ends that a result tells of: one for each snapshot, or that of all.
    pub fn of(result: Result<&[Finished], &Error>) -> Vec<Self> {
        match result {
            Ok(finished) => finished.iter().cloned().map(Box::new).map(Self::Finished).collect(),
            Err(e) => vec![Self::Failed { exit: e.kind.exit_code(), error: e.to_string(), hint: e.hint.clone() }],
        }
    }
}

/// Shows events, on the reporter's thread. `now` is the time since the reporter started. Errors of the output are the
/// watcher's own business.
pub trait Watcher {
    /// Something happened.
    fn event(&mut self, names: &Names, now: Duration, event: &Event);
    /// Nothing happened for a while.
    fn tick(&mut self, names: &Names, now: Duration);
    /// The job is over, for one of its images or, where it failed, for all.
    fn end(&mut self, names: &Names, end: &End);
}

/// Shows nothing.
struct Silent;

impl Watcher for Silent {
    fn event(&mut self, _: &Names, _: Duration, _: &Event) {}
    fn tick(&mut self, _: &Names, _: Duration) {}
    fn end(&mut self, _: &Names, _: &End) {}
}

enum Message {
    Event(Event),
    Source(PathBuf),
    End(Vec<End>),
}

/// The engine's observer, and the handle of the reporter's thread.
pub struct Reporter {
    messages: Sender<Message>,
    done: Receiver<Infallible>,
    stuck: AtomicBool,
    still_frozen: Mutex<Option<String>>,
    limits: Limits,
}

#[derive(Clone, Copy)]
struct Limits {
    send: Duration,
    end: Duration,
}

impl Reporter {
    /// A reporter as the options ask: JSON on standard output; else nothing if quiet, a bar on a terminal, lines elsewhere.
    /// The image of a single one may be given later by [`Reporter::source`].
    pub fn start(output: Output, names: &[Names]) -> Self {
        let watcher: Box<dyn Watcher + Send> = match output {
            Output { json: true, .. } => Box::new(Json::new(io::stdout())),
            Output { quiet: true, .. } => Box::new(Silent),
            _ if io::stderr().is_terminal() => Box::new(Bar::new()),
            _ => Box::new(Lines::new(io::stderr())),
        };
        Self::with(watcher, names.to_vec(), Limits { send: SEND_LIMIT, end: END_LIMIT })
    }

    fn with(watcher: Box<dyn Watcher + Send>, names: Vec<Names>, limits: Limits) -> Self {
        let (messages, inbox) = bounded(QUEUE);
        let (alive, done) = bounded(0);
        let work = move || {
            let _alive = alive;
            watch(&inbox, watcher, names);
        };
        // Without a thread there are no reports: `done` and `inbox` are closed then, and nobody waits.
        drop(thread::Builder::new().name("reporter".into()).spawn(work));
        Self { messages, done, stuck: AtomicBool::new(false), still_frozen: Mutex::default(), limits }
    }

    /// Does a job's work under a reporter's eyes: whatever way it ends, the last line is `finished` or `failed`.
    ///
    /// # Errors
    /// What the work says.
    pub fn watch(
        output: Output,
        names: &[Names],
        work: impl FnOnce(&Self) -> crate::error::Result<Vec<Finished>>,
    ) -> crate::error::Result<Vec<Finished>> {
        let reporter = Self::start(output, names);
        let result = work(&reporter);
        reporter.finish(result.as_deref());
        result
    }

    /// The image's name is known.
    pub fn source(&self, src: &Path) {
        self.send(Message::Source(src.to_owned()));
    }

    /// What was told of a guest that may have been left frozen.
    pub fn still_frozen(&self) -> Option<String> {
        self.still_frozen.lock().ok().and_then(|text| text.clone())
    }

    /// The job is over: shows its end, waits for that at most [`END_LIMIT`]. The error itself is for [`super::run`] to print.
    pub fn finish(self, result: Result<&[Finished], &Error>) {
        let deadline = Instant::now() + self.limits.end;
        self.send(Message::End(End::of(result)));
        drop(self.messages);
        let _ = self.done.recv_deadline(deadline);
    }

    /// Hands on what must not be lost, unless nobody takes anything.
    fn send(&self, message: Message) {
        if self.stuck.load(Ordering::Relaxed) {
            let _ = self.messages.try_send(message);
        } else if self.messages.send_timeout(message, self.limits.send).is_err() {
            self.stuck.store(true, Ordering::Relaxed);
        }
    }
}

impl Observer for Reporter {
    fn on(&self, event: Event) {
        if let (Event::StillFrozen(text), Ok(mut told)) = (&event, self.still_frozen.lock()) {
            told.get_or_insert_with(|| text.clone());
        }
        match event {
            Event::Progress(_) if self.messages.len() >= QUEUE / 2 => {}
            Event::Progress(_) => drop(self.messages.try_send(Message::Event(event))),
            _ => self.send(Message::Event(event)),
        }
    }
}

fn watch(inbox: &Receiver<Message>, mut watcher: Box<dyn Watcher + Send>, mut names: Vec<Names>) {
    let start = Instant::now();
    // Each image is told of in its turn when the job starts; what comes then is told under the first one's name.
    let mut started = 0;
    loop {
        match inbox.recv_timeout(TICK) {
            Ok(Message::Event(event)) => {
                let which = if matches!(event, Event::Started(_)) { started } else { 0 };
                started += usize::from(matches!(event, Event::Started(_)));
                watcher.event(names.get(which).unwrap_or(&names[0]), start.elapsed(), &event);
            }
            Ok(Message::Source(src)) => names[0].src = Some(src),
            Ok(Message::End(ends)) => return names.iter().zip(&ends).for_each(|(names, end)| watcher.end(names, end)),
            Err(RecvTimeoutError::Timeout) => watcher.tick(&names[0], start.elapsed()),
            Err(RecvTimeoutError::Disconnected) => {
                return lost().iter().for_each(|end| watcher.end(&names[0], end));
            }
        }
    }
}

/// The end of a job that did not say how it ended: the last line comes always.
fn lost() -> Vec<End> {
    let error = Error::new(Kind::Failed, "the job ended without a result", "see what status says of it");
    End::of(Err(&error))
}

#[cfg(test)]
pub(super) mod samples {
    use super::{Duration, Finished, Names};
    use crate::engine::report::Started;
    use crate::hold::HoldKind;

    pub fn names() -> Names {
        Names { src: Some("vm.img".into()), dst: "vm.snap".into(), by_rules: false }
    }

    pub fn started() -> Started {
        Started {
            job: [7; 16],
            t0: "2026-11-21T05:00:00Z".parse().expect("a time"),
            hold: HoldKind::Frozen,
            why: "nobody has the image open for writing".into(),
            new_t0: false,
            resumed: false,
            bytes: 8192,
            done_bytes: 0,
            extents: Some(2),
        }
    }

    pub fn finished() -> Finished {
        Finished {
            started: started(),
            extents: Some(2),
            calls: 3,
            longest_call: Duration::from_micros(5125),
            call_p99: Duration::from_millis(5),
            longest_guest_wait: Some(Duration::ZERO),
            accesses: None,
            promoted: 0,
            quiescence: None,
            skipped_bytes: 0,
            copied_bytes: 4096,
            window: Duration::from_millis(2400),
            elapsed: Duration::from_millis(2500),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::{Duration, End, Event, Limits, Names, Observer, QUEUE, Receiver, Reporter, Watcher, bounded, samples};
    use crate::engine::report::Progress;

    const LONG: Limits = Limits { send: Duration::from_secs(600), end: Duration::from_secs(600) };
    const SHORT: Limits = Limits { send: Duration::from_millis(1), end: Duration::from_millis(1) };

    /// Notes what it was told, and first waits until `gate` is closed.
    struct Gated {
        gate: Receiver<()>,
        seen: Arc<Mutex<Vec<String>>>,
    }

    impl Gated {
        fn note(&self, what: String) {
            let _ = self.gate.recv();
            self.seen.lock().expect("no panic").push(what);
        }
    }

    impl Watcher for Gated {
        fn event(&mut self, names: &Names, _: Duration, event: &Event) {
            self.note(match event {
                Event::Started(_) => format!("started {:?}", names.src),
                Event::Progress(_) => "progress".into(),
                Event::Syncing => "syncing".into(),
                Event::Warning(text) | Event::StillFrozen(text) => text.clone(),
            });
        }
        fn tick(&mut self, _: &Names, _: Duration) {}
        fn end(&mut self, _: &Names, end: &End) {
            self.note(match end {
                End::Finished(_) => "finished".into(),
                End::Failed { error, .. } => error.clone(),
            });
        }
    }

    fn gated(limits: Limits) -> (Reporter, crossbeam_channel::Sender<()>, Arc<Mutex<Vec<String>>>) {
        let (hold, gate) = bounded(0);
        let seen = Arc::default();
        let watcher = Gated { gate, seen: Arc::clone(&seen) };
        let names = Names { src: None, dst: "vm.snap".into(), by_rules: false };
        (Reporter::with(Box::new(watcher), vec![names], limits), hold, seen)
    }

    #[test]
    fn a_flood_of_progress_pushes_nothing_else_out() {
        let (reporter, hold, seen) = gated(LONG);
        reporter.source("vm.img".as_ref());
        reporter.on(Event::Started(samples::started()));
        (0..10_000).for_each(|_| reporter.on(Event::Progress(Progress::default())));
        reporter.on(Event::Warning("slow".into()));
        reporter.on(Event::Syncing);
        drop(hold);
        reporter.finish(Ok(&[samples::finished()]));
        let seen = seen.lock().expect("no panic");
        assert_eq!(seen[0], "started Some(\"vm.img\")");
        assert_eq!(seen[seen.len() - 3..], ["slow", "syncing", "finished"]);
        assert!(seen.len() <= QUEUE / 2 + 5, "{}", seen.len());
    }

    #[test]
    fn output_that_nobody_drains_stops_no_job() {
        let (reporter, hold, seen) = gated(SHORT);
        (0..2 * QUEUE).for_each(|i| reporter.on(Event::Warning(format!("{i}"))));
        reporter.finish(Ok(&[samples::finished()]));
        assert!(seen.lock().expect("no panic").is_empty());
        drop(hold);
    }

    #[test]
    fn a_job_that_vanishes_is_reported_as_failed() {
        let (reporter, hold, seen) = gated(LONG);
        drop(hold);
        let Reporter { messages, done, .. } = reporter;
        drop(messages);
        let _ = done.recv();
        assert_eq!(*seen.lock().expect("no panic"), ["the job ended without a result"]);
    }
}
