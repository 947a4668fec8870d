//! How a job ends that cloned something and made no snapshot: what its journals keep of that, and what its user is told.

use std::io;

use crate::disk::DiskFile;
use crate::error::{Error, Kind};
use crate::hold::HoldKind;
use crate::journal::file::Journal;
use crate::journal::format::State;

/// How a job's words begin that can go on.
const CHECKPOINT: &str = "stopped with a checkpoint: ";

/// What is to be done where a job can go on.
const RESUME: &str = "'rclone-img resume' goes on from the checkpoint";

/// The same where writers come back that were not there.
const UNLESS_WRITTEN: &str = ", unless the image is written to before; then the same 'rclone-img snapshot' takes a new \
                              point in time and keeps the finished work";

/// What is to be done where a point in time is lost.
const AGAIN: &str = "run the same command again: it takes a new point in time and keeps the finished work";

/// The same where the guests need the room of that work.
const ANEW: &str = "run the same command again; what it had cloned gives its room back to the guests";

/// The end of a job.
pub(super) struct Ended {
    error: Error,
    /// What the journals say of it, and the state that they have then.
    reason: String,
    state: State,
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        let state = if error.kind == Kind::Broken { State::Broken } else { State::Interrupted };
        Self { reason: error.to_string(), state, error }
    }
}

impl Ended {
    /// The end of a window under this hold, over one or several images. The hint of an interruption is what has to be done before
    /// the job can go on, if anything: it goes on with what then has to be.
    pub(super) fn of_window(error: Error, kind: HoldKind, several: bool) -> Self {
        let lives_by_answers = kind.answers_accesses();
        match error.kind {
            Kind::Interrupted if several || !kind.keeps_t0() => {
                Self::lost(error, if several { "of several images" } else { "under this hold" }, lives_by_answers)
            }
            Kind::Failed if lives_by_answers => Self::lost(error, "under this hold", true),
            Kind::Interrupted => {
                let unless = if kind.point_in_time() { UNLESS_WRITTEN } else { "" };
                let hint = format!("{}{RESUME}{unless}", error.hint);
                Self::from(Error { what: format!("{CHECKPOINT}{}", error.what), hint, ..error })
            }
            _ => Self::from(error),
        }
    }

    /// T0 does not outlive the run. Where nobody's accesses were answered the journals say interrupted all the same: what
    /// a refresh has not touched yet can be put back.
    fn lost(error: Error, always: &str, broken: bool) -> Self {
        let reason = error.to_string();
        let what = format!("{}; its point in time is lost, as always {always}", error.what);
        let hint = if error.kind == Kind::Interrupted { format!("{}{AGAIN}", error.hint) } else { error.hint };
        let state = if broken { State::Broken } else { State::Interrupted };
        Self { error: Error { kind: Kind::Broken, what, hint, ..error }, reason, state }
    }

    /// Whether the point in time is lost.
    pub(super) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Writes it into the journals. A state that cannot be written is no loss: a job without a live process counts as
    /// interrupted, and a broken one is told by its image or its boot.
    pub(super) fn written_down<F: DiskFile>(self, journals: &mut [Journal<F>]) -> Error {
        let Self { error, reason, state } = self;
        let write = |journal: &mut Journal<F>| {
            journal.update(|h| {
                h.state = state;
                h.reason.clone_from(&reason);
            })
        };
        let told = journals.iter_mut().map(write).fold(Ok(()), io::Result::and);
        if journals.iter().any(Journal::is_to_be_aborted) {
            // What it has done is gone in a moment; nothing is to be promised of it.
            return Error::new(error.kind, "'rclone-img abort' has ended the job and takes its files away", "");
        }
        if told.is_err() && state == State::Broken {
            let hint = "this could not be written down: use 'rclone-img snapshot --restart', and nothing else";
            return Error { hint: hint.into(), ..error };
        }
        error
    }
}

/// The guests have the room of what was cloned, or of a part of it.
pub(super) fn with_less(error: Error) -> Error {
    let hint = match error.hint.strip_suffix(AGAIN) {
        Some(first) => format!("{first}{ANEW}"),
        // It is said to be taken away already.
        None if error.hint.is_empty() => error.hint,
        None => format!("{}; what was cloned gives its room back to the guests", error.hint),
    };
    Error { hint, ..error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_the_end_of_a_window_is_so() {
        let check = |kind: Kind, what: &str, hold: HoldKind, several: bool, expect: (Kind, &str, &str, State)| {
            let hint = if kind == Kind::Interrupted { "" } else { "mend it" };
            let Ended { error, reason, state } = Ended::of_window(Error::new(kind, what, hint), hold, several);
            assert_eq!((error.kind, error.what.as_str(), reason.as_str(), state), expect);
            assert_eq!(error.kind == Kind::Interrupted, error.hint.contains("resume"), "{}", error.hint);
        };
        let told = "the job was told to stop";
        let stopped = "stopped with a checkpoint: the job was told to stop";
        let kept = (Kind::Interrupted, stopped, stopped, State::Interrupted);
        check(Kind::Interrupted, told, HoldKind::Frozen, false, kept);
        check(Kind::Interrupted, told, HoldKind::None, false, kept);
        let lost = "the job was told to stop; its point in time is lost, as always under this hold";
        check(Kind::Interrupted, told, HoldKind::Guard, false, (Kind::Broken, lost, told, State::Broken));
        check(Kind::Interrupted, told, HoldKind::Atomic, false, (Kind::Broken, lost, told, State::Interrupted));
        let several = "the job was told to stop; its point in time is lost, as always of several images";
        check(Kind::Interrupted, told, HoldKind::Frozen, true, (Kind::Broken, several, told, State::Interrupted));
        let failed = "no memory; its point in time is lost, as always under this hold";
        check(Kind::Failed, "no memory", HoldKind::Guard, false, (Kind::Broken, failed, "no memory", State::Broken));
        let plain = (Kind::Failed, "no memory", "no memory", State::Interrupted);
        check(Kind::Failed, "no memory", HoldKind::Frozen, true, plain);
    }

    #[test]
    fn hints_say_what_to_do_first_and_when_going_on_is_possible() {
        let hint =
            |first: &str, hold| Ended::of_window(Error::new(Kind::Interrupted, "why", first), hold, false).error.hint;
        let frozen = hint("", HoldKind::Frozen);
        let expect = "'rclone-img resume' goes on from the checkpoint, unless the image is written to before;";
        assert!(frozen.starts_with(expect), "{frozen}");
        assert_eq!(hint("", HoldKind::None), RESUME);
        assert_eq!(hint("free space; then ", HoldKind::None), format!("free space; then {RESUME}"));
        assert_eq!(hint("free space; then ", HoldKind::Guard), format!("free space; then {AGAIN}"));
        let full =
            Ended::of_window(Error::new(Kind::Interrupted, "full", "free space; then "), HoldKind::Filter, false);
        assert!(full.is_broken());
        assert_eq!(with_less(full.error).hint, format!("free space; then {ANEW}"));
    }
}
