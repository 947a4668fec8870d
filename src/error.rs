//! Errors that a person reads and a script acts on: a small kind, what was attempted, what to do next, and the cause.

use std::fmt;
use std::io;

/// What an error means for whoever runs the program; each has an exit code (DESIGN section 8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The job failed; the hint says what is left and how to go on.
    Failed,
    /// The command line was wrong.
    Usage,
    /// Refused before anything was touched.
    Refused,
    /// Stopped with a checkpoint; can be resumed.
    Interrupted,
    /// Another job has the image or the snapshot.
    Busy,
    /// The point in time is lost, or the job is broken: there is no snapshot.
    Broken,
}

impl Kind {
    /// The highest exit code that the program gives; 7 is kept for an answer, "differs".
    pub const HIGHEST: u8 = 7;

    /// The process's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Refused => 3,
            Kind::Interrupted => 4,
            Kind::Busy => 5,
            Kind::Broken => 6,
        }
    }
}

/// An error with its kind, in words: what, on which path, why, and what to do.
#[derive(thiserror::Error, Debug)]
#[error("{what}{}", Cause(.source))]
pub struct Error {
    /// What it means.
    pub kind: Kind,
    /// What was attempted, on which path and range; what was found.
    pub what: String,
    /// What the user can do next.
    pub hint: String,
    /// What the kernel said.
    #[source]
    pub source: Option<io::Error>,
    /// Of a job of several images the one that it is about, by its place in the command; `None` where it is about all.
    pub member: Option<usize>,
}

struct Cause<'a>(&'a Option<io::Error>);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |e| write!(f, ": {e}"))
    }
}

impl Error {
    /// An error without a cause in the kernel.
    pub fn new(kind: Kind, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, what: what.into(), hint: hint.into(), source: None, member: None }
    }

    /// An error that a system call gave.
    pub fn io(kind: Kind, what: impl Into<String>, hint: impl Into<String>, source: io::Error) -> Self {
        Self { kind, what: what.into(), hint: hint.into(), source: Some(source), member: None }
    }

    /// The job was told to stop, and there is nothing of it to be kept.
    pub fn told_to_stop() -> Self {
        Self::new(Kind::Interrupted, "the job was told to stop", "run the same command again")
    }

    /// The same error, about one of several images; one that is about an image already stays as it is.
    #[must_use]
    pub fn of_member(self, index: usize) -> Self {
        Self { member: self.member.or(Some(index)), ..self }
    }

    /// The errno, where a system call gave the error.
    pub fn errno(&self) -> Option<i32> {
        self.source.as_ref()?.raw_os_error()
    }
}

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Does something for each of several images, in their order, until it fails for one; the error then names that one.
///
/// # Errors
/// The first one's.
pub fn each<I, T>(images: impl IntoIterator<Item = I>, mut work: impl FnMut(I) -> Result<T>) -> Result<Vec<T>> {
    images.into_iter().enumerate().map(|(index, image)| work(image).map_err(|e| e.of_member(index))).collect()
}
