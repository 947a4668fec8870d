//! Talking to QEMU and to the agent in its guest, over their sockets.
//!
//! - [`wire`]: lines of JSON with deadlines and bounds.
//! - [`qmp`]: the monitor's commands.
//! - [`nodes`]: block nodes, from the monitor's answer. Pure.
//! - [`arm`]: makes a running QEMU open an image anew.
//! - [`agent`]: freezes and thaws the guest's file systems.

pub mod agent;
pub mod arm;
pub mod nodes;
pub mod qmp;
pub mod wire;
