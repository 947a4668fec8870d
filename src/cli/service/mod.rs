//! What the verbs that run until they are told to stop have in common.
//!
//! - [`wakes`]: a signal, a thread's news, or that time is up.
//! - [`notify`]: what a service manager is told.
//! - [`log`]: lines that nobody has to read.

pub mod log;
pub mod notify;
pub mod wakes;
