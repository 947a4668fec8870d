//! What changed, sent away and brought back: `diff`, `verify`, `send`, `receive`, `restore` and `rotate` on real file systems.

#[path = "../support/mod.rs"]
mod support;

mod diff;
mod restore;
mod restore_back;
mod restore_strangers;
mod rotate;
mod rotate_faults;
mod rotate_metrics;
mod rotate_strangers;
mod stream;
mod unaddressed;
