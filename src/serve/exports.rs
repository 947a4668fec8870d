//! What a server has to offer: the live image, and its points in time.

use std::sync::Arc;

use super::changes::NAMESPACE;
use super::codec::transmission as flags;
use super::device::Device;
use super::negotiation::{Exports, Offer};
use super::points::{Listed, Points};
use super::session::Shelf;

/// The name of the live image; the empty name is its as well.
pub const DISK: &[u8] = b"disk";

/// What the names of points in time begin with.
pub const SNAPSHOT: &str = "snapshot/";

/// The first metadata context of every export: what is a hole, and what is data.
pub const ALLOCATION: &str = "base:allocation";

/// The most exports that are listed.
const LISTED: usize = 256;

/// The image, and what was kept of it.
pub struct Catalogue {
    disk: Arc<dyn Device>,
    read_only: bool,
    block: u32,
    points: Arc<Points>,
}

impl Catalogue {
    /// An image, with the file system's block in bytes.
    pub fn new(disk: Arc<dyn Device>, read_only: bool, block: u32, points: Arc<Points>) -> Self {
        Self { disk, read_only, block, points }
    }

    fn live(&self) -> Offer {
        let writes = flags::SEND_TRIM | flags::SEND_WRITE_ZEROES | flags::SEND_FAST_ZERO;
        Offer {
            name: DISK.to_vec(),
            description: "the live image".into(),
            size: self.disk.size(),
            flags: READS | if self.read_only { flags::READ_ONLY } else { writes },
            block: self.block,
            contexts: vec![ALLOCATION.into()],
        }
    }

    fn point(&self, it: &Listed) -> Offer {
        let bases = it.bases.iter().map(|base| format!("{NAMESPACE}{base}"));
        Offer {
            name: format!("{SNAPSHOT}{}", it.name).into_bytes(),
            description: it.what.into(),
            size: it.size,
            flags: READS | if it.trims { flags::SEND_TRIM } else { flags::READ_ONLY },
            block: self.block,
            contexts: [ALLOCATION.to_owned()].into_iter().chain(bases).collect(),
        }
    }
}

/// One file for all connections: what any has written before one of them flushes lasts.
const READS: u16 = flags::HAS_FLAGS | flags::SEND_FLUSH | flags::SEND_FUA | flags::SEND_CACHE | flags::CAN_MULTI_CONN;

impl Exports for Catalogue {
    fn all(&self) -> Vec<Offer> {
        let points = self.points.all();
        [self.live()].into_iter().chain(points.iter().take(LISTED).map(|it| self.point(it))).collect()
    }

    fn find(&self, name: &[u8]) -> Option<Offer> {
        if name.is_empty() || name == DISK {
            return Some(self.live());
        }
        let name = str::from_utf8(name).ok()?.strip_prefix(SNAPSHOT)?;
        self.points.all().iter().find(|it| it.name == name).map(|it| self.point(it))
    }
}

impl Shelf for Catalogue {
    fn open(&self, offer: &Offer) -> std::io::Result<Option<Arc<dyn Device>>> {
        if offer.name == DISK {
            return Ok(Some(Arc::clone(&self.disk)));
        }
        let name = str::from_utf8(&offer.name).ok().and_then(|name| name.strip_prefix(SNAPSHOT));
        let view = name.map_or(Ok(None), |name| self.points.open(name, &offer.contexts))?;
        Ok(view.map(|view| Arc::new(view) as Arc<dyn Device>))
    }
}
