//! Fleeces that no server has: what `status` says of them, and how `abort` removes them; `fleece list` and `fleece stop` those that are lost.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cli::service::log::with_path;
use crate::cli::{json, words};
use crate::disk::DiskFile;
use crate::disk::real::{RealFile, open_itself};
use crate::error::{Error, Kind, Result};
use crate::record::ImageId;
use crate::serve::fleece::all::is_name;
use crate::serve::fleece::files::{self, DATA, MAP};
use crate::serve::fleece::format::Header;
use crate::serve::fleece::map::{Content, Map, read};

/// What is called as a map of a fleece is.
pub struct Found {
    path: PathBuf,
    what: What,
    /// Whether a server has it.
    live: bool,
}

enum What {
    Map(Box<Header>),
    /// A copy of one: what is kept is not its own.
    Copy(Box<Header>),
    /// What cannot be read.
    Damaged,
}

/// Whether a path is called as a map is.
pub fn is_map(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().ends_with(MAP.as_bytes()))
}

/// The map at a path, or beside the file with the data at that path; none where it is not called as one, or was never one.
pub fn at(path: &Path) -> Option<Found> {
    let path = &beside(path, MAP)?;
    let file = open_itself(path, false).ok()?;
    let what = match read(&file).ok()? {
        Content::Map(header) => {
            let own = RealFile::from(file.try_clone().ok()?).stat().ok()?.id();
            if header.is_of(path, own) { What::Map(header) } else { What::Copy(header) }
        }
        Content::Damaged => What::Damaged,
        Content::Foreign => return None,
    };
    // Given back with the file.
    let live = matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock));
    Some(Found { path: path.to_owned(), what, live })
}

/// The file of the same fleece whose name ends like this.
fn beside(path: &Path, ending: &str) -> Option<PathBuf> {
    let name = path.file_name()?.as_bytes();
    let stem = [DATA, MAP].iter().find_map(|ending| name.strip_suffix(ending.as_bytes()))?;
    Some(path.with_file_name(OsStr::from_bytes(&[stem, ending.as_bytes()].concat())))
}

/// A fleece that is lost, and that no server has taken up.
pub struct Lost {
    /// Its name.
    pub name: String,
    /// Its T0, where its map tells.
    pub t0: Option<Timestamp>,
    /// Why.
    pub why: String,
    /// Its files.
    pub found: Found,
}

/// Those of an image, by their names.
///
/// # Errors
/// Where its directory cannot be read.
pub fn lost(image: &Path) -> io::Result<Vec<Lost>> {
    let path = image.canonicalize()?;
    let (dir, file) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?.file_name();
        let name = entry.as_bytes().strip_prefix(file.as_bytes()).and_then(|it| it.strip_prefix(b"."));
        let name = name.and_then(|it| it.strip_suffix(MAP.as_bytes())).and_then(|it| str::from_utf8(it).ok());
        let Some(name) = name.filter(|it| is_name(it)) else { continue };
        let Some(found) = at(&dir.join(&entry)).filter(|found| !found.live) else { continue };
        // An image whose name begins with this one's may be beside it, or another one have had its name. It is opened where it must be.
        let is = RealFile::open_image(&path)?.stat()?.id();
        all.extend(Some(found).filter(|found| found.is_of(is)).and_then(|found| found.lost(name)));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

impl Found {
    /// Whether its map says that it is of this image; of one that cannot be read nobody knows.
    fn is_of(&self, image: ImageId) -> bool {
        matches!(&self.what, What::Map(header) | What::Copy(header) if header.image == image)
    }

    fn lost(self, name: &str) -> Option<Lost> {
        let (t0, why) = match &self.what {
            What::Map(header) => (Some(header.t0), header.broken.clone()?),
            What::Copy(header) => (None, format!("it is a copy of the map of the fleece {}", header.name)),
            What::Damaged => return None,
        };
        Some(Lost { name: name.into(), t0, why, found: self })
    }

    /// 0 where a server has it, 4 where the next one may take it up, 6 where it is lost.
    pub fn exit_code(&self) -> u8 {
        match &self.what {
            What::Map(header) if header.broken.is_none() && self.live => 0,
            What::Map(header) if header.broken.is_none() => Kind::Interrupted.exit_code(),
            What::Map(_) | What::Copy(_) | What::Damaged => Kind::Broken.exit_code(),
        }
    }

    /// A line.
    pub fn person(&self) -> String {
        let (name, shell) = (words::name(&self.path), words::shell(&self.path));
        let of = |header: &Header| {
            let image = words::name(header.image_path().unwrap_or_default());
            format!("fleece of {image}, T0 {:.0}", header.t0)
        };
        match &self.what {
            What::Map(header) => format!("{name}: {}; {}\n", of(header), self.next(header)),
            What::Copy(header) => format!(
                "{name}: a copy of the map of a {}, or it has another name; rclone-img abort {shell} removes it, and nothing else\n",
                of(header)
            ),
            What::Damaged => format!(
                "{name}: the map of a fleece, which is lost: it is damaged, or of another version; rclone-img abort {shell} removes it\n"
            ),
        }
    }

    /// How a map stands, and what to do.
    fn next(&self, header: &Header) -> String {
        let (shell, image) = (words::shell(&self.path), words::shell(header.image_path().unwrap_or_default()));
        match (&header.broken, self.live) {
            (Some(why), true) => {
                let end = format!("rclone-img fleece stop {image} --name {}", header.name);
                format!("lost: {}; {end} removes it", words::line(why))
            }
            (Some(why), false) => format!("lost: {}; rclone-img abort {shell} removes it", words::line(why)),
            (None, true) => format!("its server has it: rclone-img fleece list {image}"),
            (None, false) => format!(
                "no server has it: the next one of the image takes it up if nobody has written since, or rclone-img abort \
                 {shell} removes it"
            ),
        }
    }

    /// An object.
    pub fn object(&self) -> Value {
        let header = match &self.what {
            What::Map(header) => header,
            What::Copy(header) => {
                return self.unusable("fleece-copy", &format!("it is a copy of the map of the fleece {}", header.name));
            }
            What::Damaged => return self.unusable("fleece-damaged", "it is damaged, or of another version"),
        };
        let state = if self.live { "running" } else { "orphaned" };
        let object = json!({
            "v": json::VERSION, "event": "status", "state": format!("fleece-{state}"), "name": header.name,
            "t0": header.t0.to_string(), "base": header.base, "bytes": header.size,
            "durable": header.terms.durable, "reason": header.broken.clone().unwrap_or_default(),
        });
        with_path(with_path(object, "dst", &self.path), "src", &header.image_path().unwrap_or_default())
    }

    fn unusable(&self, state: &str, reason: &str) -> Value {
        let object = json!({"v": json::VERSION, "event": "status", "state": state, "reason": reason});
        with_path(object, "dst", &self.path)
    }

    /// Removes it, with what it has kept; what was done, in words.
    ///
    /// # Errors
    /// Busy where a server has it.
    pub fn remove(&self) -> Result<String> {
        let header = match &self.what {
            What::Map(header) => header,
            What::Copy(_) => {
                fs::remove_file(&self.path).map_err(|e| self.cannot(e))?;
                return Ok(
                    "the copy is gone; the fleece that it was copied from, and what that has kept, is as it was".into(),
                );
            }
            What::Damaged => return self.remove_damaged(),
        };
        let map = match Map::open(&self.path) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                let image = words::shell(header.image_path().unwrap_or_default());
                return Err(self.busy(format!("rclone-img fleece stop {image} --name {}", header.name)));
            }
            other => other.map_err(|e| self.cannot(e))?,
        };
        if let Some(map) = map {
            let now = map.header().clone();
            // Another one may have been begun since, and its server killed.
            if now.id != header.id {
                return Err(self.busy("rclone-img status".into()));
            }
            let header = now;
            files::remove_data(&header, None).map_err(|e| match e.raw_os_error() {
                // The map stays: nothing else tells where that is.
                Some(libc::EBUSY) => self.unanswered(&header),
                _ => self.cannot(e),
            })?;
            map.remove();
        }
        Ok("the fleece and what it had kept are gone; 'rclone-img fleece start' begins a new one".into())
    }

    /// Nobody knows any more where its data is.
    fn remove_damaged(&self) -> Result<String> {
        if self.live {
            return Err(self.busy("rclone-img fleece list IMAGE, and fleece stop".into()));
        }
        fs::remove_file(&self.path).map_err(|e| self.cannot(e))?;
        let data = beside(&self.path, DATA).unwrap_or_default();
        Ok(format!(
            "the damaged map is gone; what the fleece had kept may be left in {}, or in a file of that name in the directory that \
             --sidecar named: remove it",
            words::name(&data)
        ))
    }

    fn cannot(&self, e: io::Error) -> Error {
        let what = format!("cannot remove {}", words::name(&self.path));
        Error::io(Kind::Failed, what, "check the directory's permissions", e)
    }

    fn unanswered(&self, header: &Header) -> Error {
        let data = words::name(header.data_path().unwrap_or_default());
        let what = format!("{}: a server still waits for the disk of {data}", words::name(&self.path));
        let hint =
            "run the same command again when that disk answers, or when that server has ended; nothing was removed";
        Error::new(Kind::Busy, what, hint)
    }

    fn busy(&self, hint: String) -> Error {
        Error::new(Kind::Busy, format!("{}: a server has it", words::name(&self.path)), hint)
    }
}
