//! The modules of the server whose threads wait for one another, compiled once more with [`threads`] that a scheduler switches between
//! wherever one could lose its turn, thousands of times and each time otherwise (the shuttle crate). What waits for ever is found, and
//! each run can be repeated from its seed.
//!
//! The modules are the very files of the program. They reach locks, threads, channels and the clock through `crate::threads`, which is the
//! standard library's there, and the scheduler's here.

pub mod serve;
pub mod threads;
pub mod trial;

pub use rclone_img::{cbw, range};
