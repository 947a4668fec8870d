//! The command line: arguments to plain data, one file per verb, reports, one error printed in one place, exit codes.
//!
//! [`run`] is the whole program. Verbs return the exit code, or an error whose kind has one; `run` prints it. What is
//! written to standard error at the end is written in a thread that is waited for a bounded time: a pipe that nobody
//! drains keeps no process alive. A closed standard output or error is neither a panic nor a failure.

pub mod abort;
pub mod args;
pub mod check;
pub mod check_dir;
pub mod diff;
pub mod dry_run;
pub mod fleece;
pub mod freezer;
pub mod guard;
pub mod images;
pub mod json;
pub mod list;
pub mod live;
pub mod map;
pub mod meter;
pub mod metrics;
pub mod place;
pub mod progress;
pub mod receive;
pub mod report;
pub mod restore;
pub mod rotate;
pub mod send;
pub mod serve;
pub mod service;
pub mod signals;
pub mod snapshot;
pub mod status;
pub mod summary;
pub mod supervisor;
pub mod values;
pub mod verify;
pub mod words;
pub mod worker;

use std::ffi::OsString;
use std::io::{self, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::hold::guard::watch::SUPERVISOR;
use crate::quiesce::freezer::FREEZER;
use args::Verb;
use worker::Process;

/// How long the last words on standard error may take.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);

/// Runs the program: `args` with its name first. The exit code (DESIGN section 8).
pub fn run(args: impl Iterator<Item = OsString>) -> u8 {
    signals::survive_file_size_limit();
    signals::children_keep_their_numbers();
    let args: Vec<OsString> = args.collect();
    if args.get(1).is_some_and(|verb| verb == SUPERVISOR) {
        return supervisor::run();
    }
    if args.get(1).is_some_and(|verb| verb == FREEZER) {
        return freezer::run();
    }
    // Who was started by /proc/self/exe would be called "exe". Not so those two: who ends all of this name is not to end those who thaw a guest and
    // let its accesses go on.
    let _ = nix::sys::prctl::set_name(c"rclone-img");
    let worker = args.get(1).is_some_and(|verb| verb == worker::WORKER);
    let args = if worker { worker::become_worker(args) } else { args };
    match args::parse(args) {
        Ok(Verb::Snapshot(args)) if worker => ended(snapshot::here(&args, Process::Worker)),
        Ok(verb) => ended(dispatch(&verb)),
        // Help and version go to standard output and are no errors.
        Err(told) if !told.use_stderr() => {
            let _ = told.print();
            0
        }
        Err(usage) => {
            within(LAST_WORDS_LIMIT, move || drop(usage.print()));
            Kind::Usage.exit_code()
        }
    }
}

/// The exit code of a verb; an error is told.
fn ended(result: Result<u8>) -> u8 {
    result.unwrap_or_else(|error| {
        last_words(error_lines(&error));
        error.kind.exit_code()
    })
}

fn dispatch(verb: &Verb) -> Result<u8> {
    match verb {
        Verb::Snapshot(args) => snapshot::snapshot(args),
        Verb::Resume(args) => match restore::resume(&args.dst, args.force, &args.job.output)? {
            Some(code) => Ok(code),
            None if args.force => {
                let what = format!("there is no interrupted restore of {}", words::name(&args.dst));
                Err(Error::new(Kind::Usage, what, "--force is for such only: leave it out"))
            }
            None => snapshot::resume(args),
        },
        Verb::Status(args) => status::run(args),
        Verb::Abort(args) => abort::run(args),
        Verb::Map(args) => map::run(args),
        Verb::Check(args) => check::run(args),
        Verb::Guard(args) => guard::run(args),
        Verb::Serve(args) => serve::run(args),
        Verb::Fleece(args) => fleece::run(args),
        Verb::Diff(args) => diff::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Restore(args) => restore::run(args),
        Verb::Rotate(args) => rotate::run(args),
        Verb::List(args) => list::run(args),
        Verb::Send(args) => send::run(args),
        Verb::Receive(args) => receive::run(args),
    }
}

/// What became of an answer on standard output: a reader that went away has heard enough and is no error.
///
/// # Errors
/// Failed, for every other reason.
pub fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io(Kind::Failed, "cannot write to standard output", "see whether its disk is full", error))
        }
        _ => Ok(()),
    }
}

/// An error in two lines: what, on which path, why; and what to do.
pub fn error_lines(error: &Error) -> String {
    let mut lines = format!("rclone-img: {}\n", words::line(&error.to_string()));
    if !error.hint.is_empty() {
        lines += &format!("hint: {}\n", words::line(&error.hint));
    }
    lines
}

/// Tells of what keeps no verb from its work.
pub fn warn(text: Option<String>) {
    if let Some(text) = text {
        last_words(format!("warning: {text}\n"));
    }
}

/// Writes to standard error, as long as that takes a bounded time and somebody reads.
pub fn last_words(text: String) {
    within(LAST_WORDS_LIMIT, move || drop(io::stderr().write_all(text.as_bytes())));
}

/// Does something in a thread of its own and waits for it, at most `limit`. Whether it was done.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, wait) = mpsc::channel();
    let work = move || {
        work();
        let _ = done.send(());
    };
    thread::Builder::new().name("last words".into()).spawn(work).is_ok() && wait.recv_timeout(limit).is_ok()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc;

    use super::{Duration, Error, Kind, error_lines, within};

    #[test]
    fn an_error_is_two_lines_whatever_is_in_it() {
        let source = io::Error::from_raw_os_error(2);
        let error = Error::io(Kind::Refused, "cannot open a\nb", "see\twhether it is there", source);
        assert_eq!(
            error_lines(&error),
            "rclone-img: cannot open a\\nb: No such file or directory (os error 2)\nhint: see\\twhether it is there\n"
        );
        assert_eq!(error_lines(&Error::new(Kind::Failed, "no", "")), "rclone-img: no\n");
    }

    #[test]
    fn what_does_not_end_is_not_waited_for() {
        let (hold, gate) = mpsc::channel::<()>();
        assert!(!within(Duration::from_millis(1), move || gate.recv().unwrap_or(())));
        drop(hold);
        assert!(within(Duration::from_secs(600), || ()));
    }
}
