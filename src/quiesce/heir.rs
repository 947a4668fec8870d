//! Who thaws when the job's process is gone: the freezer, or who has inherited both.

use std::time::Duration;

use nix::sys::wait::WaitStatus;

use super::command;
use super::freezer::{NAME, thaw_all};
use super::order::Order;
use crate::children::{self, Child};
use crate::error::Result;

/// How long a killed process may take to be gone.
const DYING: Duration = Duration::from_secs(10);

/// Sees to it that what the freezer of a job's process that has died has frozen is thawed: by itself, as it does when the
/// socket is closed, or, if it was killed as well or could not, here. `None` where it had nothing left to do, or has done it.
/// The caller must have inherited it ([`children::inherit`]).
///
/// # Errors
/// Failed where a guest may still be frozen; the hint says how to thaw it.
pub fn see_to_the_thaw(order: &Order) -> Option<Result<()>> {
    let name = NAME.to_string_lossy();
    let mut freezers = children::all().into_iter().filter(|child| child.name == name);
    let freezer = freezers.find(|freezer| !has_ended(freezer, order))?;
    let ended = command::end_freezes(freezer.pid);
    Some(thaw_all(&order.methods).and(ended))
}

/// Whether a freezer has come to its own end, and a good one.
fn has_ended(freezer: &Child, order: &Order) -> bool {
    // One that is stopped would thaw when it is told to go on, by nobody.
    let limit = if freezer.stopped { Duration::ZERO } else { order.longest() };
    match children::ended(freezer.pid, limit) {
        Ok(Some(WaitStatus::Exited(_, code))) => code == 0,
        _ => {
            let _ = children::end(freezer.pid, DYING);
            false
        }
    }
}
