//! SIGINT, SIGTERM and SIGHUP ask a job to stop: it ends after the clone call that is running, with a checkpoint.
//!
//! A second signal does not kill: an FICLONERANGE call cannot be broken off in a useful way, and the checkpoint is what the
//! first signal was for. A signal that was ignored when the program started stays ignored, so `nohup` works. SIGPIPE
//! is ignored from the start by Rust's runtime: a closed pipe is an error of a write, not the end of a job.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Kind, Result};

/// Whether a job was asked to stop. Clones are of one and the same.
#[derive(Clone, Default)]
pub struct Stop(Arc<Shared>);

#[derive(Default)]
struct Shared {
    asked: Arc<AtomicBool>,
    turn: Mutex<()>,
    changed: Condvar,
}

/// A write past `ulimit -f` is to fail with EFBIG, which is told in words, and not to kill the process with SIGXFSZ.
pub fn survive_file_size_limit() {
    // A handler that only sets a flag nobody reads: what matters is that the default action is gone. Without it the
    // limit ends the job as any other signal would.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
}

/// A child that has ended is to keep its number until it is waited for: where SIGCHLD is ignored, which whoever has started this
/// program may have handed on, it does not.
pub fn children_keep_their_numbers() {
    // Any handler will do, as above; what is started gets the default action.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGCHLD, Arc::default());
}

impl Stop {
    /// Starts to listen for signals, in a thread of its own that lasts as long as the process.
    ///
    /// # Errors
    /// Where the handlers or the thread cannot be set up.
    pub fn on_signals() -> Result<Self> {
        Self::on(&[SIGINT, SIGTERM, SIGHUP])
    }

    fn on(wanted: &[i32]) -> Result<Self> {
        let failed = |error| Error::io(Kind::Failed, "cannot listen for signals", "see ulimit -u and ulimit -n", error);
        let mut signals = Signals::new(heeded(wanted)).map_err(failed)?;
        let stop = Self::default();
        let asked = stop.clone();
        let listen = move || signals.forever().for_each(|_| asked.ask());
        thread::Builder::new().name("signals".into()).spawn(listen).map_err(failed)?;
        Ok(stop)
    }

    /// Asks the job to stop.
    pub fn ask(&self) {
        let turn = self.0.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.asked.store(true, Ordering::Release);
        drop(turn);
        self.0.changed.notify_all();
    }

    /// Whether the job was asked to stop.
    pub fn asked(&self) -> bool {
        self.0.asked.load(Ordering::Acquire)
    }

    /// The flag itself, for the engine.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0.asked)
    }

    /// Waits until asked to stop, at most `limit`; whether it was. For the pauses of `--wait`.
    pub fn wait(&self, limit: Duration) -> bool {
        let turn = self.0.turn.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.changed.wait_timeout_while(turn, limit, |()| !self.asked()));
        self.asked()
    }
}

/// Those of the signals that were not ignored when the program started.
pub fn heeded(wanted: &[i32]) -> Vec<i32> {
    let ignored = ignored_from(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    wanted.iter().copied().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect()
}

/// The set of ignored signals from `/proc/PID/status`; none where it cannot be read.
fn ignored_from(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use signal_hook::consts::SIGUSR1;

    use super::{Duration, SIGHUP, SIGINT, Stop, ignored_from};

    #[test]
    fn a_signal_sets_the_flag_and_the_second_does_not_kill() {
        // One that neither a terminal nor a test runner sends.

        let stop = Stop::on(&[SIGUSR1]).expect("handlers");
        assert!(!stop.asked());
        signal_hook::low_level::raise(SIGUSR1).expect("raise");
        assert!(stop.wait(Duration::from_secs(60)));
        signal_hook::low_level::raise(SIGUSR1).expect("raise");
        assert!(stop.flag().load(std::sync::atomic::Ordering::Acquire));
    }

    #[test]
    fn a_wait_without_a_signal_ends() {
        assert!(!Stop::default().wait(Duration::ZERO));
    }

    #[test]
    fn ignored_signals_are_read_from_proc() {
        assert_eq!(ignored_from("Name:\tx\nSigIgn:\t0000000000001001\n") >> (SIGHUP - 1) & 1, 1);
        assert_eq!(ignored_from("SigIgn:\t0000000000001001\n") >> (SIGINT - 1) & 1, 0);
        assert_eq!((ignored_from(""), ignored_from("SigIgn:\tjunk")), (0, 0));
    }
}
