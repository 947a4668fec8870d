//! Btrfs's own answers: a file's extents from the items of its subvolume's tree (BTRFS_IOC_TREE_SEARCH_V2), and whether
//! the file system moves extents about.
//!
//! FIEMAP asks for each extent who else has it, which took nine tenths of its 3 us an extent on a reflinked file (Linux
//! 6.18, measured); the items tell the address without that, and are read without the inode's lock. Only root may ask.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::extent::{Extent, ExtentFlags};
use crate::range::{ByteRange, PowerOfTwo};

/// The type of the items that say where a file's data is (`BTRFS_EXTENT_DATA_KEY`).
const EXTENT_DATA: u32 = 108;

/// `BTRFS_FILE_EXTENT_INLINE`: the data follows the header in the item.
const INLINE: u8 = 0;

/// `BTRFS_FILE_EXTENT_PREALLOC`: allocated and unwritten.
const PREALLOCATED: u8 = 2;

/// Bytes of items that one call may answer with: about 770 extents.
const BUFFER: usize = 64 << 10;

/// `struct btrfs_ioctl_search_key` of `linux/btrfs.h`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SearchKey {
    tree: u64, // 0: that of the descriptor's subvolume.
    min_objectid: u64,
    max_objectid: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    items: u32,
    unused: u32,
    unused64: [u64; 4],
}

/// `struct btrfs_ioctl_search_args_v2` of `linux/btrfs.h` without the buffer that follows it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SearchArgs {
    key: SearchKey,
    buffer_size: u64,
}

const _: () = assert!(size_of::<SearchArgs>() == 112);
const _: () = assert!(offset_of!(SearchKey, items) == 64);
const _: () = assert!(offset_of!(SearchArgs, buffer_size) == 104);

/// `struct btrfs_ioctl_search_header` of `linux/btrfs.h`: stands before each item.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct ItemHeader {
    transid: NativeU64,
    objectid: NativeU64,
    offset: NativeU64,
    kind: NativeU32,
    len: NativeU32,
}

type NativeU64 = zerocopy::byteorder::U64<zerocopy::NativeEndian>;
type NativeU32 = zerocopy::byteorder::U32<zerocopy::NativeEndian>;

const _: () = assert!(size_of::<ItemHeader>() == 32);

/// The first part of `struct btrfs_file_extent_item` of `linux/btrfs_tree.h`, which is all that an inline extent has.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct ItemHead {
    generation: U64,
    ram_bytes: U64,
    compression: u8,
    encryption: u8,
    other_encoding: U16,
    kind: u8,
}

/// The rest of it.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct ItemPlace {
    disk_bytes_from: U64,
    disk_bytes: U64,
    offset: U64,
    bytes: U64,
}

const _: () = assert!(size_of::<ItemHead>() == 21 && size_of::<ItemPlace>() == 32);

mod raw {
    nix::ioctl_readwrite!(tree_search_v2, 0x94, 17, super::SearchArgs);
}

/// Appends to `into` the extents whose **first byte** is in `range`, in order, at most `max` of them; fewer means that there
/// are no more. One that begins before the range is not told. `inode` is the file's number, `block` the file system's sector.
///
/// What is dirty is not in the tree yet: flush first, by FIEMAP_FLAG_SYNC.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOTTY where it is no Btrfs; `InvalidData` where the answer makes no sense.
pub fn extents_starting_in(
    fd: BorrowedFd<'_>,
    inode: u64,
    block: PowerOfTwo,
    range: ByteRange,
    max: usize,
    into: &mut Vec<Extent>,
) -> io::Result<()> {
    let mut buffer = vec![0_u64; (size_of::<SearchArgs>() + BUFFER) / 8];
    let mut rest = Some(range);
    let mut wanted = max;
    while let Some(part) = rest
        && wanted > 0
    {
        let found = search(fd, inode, part, wanted, &mut buffer)?;
        let mut bytes = &buffer.as_bytes()[size_of::<SearchArgs>()..];
        let mut last = None;
        for _ in 0..found {
            let (header, after) =
                ItemHeader::read_from_prefix(bytes).map_err(|_| nonsense("an item without a header"))?;
            let len = header.len.get() as usize;
            let item = after.get(..len).ok_or_else(|| nonsense("an item beyond the buffer"))?;
            bytes = &after[len..];
            let offset = header.offset.get();
            let in_order = last.is_none_or(|last| offset > last) && offset >= part.start() && offset < part.end();
            if header.objectid.get() != inode || header.kind.get() != EXTENT_DATA || !in_order {
                return Err(nonsense("an item that was not asked for"));
            }
            last = Some(offset);
            if let Some(extent) = parse(offset, block, item)? {
                into.push(extent);
                wanted -= 1;
            }
        }
        let Some(last) = last else { break };
        rest = ByteRange::new(last + 1, range.end());
    }
    Ok(())
}

/// One call for at most `wanted` items; how many there are in the buffer.
fn search(fd: BorrowedFd<'_>, inode: u64, range: ByteRange, wanted: usize, buffer: &mut [u64]) -> io::Result<usize> {
    assert!(size_of_val(buffer) >= size_of::<SearchArgs>() + BUFFER, "the kernel would write past the buffer");
    let (args, _) = SearchArgs::mut_from_prefix(buffer.as_mut_bytes()).map_err(|_| nonsense("no room for a search"))?;
    args.zero();
    args.key.min_objectid = inode;
    args.key.max_objectid = inode;
    args.key.min_type = EXTENT_DATA;
    args.key.max_type = EXTENT_DATA;
    args.key.min_offset = range.start();
    args.key.max_offset = range.end() - 1;
    args.key.max_transid = u64::MAX;
    args.key.items = u32::try_from(wanted).unwrap_or(u32::MAX);
    args.buffer_size = BUFFER as u64;
    // SAFETY: BTRFS_IOC_TREE_SEARCH_V2 reads and writes the 112 bytes of the arguments and writes at most `buffer_size`
    // bytes right behind them; the assertion above says that they fit, and the pointer is derived from the whole buffer.
    // It keeps no pointer.
    unsafe { raw::tree_search_v2(fd.as_raw_fd(), buffer.as_mut_ptr().cast()) }?;
    let (args, _) = SearchArgs::ref_from_prefix(buffer.as_bytes()).map_err(|_| nonsense("no room for a search"))?;
    Ok(args.key.items as usize)
}

/// The extent that an item describes; `None` for an explicit hole.
fn parse(offset: u64, block: PowerOfTwo, item: &[u8]) -> io::Result<Option<Extent>> {
    let (head, rest) = ItemHead::read_from_prefix(item).map_err(|_| nonsense("a short item"))?;
    let encoded = head.compression != 0 || head.encryption != 0 || head.other_encoding.get() != 0;
    let mut flags = if encoded { ExtentFlags::ENCODED } else { ExtentFlags::default() };
    if head.kind == INLINE {
        flags = flags.with(ExtentFlags::DATA_INLINE).with(ExtentFlags::NOT_ALIGNED);
        let logical = ByteRange::at(offset, block.align_up(head.ram_bytes.get()));
        let logical = logical.ok_or_else(|| nonsense("an inline extent that is empty or wraps"))?;
        return Ok(Some(Extent { logical, physical: 0, flags }));
    }
    let (place, _) = ItemPlace::read_from_prefix(rest).map_err(|_| nonsense("a short item"))?;
    let disk = place.disk_bytes_from.get();
    if disk == 0 {
        return Ok(None);
    }
    if head.kind == PREALLOCATED {
        flags = flags.with(ExtentFlags::UNWRITTEN);
    }
    let logical =
        ByteRange::at(offset, place.bytes.get()).ok_or_else(|| nonsense("an extent that is empty or wraps"))?;
    // The parts of an encoded extent have one address.
    let into = if encoded { 0 } else { place.offset.get() };
    let physical = disk.checked_add(into).filter(|p| p.checked_add(logical.len()).is_some());
    let physical = physical.ok_or_else(|| nonsense("an extent whose address wraps"))?;
    Ok(Some(Extent { logical, physical, flags }))
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the tree's answer has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 4096;

    fn item(compression: u8, kind: u8, place: [u64; 4]) -> Vec<u8> {
        let mut item = [7_u64, 3 * BLOCK].map(u64::to_le_bytes).concat();
        item.extend([compression, 0, 0, 0, kind]);
        item.extend(place.map(u64::to_le_bytes).concat());
        item
    }

    fn parsed(item: &[u8]) -> Result<Option<(u64, u64, u64, u32)>, io::ErrorKind> {
        let block = PowerOfTwo::new(BLOCK).expect("it is one");
        let extent = parse(8 * BLOCK, block, item).map_err(|e| e.kind())?;
        Ok(extent.map(|e| (e.logical.start(), e.logical.len(), e.physical, e.flags.bits())))
    }

    #[test]
    fn items_become_extents() {
        let place = [100 * BLOCK, 3 * BLOCK, BLOCK, 2 * BLOCK];
        assert_eq!(parsed(&item(0, 1, place)), Ok(Some((8 * BLOCK, 2 * BLOCK, 101 * BLOCK, 0))));
        assert_eq!(parsed(&item(0, 2, place)), Ok(Some((8 * BLOCK, 2 * BLOCK, 101 * BLOCK, 0x800))), "preallocated");
        assert_eq!(parsed(&item(2, 1, place)), Ok(Some((8 * BLOCK, 2 * BLOCK, 100 * BLOCK, 0x8))), "compressed");
        assert_eq!(parsed(&item(0, 1, [0, 0, 0, BLOCK])), Ok(None), "a hole");
        let inline = item(0, 0, place);
        assert_eq!(parsed(&inline[..21]), Ok(Some((8 * BLOCK, 3 * BLOCK, 0, 0x300))), "inline");
    }

    #[test]
    fn nonsense_is_an_error() {
        let good = item(0, 1, [100 * BLOCK, 3 * BLOCK, BLOCK, 2 * BLOCK]);
        for short in [0, 20, 21, 52] {
            assert_eq!(parsed(&good[..short]), Err(io::ErrorKind::InvalidData), "{short} bytes");
        }
        for place in [[BLOCK, 0, 0, 0], [u64::MAX, 0, 1, BLOCK], [u64::MAX - 5, 0, 0, BLOCK], [1, 0, 0, u64::MAX]] {
            assert_eq!(parsed(&item(0, 1, place)), Err(io::ErrorKind::InvalidData), "{place:?}");
        }
    }
}
