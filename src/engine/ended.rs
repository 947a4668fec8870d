//! How a job ends that cloned something and made no snapshot: what its journals keep of that, and what its user is told.

use std::io;

use crate::disk::DiskFile;
use crate::error::{Error, Kind};
use crate::hold::HoldKind;
use crate::journal::file::Journal;
use crate::journal::format::State;

/// How the window's words begin where a job can go on.
const CHECKPOINT: &str = "stopped with a checkpoint: ";

/// What is to be done where a point in time is lost.
const AGAIN: &str = "run the same command again: it takes a new point in time and keeps the finished work";

/// Where a single image is frozen, that is another one: it can go on, unless somebody writes before.
const UNLESS_WRITTEN: &str = ", unless the image is written to before; then the same 'rclone-img snapshot' takes a new \
                              point in time and keeps the finished work";

/// What is to be done where an access of the guest would have waited too long.
const OVERLOADED: &str = "; if that happens often, the disk or the processors are overloaded: raise --guest-deadline, or \
                          choose a quieter hour";

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
    /// The end of a window under this hold, over one or several images.
    pub(super) fn of_window(error: Error, kind: HoldKind, several: bool) -> Self {
        let lives_by_answers = kind.answers_accesses();
        match error.kind {
            Kind::Interrupted if several || !kind.keeps_t0() => {
                let why = if several { "of several images" } else { "under this hold" };
                Self::lost(error, &format!("as always {why}"), lives_by_answers)
            }
            Kind::Failed if lives_by_answers => Self::lost(error, "as always under this hold", lives_by_answers),
            Kind::Interrupted if kind.point_in_time() && error.hint.contains("'rclone-img resume'") => {
                Self::from(Error { hint: format!("{}{UNLESS_WRITTEN}", error.hint), ..error })
            }
            Kind::Broken if error.what.contains("--guest-deadline") => {
                Self::from(Error { hint: format!("{AGAIN}{OVERLOADED}"), ..error })
            }
            _ => Self::from(error),
        }
    }

    /// T0 does not outlive the run. Where nobody's accesses were answered the journals say interrupted all the same: what
    /// a refresh has not touched yet can be put back.
    fn lost(error: Error, always: &str, broken: bool) -> Self {
        let why = error.what.strip_prefix(CHECKPOINT).unwrap_or(&error.what).to_owned();
        let reason = error.to_string();
        let reason = reason.strip_prefix(CHECKPOINT).unwrap_or(&reason).to_owned();
        let hint = if error.hint.contains("'rclone-img resume'") { AGAIN.into() } else { error.hint };
        let what = format!("{why}; its point in time is lost, {always}");
        let state = if broken { State::Broken } else { State::Interrupted };
        Self { error: Error { kind: Kind::Broken, what, hint, ..error }, reason, state }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_the_end_of_a_window_is_so() {
        let check = |kind: Kind, what: &str, hold: HoldKind, several: bool, expect: (Kind, &str, &str, State)| {
            let hint =
                if kind == Kind::Interrupted { "'rclone-img resume' goes on from the checkpoint" } else { "mend it" };
            let Ended { error, reason, state } = Ended::of_window(Error::new(kind, what, hint), hold, several);
            assert_eq!((error.kind, error.what.as_str(), reason.as_str(), state), expect);
            assert_eq!(error.kind == Kind::Interrupted, error.hint.contains("resume"), "{}", error.hint);
        };
        let stopped = "stopped with a checkpoint: the job was told to stop";
        let told = "the job was told to stop";
        let kept = (Kind::Interrupted, stopped, stopped, State::Interrupted);
        check(Kind::Interrupted, stopped, HoldKind::Frozen, false, kept);
        check(Kind::Interrupted, stopped, HoldKind::None, false, kept);
        let lost = "the job was told to stop; its point in time is lost, as always under this hold";
        check(Kind::Interrupted, stopped, HoldKind::Guard, false, (Kind::Broken, lost, told, State::Broken));
        check(Kind::Interrupted, stopped, HoldKind::Atomic, false, (Kind::Broken, lost, told, State::Interrupted));
        let several = "the job was told to stop; its point in time is lost, as always of several images";
        check(Kind::Interrupted, stopped, HoldKind::Frozen, true, (Kind::Broken, several, told, State::Interrupted));
        let failed = "no memory; its point in time is lost, as always under this hold";
        check(Kind::Failed, "no memory", HoldKind::Guard, false, (Kind::Broken, failed, "no memory", State::Broken));
        let plain = (Kind::Failed, "no memory", "no memory", State::Interrupted);
        check(Kind::Failed, "no memory", HoldKind::Frozen, true, plain);
    }

    #[test]
    fn hints_say_when_going_on_is_possible_and_what_an_overload_needs() {
        let hint = |kind, what: &str, hold| {
            let error = Error::new(kind, what, "'rclone-img resume' goes on from the checkpoint");
            Ended::of_window(error, hold, false).error.hint
        };
        let frozen = hint(Kind::Interrupted, "somebody opened the image", HoldKind::Frozen);
        assert!(
            frozen.contains("resume' goes on from the checkpoint, unless the image is written to before;"),
            "{frozen}"
        );
        assert!(!hint(Kind::Interrupted, "told to stop", HoldKind::None).contains("written to"));
        assert!(
            hint(Kind::Broken, "longer than --guest-deadline allows", HoldKind::Guard)
                .contains("raise --guest-deadline")
        );
    }
}
