//! One T0 job from begin to rename: the driver that joins plan, hold, journal and disk (DESIGN section 5).
//!
//! [`job::run`] is the whole of it. It is generic over the disk and the hold, so that the same code runs over the kernel and
//! over the simulated disk with a crash at every step. [`recover`] decides what an existing journal means (pure), [`room`]
//! whether there is room for it, `locked` is the lock that it has, [`start`] prepares the files, [`window`] clones, [`compare`] tells it what a refresh need not, [`turns`] when; `ended` says why it did not
//! come to its end, [`restore`] rolls an image back; [`commit`] puts the snapshot into place, [`group`] and [`members`] keep those of several images together, [`abort`] takes a job back, [`inspect`] looks at one without taking its lock.

pub mod abort;
pub mod claims;
pub mod clone;
pub mod commit;
pub mod compare;
mod ended;
pub mod flusher;
pub mod group;
pub mod inspect;
pub mod job;
mod locked;
pub mod members;
pub mod names;
pub mod partial;
pub mod recover;
pub mod report;
pub mod restore;
pub mod room;
pub mod start;
pub mod turns;
pub mod undo;
pub mod window;
