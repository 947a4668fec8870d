//! Guests that are frozen, and QEMUs that are told what to do: agents, commands and monitors, also those that do not behave.

#[path = "../support/mod.rs"]
mod support;

mod agent;
mod commands;
mod freezer;
mod jobs;
mod qemu_arm;
mod qemu_monitor;
mod qmp;
mod several;
