//! The guest of a VM image, played for tests and benchmarks, and the judge of the snapshots made under it.
//!
//! A snapshot of an image that somebody writes to is right if there is one instant, T0, at which the image was what the
//! snapshot shows. To tell, one must know what was in every sector at every instant. So the writer here stamps each
//! sector with the number of the write that put it there, and logs when that write began and when it had ended.
//!
//! In reading order:
//! - [`sector`]: a sector's stamp, to bytes and back.
//! - [`log`]: what was done to the images and when, in a file that survives the writer's death.
//! - [`fill`]: images full of stamps, in as many extents as can be had cheaply.
//! - [`stamp`]: the writer; [`engine`], the ways a write reaches the kernel.
//! - [`verify`]: the judge.
//! - [`latency`]: what a guest feels meanwhile.
//! - [`clock`], [`random`], [`bits`], [`image`], [`pages`], [`percentiles`], [`stop`]: what these share.
//! - [`sys`]: mapped memory, libaio, io_uring and reads that do not wait; the only module with `unsafe`.

pub mod bits;
pub mod clock;
pub mod engine;
pub mod fill;
pub mod image;
pub mod latency;
pub mod log;
pub mod pages;
pub mod percentiles;
pub mod random;
#[cfg(test)]
mod scratch;
pub mod sector;
pub mod stamp;
pub mod stop;
pub mod sys;
pub mod verify;
