//! What `/proc/PID/fdinfo/N` says. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Files of an io_uring looked at: a bound for what others decide.
const MOST_LINES: usize = 1 << 20;

/// What it says.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct FdInfo {
    /// The descriptor is open for writing.
    pub writable: bool,
    /// The file's inode number (Linux 5.14).
    pub ino: Option<u64>,
    /// It is an io_uring's, and was told in full: else the ring was at work, and its files are not told.
    pub ring: bool,
    /// Paths of an io_uring's registered files.
    pub registered: Vec<PathBuf>,
}

impl FdInfo {
    /// From the file's bytes, which are text but for the paths.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut info = Self::default();
        let mut files = false;
        for line in bytes.split(|b| *b == b'\n').take(MOST_LINES) {
            let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
            let (key, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
            let text = std::str::from_utf8(value).unwrap_or_default();
            match key {
                b"flags" => {
                    let flags = libc::c_int::from_str_radix(text, 8).unwrap_or(0);
                    let mode = flags & libc::O_ACCMODE;
                    info.writable = flags & libc::O_PATH == 0 && (mode == libc::O_WRONLY || mode == libc::O_RDWR);
                }
                b"ino" => info.ino = text.parse().ok(),
                b"UserFiles" => files = true,
                b"UserBufs" => files = false,
                // Told by every kernel that has got the ring's lock, and by none that has not.
                b"PollList" => info.ring = true,
                slot if files && value.starts_with(b"/") && slot.iter().all(u8::is_ascii_digit) => {
                    info.registered.push(unescaped(value));
                }
                _ => {}
            }
        }
        info
    }
}

/// A path as the kernel writes it into such files: blanks and backslashes as three octal digits (seq_file_path).
fn unescaped(text: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| first == b'\\') {
            Some(byte) => {
                path.push(byte);
                rest = &after[3..];
            }
            None => {
                path.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

/// Whether a link in `/proc/PID/fd` is of an io_uring.
pub fn is_ring(link: &OsStr) -> bool {
    link.as_bytes() == b"anon_inode:[io_uring]"
}

#[cfg(test)]
mod tests {
    use super::{FdInfo, OsStr, OsStrExt, PathBuf};

    #[test]
    fn access_mode_and_inode() {
        let info = FdInfo::parse(b"pos:\t0\nflags:\t02100002\nmnt_id:\t29\nino:\t257\n");
        assert_eq!(info, FdInfo { writable: true, ino: Some(257), ..FdInfo::default() });
        assert!(FdInfo::parse(b"flags:\t02102001\n").writable);
        assert!(!FdInfo::parse(b"flags:\t0100000\n").writable);
        assert!(!FdInfo::parse(b"flags:\t010000002\n").writable, "O_PATH writes nothing");
    }

    #[test]
    fn the_files_of_an_io_uring_whatever_their_names_are() {
        let text = b"flags:\t02000002\nSqThread:\t-1\nUserFiles:\t3\n    0: /vm/a.img\n    1: <none>\n   12: \
                     /a\\040b\\134c\\012\xff/d\nUserBufs:\t1\n    0: /x\nPollList:\n";
        let info = FdInfo::parse(text);
        let odd = PathBuf::from(OsStr::from_bytes(b"/a b\\c\n\xff/d"));
        assert_eq!((info.ring, info.registered), (true, vec![PathBuf::from("/vm/a.img"), odd]));
        // At work: an older kernel tells how many there are, a newer one nothing.
        let busy = FdInfo::parse(b"flags:\t02000002\nUserFiles:\t3\nUserBufs:\t0\n");
        assert_eq!((busy.ring, busy.registered.len()), (false, 0));
    }
}
