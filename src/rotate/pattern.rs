//! Names that carry a time: a directory, and a file name with the conversions of strftime(3).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use jiff::Zoned;
use jiff::fmt::strtime::BrokenDownTime;

use crate::disk::real::directory_of;

/// A pattern.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern {
    /// The directory; taken as it is.
    pub dir: PathBuf,
    name: String,
}

impl Pattern {
    /// A pattern, tried at this time.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn new(path: &Path, now: &Zoned) -> Result<Self, String> {
        let name = path.file_name().and_then(OsStr::to_str).ok_or("its last component must be a name, in UTF-8")?;
        let dir = directory_of(path);
        let pattern = Self { dir: dir.to_owned(), name: name.to_owned() };
        let made = pattern.name_at(now)?;
        if made == name {
            return Err("it has no time in it, like %Y%m%dT%H%M%S%z, and each snapshot needs a name of its own".into());
        }
        if made.contains('/') {
            return Err("it makes names with a '/' in them".into());
        }
        if !pattern.matches(&made) {
            return Err(format!("a name that it makes, '{made}', could not be told from others later"));
        }
        Ok(pattern)
    }

    /// The name of a snapshot of this time.
    ///
    /// # Errors
    /// What is wrong with the pattern, in words.
    pub fn name_at(&self, time: &Zoned) -> Result<String, String> {
        let mut name = String::new();
        BrokenDownTime::from(time).format(&self.name, &mut name).map_err(|e| e.to_string())?;
        Ok(name)
    }

    /// Whether a name may have been made by it: the time that it has, if it has one, makes the same name again. Reading is more lenient, and
    /// takes a sign, or spaces for zeros.
    pub fn matches(&self, name: &str) -> bool {
        let Ok(time) = BrokenDownTime::parse(&self.name, name) else { return false };
        let years = [time.year(), time.iso_week_year()];
        // Before there were any snapshots, whose names have no sign.
        if years.into_iter().flatten().any(|it| it < 0) || time.timestamp().is_some_and(|it| it.as_second() < 0) {
            return false;
        }
        let mut again = String::new();
        // Some times that can be read do not have all that they are written with.
        time.format(&self.name, &mut again).is_err() || again == name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_makes_names_that_it_knows_again() {
        let now: Zoned = "2026-03-04T05:06:07+01:00[+01:00]".parse().expect("a time");
        let check = |path: &str, expect: Option<(&str, &str)>| {
            let pattern = Pattern::new(Path::new(path), &now);
            let made = pattern.as_ref().ok().map(|it| (it.dir.to_str().expect("text").to_owned(), it.name_at(&now)));
            let expect = expect.map(|(dir, name)| (dir.to_owned(), Ok(name.to_owned())));
            assert_eq!(made, expect, "{path}: {pattern:?}");
        };
        check("/b/vm-%Y%m%dT%H%M%S%z.snap", Some(("/b", "vm-20260304T050607+0100.snap")));
        check("%F-%s", Some((".", "2026-03-04-1772597167")));
        check("/b%Y/vm-%j-%Y", Some(("/b%Y", "vm-063-2026")));
        for wrong in ["vm.snap", "/b/%Y/vm.snap", "/b/..", "vm-%", "vm-%\u{e9}", "vm-%D"] {
            check(wrong, None);
        }
        let pattern = Pattern::new(Path::new("vm-%Y%m%d.snap"), &now).expect("a pattern");
        assert_eq!(
            ["vm-20260101.snap", "vm-2026010.snap", "vm-20260101.snap.partial", "wm-20260101.snap", "vm-20261301.snap"]
                .map(|name| pattern.matches(name)),
            [true, false, false, false, false]
        );
        for other in ["vm-2026 1 1.snap", "vm-+20260101.snap", "vm--20260101.snap", "vm-002026101.snap"] {
            assert!(!pattern.matches(other), "{other}");
        }
        assert!(!Pattern::new(Path::new("x-%s"), &now).expect("a pattern").matches("x--5"));
        // What is read back is not all that was written.
        let known = [
            "x-%-d-%-H",
            "x-%e-%H",
            "x-%A-%F",
            "x-%y%j",
            "x-%G-W%V-%u",
            "x-%I%p-%F",
            "x-%s",
            "x-%F-%::z",
            "x-%b %d %Y",
            "x-%T%.f-%F",
        ];
        for path in known {
            let pattern = Pattern::new(Path::new(path), &now).expect(path);
            let made = pattern.name_at(&now).expect(path);
            assert!(pattern.matches(&made), "{path}: {made}");
        }
    }
}
