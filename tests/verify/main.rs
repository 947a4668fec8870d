//! Whole snapshots, judged by one who knows each write of the guest, and the judge himself.

#[path = "../support/mod.rs"]
mod support;

mod ext4;
mod filter;
mod judge;
mod qemu;
mod several;
mod stamps;
