//! Copy-before-write: which clusters of an image the snapshot has, and who waits for one that it has not.
//!
//! [`clusters`] are the states, shared between the thread that clones and those that answer; [`accesses`] is the machine
//! that decides, for each access of a guest, whether it may go on now, and if not what has to be cloned first. The caller
//! brings time, threads and the kernel; nothing here blocks, and everything is bounded. Pure.

pub mod accesses;
pub mod clusters;

pub use accesses::{Accesses, Limits, Tally};
pub use clusters::{Cluster, Clusters, STATES_MAX};
