//! What may go wrong, and how often.

use super::rng::Rng;

/// How often each fault happens, per mille of the calls (or blocks) that it can befall; none by default.
///
/// The first group never makes a correct job fail; the second makes calls fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// Per extent of a map: it is reported as two.
    pub split_extents: u16,
    /// Per block allocated: it does not follow the one allocated before, so the file fragments.
    pub fragment: u16,
    /// Per block overwritten that no other file maps: the address stays, as on XFS. Otherwise it moves, as on Btrfs.
    pub in_place: u16,
    /// Per block written: until the next flush the map shows what was there before (KERNEL.md, FIEMAP).
    pub stale_maps: u16,
    /// Per block written: it becomes an encoded extent, whose reported address it has in common with others.
    pub encoded: u16,
    /// Per question: the file system may be moving extents about.
    pub relocating: u16,

    /// Per block address, for good: FICLONERANGE of it is ENOSPC; it can be read, and copied.
    pub clone_never: u16,
    /// Per clone: ENOSPC half done.
    pub clone_enospc: u16,
    /// Per clone: EINTR half done.
    pub clone_eintr: u16,
    /// Per clone: EINVAL half done, which is how XFS said ENOSPC before November 2024.
    pub clone_einval: u16,
    /// Per clone: EIO half done; the source block that it stopped at reads as zeros ever after.
    pub clone_eio: u16,
    /// Per write: ENOSPC after some of the bytes.
    pub write_enospc: u16,
    /// Per write: EIO after some of the bytes.
    pub write_eio: u16,
    /// Per read: EIO.
    pub read_eio: u16,
    /// Per change of size: ENOSPC.
    pub resize_enospc: u16,
    /// Per sync of a file: EIO, once; what was written is lost though it can still be read, and the next sync succeeds.
    pub sync_eio: u16,
    /// Per change of record, mode, owner or +C: ENOSPC.
    pub attribute_enospc: u16,
    /// Per create or rename: ENOSPC.
    pub name_enospc: u16,
    /// Per unlink or sync of the names: EIO, nothing done.
    pub name_eio: u16,
    /// Per map: EIO.
    pub map_eio: u16,
}

impl Faults {
    /// No call fails, but maps, addresses and flushes are as unhelpful as the kernel's contract permits.
    pub fn shapes(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5a);
        let mut often = || if rng.coin() { rng.below(600) as u16 } else { 0 };
        Self {
            split_extents: often(),
            fragment: often(),
            in_place: often(),
            stale_maps: often(),
            encoded: often() / 4,
            relocating: often() / 4,
            ..Self::default()
        }
    }

    /// Every fault by chance: about half of the knobs are at zero, and calls fail up to three times in a hundred.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0xa5);
        let mut rarely = || if rng.coin() { rng.below(30) as u16 } else { 0 };
        Self {
            clone_never: rarely(),
            clone_enospc: rarely(),
            clone_eintr: rarely(),
            clone_einval: rarely(),
            clone_eio: rarely(),
            write_enospc: rarely(),
            write_eio: rarely(),
            read_eio: rarely(),
            resize_enospc: rarely(),
            sync_eio: rarely(),
            attribute_enospc: rarely(),
            name_enospc: rarely(),
            name_eio: rarely(),
            map_eio: rarely(),
            ..Self::shapes(seed)
        }
    }
}
