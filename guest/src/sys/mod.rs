//! System calls that std and nix do not wrap: the only module with `unsafe`.
//!
//! One file per topic. Each C struct has its size asserted at compile time, each `unsafe` block names the kernel's contract
//! that it relies on.

pub mod aio;
pub mod mapping;
pub mod uring;
