//! What wakes a service: a signal, a byte from one of its threads, or that time is up. No polling: it sleeps in one read.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use crate::cli::signals;
use crate::error::{Error, Kind, Result};

/// Why the service woke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
    /// Time is up, or one of its threads has news.
    Time,
}

/// Where signals arrive.
pub struct Wakes {
    bell: UnixStream,
    // Kept for where all signals are ignored, too: a bell whose ropes are all gone would ring for ever.
    rope: UnixStream,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Wakes {
    /// Starts to listen. A signal that was ignored when the program started stays so.
    ///
    /// # Errors
    /// Failed, where the handlers or their pipe cannot be set up.
    pub fn on_signals() -> Result<Self> {
        let set_up = || {
            let (bell, rope) = UnixStream::pair()?;
            let (stop, reload) = (Arc::default(), Arc::default());
            for signal in signals::heeded(&[SIGTERM, SIGINT, SIGHUP]) {
                // The flag first: whoever hears the bell finds it set.
                flag::register(signal, Arc::clone(if signal == SIGHUP { &reload } else { &stop }))?;
                low_level::pipe::register(signal, rope.try_clone()?)?;
            }
            rope.set_nonblocking(true)?;
            Ok(Self { bell, rope, stop, reload })
        };
        set_up().map_err(|e| Error::io(Kind::Failed, "cannot listen for signals", "see ulimit -n", e))
    }

    /// For a thread that has news: a byte written to it ends the sleep. It does not block.
    ///
    /// # Errors
    /// Failed without a descriptor for it.
    pub fn rope(&self) -> Result<UnixStream> {
        self.rope.try_clone().map_err(|e| Error::io(Kind::Failed, "cannot listen for news", "see ulimit -n", e))
    }

    /// Sleeps until a signal comes, at most `limit`. Several reloads that were asked for meanwhile are one.
    pub fn wait(&mut self, limit: Duration) -> Wake {
        // A limit of zero would mean none.
        let limit = limit.max(Duration::from_millis(1));
        if self.bell.set_read_timeout(Some(limit)).is_err() {
            std::thread::sleep(limit);
        } else {
            // How many rings and which does not matter, and an error is a timeout or a signal.
            let _ = self.bell.read(&mut [0; 64]);
        }
        if self.stop.load(Ordering::Acquire) {
            Wake::Stop
        } else if self.reload.swap(false, Ordering::AcqRel) {
            Wake::Reload
        } else {
            Wake::Time
        }
    }
}
