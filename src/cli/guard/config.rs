//! What is to be armed: from the command line, and from `--config FILE`.
//!
//! A line of the file is an absolute path, to the line's end; or `file-system` and such a path; or a comment that
//! begins with `#`. Blanks around a line do not count; there is no quoting, and a `#` within a path is part of it.
//! Reading a text is pure.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::args::GuardArgs;
use crate::cli::words;
use crate::error::{Error, Kind, Result};
use crate::hold::arm::Reach;

/// The largest file that is read: more than ten thousand paths.
const LIMIT: u64 = 1 << 20;

/// What a line may be.
const LINE: &str = "a line is an absolute path, or 'file-system' and one, or a comment that begins with #";

/// A path that is to be armed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Target {
    /// Absolute.
    pub path: PathBuf,
    /// How far.
    pub reach: Reach,
}

/// Where the targets come from; reading it again may give others.
pub struct Source {
    fixed: Vec<Target>,
    file: Option<PathBuf>,
}

impl Source {
    /// Takes the command line's paths as those below the current directory, once and for all.
    ///
    /// # Errors
    /// Where there is no current directory.
    pub fn new(args: &GuardArgs) -> Result<Self> {
        let reaches = [(&args.paths, Reach::Path), (&args.file_systems, Reach::FileSystem)];
        let all = reaches.into_iter().flat_map(|(paths, reach)| paths.iter().map(move |path| (path, reach)));
        let target = |(path, reach): (&PathBuf, Reach)| Ok(Target { path: absolute(path)?, reach });
        let file = args.config.as_deref().map(absolute).transpose()?;
        Ok(Self { fixed: all.map(target).collect::<Result<_>>()?, file })
    }

    /// The targets, each once, those of the command line first.
    ///
    /// # Errors
    /// Refused where the file cannot be read or names nothing; usage where a line is none of those it may be.
    pub fn read(&self) -> Result<Vec<Target>> {
        let mut targets = self.fixed.clone();
        if let Some(file) = &self.file {
            targets.extend(lines_of(file)?);
        }
        let mut seen = std::collections::BTreeSet::new();
        targets.retain(|target| seen.insert(target.clone()));
        Ok(targets)
    }
}

fn absolute(path: impl AsRef<Path>) -> Result<PathBuf> {
    let path = path.as_ref();
    std::path::absolute(path).map_err(|e| {
        Error::io(Kind::Refused, format!("cannot tell where {} is", words::name(path)), "give an absolute path", e)
    })
}

fn lines_of(file: &Path) -> Result<Vec<Target>> {
    let name = words::name(file);
    let cannot = |e| {
        Error::io(
            Kind::Refused,
            format!("cannot read the configuration {name}"),
            "check the path and its permissions",
            e,
        )
    };
    let mut text = Vec::new();
    File::open(file).and_then(|f| f.take(LIMIT + 1).read_to_end(&mut text)).map_err(cannot)?;
    if text.len() as u64 > LIMIT {
        let what = format!("the configuration {name} has more than {}", words::bytes(LIMIT));
        return Err(Error::new(Kind::Refused, what, "arm directories or a file system instead of single files"));
    }
    let targets =
        parse(&text).map_err(|(line, why)| Error::new(Kind::Usage, format!("{name}, line {line}: {why}"), LINE))?;
    if targets.is_empty() {
        return Err(Error::new(Kind::Refused, format!("the configuration {name} names nothing to arm"), LINE));
    }
    Ok(targets)
}

/// The targets that a text names; else the number of the first bad line, counted from 1, and what is wrong with it.
fn parse(text: &[u8]) -> std::result::Result<Vec<Target>, (usize, String)> {
    let mut targets = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let (path, reach) = match line.strip_prefix(b"file-system") {
            Some(rest) if rest.first().is_none_or(u8::is_ascii_whitespace) => (rest.trim_ascii(), Reach::FileSystem),
            _ => (line, Reach::Path),
        };
        let bad = |why: &str| (index + 1, why.to_owned());
        match path {
            [] => return Err(bad("no path after 'file-system'")),
            path if path.contains(&0) => return Err(bad("a path has no NUL byte")),
            [b'/', ..] => targets.push(Target { path: PathBuf::from(OsStr::from_bytes(path)), reach }),
            _ => return Err(bad(&format!("{} is no absolute path", words::name(OsStr::from_bytes(path))))),
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::{OsStr, OsStrExt, PathBuf, Reach, parse};

    fn check(text: &[u8], expect: &[(&[u8], Reach)]) {
        let targets = parse(text).expect("a good file");
        let expect: Vec<_> =
            expect.iter().map(|(path, reach)| (PathBuf::from(OsStr::from_bytes(path)), *reach)).collect();
        assert_eq!(targets.into_iter().map(|t| (t.path, t.reach)).collect::<Vec<_>>(), expect);
    }

    #[test]
    fn a_line_is_a_path_to_its_end() {
        check(b"", &[]);
        check(b"# a comment\n\n  \t# another\n", &[]);
        check(b"/vm.img", &[(b"/vm.img", Reach::Path)]);
        check(b"  /my vm #1.img \r\n/b\n", &[(b"/my vm #1.img", Reach::Path), (b"/b", Reach::Path)]);
        check(b"file-system /srv\nfile-system\t/a b\n", &[(b"/srv", Reach::FileSystem), (b"/a b", Reach::FileSystem)]);
        check(b"/\xff\n/file-system /x", &[(b"/\xff", Reach::Path), (b"/file-system /x", Reach::Path)]);
    }

    #[test]
    fn a_bad_line_is_told_by_its_number() {
        let check = |text: &[u8], line: usize, why: &str| assert_eq!(parse(text), Err((line, why.to_owned())));
        check(b"/a\n\nvm.img", 3, "vm.img is no absolute path");
        check(b"file-system", 1, "no path after 'file-system'");
        check(b"file-system  \n", 1, "no path after 'file-system'");
        check(b"file-system srv", 1, "srv is no absolute path");
        check(b"file-systems /srv", 1, "file-systems /srv is no absolute path");
        check(b"#\n/a\0b", 2, "a path has no NUL byte");
        check(b"\"/a\"", 1, "\"/a\" is no absolute path");
    }
}
