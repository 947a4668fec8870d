//! System calls that std and nix do not wrap: the only module with `unsafe`.
//!
//! One file per topic. Each C struct has its size and the offsets that matter asserted at compile time, each `unsafe` block
//! names the kernel's contract that it relies on. Functions take borrowed descriptors, answer with `io::Error` carrying the
//! kernel's errno, and decide nothing.

pub mod btrfs;
pub mod clone;
pub mod closing;
pub mod cpu;
pub mod fanotify;
pub mod fiemap;
pub mod fs;
pub mod inherited;
pub mod inode;
pub mod lease;
pub mod loopdev;
pub mod nowait;
pub mod ofd;
pub mod passing;
pub mod process;
pub mod sched;
pub mod shared;
pub mod writeback;
