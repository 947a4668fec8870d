//! From two snapshots, or one, to a stream: what differs by their block maps, read ahead by a thread of its own in bounded memory.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::format::name::Name;
use super::format::sums::{self, Line};
use super::format::{BEGINNING, LONGEST, Record};
use super::pace::Pace;
use crate::changes::Span;
use crate::changes::content::compared;
use crate::changes::maps::{Sides, comparable, rest, spans};
use crate::changes::still::{self, Still};
use crate::disk::DiskFile;
use crate::disk::real::RealFile;
use crate::error::{Error, Kind, Result};
use crate::range::ByteRange;

/// A part of the stream is handed on when it has so many bytes: small records go together.
const CHUNK: usize = 256 << 10;

/// Parts that are read and not written yet. Each has at most a record more than [`CHUNK`].
const AHEAD: usize = 3;

/// Written at once: of this size a limit is one for a moment as well.
const PIECE: usize = 256 << 10;

/// What the kernel is asked to read before it is read: so many bytes, or ranges.
const READ_AHEAD: u64 = 8 << 20;
const RANGES_AHEAD: usize = 256;

/// How a stream is to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// Bytes a second, at most.
    pub limit: Option<u64>,
    /// What the maps do not prove is read of both, and left out where it is equal.
    pub content: bool,
}

/// What was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    /// Records of data and of zeros.
    pub records: u64,
    /// Bytes of data.
    pub data: u64,
    /// Bytes that are zeros now.
    pub zero: u64,
    /// Bytes of the stream.
    pub stream: u64,
}

/// Where a stream goes, and its checksums if they are wanted.
pub struct Target<'a> {
    /// The stream.
    pub out: &'a mut dyn Write,
    /// Its checksums.
    pub sums: Option<&'a mut dyn Write>,
}

/// Sends `new`, or what has changed in it since `base`. `progress` is told of the image's bytes that are done.
///
/// # Errors
/// Refused where one of the two is no finished snapshot; failed where one cannot be read or was changed meanwhile, or the stream cannot be
/// written: it has no end then.
pub fn send(
    new: &mut Still,
    base: Option<&mut Still>,
    target: Target<'_>,
    wish: Wish,
    progress: &mut dyn FnMut(u64),
) -> Result<Sent> {
    let names = (base.as_deref().map(name_of).transpose()?, name_of(new)?);
    let comparable = base.as_deref().map_or(Ok(false), |base| comparable(&**base.file(), &**new.file()));
    let path = new.path().to_owned();
    let base_path = base.as_deref().map_or_else(|| path.clone(), |base| base.path().to_owned());
    let cannot_read = |e| still::cannot_read_one(&base_path, &path, e);
    let comparable = comparable.map_err(cannot_read)?;
    let source = Source {
        new: new.file().clone(),
        old: base.as_deref().map(|base| base.file().clone()),
        common: base.as_deref().map_or(0, |base| base.size().min(new.size())),
        old_size: base.as_deref().map_or(0, Still::size),
        size: new.size(),
        comparable,
        content: wish.content,
    };
    let (give, take) = bounded::<Part>(AHEAD);
    let (give_back, used) = bounded::<Buffer>(AHEAD + 2);
    let Target { out, sums } = target;
    let summed = sums.is_some();
    let mut writer = Written { out, sums, lines: 0, sent: Sent::default(), pace: Pace::new(wish.limit) };
    thread::scope(|scope| {
        let parts = Parts { give, used, part: Part::default(), sent: Sent::default(), summed };
        let reads = scope.spawn(|| parts.fill(&source, names));
        let written = take.iter().try_for_each(|part| {
            writer.part(&part)?;
            progress(part.done);
            // Nobody needs it where the reader has ended.
            let _ = give_back.try_send(part.bytes);
            Ok(())
        });
        // A reader that has something to hand on hears that nobody takes it.
        drop(take);
        let read = reads.join().unwrap_or_else(|_| Err(io::Error::other("a thread has died")));
        written.map_err(cannot_write)?;
        let Some(sent) = read.map_err(cannot_read)? else { return Err(Error::told_to_stop()) };
        // Only what was of one state to the last byte gets an end.
        new.check()?;
        base.map_or(Ok(()), Still::check)?;
        writer.end().map_err(cannot_write)?;
        Ok(Sent { stream: writer.sent.stream, ..sent })
    })
}

fn name_of(file: &Still) -> Result<Name> {
    let none = || {
        let what = format!(
            "'{}' is no finished snapshot: nothing would tell later what its stream is of",
            file.path().display()
        );
        Error::new(
            Kind::Refused,
            what,
            "send a snapshot that 'rclone-img snapshot' has made and nobody has changed since",
        )
    };
    file.record().map(Name::from).ok_or_else(none)
}

fn cannot_write(error: io::Error) -> Error {
    let hint = "what was written is no whole stream: remove it, mend the cause and send again";
    Error::io(Kind::Failed, "cannot write the stream", hint, error)
}

/// What is read.
struct Source {
    new: std::sync::Arc<RealFile>,
    old: Option<std::sync::Arc<RealFile>>,
    common: u64,
    old_size: u64,
    size: u64,
    comparable: bool,
    content: bool,
}

impl Source {
    /// What goes into the stream; behind the base's end and without one all is zeros before.
    fn spans(&self) -> Box<dyn Iterator<Item = io::Result<Span>> + '_> {
        let behind = rest(&*self.new, self.common, self.size);
        let Some(old) = self.old.as_deref() else { return Box::new(behind) };
        let sides = Sides { old, new: &*self.new, common: self.common, comparable: self.comparable };
        let both = spans(sides).chain(behind);
        if self.content { Box::new(compared(old, &*self.new, self.common, both)) } else { Box::new(both) }
    }

    /// Whether a span is to be told of.
    fn is_new(&self, span: &Span) -> bool {
        !(span.what.equal || span.what.zero && span.range.start() >= self.old_size)
    }
}

/// A part of the stream.
#[derive(Default)]
struct Part {
    bytes: Buffer,
    sums: Vec<Line>,
    /// How far in the image it reaches.
    done: u64,
}

/// Bytes in memory that is used again: what is read into is not filled with zeros each time.
#[derive(Default)]
struct Buffer {
    memory: Vec<u8>,
    filled: usize,
}

impl Buffer {
    fn bytes(&self) -> &[u8] {
        &self.memory[..self.filled]
    }

    /// So many more bytes, to be written to; they are anything.
    fn more(&mut self, bytes: usize) -> &mut [u8] {
        let from = self.filled;
        self.filled += bytes;
        if self.memory.len() < self.filled {
            self.memory.resize(self.filled, 0);
        }
        &mut self.memory[from..self.filled]
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.more(bytes.len()).copy_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes the parts.
struct Parts {
    give: Sender<Part>,
    used: Receiver<Buffer>,
    part: Part,
    sent: Sent,
    summed: bool,
}

impl Parts {
    /// None where nobody takes them any more.
    fn fill(mut self, source: &Source, (base, snapshot): (Option<Name>, Name)) -> io::Result<Option<Sent>> {
        self.record(|bytes| bytes.write_all(BEGINNING))?;
        if let Some(base) = base {
            self.record(|bytes| Record::From(base.to_string().into_bytes()).write(bytes))?;
        }
        self.record(|bytes| Record::To(snapshot.to_string().into_bytes()).write(bytes))?;
        self.record(|bytes| Record::Size(source.size).write(bytes))?;
        let mut spans = source.spans();
        let mut ahead: VecDeque<Span> = VecDeque::new();
        let mut bytes_ahead = 0;
        loop {
            while bytes_ahead < READ_AHEAD
                && ahead.len() < RANGES_AHEAD
                && let Some(span) = spans.next()
            {
                let span = span?;
                if source.is_new(&span) && !span.what.zero {
                    bytes_ahead += span.range.len();
                    read_ahead(&source.new, span.range);
                }
                ahead.push_back(span);
            }
            let Some(span) = ahead.pop_front() else { break };
            if source.is_new(&span) {
                if !span.what.zero {
                    bytes_ahead -= span.range.len();
                }
                if !self.span(&source.new, &span)? {
                    return Ok(None);
                }
            }
            self.part.done = span.range.end();
        }
        Ok(self.hand_on().then_some(self.sent))
    }

    /// A span, as records; false where nobody takes them.
    fn span(&mut self, new: &RealFile, span: &Span) -> io::Result<bool> {
        let mut rest = Some(span.range);
        while let Some(left) = rest {
            let (piece, later) = left.split(left.start() + LONGEST);
            let piece = piece.expect("the beginning of a range");
            rest = later;
            if let Some(ahead) =
                ByteRange::new(piece.start() + READ_AHEAD, span.range.end().min(piece.end() + READ_AHEAD))
            {
                read_ahead(new, ahead);
            }
            self.sent.records += 1;
            if span.what.zero {
                self.sent.zero += piece.len();
                self.record(|bytes| Record::Zero(piece).write(bytes))?;
            } else {
                self.sent.data += piece.len();
                self.record(|bytes| {
                    Record::Data(piece).write(bytes)?;
                    let read = new.read_at(piece.start(), bytes.more(piece.len() as usize))?;
                    if (read as u64) < piece.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
                })?;
            }
            self.part.done = piece.end();
            if self.part.bytes.filled >= CHUNK && !self.hand_on() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds what is written here, and its checksum where it is wanted.
    fn record(&mut self, write: impl FnOnce(&mut Buffer) -> io::Result<()>) -> io::Result<()> {
        let from = self.part.bytes.filled;
        write(&mut self.part.bytes)?;
        let record = &self.part.bytes.bytes()[from..];
        let length = record.len() as u64;
        if self.summed {
            self.part.sums.push(Line::Sum { at: self.sent.stream, length, crc: crc32c::crc32c(record) });
        }
        self.sent.stream += length;
        Ok(())
    }

    /// Whether somebody takes what there is.
    fn hand_on(&mut self) -> bool {
        let mut bytes = self.used.try_recv().unwrap_or_default();
        bytes.filled = 0;
        let next = Part { bytes, sums: Vec::new(), done: self.part.done };
        self.give.send(std::mem::replace(&mut self.part, next)).is_ok()
    }
}

/// The kernel reads it meanwhile, if it likes to.
fn read_ahead(file: &RealFile, range: ByteRange) {
    if let (Ok(start), Ok(length)) = (i64::try_from(range.start()), i64::try_from(range.len().min(READ_AHEAD))) {
        let _ = posix_fadvise(file, start, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
}

/// What writes them.
struct Written<'a> {
    out: &'a mut dyn Write,
    sums: Option<&'a mut dyn Write>,
    lines: u64,
    sent: Sent,
    pace: Pace,
}

impl Written<'_> {
    fn part(&mut self, part: &Part) -> io::Result<()> {
        // In pieces, so that a limit is one for a moment as well.
        for piece in part.bytes.bytes().chunks(PIECE) {
            self.pace.wait(piece.len() as u64);
            self.out.write_all(piece)?;
        }
        self.sent.stream += part.bytes.filled as u64;
        part.sums.iter().try_for_each(|line| self.line(line))
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        let Some(out) = &mut self.sums else { return Ok(()) };
        if self.lines == 0 {
            writeln!(out, "{}", sums::BEGINNING)?;
        }
        self.lines += 1;
        writeln!(out, "{line}")
    }

    fn end(&mut self) -> io::Result<()> {
        let mut end = Buffer::default();
        Record::End.write(&mut end)?;
        let at = self.sent.stream;
        let sum = Line::Sum { at, length: end.filled as u64, crc: crc32c::crc32c(end.bytes()) };
        self.part(&Part { bytes: end, sums: vec![sum], done: 0 })?;
        let last = Line::End { records: self.lines, bytes: self.sent.stream };
        self.line(&last)?;
        self.out.flush()?;
        self.sums.as_mut().map_or(Ok(()), |out| out.flush())
    }
}
