//! Checksums beside a stream: a line for its beginning and one for each record, so that damage is found and said where.
//!
//! ```text
//! rclone-img sums 1 crc32c
//! 0 12 5f3d…            offset in the stream, length, CRC-32C in hexadecimal
//! …
//! end 3 4194380         lines before this one, bytes of the stream
//! ```
//! They find what a disk or a wire has done, not what somebody has done who can change both files.

use std::fmt;

/// How the file begins.
pub const BEGINNING: &str = "rclone-img sums 1 crc32c";

/// The longest line that is read, in bytes.
pub const LINE: usize = 64;

/// One line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// Of a record.
    Sum {
        /// Where it begins in the stream.
        at: u64,
        /// Its length with its data, in bytes.
        length: u64,
        /// Of all of them.
        crc: u32,
    },
    /// The last one.
    End {
        /// How many there were.
        records: u64,
        /// The stream's length.
        bytes: u64,
    },
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sum { at, length, crc } => write!(f, "{at} {length} {crc:08x}"),
            Self::End { records, bytes } => write!(f, "end {records} {bytes}"),
        }
    }
}

impl Line {
    /// Reads one; `None` where it is none.
    pub fn parse(line: &str) -> Option<Self> {
        let parts: Vec<&str> = line.split(' ').collect();
        let [first, second, third] = parts[..] else { return None };
        let parsed = if first == "end" {
            Self::End { records: second.parse().ok()?, bytes: third.parse().ok()? }
        } else {
            let crc = u32::from_str_radix(third, 16).ok()?;
            Self::Sum { at: first.parse().ok()?, length: second.parse().ok()?, crc }
        };
        (parsed.to_string() == line).then_some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_and_others_are_none() {
        for line in [Line::Sum { at: 12, length: 4_194_321, crc: 0xAB }, Line::End { records: 3, bytes: 99 }] {
            assert_eq!(Line::parse(&line.to_string()), Some(line));
            assert!(line.to_string().len() < LINE);
        }
        for wrong in ["", "1 2", "1 2 3", "1 2 +000000f", "end 1", "1  2 00000003", "end 01 2"] {
            assert_eq!(Line::parse(wrong), None, "{wrong}");
        }
    }
}
