//! The holds `guard` and `frozen` on real XFS and Btrfs: the facts that they stand on, who escapes them, and what goes wrong.

#[path = "../support/mod.rs"]
mod support;

mod fanotify;
mod faults;
mod frozen;
mod holders;
mod service;
mod stopped;
mod traps;
mod window;
mod without;
