//! Freezing and thawing by commands: what fails or hangs is killed with all that it started, and then thawed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{BOUND, until};
use rclone_img::error::{Error, Kind};
use rclone_img::quiesce::{Freeze, Method};

/// For a command that is to be killed: long enough for it to begin.
const NOT_LONG: Duration = Duration::from_secs(3);

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Commands that are run in this directory.
    fn method(&self, freeze: &str, thaw: &str) -> Method {
        let command = |text: &str| format!("cd '{}'; {text}", self.0.path().display()).into();
        Method::Commands { freeze: command(freeze), thaw: command(thaw) }
    }

    /// Freezing fails, and `thawed` is there; the error.
    fn fails(&self, freeze: &str, limit: Duration) -> Error {
        let method = self.method(freeze, "touch thawed");
        let error = Freeze::begin(&method, limit, BOUND).expect_err("no freeze").error;
        assert_eq!(error.kind, Kind::Failed, "{error}");
        assert!(self.has("thawed"), "{error}");
        error
    }

    /// The processes whose pids a command has written to `pids`, one a line.
    fn pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.path("pids")).expect("pids");
        text.lines().map(|line| line.parse().expect("a pid")).collect()
    }
}

/// Whether the process runs; one that has ended and whom nobody has asked about does not.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

fn told(error: &Error, needle: &str) {
    assert!(error.to_string().contains(needle), "no {needle:?} in: {error}");
    assert!(!error.hint.is_empty());
}

#[test]
fn commands_freeze_and_thaw() {
    let place = Place::new();
    // Nothing to read for it, and output that nobody wants to see.
    let method = place.method("echo chatter && cat && touch frozen", "mv frozen thawed");
    let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
    assert!(place.has("frozen"));
    assert!(freeze.end().expect("thawed").was_frozen);
    assert!(place.has("thawed") && !place.has("frozen"));
}

#[test]
fn what_a_freeze_leaves_running_is_left_alone() {
    let place = Place::new();
    let method = place.method("sleep 1000 & echo $! > pids", "kill $(cat pids)");
    let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
    assert!(place.pids().into_iter().all(runs));
    freeze.end().expect("thawed");
    assert!(until(|| !place.pids().into_iter().any(runs)));
}

#[test]
fn a_freeze_that_fails_is_thawed_and_leaves_nothing() {
    let place = Place::new();
    let error = place.fails("sleep 1000 & echo $! > pids; echo 'no such domain' >&2; exit 3", BOUND);
    told(&error, "the freeze command (cd '/");
    told(&error, "; exit 3) failed with exit status: 3; it said: no such domain");
    assert!(!place.pids().into_iter().any(runs));
    let error = place.fails("kill -KILL $$", BOUND);
    told(&error, "failed with signal: 9 (SIGKILL); it said nothing");
    told(&place.fails("no-such-command-here", BOUND), "exit status: 127");
}

#[test]
fn a_freeze_that_hangs_is_killed_with_its_children() {
    let place = Place::new();
    // Deaf to everything but SIGKILL; one of them has closed its output.
    let hangs = "trap '' TERM INT HUP; (sleep 1000 >&- 2>&-) & echo $! > pids; sleep 1000 & echo $! >> pids; \
                 echo $$ >> pids; touch begun; wait; sleep 1000";
    let error = place.fails(hangs, NOT_LONG);
    told(&error, "did not end in time and was killed; it said nothing");
    assert!(place.has("begun"));
    assert_eq!(place.pids().len(), 3);
    assert!(!place.pids().into_iter().any(runs));
}

#[test]
fn a_flood_of_output_is_read_and_dropped() {
    let place = Place::new();
    let error = place.fails("while :; do echo 0123456789abcdef; done", NOT_LONG);
    told(&error, "did not end in time and was killed; it said: ");
    assert!(error.to_string().len() < 2000, "{error}");
    // One that comes to an end is waited for, and of what it said the end is shown.
    let error = place.fails("head -c 5000000 /dev/zero; printf '\\033[2Jthe end\\n'; exit 1", BOUND);
    told(&error, "\\u{1b}[2Jthe end");
    assert!(error.to_string().len() < 4000);
    let method = place.method("head -c 5000000 /dev/zero", "true");
    Freeze::begin(&method, BOUND, BOUND).expect("frozen").end().expect("thawed");
}

#[test]
fn thawing_is_tried_again() {
    let place = Place::new();
    let method = place.method("true", "echo x >> tries && test $(wc -l < tries) -ge 3");
    let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
    assert!(!freeze.end().expect("thawed").was_frozen, "who knows when");
    let tries = fs::read_to_string(place.path("tries")).expect("tries");
    assert_eq!(tries.lines().count(), 3);

    let method = place.method("true", "echo stuck && false");
    let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
    let error = freeze.end().expect_err("it does not thaw");
    told(&error, "the thaw command (cd ");
    told(&error, ") failed with exit status: 1; it said: stuck");
    assert!(error.hint.contains("may be frozen"));
    let error = Freeze::begin(&place.method("false", "false"), BOUND, BOUND).expect_err("neither").error;
    told(&error, "; it said nothing, after the freeze command (cd ");
}

#[test]
fn a_thaw_that_hangs_is_killed_and_told() {
    let place = Place::new();
    let method = place.method("true", "echo $$ > pids; exec sleep 1000");
    let error = method.thaw(NOT_LONG).expect_err("it hangs");
    assert_eq!(error.kind, Kind::Failed);
    told(&error, ") did not end in time and was killed");
    assert!(!place.pids().into_iter().any(runs));
}
