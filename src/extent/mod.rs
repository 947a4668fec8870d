//! Block maps: what FIEMAP says of a file, as types, and the comparison of two of them.
//!
//! An [`Extent`] is one mapped run of a file; what no extent covers is a hole. [`segments`] makes holes explicit,
//! [`lockstep`] walks two maps side by side, [`delta`] decides what their difference proves. Pure: where the extents come
//! from is the caller's business, so the same code runs over the kernel's answers and the simulator's.

pub mod delta;
pub mod histogram;
pub mod lockstep;
pub mod segments;
pub mod walk;

use crate::range::ByteRange;

/// The flags of an extent, as FIEMAP gives them (`linux/fiemap.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct ExtentFlags(u32);

impl ExtentFlags {
    /// The file's last extent.
    pub const LAST: Self = Self(0x1);
    /// The location is not known.
    pub const UNKNOWN: Self = Self(0x2);
    /// Not allocated yet: delayed allocation.
    pub const DELALLOC: Self = Self(0x4);
    /// Compressed or otherwise encoded: the address is that of the whole encoded extent.
    pub const ENCODED: Self = Self(0x8);
    /// Not aligned to blocks.
    pub const NOT_ALIGNED: Self = Self(0x100);
    /// Data stored inside the metadata.
    pub const DATA_INLINE: Self = Self(0x200);
    /// A tail packed with other files' data.
    pub const DATA_TAIL: Self = Self(0x400);
    /// Preallocated, reads as zeros.
    pub const UNWRITTEN: Self = Self(0x800);
    /// Merged for the sake of the report.
    pub const MERGED: Self = Self(0x1000);
    /// Shared with another file.
    pub const SHARED: Self = Self(0x2000);

    /// Those whose address says nothing about the content (KERNEL.md, FIEMAP).
    const INCOMPARABLE: u32 = Self::UNKNOWN.0
        | Self::DELALLOC.0
        | Self::ENCODED.0
        | Self::NOT_ALIGNED.0
        | Self::DATA_INLINE.0
        | Self::DATA_TAIL.0
        | Self::UNWRITTEN.0
        | 0x80; // DATA_ENCRYPTED

    /// The flags from the kernel's number.
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The kernel's number.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// These without those of `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What tells of the place alone: not of who else has it, nor of the report.
    #[must_use]
    pub fn of_place(self) -> Self {
        self.without(Self::SHARED).without(Self::MERGED).without(Self::LAST)
    }

    /// Whether every flag of `other` is set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the physical address identifies the content.
    pub fn comparable(self) -> bool {
        self.0 & Self::INCOMPARABLE == 0
    }

    /// The flags without those that tell of the report rather than of the extent.
    fn essential(self) -> u32 {
        self.0 & !(Self::LAST.0 | Self::MERGED.0)
    }

    /// Whether both say the same of their extents.
    pub fn agree(self, other: Self) -> bool {
        self.essential() == other.essential()
    }
}

/// One mapped run of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Where in the file, in bytes.
    pub logical: ByteRange,
    /// Where on the file system's device (on Btrfs: in its logical address space), in bytes.
    pub physical: u64,
    /// What FIEMAP says of it.
    pub flags: ExtentFlags,
}
