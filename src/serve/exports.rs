//! What a server has to offer: for now the live image alone.

use std::sync::Arc;

use super::codec::transmission as flags;
use super::device::Device;
use super::negotiation::{Exports, Offer};
use super::session::Shelf;

/// The name of the live image; the empty name is its as well.
pub const DISK: &[u8] = b"disk";

/// The one metadata context of every disk: what is a hole, and what is data.
pub const ALLOCATION: &str = "base:allocation";

/// The live image.
pub struct Live {
    disk: Arc<dyn Device>,
    read_only: bool,
    block: u32,
}

impl Live {
    /// An image, with the file system's block in bytes.
    pub fn new(disk: Arc<dyn Device>, read_only: bool, block: u32) -> Self {
        Self { disk, read_only, block }
    }
}

impl Exports for Live {
    fn all(&self) -> Vec<Offer> {
        let writes = flags::SEND_TRIM | flags::SEND_WRITE_ZEROES | flags::SEND_FAST_ZERO;
        let all = flags::HAS_FLAGS | flags::SEND_FLUSH | flags::SEND_FUA | flags::SEND_CACHE;
        // One file for all connections: what any has written before one of them flushes lasts.
        let all = all | flags::CAN_MULTI_CONN | if self.read_only { flags::READ_ONLY } else { writes };
        vec![Offer {
            name: DISK.to_vec(),
            description: "the live image".into(),
            size: self.disk.size(),
            flags: all,
            block: self.block,
            contexts: vec![ALLOCATION.into()],
        }]
    }

    fn find(&self, name: &[u8]) -> Option<Offer> {
        let name = if name.is_empty() { DISK } else { name };
        self.all().into_iter().find(|offer| offer.name == name)
    }
}

impl Shelf for Live {
    fn open(&self, name: &[u8]) -> Option<Arc<dyn Device>> {
        (name == DISK).then(|| Arc::clone(&self.disk))
    }
}
