//! Threads, locks, channels and the clock of the modules whose threads are also run under a scheduler that decides itself who is next
//! (`interleavings/`, which puts its own in their place).

pub use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
pub use std::thread::{Builder, Scope, scope};
pub use std::time::Instant;

pub use crossbeam_channel::{Receiver, Sender, bounded};
