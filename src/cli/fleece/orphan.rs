//! Fleeces that no server has: what `status` says of them, and how `abort` removes them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::service::log::with_path;
use crate::cli::{json, words};
use crate::disk::real::open_itself;
use crate::error::{Error, Kind, Result};
use crate::serve::fleece::files::{self, DATA, MAP};
use crate::serve::fleece::format::Header;
use crate::serve::fleece::map::{Map, read_header};

/// A map of a fleece.
pub struct Found {
    path: PathBuf,
    header: Header,
    /// Whether a server has it.
    live: bool,
}

/// Whether a path is called as a map is.
pub fn is_map(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().ends_with(MAP.as_bytes()))
}

/// The map at a path, or beside the file with the data at that path; none where it is not called as one, or is none.
pub fn at(path: &Path) -> Option<Found> {
    let name = path.file_name()?.as_bytes();
    let stem = [DATA, MAP].iter().find_map(|ending| name.strip_suffix(ending.as_bytes()))?;
    let path = &path.with_file_name(OsStr::from_bytes(&[stem, MAP.as_bytes()].concat()));
    let file = open_itself(path, false).ok()?;
    let header = read_header(&file).ok()??;
    // Given back with the file.
    let live = matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock));
    Some(Found { path: path.to_owned(), header, live })
}

impl Found {
    /// 0 where a server has it, 4 where the next one may take it up, 6 where it is lost.
    pub fn exit_code(&self) -> u8 {
        match (&self.header.broken, self.live) {
            (Some(_), _) => Kind::Broken.exit_code(),
            (None, true) => 0,
            (None, false) => Kind::Interrupted.exit_code(),
        }
    }

    /// A line.
    pub fn person(&self) -> String {
        let (name, shell, image) = (words::name(&self.path), words::shell(&self.path), self.image());
        let of = format!("fleece of {}, T0 {:.0}", words::name(&image), self.header.t0);
        let next = match (&self.header.broken, self.live) {
            (Some(why), true) => {
                let end = format!("rclone-img fleece stop {} --name {}", words::shell(&image), self.header.name);
                format!("lost: {}; {end} removes it", words::line(why))
            }
            (Some(why), false) => format!("lost: {}; rclone-img abort {shell} removes it", words::line(why)),
            (None, true) => format!("its server has it: rclone-img fleece list {}", words::shell(&image)),
            (None, false) => format!(
                "no server has it: the next one of the image takes it up if nobody has written since, or rclone-img abort \
                 {shell} removes it"
            ),
        };
        format!("{name}: {of}; {next}\n")
    }

    /// An object.
    pub fn object(&self) -> Value {
        let state = if self.live { "running" } else { "orphaned" };
        let object = json!({
            "v": json::VERSION, "event": "status", "state": format!("fleece-{state}"), "name": self.header.name,
            "t0": self.header.t0.to_string(), "base": self.header.base, "bytes": self.header.size,
            "durable": self.header.terms.durable, "reason": self.header.broken.clone().unwrap_or_default(),
        });
        with_path(with_path(object, "dst", &self.path), "src", &self.image())
    }

    /// Removes it, with what it has kept.
    ///
    /// # Errors
    /// Busy where a server has it.
    pub fn remove(&self) -> Result<()> {
        let name = words::name(&self.path);
        let cannot =
            |e| Error::io(Kind::Failed, format!("cannot remove {name}"), "check the directory's permissions", e);
        let busy = || {
            let hint = format!("rclone-img fleece stop {} --name {}", words::shell(self.image()), self.header.name);
            Error::new(Kind::Busy, format!("{name}: a server has it"), hint)
        };
        let image = fs::metadata(self.image()).ok();
        let mark = |header: &Header| files::mark(image.as_ref()?.dev(), image.as_ref()?.ino(), &header.name);
        let map = match Map::open(&self.path, mark) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Err(busy()),
            other => other.map_err(cannot)?,
        };
        let Some(map) = map else { return Ok(()) };
        // Nothing else is removed, whatever the map says: a copy of it names the file of the other one.
        let header = map.header().clone();
        files::remove_data(&header).map_err(cannot)?;
        map.remove();
        Ok(())
    }

    fn image(&self) -> PathBuf {
        self.header.image_path().unwrap_or_default()
    }
}
