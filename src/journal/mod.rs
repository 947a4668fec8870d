//! The journal: what a job has done, so that another run can go on from there.
//!
//! [`mod@format`] turns a header and claims into bytes and back (pure, versioned; `docs/FORMAT.md` specifies it), [`mod@file`] keeps
//! them in a file so that a crash at any instant leaves either the old state or the new one.

pub mod file;
pub mod format;
pub mod group;
pub mod unusable;
