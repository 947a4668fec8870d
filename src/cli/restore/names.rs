//! By which names the image can be had.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Place;
use crate::cli::words;
use crate::disk::real::directory_of;
use crate::disk::{Access, Disk, DiskFile, Stat};
use crate::engine::restore::{Found, Intent, Toward, look};
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

/// What keeps a restore from beginning, and where `--keep-current` has made a snapshot by then, that this is to be removed: the same command
/// would be refused for that alone.
pub(super) fn beside(place: &Place, kept: Option<&Path>, error: Error) -> Error {
    // Where it may have begun that one is the way back.
    let nothing = matches!(look(&place.disk, &place.names), Ok(Found::Nothing | Found::Foreign | Found::Anothers));
    match kept.filter(|kept| nothing && kept.symlink_metadata().is_ok()) {
        None => error,
        Some(kept) => {
            let hint = format!("{}; before that: rm {}, which --keep-current has made", error.hint, words::shell(kept));
            Error { hint, ..error }
        }
    }
}

/// Where the image itself is mounted, as into a container: that name leads to it whatever it is called. For each namespace that a process is in, and
/// that this user may look into (root: all), once; thousands of processes take some tens of milliseconds.
pub(super) fn mounted_at(place: &Place, image: &Stat) -> Option<PathBuf> {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    if let Some(at) = mounted_in("/proc/self", place, image) {
        return Some(at.strip_prefix("/proc/self/root").map_or(at.clone(), |it| Path::new("/").join(it)));
    }
    let mut seen: BTreeSet<PathBuf> = own.into_iter().collect();
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let processes = processes.filter(|path| path.file_name().is_some_and(|it| it.as_bytes()[0].is_ascii_digit()));
    processes
        .filter(|process| fs::read_link(process.join("ns/mnt")).is_ok_and(|namespace| seen.insert(namespace)))
        .find_map(|process| mounted_in(&process.to_string_lossy(), place, image))
}

/// The same in the namespace of one process; its paths are those of its root.
fn mounted_in(process: &str, place: &Place, image: &Stat) -> Option<PathBuf> {
    let mounts = fs::read(format!("{process}/mountinfo")).ok()?;
    let mut fields = mounts.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b' '));
    fields.find_map(|mut fields| {
        // See proc(5): the fourth is what is mounted, the fifth where.
        let (what, at) = (unescaped(fields.nth(3)?), unescaped(fields.next()?));
        // Only such are looked at: to look at a server that is gone would wait for it.
        Path::new(OsStr::from_bytes(&what)).file_name().filter(|name| *name == place.names.image)?;
        let at = [OsStr::new(process), OsStr::new("/root"), OsStr::from_bytes(&at)].into_iter().collect::<OsString>();
        let at = PathBuf::from(at);
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

/// Somebody has given the image another name in the middle of a restore, or has removed it.
pub(super) fn astray(place: &Place, intent: &Intent) -> Error {
    let names = [&place.names.image, place.names.aside(), place.names.source(), place.names.intent()];
    let [image, aside, source, file] = names.map(|name| words::shell(place.dir.join(name)));
    let what = format!(
        "a restore of {} was interrupted, and {} is gone",
        words::name(&place.names.image),
        words::name(place.names.aside())
    );
    // What it was to become.
    let from = match (intent.toward(), &intent.kept) {
        (Toward::Kept, Some(kept)) => words::shell(Path::new(OsStr::from_bytes(kept))),
        _ => source.clone(),
    };
    let hint = match place.disk.stat(&place.names.image) {
        Ok(None) => format!(
            "if it was renamed, it is a mixture that no VM may have: rename it back to {aside}, then 'rclone-img resume' ends the restore; if it \
             is lost: cp --reflink=always {from} {image} && chmod u+w {image}; give that its owner and mode, then rm {source} {file}"
        ),
        // By more than its number, which a file that was put there later may have as well.
        Ok(Some(there)) if there.regular && there.ino == intent.image.ino && is_image(place, intent) => format!(
            "it has its name again, and is a mixture that no VM may have: mv -n {image} {aside}; then 'rclone-img resume' ends the restore"
        ),
        // Nothing is to be advised that would overwrite it: it may be the only good one.
        _ => format!(
            "there is another {image} by now; if that is the good one: rm {source} {file}; if not, move it away and look with 'rclone-img status' \
             again; what was {aside} is a mixture that no VM may have"
        ),
    };
    Error::new(Kind::Refused, what, hint)
}

/// One that cannot be looked at may be it.
fn is_image(place: &Place, intent: &Intent) -> bool {
    let found = place.disk.open(&place.names.image, Access::Read).and_then(|file| file.stat());
    found.map_or(true, |found| found.id() == intent.image)
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
