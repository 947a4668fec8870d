//! By which names the image can be had.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Place;
use crate::cli::words;
use crate::disk::Stat;
use crate::disk::real::directory_of;
use crate::error::{Error, Kind, Result};

/// Whether what the image is now may be kept by this name.
pub(super) fn may_be(kept: &Path, place: &Place) -> Result<()> {
    let here = directory_of(kept).canonicalize().is_ok_and(|dir| dir == place.dir);
    match kept.file_name().filter(|name| here && place.names.taken().contains(name)) {
        None => Ok(()),
        Some(name) => {
            let what = format!("{} is a name that the restore itself needs", words::name(name));
            Err(Error::new(Kind::Refused, what, "choose another name for --keep-current"))
        }
    }
}

/// Where the image itself is mounted, as into a container: that name leads to it whatever it is called. Another namespace's mounts are not seen.
pub(super) fn mounted_at(place: &Place, image: &Stat) -> Option<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    let mut fields = mounts.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b' '));
    fields.find_map(|mut fields| {
        // See proc(5): the fourth is what is mounted, the fifth where.
        let (what, at) = (unescaped(fields.nth(3)?), unescaped(fields.next()?));
        // Only such are looked at: to look at a server that is gone would wait for it.
        Path::new(std::ffi::OsStr::from_bytes(&what)).file_name().filter(|name| *name == place.names.image)?;
        let at = PathBuf::from(std::ffi::OsStr::from_bytes(&at));
        let found = fs::metadata(&at).ok()?;
        (found.is_file() && (found.dev(), found.ino()) == (image.dev, image.ino)).then_some(at)
    })
}

/// Space, tab, newline and backslash are written as octal numbers there.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((first, others)) = rest.split_first() {
        let code = others.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &others[3..] } else { others };
    }
    bytes
}

/// Somebody has given the image another name in the middle of a restore.
pub(super) fn astray(place: &Place) -> Error {
    let [image, aside] = [&place.names.image, place.names.aside()].map(words::name);
    let what = format!("a restore of {image} was interrupted, and {aside} is gone");
    let hint = format!(
        "if it was renamed, it is a mixture that no VM may have: rename it back to {aside}, then 'rclone-img resume' ends the restore; if it \
         is lost: 'cp --reflink=always {} {image}', then remove {} and {}",
        words::name(place.names.source()),
        words::name(place.names.source()),
        words::name(place.names.intent()),
    );
    Error::new(Kind::Refused, what, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_as_numbers_is_read() {
        let check = |field: &str, expect: &str| assert_eq!(unescaped(field.as_bytes()), expect.as_bytes());
        check("/a", "/a");
        check("/a\\040b\\134\\011", "/a b\\\t");
        check("/a\\04", "/a\\04");
        check("", "");
    }
}
