//! What a service manager is told (sd_notify(3)); without one, nobody is told anything.
//!
//! A message that does not arrive is not told of: it is the manager that finds it wanting.

use std::time::Duration;

use sd_notify::NotifyState;

/// The shortest time between two signs of life, whatever the manager asks for.
const SHORTEST: Duration = Duration::from_millis(10);

/// How often the manager's watchdog wants a sign of life, with a margin of one half; `None` where it wants none.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| (limit / 2).max(SHORTEST))
}

/// The service is ready, and this is how things stand.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// How things stand now.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The configuration is read again; [`ready`] follows.
pub fn reloading() {
    let Ok(now) = NotifyState::monotonic_usec_now() else { return };
    tell(&[NotifyState::Reloading, now]);
}

/// A sign of life.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// The end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
