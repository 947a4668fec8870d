//! The names of a job's files, all in one directory.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::error::{Error, Kind, Result};

/// Suffix of the work in progress.
pub const PARTIAL: &str = ".partial";

/// Suffix of the journal.
pub const JOURNAL: &str = ".journal";

/// NAME_MAX of Linux: bytes in a name.
const NAME_MAX: usize = 255;

/// The three names that a job uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    /// The snapshot.
    pub dst: OsString,
    /// The work in progress.
    pub partial: OsString,
    /// The journal.
    pub journal: OsString,
}

impl Names {
    /// The names for a snapshot called `dst`, a single component.
    ///
    /// # Errors
    /// Refused where a name would be too long for the file system, or is one that a job uses itself.
    pub fn new(dst: &OsStr) -> Result<Self> {
        let with = |suffix: &str| {
            let mut name = dst.to_owned();
            name.push(suffix);
            name
        };
        let names = Self { dst: dst.to_owned(), partial: with(PARTIAL), journal: with(JOURNAL) };
        if [PARTIAL, JOURNAL].iter().any(|s| dst.as_bytes().ends_with(s.as_bytes())) {
            return Err(Error::new(
                Kind::Refused,
                format!("a snapshot's name cannot end in '{PARTIAL}' or '{JOURNAL}': those are a job's own files"),
                "use another name",
            ));
        }
        let longest = names.partial.len().max(names.journal.len());
        if longest > NAME_MAX {
            let most = NAME_MAX - (longest - dst.len());
            return Err(Error::new(
                Kind::Refused,
                format!("the snapshot's name is {} bytes long; with '{PARTIAL}' it would not fit", dst.len()),
                format!("use a name of at most {most} bytes"),
            ));
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_suffixes_and_a_bound() {
        let names = Names::new(OsStr::new("vm.snap")).expect("short");
        assert_eq!(
            (names.partial.to_str(), names.journal.to_str()),
            (Some("vm.snap.partial"), Some("vm.snap.journal"))
        );
        let long = "x".repeat(247);
        Names::new(OsStr::new(&long)).expect("fits");
        for taken in ["vm.snap.partial", "vm.snap.journal"] {
            assert_eq!(Names::new(OsStr::new(taken)).expect_err("a job's own").kind, Kind::Refused);
        }
        let longer = "x".repeat(248);
        assert_eq!(Names::new(OsStr::new(&longer)).expect_err("too long").kind, Kind::Refused);
    }
}
