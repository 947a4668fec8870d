//! The holds by name and number, and what is true of each. Pure: the journal and the reports speak of holds by these.

/// Which hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldKind {
    /// Nobody has the image open for writing, and a lease keeps it so.
    Frozen,
    /// Accesses to the image wait until what they may change is cloned.
    Guard,
    /// Writes go through a server, where they wait until what they may change is cloned.
    Filter,
    /// One call for the whole file.
    Atomic,
    /// Nothing keeps the image still: not a point in time.
    None,
}

impl HoldKind {
    /// All kinds that are built.
    pub const ALL: [Self; 5] = [Self::Frozen, Self::Guard, Self::Filter, Self::Atomic, Self::None];

    /// The name on the command line, in the journal's words and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Guard => "guard",
            Self::Filter => "filter",
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
            Self::Guard => 4,
            Self::Filter => 5,
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

    /// Whether the whole image has to be cloned by a single call.
    pub fn one_call(self) -> bool {
        self == Self::Atomic
    }

    /// Whether a T0 can outlive the run that set it, for a later run to go on with.
    pub fn keeps_t0(self) -> bool {
        !matches!(self, Self::Atomic | Self::Guard | Self::Filter)
    }

    /// Whether somebody's accesses wait for the job from T0 on: nothing then waits for a disk that need not.
    pub fn answers_accesses(self) -> bool {
        matches!(self, Self::Guard | Self::Filter)
    }

    /// Whether the kernel has them wait for this very process, which therefore is one of its own, with a supervisor.
    pub fn wants_a_worker(self) -> bool {
        self == Self::Guard
    }

    /// Whether a guest may be using the image while the job runs: decides the default of `--latency` and the pacing.
    pub fn has_guests(self) -> bool {
        self != Self::Frozen
    }
}
