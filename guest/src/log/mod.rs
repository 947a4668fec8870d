//! What was done to the images and when: one record an operation, in a file that is mapped into memory, so that logging
//! costs a few stores and what was stored outlives a writer that is killed.
//!
//! - [`mod@format`]: the file's layout, as words and numbers.
//! - [`mod@write`]: the writer's side. A record is made before the operation is submitted and gets its end after
//!   the operation has ended, so that the logged time is never shorter than the true one.
//! - [`history`]: the reader's side, which may read while the writer goes on.
//!
//! The file is sparse and as large as it may grow; at its end the writer cuts it to what was used. It belongs on a tmpfs,
//! or at least not on the file system whose stalls are of interest.

pub mod format;
pub mod history;
pub mod write;

#[cfg(test)]
mod tests;

pub use format::{Kind, Record, Subject};
pub use history::History;
pub use write::Log;
