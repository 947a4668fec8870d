//! Holds: the means by which every byte not yet cloned stays as it was at T0 (DESIGN section 4).
//!
//! A hold goes through [`Hold::prepare`] (everything that can be refused, nothing touched), [`Hold::begin`] (T0),
//! [`Hold::demand`] after every call, and [`Hold::end`]. The engine is the same for all of them; what differs is the order
//! in which a claim is journalled ([`Order`]) and what the hold demands between two calls.

pub mod holders;

/// Which hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldKind {
    /// Nobody has the image open for writing, and a lease keeps it so.
    Frozen,
    /// One call for the whole file.
    Atomic,
    /// Nothing keeps the image still: not a point in time.
    None,
}

impl HoldKind {
    /// All kinds that are built.
    pub const ALL: [Self; 3] = [Self::Frozen, Self::Atomic, Self::None];

    /// The name on the command line, in the journal's words and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Atomic => "atomic",
            Self::None => "none",
        }
    }

    /// The number in the journal and in the record; never reused.
    pub fn code(self) -> u8 {
        match self {
            Self::Frozen => 1,
            Self::Atomic => 2,
            Self::None => 3,
        }
    }

    /// The kind of a number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.code() == code)
    }

    /// Whether a snapshot under this hold is of one instant.
    pub fn point_in_time(self) -> bool {
        self != Self::None
    }

    /// Whether a guest may be using the image while the job runs: decides the default of `--latency`.
    pub fn has_guests(self) -> bool {
        self != Self::Frozen
    }
}
