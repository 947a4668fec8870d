//! What is tried, between what it uses.

pub use rclone_img::serve::{buffers, codec, device, negotiation};

#[path = "../../src/serve/gate/mod.rs"]
pub mod gate;
#[path = "../../src/serve/session/mod.rs"]
pub mod session;
