//! A method as bytes, for whoever must thaw after the death of the process that froze.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 4 | `RIQ1` |
//! | 4 | 4 | CRC-32C of what follows, as far as the lengths say |
//! | 8 | 2 | 1: agent, 2: commands |
//! | 10 | 2 | length of the first text: the socket's path, or the command that freezes |
//! | 12 | 2 | length of the second: the command that thaws; 0 for an agent |
//! | 14 | | the texts |
//!
//! Numbers are little-endian. What comes after the texts is not looked at, so that it can be read from a larger place.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::Method;
use crate::error::{Error, Kind, Result};

/// A method has at most so many bytes.
pub const LONGEST: usize = 8 << 10;

const MAGIC: [u8; 4] = *b"RIQ1";
/// Where what the checksum covers begins.
const COVERED: usize = 8;
const HEADER: usize = 14;
const AGENT: u16 = 1;
const COMMANDS: u16 = 2;

/// These bytes are no method.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error, Debug)]
#[error("these bytes do not say how to thaw")]
pub struct Malformed;

impl Method {
    /// As bytes, at most [`LONGEST`]. A relative path or command means the directory of whoever uses it.
    ///
    /// # Errors
    /// [`Kind::Usage`] where they would be more, or where a text is empty or has a zero byte in it.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let (kind, first, second) = match self {
            Method::Agent(path) => (AGENT, path.as_os_str(), OsStr::new("")),
            Method::Commands { freeze, thaw } => (COMMANDS, freeze.as_os_str(), thaw.as_os_str()),
        };
        let wrong = |what: &str| Error::new(Kind::Usage, what, "give other commands, or another path to the agent");
        let (first, second) = (first.as_bytes(), second.as_bytes());
        if !plausible(kind, first, second) {
            return Err(wrong("the way to freeze and thaw is empty, or has a zero byte in it"));
        }
        if HEADER + first.len() + second.len() > LONGEST {
            return Err(wrong(&format!("the way to freeze and thaw has more than {} bytes", LONGEST - HEADER)));
        }
        let mut bytes = [&MAGIC[..], &[0; 4]].concat();
        for number in [kind, length(first), length(second)] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend([first, second].concat());
        let checksum = crc32c::crc32c(&bytes[COVERED..]);
        bytes[MAGIC.len()..COVERED].copy_from_slice(&checksum.to_le_bytes());
        Ok(bytes)
    }

    /// Reads what [`Method::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, Malformed> {
        Self::read(bytes).ok_or(Malformed)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (kind, middle) = (number(8)?, HEADER + usize::from(number(10)?));
        let end = middle + usize::from(number(12)?);
        if end > LONGEST || bytes.get(..MAGIC.len())? != MAGIC {
            return None;
        }
        let checksum = u32::from_le_bytes(bytes.get(MAGIC.len()..COVERED)?.try_into().ok()?);
        if crc32c::crc32c(bytes.get(COVERED..end)?) != checksum {
            return None;
        }
        let (first, second) = (bytes.get(HEADER..middle)?, bytes.get(middle..end)?);
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        match kind {
            _ if !plausible(kind, first, second) => None,
            AGENT => Some(Method::Agent(PathBuf::from(text(first)))),
            COMMANDS => Some(Method::Commands { freeze: text(first), thaw: text(second) }),
            _ => None,
        }
    }
}

fn plausible(kind: u16, first: &[u8], second: &[u8]) -> bool {
    let no_zero = !first.contains(&0) && !second.contains(&0);
    no_zero && !first.is_empty() && second.is_empty() == (kind == AGENT)
}

/// A length that was found to be short enough, or will be.
fn length(text: &[u8]) -> u16 {
    u16::try_from(text.len()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    fn agent(path: &str) -> Method {
        Method::Agent(PathBuf::from(path))
    }

    fn commands(freeze: &[u8], thaw: &[u8]) -> Method {
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        Method::Commands { freeze: text(freeze), thaw: text(thaw) }
    }

    /// Bytes with the right checksum, whatever they say.
    fn sealed(kind: u16, first: u16, second: u16, texts: &[u8]) -> Vec<u8> {
        let numbers = [kind, first, second].map(u16::to_le_bytes).concat();
        let covered = [&numbers, texts].concat();
        [&MAGIC[..], &crc32c::crc32c(&covered).to_le_bytes(), &covered].concat()
    }

    #[test]
    fn what_is_written_is_read() {
        for method in [agent("/run/vm.qga"), commands(b"virsh domfsfreeze \xff", b"virsh domfsthaw a; true")] {
            let mut bytes = method.to_bytes().expect("it is short");
            assert_eq!(Method::from_bytes(&bytes), Ok(method.clone()));
            bytes.resize(LONGEST + 100, 7);
            assert_eq!(Method::from_bytes(&bytes), Ok(method), "what comes after does not matter");
        }
        assert_eq!(agent("ab").to_bytes().expect("short"), sealed(AGENT, 2, 0, b"ab"));
    }

    #[test]
    fn there_is_a_bound() {
        let long = vec![b'x'; LONGEST - HEADER - 1];
        let bytes = commands(&long, b"y").to_bytes().expect("just short enough");
        assert_eq!(bytes.len(), LONGEST);
        assert_eq!(Method::from_bytes(&bytes), Ok(commands(&long, b"y")));
        for method in [commands(&long, b"yy"), commands(b"", b"y"), commands(b"x", b""), agent("a\0b"), agent("")] {
            assert_eq!(method.to_bytes().expect_err("refused").kind, Kind::Usage);
        }
        assert!(commands(&vec![b'x'; 1 << 17], b"y").to_bytes().is_err());
        let over = sealed(COMMANDS, 9000, 9000, &vec![b'x'; 18_000]);
        assert_eq!(Method::from_bytes(&over), Err(Malformed));
    }

    #[test]
    fn malformed_bytes_are_none() {
        let good = commands(b"freeze", b"thaw").to_bytes().expect("short");
        for length in 0..good.len() {
            assert_eq!(Method::from_bytes(&good[..length]), Err(Malformed), "cut to {length}");
        }
        for bit in 0..8 * good.len() {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Method::from_bytes(&bad), Err(Malformed), "bit {bit} turned");
        }
        let check = |bytes: Vec<u8>| assert_eq!(Method::from_bytes(&bytes), Err(Malformed), "{bytes:?}");
        check(sealed(3, 1, 1, b"ab"));
        check(sealed(AGENT, 1, 1, b"ab"));
        check(sealed(AGENT, 0, 0, b""));
        check(sealed(AGENT, 2, 0, b"a\0"));
        check(sealed(COMMANDS, 2, 0, b"ab"));
        check(sealed(COMMANDS, 0, 2, b"ab"));
        check(vec![0; LONGEST]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, kind: u16, first in any::<u16>(), second in any::<u16>()) {
            let _ = Method::from_bytes(&bytes);
            let bytes = sealed(kind, first % 64, second % 64, &bytes);
            if let Ok(method) = Method::from_bytes(&bytes) {
                let again = method.to_bytes().expect("it was short");
                prop_assert_eq!(Method::from_bytes(&again), Ok(method));
            }
        }
    }
}
