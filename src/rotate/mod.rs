//! Which snapshots of an image are kept, and how the others go.
//!
//! - [`policy`]: which are kept, by their times. Pure.
//! - [`pattern`]: names that carry a time.
//! - [`promise`]: the name that one will have which is made the new one.
//! - [`found`]: the snapshots in a directory, by their records.
//! - [`remove`]: one is removed, in steps, so that no guest notices.

pub mod found;
pub mod pattern;
pub mod policy;
pub mod promise;
pub mod remove;
