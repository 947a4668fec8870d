//! `checks/stream.rs`, fed by libFuzzer.

#![no_main]

#[path = "../checks/stream.rs"]
mod stream;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stream::check(bytes));
