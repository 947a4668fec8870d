//! Jobs on real XFS and Btrfs, whatever holds their image still: the snapshot and what is told of it, the files beside it, ends of every
//! kind, several images, and what is asked of the kernel.

#[path = "../support/mod.rs"]
mod support;

mod calls;
mod group;
mod journal;
mod list;
mod refresh;
mod refused;
mod resume;
mod status;
mod strangers;
mod sys;
mod turns;
mod whole;
