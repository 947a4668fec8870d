//! One access, in two words.

/// What it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A read of 4 KiB.
    Read = 1,
    /// A write of 4 KiB.
    Write = 2,
    /// A flush of the image.
    Flush = 3,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Flush];

    /// As the JSON line has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
        }
    }
}

/// An access: its start in ns of the clock, then its kind (bits 62 and 63), whether it failed (bit 61), and how many ns it took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access([u64; 2]);

const KIND: u32 = 62;
const FAILED: u64 = 1 << 61;

impl Access {
    /// An access that took so long.
    pub fn new(kind: Kind, start: u64, took: u64, failed: bool) -> Self {
        let failed = if failed { FAILED } else { 0 };
        Self([start, (kind as u64) << KIND | failed | took.min(FAILED - 1)])
    }

    /// The words.
    pub fn words(self) -> [u64; 2] {
        self.0
    }

    /// From the words; `None` where no access was logged.
    pub fn from_words(words: [u64; 2]) -> Option<Self> {
        (words[1] >> KIND != 0).then_some(Self(words))
    }

    /// What it was.
    pub fn kind(self) -> Kind {
        match self.0[1] >> KIND {
            1 => Kind::Read,
            2 => Kind::Write,
            _ => Kind::Flush,
        }
    }

    /// When it began, in ns of the clock.
    pub fn start(self) -> u64 {
        self.0[0]
    }

    /// How long it took, in ns.
    pub fn took(self) -> u64 {
        self.0[1] & (FAILED - 1)
    }

    /// When it had ended, in ns of the clock.
    pub fn end(self) -> u64 {
        self.start().saturating_add(self.took())
    }

    /// Whether it failed.
    pub fn failed(self) -> bool {
        self.0[1] & FAILED != 0
    }
}
