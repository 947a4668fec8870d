//! The NBD server with its peers, the points in time that it gives to read, and what becomes of them when it is killed.

#[path = "../support/mod.rs"]
mod support;

mod fleece;
mod fleece_faults;
mod modes;
mod peers;
mod points;
mod reboot;
mod restart;
mod unseen;
mod verb;
