//! The journal's bytes: two header slots and a log of claims. `docs/FORMAT.md` is the specification.
//!
//! Bytes become trusted by [`load`], which checks every CRC: a slot that fails is not there, and the log ends at the first
//! record that fails. An unknown version is an error, not damage. Pure.

use jiff::Timestamp;
use zerocopy::little_endian::{I64, U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::group::{GROUP_MAX, Group};
pub use super::unusable::FormatError;
use crate::hold::kind::HoldKind;
use crate::range::ByteRange;
use crate::record::ImageId;

/// The first bytes of each slot.
pub const MAGIC: [u8; 8] = *b"RFLKIMGJ";

/// The version that this program writes and the only one that it reads.
pub const VERSION: u32 = 2;

/// Bytes of one header slot: room for the fixed part, a path of PATH_MAX, a reason, an old record and a group.
pub const SLOT: usize = 16_384;

/// Where the log of claims begins.
pub const LOG: usize = 2 * SLOT;

/// Bytes of one claim.
pub const CLAIM: usize = 40;

/// The largest journal that is read: more claims than any job appends (one a second for two weeks).
pub const MAX_BYTES: u64 = 64 << 20;

const CLAIM_MAGIC: u32 = 0x4D49_4C43;
const PATH_MAX: usize = 4096;
const REASON_MAX: usize = 1024;
const RECORD_MAX: usize = 2048;

/// How far a job has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The files are being prepared; nothing was cloned, there is no T0.
    Preparing,
    /// T0 is set, ranges are being cloned.
    Running,
    /// Stopped with a checkpoint.
    Interrupted,
    /// The point in time is lost; the reason says why.
    Broken,
    /// Complete and synced; what is left is the rename. In the journal of a group's first member this holds for all.
    Committing,
    /// Complete and synced; renamed with the others, once the group's first member is committing.
    Complete,
}

impl State {
    const ALL: [(Self, u8); 6] = [
        (Self::Preparing, 1),
        (Self::Running, 2),
        (Self::Interrupted, 3),
        (Self::Broken, 4),
        (Self::Committing, 5),
        (Self::Complete, 6),
    ];

    fn code(self) -> u8 {
        Self::ALL.iter().find(|(s, _)| *s == self).expect("every state is in the table").1
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|(_, c)| *c == code).map(|(s, _)| *s)
    }
}

/// The image as it was at T0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Image {
    /// `st_dev`.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Inode generation.
    pub generation: u32,
    /// Btrfs subvolume, 0 elsewhere.
    pub subvolume: u64,
    /// Size in bytes.
    pub size: u64,
    /// Change time, ns since 1970.
    pub ctime_ns: i128,
}

impl Image {
    /// Which file it is, as a record has it.
    pub fn id(&self) -> ImageId {
        ImageId { ino: self.ino, generation: self.generation, subvolume: self.subvolume }
    }
}

/// Everything a journal says but the claims.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The job's id.
    pub job: [u8; 16],
    /// Counts the T0s of the job; claims of another epoch do not count.
    pub epoch: u64,
    /// How far it has come.
    pub state: State,
    /// The hold.
    pub hold: HoldKind,
    /// The rename at the end may replace an existing file.
    pub replace: bool,
    /// The snapshot keeps its write permission.
    pub writable: bool,
    /// The partial file was a finished snapshot, and [`Header::old_record`] was its record.
    pub refreshes: bool,
    /// T0; meaningless while preparing.
    pub t0: Timestamp,
    /// The image at T0.
    pub image: Image,
    /// UUID of the file system.
    pub fs: [u8; 16],
    /// The boot in which T0 was set.
    pub boot: [u8; 16],
    /// The mount in which T0 was set; see [`crate::disk::FsFacts::mount_instance`].
    pub mount_instance: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// The most bytes that one call clones.
    pub chunk: u64,
    /// Inode number of the partial file; 0 until it is made.
    pub partial_ino: u64,
    /// Permission bits of the snapshot that is being refreshed.
    pub old_mode: u32,
    /// The process that runs the job.
    pub pid: u32,
    /// When it started, in ticks since boot.
    pub pid_start: u64,
    /// Absolute path of the image.
    pub image_path: Vec<u8>,
    /// Why the job is broken or interrupted.
    pub reason: String,
    /// The record of the snapshot that is being refreshed.
    pub old_record: Vec<u8>,
    /// The snapshots that are put into place with this one.
    pub group: Group,
}

/// A slot's fixed part as it lies on the disk; all numbers little-endian.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    generation: U64,
    job: [u8; 16],
    epoch: U64,
    state: u8,
    hold: u8,
    flags: u8,
    reserved: [u8; 5],
    t0_seconds: I64,
    t0_nanos: U32,
    old_mode: U32,
    dev: U64,
    ino: U64,
    subvolume: U64,
    inode_generation: U32,
    pid: U32,
    size: U64,
    ctime_ns: U128,
    fs: [u8; 16],
    boot: [u8; 16],
    mount_instance: U64,
    cluster: U64,
    chunk: U64,
    partial_ino: U64,
    pid_start: U64,
    path_len: U16,
    reason_len: U16,
    record_len: U16,
    group_len: U16,
}

const FIXED: usize = size_of::<Fixed>();
const _: () = assert!(FIXED == 208);
const _: () = assert!(FIXED + PATH_MAX + REASON_MAX + RECORD_MAX + GROUP_MAX <= SLOT);

const FLAG_REPLACE: u8 = 1;
const FLAG_WRITABLE: u8 = 2;
const FLAG_REFRESHES: u8 = 4;

/// One claim as it lies on the disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Claim {
    magic: U32,
    crc: U32,
    epoch: U64,
    start: U64,
    end: U64,
    /// The first half of the job's id: a claim of another job's journal, left in a reused block, does not count.
    job: [u8; 8],
}

const _: () = assert!(size_of::<Claim>() == CLAIM);

/// A journal that was read and checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// The newer valid header.
    pub header: Header,
    /// Its generation.
    pub generation: u64,
    /// The ranges claimed in this epoch, in the order of the log.
    pub claims: Vec<ByteRange>,
    /// Where the next claim goes.
    pub log_end: u64,
}

/// The bytes of one slot.
pub fn encode_slot(header: &Header, generation: u64) -> Vec<u8> {
    let cut = |bytes: &[u8], most: usize| bytes[..bytes.len().min(most)].to_vec();
    let path = cut(&header.image_path, PATH_MAX);
    let reason_end = (0..=header.reason.len().min(REASON_MAX)).rev().find(|&at| header.reason.is_char_boundary(at));
    let reason = cut(header.reason.as_bytes(), reason_end.unwrap_or(0));
    let record = cut(&header.old_record, RECORD_MAX);
    // Whoever makes a group has seen that it fits.
    let group = header.group.to_bytes().unwrap_or_default();
    // Rounded down, so that the nanoseconds are never negative.
    let t0 = header.t0.as_nanosecond();
    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
    let fixed = Fixed {
        magic: MAGIC,
        version: U32::new(VERSION),
        crc: U32::new(0),
        generation: U64::new(generation),
        job: header.job,
        epoch: U64::new(header.epoch),
        state: header.state.code(),
        hold: header.hold.code(),
        flags: flag(header.replace, FLAG_REPLACE)
            | flag(header.writable, FLAG_WRITABLE)
            | flag(header.refreshes, FLAG_REFRESHES),
        reserved: [0; 5],
        t0_seconds: I64::new(t0.div_euclid(1_000_000_000) as i64),
        t0_nanos: U32::new(t0.rem_euclid(1_000_000_000) as u32),
        old_mode: U32::new(header.old_mode),
        dev: U64::new(header.image.dev),
        ino: U64::new(header.image.ino),
        subvolume: U64::new(header.image.subvolume),
        inode_generation: U32::new(header.image.generation),
        pid: U32::new(header.pid),
        size: U64::new(header.image.size),
        ctime_ns: U128::new(header.image.ctime_ns.cast_unsigned()),
        fs: header.fs,
        boot: header.boot,
        mount_instance: U64::new(header.mount_instance),
        cluster: U64::new(header.cluster),
        chunk: U64::new(header.chunk),
        partial_ino: U64::new(header.partial_ino),
        pid_start: U64::new(header.pid_start),
        path_len: U16::new(path.len() as u16),
        reason_len: U16::new(reason.len() as u16),
        record_len: U16::new(record.len() as u16),
        group_len: U16::new(group.len() as u16),
    };
    let mut slot = Vec::with_capacity(SLOT);
    slot.extend_from_slice(fixed.as_bytes());
    slot.extend_from_slice(&path);
    slot.extend_from_slice(&reason);
    slot.extend_from_slice(&record);
    slot.extend_from_slice(&group);
    slot.resize(SLOT, 0);
    let crc = crc32c::crc32c(&slot).to_le_bytes();
    slot[12..16].copy_from_slice(&crc);
    slot
}

/// The bytes of one claim.
pub fn encode_claim(header: &Header, range: ByteRange) -> [u8; CLAIM] {
    let mut claim = Claim {
        magic: U32::new(CLAIM_MAGIC),
        crc: U32::new(0),
        epoch: U64::new(header.epoch),
        start: U64::new(range.start()),
        end: U64::new(range.end()),
        job: header.job[..8].try_into().expect("eight of sixteen bytes"),
    };
    claim.crc = U32::new(crc32c::crc32c(claim.as_bytes()));
    claim.as_bytes().try_into().expect("a claim has its size")
}

/// Reads a journal.
///
/// # Errors
/// What keeps it from being used; see [`FormatError`].
pub fn load(bytes: &[u8]) -> Result<Loaded, FormatError> {
    let slots = [slot(bytes, 0), slot(bytes, SLOT)];
    let newest = slots.iter().flatten().max_by_key(|(_, generation)| *generation);
    let Some((header, generation)) = newest.cloned() else {
        return Err(unusable(bytes));
    };
    let mut claims = Vec::new();
    let mut end = LOG;
    while let Some(claim) = bytes.get(end..end + CLAIM).and_then(|b| decode_claim(b, &header)) {
        if let Some(range) = claim {
            claims.push(range);
        }
        end += CLAIM;
    }
    Ok(Loaded { header, generation, claims, log_end: end as u64 })
}

/// Why there is no valid slot.
fn unusable(bytes: &[u8]) -> FormatError {
    // The magic is written and synced before anything else; a torn write of it has some of its bytes, and zeros.
    // Nothing longer counts: a stranger's file may begin with zeros.
    if bytes.len() <= MAGIC.len() && bytes.iter().zip(MAGIC).all(|(&b, m)| b == m || b == 0) {
        return FormatError::NeverBegun;
    }
    let slots = [0, SLOT].iter().filter_map(|&at| bytes.get(at..).filter(|b| b.starts_with(&MAGIC)));
    let mut ours = slots.peekable();
    if ours.peek().is_none() {
        return FormatError::Foreign;
    }
    let versions = ours.filter_map(|slot| Fixed::read_from_prefix(slot).ok()).map(|(fixed, _)| fixed.version.get());
    versions.filter(|&v| v > VERSION).max().map_or(FormatError::Damaged, FormatError::Version)
}

fn slot(bytes: &[u8], at: usize) -> Option<(Header, u64)> {
    let slot = bytes.get(at..at + SLOT)?;
    let (fixed, rest) = Fixed::read_from_prefix(slot).ok()?;
    let mut unsigned = slot.to_vec();
    unsigned[12..16].fill(0);
    if fixed.magic != MAGIC || fixed.version.get() != VERSION || crc32c::crc32c(&unsigned) != fixed.crc.get() {
        return None;
    }
    let (path, rest) = rest.split_at_checked(usize::from(fixed.path_len.get()))?;
    let (reason, rest) = rest.split_at_checked(usize::from(fixed.reason_len.get()))?;
    let (record, rest) = rest.split_at_checked(usize::from(fixed.record_len.get()))?;
    let (group, _) = rest.split_at_checked(usize::from(fixed.group_len.get()))?;
    if path.len() > PATH_MAX || reason.len() > REASON_MAX || record.len() > RECORD_MAX {
        return None;
    }
    let header = Header {
        job: fixed.job,
        epoch: fixed.epoch.get(),
        state: State::from_code(fixed.state)?,
        hold: HoldKind::from_code(fixed.hold)?,
        replace: fixed.flags & FLAG_REPLACE != 0,
        writable: fixed.flags & FLAG_WRITABLE != 0,
        refreshes: fixed.flags & FLAG_REFRESHES != 0,
        t0: Timestamp::new(fixed.t0_seconds.get(), i32::try_from(fixed.t0_nanos.get()).ok()?).ok()?,
        image: Image {
            dev: fixed.dev.get(),
            ino: fixed.ino.get(),
            generation: fixed.inode_generation.get(),
            subvolume: fixed.subvolume.get(),
            size: fixed.size.get(),
            ctime_ns: fixed.ctime_ns.get().cast_signed(),
        },
        fs: fixed.fs,
        boot: fixed.boot,
        mount_instance: fixed.mount_instance.get(),
        // A cluster that is no power of two would be a division by zero or a claim of the wrong bytes.
        cluster: Some(fixed.cluster.get()).filter(|c| c.is_power_of_two())?,
        chunk: fixed.chunk.get(),
        partial_ino: fixed.partial_ino.get(),
        old_mode: fixed.old_mode.get(),
        pid: fixed.pid.get(),
        pid_start: fixed.pid_start.get(),
        image_path: path.to_vec(),
        reason: String::from_utf8(reason.to_vec()).ok()?,
        old_record: record.to_vec(),
        group: Group::from_bytes(group)?,
    };
    Some((header, fixed.generation.get()))
}

/// `None`: no valid record. `Some(None)`: a valid one of another epoch of this job, or past the image's end.
fn decode_claim(bytes: &[u8], header: &Header) -> Option<Option<ByteRange>> {
    let mut claim = Claim::read_from_bytes(bytes).ok()?;
    let crc = claim.crc.get();
    claim.crc = U32::new(0);
    if claim.magic.get() != CLAIM_MAGIC || crc32c::crc32c(claim.as_bytes()) != crc || claim.job != header.job[..8] {
        return None;
    }
    let range = ByteRange::new(claim.start.get(), claim.end.get())?;
    Some((claim.epoch.get() == header.epoch && range.end() <= header.image.size).then_some(range))
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
