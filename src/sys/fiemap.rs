//! FS_IOC_FIEMAP: the extents of a range of a file (`Documentation/filesystems/fiemap.rst`).
//!
//! The kernel's answers are checked before they become [`Extent`]s: none is empty, none wraps around, and they are in order and
//! apart. What is not is asked for again: Btrfs does not keep writes away while it answers (KERNEL.md, FIEMAP). What an extent's flags prove is [`crate::extent`]'s business.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::extent::{Extent, ExtentFlags};
use crate::range::ByteRange;

/// Extents asked for in one call. The inode's lock is held shared for each, and beyond this number a call saves nothing
/// (KERNEL.md, FIEMAP).
const BATCH: usize = 1024;

/// Write dirty data before answering (`FIEMAP_FLAG_SYNC`).
const SYNC: u32 = 0x1;

/// How often in a row an answer may begin with what was there before: more than any writer can spoil one after the other.
const ANSWERS: usize = 100;

/// `struct fiemap` of `linux/fiemap.h` without the extents that follow it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Header>() == 32);
const _: () = assert!(offset_of!(Header, flags) == 16);
const _: () = assert!(offset_of!(Header, mapped_extents) == 20);
const _: () = assert!(offset_of!(Header, extent_count) == 24);

/// `struct fiemap_extent` of `linux/fiemap.h`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const _: () = assert!(size_of::<RawExtent>() == 56);
const _: () = assert!(offset_of!(RawExtent, length) == 16);
const _: () = assert!(offset_of!(RawExtent, flags) == 40);

mod raw {
    nix::ioctl_readwrite!(fs_ioc_fiemap, b'f', 11, super::Header);
}

/// Appends to `into` the extents that touch `range`, in order, at most `max` of them; fewer means that there are no more.
/// The first may begin before the range and the last end after it. `flush` writes dirty data first.
///
/// More than one call is made where `max` is large, or somebody writes meanwhile; an extent that changed between two calls is cut at the place
/// that the walk had reached, so that the appended extents never overlap.
///
/// # Errors
/// What FS_IOC_FIEMAP says; `InvalidData` where the answer makes no sense. `into` may then have got a part.
pub fn walk(fd: BorrowedFd<'_>, range: ByteRange, max: usize, flush: bool, into: &mut Vec<Extent>) -> io::Result<()> {
    let mut rest = Some(range);
    let mut wanted = max;
    let mut in_vain = 0;
    let mut flags = if flush { SYNC } else { 0 };
    let mut buffer = vec![0_u64; (size_of::<Header>() + wanted.min(BATCH) * size_of::<RawExtent>()) / 8];
    while let Some(part) = rest
        && wanted > 0
    {
        let mapped = call(fd, part, flags, wanted.min(BATCH), &mut buffer)?;
        let bytes = &buffer.as_bytes()[size_of::<Header>()..];
        let (extents, _) = <[RawExtent]>::ref_from_prefix_with_elems(bytes, mapped)
            .map_err(|_| nonsense("more extents than there was room for"))?;
        if extents.is_empty() {
            break;
        }
        flags = 0; // Once is enough, and a second flush would find what the guest wrote meanwhile.
        let before = into.len();
        let is_all = take(extents, part, range, into)?;
        match into[before..].last() {
            _ if is_all => break,
            Some(last) => {
                rest = ByteRange::new(last.logical.end(), range.end());
                wanted -= into.len() - before;
                in_vain = 0;
            }
            None if in_vain < ANSWERS => in_vain += 1,
            None => return Err(nonsense("extents out of order")),
        }
    }
    Ok(())
}

/// Appends of an answer for `part`, the rest of `range`, what is in order; whether there are no more extents in the range.
fn take(extents: &[RawExtent], part: ByteRange, range: ByteRange, into: &mut Vec<Extent>) -> io::Result<bool> {
    let mut reached = None;
    for raw in extents {
        let first = reached.is_none();
        let Some(extent) = check(*raw, reached.unwrap_or(part.start()), first)? else { return Ok(false) };
        // XFS and Btrfs both keep to the range; a file system that does not has told us that the range is done.
        if extent.logical.start() >= range.end() {
            return Ok(true);
        }
        reached = Some(extent.logical.end());
        // The first answer may begin before the range; a later one that does begins before what is known.
        into.push(if first && part != range { clip(extent, part.start()) } else { extent });
    }
    Ok(extents.last().is_some_and(|e| ExtentFlags::from_bits(e.flags).has(ExtentFlags::LAST)))
}

/// How many extents touch `range`, as the kernel counts them; nothing is copied out.
///
/// # Errors
/// What FS_IOC_FIEMAP says.
pub fn count(fd: BorrowedFd<'_>, range: ByteRange) -> io::Result<u64> {
    let mut buffer = vec![0_u64; size_of::<Header>() / 8];
    Ok(call(fd, range, 0, 0, &mut buffer)? as u64)
}

/// One call for at most `room` extents; the number that the kernel tells. `buffer` has place for the header and them.
fn call(fd: BorrowedFd<'_>, range: ByteRange, flags: u32, room: usize, buffer: &mut [u64]) -> io::Result<usize> {
    let fits = (size_of::<Header>() + room * size_of::<RawExtent>()) <= size_of_val(buffer);
    assert!(fits, "the kernel would write past the buffer");
    buffer.zero();
    let (header, _) = Header::mut_from_prefix(buffer.as_mut_bytes()).map_err(|_| nonsense("no room for a header"))?;
    header.start = range.start();
    header.length = range.len();
    header.flags = flags;
    header.extent_count = u32::try_from(room).map_err(|_| nonsense("too large a batch"))?;
    // SAFETY: FS_IOC_FIEMAP reads and writes the header and writes at most `extent_count` extents right behind it; the
    // assertion above says that they fit, and the pointer is derived from the whole buffer. It keeps no pointer.
    unsafe { raw::fs_ioc_fiemap(fd.as_raw_fd(), buffer.as_mut_ptr().cast()) }?;
    let (header, _) = Header::ref_from_prefix(buffer.as_bytes()).map_err(|_| nonsense("no room for a header"))?;
    let mapped = header.mapped_extents as usize;
    if room > 0 && mapped > room {
        return Err(nonsense("more extents than asked for"));
    }
    Ok(mapped)
}

/// The extent, if it is one. None where it does not lie where the walk can go on from: its end beyond `reached`, and its start too unless it
/// is the first of an answer, which may have begun earlier.
fn check(raw: RawExtent, reached: u64, first: bool) -> io::Result<Option<Extent>> {
    let logical = ByteRange::at(raw.logical, raw.length).ok_or_else(|| nonsense("an extent that is empty or wraps"))?;
    if raw.physical.checked_add(raw.length).is_none() {
        return Err(nonsense("an extent whose address wraps"));
    }
    if logical.end() <= reached || (!first && logical.start() < reached) {
        return Ok(None);
    }
    Ok(Some(Extent { logical, physical: raw.physical, flags: ExtentFlags::from_bits(raw.flags) }))
}

/// The part of the extent from `start` on.
fn clip(extent: Extent, start: u64) -> Extent {
    let Some(logical) = ByteRange::new(start.max(extent.logical.start()), extent.logical.end()) else { return extent };
    // An encoded extent has one address for all its parts.
    let moved = if extent.flags.comparable() { logical.start() - extent.logical.start() } else { 0 };
    Extent { logical, physical: extent.physical + moved, flags: extent.flags }
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("FIEMAP answered with {what}"))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::{RawExtent, check, clip, take};
    use crate::range::ByteRange;

    fn raw(logical: u64, physical: u64, length: u64) -> RawExtent {
        RawExtent { logical, physical, length, reserved64: [0; 2], flags: 0, reserved: [0; 3] }
    }

    #[test]
    fn answers_that_would_wrap_are_refused() {
        let refused = |raw, reached, first| {
            let error = check(raw, reached, first).expect_err("makes no sense");
            assert_eq!(error.kind(), ErrorKind::InvalidData);
        };
        refused(raw(0, 0, 0), 0, true);
        refused(raw(u64::MAX - 4095, 0, 8192), 0, true);
        refused(raw(0, u64::MAX - 4095, 8192), 0, true);
    }

    /// Btrfs tells some of an extent that was written meanwhile as it was and some as it is.
    #[test]
    fn of_an_answer_that_goes_back_the_beginning_is_taken() {
        let range = |start, end| ByteRange::new(start, end).expect("not empty");
        let taken = |extents: &[RawExtent], part| {
            let mut into = Vec::new();
            let is_all = take(extents, part, range(0, 65536), &mut into).expect("no wrap");
            (is_all, into.iter().map(|it| (it.logical.start(), it.logical.end())).collect::<Vec<_>>())
        };
        let last = RawExtent { flags: 1, ..raw(16384, 9 << 20, 4096) };
        let (a, b) = (raw(0, 1 << 20, 8192), raw(8192, 3 << 20, 8192));
        assert_eq!(taken(&[a, b, last], range(0, 65536)), (true, vec![(0, 8192), (8192, 16384), (16384, 20480)]));
        let back = raw(4096, 5 << 20, 8192);
        assert_eq!(taken(&[a, back, last], range(0, 65536)), (false, vec![(0, 8192)]));
        // The walk goes on where it was.
        assert_eq!(taken(&[back, last], range(8192, 65536)), (true, vec![(8192, 12288), (16384, 20480)]));
        assert_eq!(taken(&[a, last], range(8192, 65536)), (false, vec![]));
        assert_eq!(taken(&[a, raw(65536, 0, 4096), a], range(0, 65536)), (true, vec![(0, 8192)]));
    }

    #[test]
    fn the_first_extent_of_an_answer_may_begin_before_the_range() {
        let extent = check(raw(0, 1 << 20, 8192), 4096, true).expect("no wrap").expect("ends beyond the start");
        assert_eq!(extent.logical.start(), 0);
        let cut = clip(extent, 4096);
        assert_eq!((cut.logical.start(), cut.logical.end(), cut.physical), (4096, 8192, (1 << 20) + 4096));
    }
}
