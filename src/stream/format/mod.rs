//! RBD's diff format, version 1 (Ceph's doc/dev/rbd-diff.rst), and what this program reads of it.
//!
//! | record | bytes |
//! |---|---|
//! | beginning | `rbd diff v1\n` |
//! | `f` name of the base, `t` name of the snapshot | tag, length (4), that many bytes |
//! | `s` size of the snapshot | tag, size (8) |
//! | `w` data | tag, offset (8), length (8), that many bytes |
//! | `z` zeros | tag, offset (8), length (8) |
//! | `e` end | tag |
//!
//! All numbers are little endian. `f`, `t` and `s` come before `w` and `z`, which ascend, do not overlap and are not empty ([`order`]). The
//! names carry what the snapshots are ([`name`]). Version 1 has no checksums: damage within data goes unnoticed. [`sums`] are checksums
//! beside it.

pub mod name;
pub mod order;
pub mod sums;

use std::io::{self, Read, Write};

use crate::range::ByteRange;

/// How a stream begins.
pub const BEGINNING: &[u8; 12] = b"rbd diff v1\n";

/// The longest record of data or zeros that is written: `rbd merge-diff` has each whole in memory (4 MiB is what it writes itself), and
/// what stays in the processor's cache is faster.
pub const LONGEST: u64 = 1 << 20;

/// The longest name that is read.
const NAME: u32 = 256;

/// A record; of data what comes before the data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// The base's name.
    From(Vec<u8>),
    /// The snapshot's name.
    To(Vec<u8>),
    /// The snapshot's size, in bytes.
    Size(u64),
    /// Data of this range follows.
    Data(ByteRange),
    /// This range is zeros.
    Zero(ByteRange),
    /// Nothing more comes.
    End,
}

/// What is wrong with a record by itself.
#[derive(thiserror::Error, Debug)]
pub enum Malformed {
    /// It does not begin as a stream.
    #[error("it does not begin as an RBD diff of version 1")]
    Beginning,
    /// A record of an unknown kind.
    #[error("there is a record of the kind {0:#04x}, which is none")]
    Tag(u8),
    /// A name that is too long.
    #[error("there is a name of {0} bytes")]
    Name(u32),
    /// A range without a byte, or past the largest number there is.
    #[error("there is a range of {1} bytes at {0}")]
    Range(u64, u64),
    /// It ends before its end.
    #[error("it ends in the middle: it was cut off, or is still being written")]
    Torn,
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
}

impl From<io::Error> for Malformed {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Torn } else { Self::Read(error) }
    }
}

impl Record {
    /// Writes it; the data of [`Record::Data`] is to follow.
    ///
    /// # Errors
    /// What writing says.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let name = |tag: u8, name: &[u8]| [&[tag], &(name.len() as u32).to_le_bytes()[..], name].concat();
        let range = |tag: u8, range: &ByteRange| {
            [&[tag], &range.start().to_le_bytes()[..], &range.len().to_le_bytes()].concat()
        };
        let bytes = match self {
            Self::From(base) => name(b'f', base),
            Self::To(snapshot) => name(b't', snapshot),
            Self::Size(size) => [b"s", &size.to_le_bytes()[..]].concat(),
            Self::Data(at) => range(b'w', at),
            Self::Zero(at) => range(b'z', at),
            Self::End => vec![b'e'],
        };
        out.write_all(&bytes)
    }

    /// Reads the next one, up to its data.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(input: &mut impl Read) -> Result<Self, Malformed> {
        let [tag] = array(input)?;
        Ok(match tag {
            b'f' => Self::From(read_name(input)?),
            b't' => Self::To(read_name(input)?),
            b's' => Self::Size(u64::from_le_bytes(array(input)?)),
            b'w' => Self::Data(read_range(input)?),
            b'z' => Self::Zero(read_range(input)?),
            b'e' => Self::End,
            other => return Err(Malformed::Tag(other)),
        })
    }
}

/// Reads how a stream begins.
///
/// # Errors
/// Where it does not.
pub fn read_beginning(input: &mut impl Read) -> Result<(), Malformed> {
    if array(input)? == *BEGINNING { Ok(()) } else { Err(Malformed::Beginning) }
}

fn array<const N: usize>(input: &mut impl Read) -> Result<[u8; N], Malformed> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_name(input: &mut impl Read) -> Result<Vec<u8>, Malformed> {
    let length = u32::from_le_bytes(array(input)?);
    if length > NAME {
        return Err(Malformed::Name(length));
    }
    let mut name = vec![0; length as usize];
    input.read_exact(&mut name)?;
    Ok(name)
}

fn read_range(input: &mut impl Read) -> Result<ByteRange, Malformed> {
    let (offset, length) = (u64::from_le_bytes(array(input)?), u64::from_le_bytes(array(input)?));
    // Nothing in a file is past the largest signed number.
    let range = ByteRange::at(offset, length).filter(|range| i64::try_from(range.end()).is_ok());
    range.ok_or(Malformed::Range(offset, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_their_bytes_are_rbds() {
        let range = ByteRange::new(0x1000, 0x3000).expect("not empty");
        let all = [
            Record::From(b"a".to_vec()),
            Record::To(vec![b'b'; 256]),
            Record::Size(7),
            Record::Data(range),
            Record::Zero(range),
            Record::End,
        ];
        let mut bytes = Vec::new();
        all.iter().try_for_each(|it| it.write(&mut bytes)).expect("written");
        assert_eq!(bytes[..6], *b"f\x01\0\0\0a");
        assert_eq!(bytes[bytes.len() - 1 - 17..], *b"z\0\x10\0\0\0\0\0\0\0\x20\0\0\0\0\0\0e");
        let mut input = &bytes[..];
        for record in all {
            assert_eq!(Record::read(&mut input).expect("a record"), record);
        }
        assert!(input.is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_said_and_takes_no_memory() {
        let check = |bytes: &[u8], expect: fn(&Malformed) -> bool| {
            let error = Record::read(&mut &bytes[..]).expect_err("nonsense");
            assert!(expect(&error), "{bytes:?}: {error}");
        };
        let range = |offset: u64, length: u64| [b"w", &offset.to_le_bytes()[..], &length.to_le_bytes()].concat();
        check(b"", |e| matches!(e, Malformed::Torn));
        check(b"x", |e| matches!(e, Malformed::Tag(b'x')));
        check(b"f\xff\xff\xff\xff", |e| matches!(e, Malformed::Name(u32::MAX)));
        check(b"t\x02\0\0\0a", |e| matches!(e, Malformed::Torn));
        check(&range(5, 0), |e| matches!(e, Malformed::Range(5, 0)));
        check(&range(u64::MAX, 2), |e| matches!(e, Malformed::Range(u64::MAX, 2)));
        check(&range(1, u64::MAX), |e| matches!(e, Malformed::Range(..)));
        check(&range(1 << 62, 1 << 62), |e| matches!(e, Malformed::Range(..)));
        assert!(matches!(read_beginning(&mut &b"rbd diff v2\n"[..]), Err(Malformed::Beginning)));
        read_beginning(&mut &BEGINNING[..]).expect("the beginning");
    }
}
