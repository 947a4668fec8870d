//! Why a journal cannot be used, and what a user can do about it. Pure.

use super::format;

/// Why a journal cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// It was never completed, so no job ever began: empty, or a part of the magic alone.
    #[error("it was never completed")]
    NeverBegun,
    /// Neither slot is valid. Without a partial file no job ever began: its first write was torn.
    #[error("both of its headers are damaged")]
    Damaged,
    /// A version that this program does not know.
    #[error("it has format version {0}, and this program reads version {known}", known = format::VERSION)]
    Version(u32),
    /// Not a journal.
    #[error("it is not a journal of rclone-img")]
    Foreign,
}

impl FormatError {
    /// What a user can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Version(_) => "use the version of rclone-img that wrote it",
            Self::Foreign => "that file is not ours: move it away, or use another name for the snapshot",
            Self::NeverBegun => "run the same 'rclone-img snapshot' again: it starts over",
            Self::Damaged => {
                "'rclone-img snapshot --restart --force' starts over; 'rclone-img abort --force' removes the job's files"
            }
        }
    }
}
