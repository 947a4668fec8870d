//! What has changed between two snapshots as a stream, for another host, an object store or Ceph; and a stream made a snapshot again.
//!
//! - [`mod@format`]: the bytes, RBD's diff format v1, what may follow what, and the checksums beside it. Pure.
//! - [`send`]: from two snapshots to a stream. [`pace`] keeps it to `--bwlimit`.
//! - [`receive`]: from a stream and its base to a new snapshot, or to nothing. [`room`] asks for the space before it is taken.

pub mod format;
pub mod pace;
pub mod receive;
pub mod room;
pub mod send;
