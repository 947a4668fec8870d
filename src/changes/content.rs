//! What the maps do not prove, read and compared.

use std::collections::VecDeque;
use std::io;

use super::Span;
use super::still::of_old;
use crate::disk::DiskFile;
use crate::extent::delta::{Relation, Run, joined};
use crate::range::ByteRange;

/// Bytes that are read of each file at a time.
pub const PIECE: usize = 1 << 20;

/// The unit in which differences are told, in bytes: the block of most file systems, so that what was written shows as it was written.
pub const UNIT: usize = 4096;

/// The same spans, with what has the same bytes left out of what differs. Spans in which nothing is compared are beyond `common`.
pub fn compared<'a, F: DiskFile>(
    old: &'a F,
    new: &'a F,
    common: u64,
    spans: impl Iterator<Item = io::Result<Span>> + 'a,
) -> impl Iterator<Item = io::Result<Span>> + 'a {
    let mut reader = Reader::new(old, new);
    let mut left: Option<Span> = None;
    let mut ready: VecDeque<Span> = VecDeque::new();
    let mut spans = spans;
    joined(std::iter::from_fn(move || {
        loop {
            if let Some(span) = ready.pop_front() {
                return Some(Ok(span));
            }
            let span = match left.take().map(Ok).or_else(|| spans.next())? {
                Ok(span) if span.what.equal || span.range.start() >= common => return Some(Ok(span)),
                Ok(span) => span,
                Err(error) => return Some(Err(error)),
            };
            let (piece, rest) = span.range.split(span.range.start() + PIECE as u64);
            left = rest.map(|range| Run { range, ..span });
            let piece = piece.expect("the beginning of a range");
            let compared = reader.compare(piece, |range, equal| {
                ready.push_back(Run { range, what: Relation { equal, ..span.what } });
            });
            if let Err(error) = compared {
                return Some(Err(error));
            }
        }
    }))
}

/// Reads two files side by side.
pub struct Reader<'a, F> {
    files: [&'a F; 2],
    buffers: [Vec<u8>; 2],
}

impl<'a, F: DiskFile> Reader<'a, F> {
    /// Of these.
    pub fn new(old: &'a F, new: &'a F) -> Self {
        Self { files: [old, new], buffers: [vec![0; PIECE], vec![0; PIECE]] }
    }

    /// Says of the parts of a range of at most [`PIECE`] bytes whether they are equal; they begin at its start and at multiples of [`UNIT`].
    ///
    /// # Errors
    /// What pread(2) says, of either (`of_old` tells which); UnexpectedEof where one has become shorter.
    pub fn compare(&mut self, range: ByteRange, mut say: impl FnMut(ByteRange, bool)) -> io::Result<()> {
        let length = usize::try_from(range.len()).map_or(PIECE, |length| length.min(PIECE));
        let [old, new] = &mut self.buffers;
        filled(self.files[0], range, &mut old[..length]).map_err(of_old)?;
        filled(self.files[1], range, &mut new[..length])?;
        if old[..length] == new[..length] {
            say(range, true);
            return Ok(());
        }
        let mut at = 0;
        while at < length {
            // To the next multiple of the unit in the file.
            let into = (range.start() + at as u64) % UNIT as u64;
            let end = (at + UNIT - into as usize).min(length);
            let part = ByteRange::at(range.start() + at as u64, (end - at) as u64).expect("at least a byte");
            say(part, old[at..end] == new[at..end]);
            at = end;
        }
        Ok(())
    }
}

fn filled(file: &impl DiskFile, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
    if file.read_at(range.start(), buffer)? < buffer.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::changes::still::cannot_read_one;
    use crate::disk::sim::{IMAGE, Setup, SimDisk};
    use crate::disk::{Access, Disk};

    #[test]
    fn the_one_that_cannot_be_read_is_named() {
        let disk = SimDisk::new(Setup::new(1));
        disk.add_file(IMAGE, &[1; 8192]);
        disk.add_file("short", &[1; 4096]);
        let open = |name: &str| disk.open(name.as_ref(), Access::Read).expect("there");
        let (whole, short) = (open(IMAGE), open("short"));
        let all = ByteRange::new(0, 8192).expect("a range");
        for (old, new, expect) in [(&short, &whole, "old"), (&whole, &short, "new")] {
            let error = Reader::new(old, new).compare(all, |_, _| {}).expect_err("too short");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            let told = cannot_read_one(Path::new("old"), Path::new("new"), error).to_string();
            assert!(told.starts_with(&format!("cannot read '{expect}': ")), "{told}");
        }
    }
}
