//! When to end: the end of standard input, a signal, or a time.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

/// Asked to end, or not yet.
#[derive(Debug, Default)]
pub struct Stop {
    asked: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Stop {
    /// Not yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Asked by SIGTERM, SIGINT and SIGHUP, and by the end of standard input, where that is a pipe, a socket or a terminal: a
    /// plain file or `/dev/null` has nobody who could close it. Called before any thread is started.
    ///
    /// # Errors
    /// Where a thread cannot be started or the signals not be blocked.
    pub fn on_signals_and_stdin() -> Result<Arc<Self>> {
        let stop = Self::new();
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
        signals.thread_block().context("block signals")?;
        let spawn = |name: &str, wait: Box<dyn FnOnce() + Send>| {
            let stop = Arc::clone(&stop);
            let body = move || {
                wait();
                stop.ask();
            };
            thread::Builder::new().name(name.to_owned()).spawn(body).context("start a thread")
        };
        spawn("signals", Box::new(move || while signals.wait().is_err() {}))?;
        if stdin_can_end() {
            spawn("stdin", Box::new(|| drop(io::copy(&mut io::stdin(), &mut io::sink()))))?;
        }
        Ok(stop)
    }

    /// Asks.
    pub fn ask(&self) {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.asked.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Asks when what this gives is dropped: a thread that ends, for whatever reason, so ends the others.
    pub fn ask_when_dropped(&self) -> AskWhenDropped<'_> {
        AskWhenDropped(self)
    }

    /// Whether somebody has asked.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Sleeps until somebody asks, for ever or so long; whether somebody has asked.
    pub fn wait(&self, longest: Option<Duration>) -> bool {
        let end = longest.map(|longest| Instant::now() + longest);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.asked() {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            guard = match left {
                Some(Duration::ZERO) => return false,
                Some(left) => self.changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
            };
        }
        true
    }
}

/// See [`Stop::ask_when_dropped`].
#[derive(Debug)]
pub struct AskWhenDropped<'a>(&'a Stop);

impl Drop for AskWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.ask();
    }
}

/// Whether standard input is something that another process holds open.
fn stdin_can_end() -> bool {
    let Ok(kind) = fs::metadata("/proc/self/fd/0").map(|it| it.file_type()) else { return false };
    kind.is_fifo() || kind.is_socket() || io::stdin().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_wakes_up_when_asked() {
        let stop = Stop::new();
        assert!(!stop.wait(Some(Duration::from_millis(1))));
        let other = Arc::clone(&stop);
        let sleeper = thread::spawn(move || other.wait(None));
        stop.ask();
        assert!(sleeper.join().unwrap() && stop.asked());
    }
}
