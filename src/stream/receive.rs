//! From a stream and its base to a new snapshot, which is there when all of it is, or not at all.

use std::io::{self, BufRead, Read};
use std::os::fd::AsFd;

use super::format::name::{Kind as Consistency, Name};
use super::format::order::{Head, Order};
use super::format::sums::{self, Line};
use super::format::{Malformed, Record, read_beginning};
use super::room::{Ask, Room};
use crate::changes::still::Still;
use crate::disk::DiskFile;
use crate::disk::real::{NewFile, RealFile, share_a_device};
use crate::error::{Error, Kind, Result};
use crate::range::{ByteRange, Geometry};
use crate::record::{self, ImageId};
use crate::serve::device::Device;
use crate::serve::disk::Disk;
use uuid::Uuid;

/// Bytes that are read and written at a time.
const PIECE: usize = 1 << 20;

/// How much of the base one clone call takes.
const CLONE: u64 = 64 << 20;

/// What a hold is called that was another host's.
pub const HOLD: &str = "received";

/// What was received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    /// The snapshot.
    pub snapshot: Name,
    /// The base, if the stream has one.
    pub base: Option<Name>,
    /// Records of data and of zeros.
    pub records: u64,
    /// Bytes of data.
    pub data: u64,
    /// Bytes of the stream.
    pub stream: u64,
}

/// Who is asked while it goes on.
pub struct Watch<'a> {
    /// Told of the snapshot's bytes that are done.
    pub progress: &'a mut dyn FnMut(u64),
    /// How much may be taken of the space of the snapshot's directory.
    pub room: &'a mut Ask<'a>,
    /// Where the snapshot may be that the stream needs, for people: where it is not what was named.
    pub find: &'a dyn Fn(&Name) -> Option<String>,
}

/// Makes a stream a snapshot. Its checksums are looked at where there are any.
///
/// # Errors
/// Refused where the base is not the stream's; failed where the stream is not whole or not right, or the snapshot cannot be made: with the place
/// in the stream. Nothing is left then.
pub fn receive<'a>(
    input: &'a mut dyn Read,
    sums: Option<&'a mut dyn BufRead>,
    base: Option<&mut Still>,
    new: NewFile,
    watch: Watch<'_>,
) -> Result<Received> {
    let sums = sums.map(Sums::new).transpose()?;
    let mut stream = Stream::new(input, sums);
    stream.beginning()?;
    let first = stream.head()?;
    let Head { base: from, snapshot: Some(snapshot), size: Some(size) } = stream.order.head().clone() else {
        return Err(stream.wrong("it does not say which snapshot it is of"));
    };
    is_base(from.as_ref(), base.as_deref()).map_err(|e| hinted(e, from.as_ref(), watch.find))?;
    let target = new.file();
    let mut room = Room::new(&new, watch.room)?;
    if let Some(base) = base.as_deref() {
        clone_base(base, target, &mut room)?;
    }
    target.set_len(size).map_err(cannot)?;
    let zeroes = target.as_fd().try_clone_to_owned().and_then(|own| Disk::new(own.into())).map_err(cannot)?;
    let mut received = Received { snapshot, base: from, records: 0, data: 0, stream: 0 };
    let mut next = first;
    let mut buffer = vec![0; PIECE];
    loop {
        match next {
            Record::Data(range) => {
                stream.data(range, target, &mut buffer, &mut room)?;
                received.data += range.len();
                (watch.progress)(range.end());
            }
            Record::Zero(range) => zero(range, &zeroes, &mut room)?,
            _ => break,
        }
        received.records += 1;
        stream.check_sum()?;
        next = stream.next()?;
    }
    stream.check_sum()?;
    stream.end()?;
    received.stream = stream.at;
    // A base that was changed meanwhile may have been cloned in several states.
    let lineage = base.as_deref().and_then(|base| base.record().map(|record| record.image));
    base.map_or(Ok(()), Still::check)?;
    finish(target, &snapshot, lineage.unwrap_or_else(|| new_lineage(&snapshot))).map_err(cannot)?;
    new.keep().map_err(|e| match e.raw_os_error() {
        Some(libc::EEXIST) => exists(e),
        _ => cannot(e),
    })?;
    Ok(received)
}

/// There is a file of the name already.
pub fn exists(error: io::Error) -> Error {
    Error::io(Kind::Refused, "the snapshot cannot have this name", "choose another one, or move that file away", error)
}

/// What is in the way of the snapshot.
pub(super) fn cannot(error: io::Error) -> Error {
    Error::io(
        Kind::Failed,
        "cannot make the snapshot",
        "mend the cause and receive the stream again; nothing is left of it",
        error,
    )
}

/// The base that a stream needs, of its head.
///
/// # Errors
/// Failed where it is no stream.
pub fn base_of(input: &mut dyn Read) -> Result<Option<Name>> {
    let mut stream = Stream::new(input, None);
    stream.beginning()?;
    stream.head()?;
    Ok(stream.order.head().base)
}

/// The same error with where the right base is, if that is known.
pub fn hinted(error: Error, needed: Option<&Name>, find: &dyn Fn(&Name) -> Option<String>) -> Error {
    match needed.and_then(find) {
        Some(there) => Error { hint: format!("the stream's base is here: say --base {there}"), ..error },
        None => error,
    }
}

fn is_base(from: Option<&Name>, base: Option<&Still>) -> Result<()> {
    let refuse = |what: String, hint: &str| Err(Error::new(Kind::Refused, what, hint));
    match (from, base) {
        (None, None) => Ok(()),
        (None, Some(_)) => refuse("the stream is of a whole snapshot and has no base".into(), "leave --base out"),
        (Some(from), None) => refuse(
            format!("the stream has only what has changed since {}", short(from)),
            "name that snapshot with --base ('rclone-img status FILE --json' tells a file's job and T0)",
        ),
        (Some(from), Some(base)) => {
            let path = base.path().display();
            let is = base.record().map(Name::from);
            match is {
                Some(is) if is == *from && base.size() == from.size => Ok(()),
                Some(is) => refuse(
                    format!("'{path}' is {}, and the stream's base is {}", short(&is), short(from)),
                    "name the right one with --base",
                ),
                None => refuse(
                    format!(
                        "'{path}' is no finished snapshot, or was changed since, and the stream's base is {}",
                        short(from)
                    ),
                    "name the file that was received or made as that, and that nobody has written to",
                ),
            }
        }
    }
}

/// A snapshot's identity, for people.
fn short(name: &Name) -> String {
    let job = name.job.simple().to_string();
    format!("the snapshot of T0 {:.3} (job {})", name.t0, &job[..8])
}

fn clone_base(base: &Still, target: &RealFile, room: &mut Room<'_>) -> Result<()> {
    let hint = "make the snapshot on the base's file system, and in a directory of the same kind (chattr +C)";
    if !share_a_device(base.file(), target).map_err(cannot)? {
        return Err(Error::new(Kind::Refused, "the base and the new snapshot are on different file systems", hint));
    }
    let cannot = |e| Error::io(Kind::Failed, "cannot clone the base", hint, e);
    let source = base.file();
    let block = source.fs().map_err(cannot)?.block;
    source.no_cow().and_then(|on| target.set_no_cow(on)).map_err(cannot)?;
    target.set_len(base.size()).map_err(cannot)?;
    let geometry = Geometry { size: base.size(), block };
    let mut rest = ByteRange::new(0, base.size());
    while let Some(left) = rest {
        let (piece, later) = left.split(left.start() + CLONE);
        rest = later;
        if let Some(piece) = piece.and_then(|piece| geometry.cover(piece)) {
            // A clone takes metadata.
            room.look()?;
            target.clone_range(source, piece).map_err(cannot)?;
        }
    }
    Ok(())
}

/// Punches a range out; where the file system cannot do that zeros are written.
fn zero(range: ByteRange, file: &Disk, room: &mut Room<'_>) -> Result<()> {
    room.for_zeros(range)?;
    match file.zero(range.start(), range.len(), false, true) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        other => return other.map_err(cannot),
    }
    room.back_to(range.start());
    let mut rest = Some(range);
    while let Some(left) = rest {
        let (piece, later) = left.split(left.start() + PIECE as u64);
        rest = later;
        let piece = piece.expect("the beginning of a range");
        room.for_data(piece)?;
        file.zero(piece.start(), piece.len(), false, false).map_err(cannot)?;
    }
    Ok(())
}

/// What is received has no image here; but those that were received one upon the other are of one, and those of other machines are not. So
/// the first is given a number that no other has, from its job's, and the increments have it from their base.
fn new_lineage(first: &Name) -> ImageId {
    let (ino, rest) = first.job.as_u64_pair();
    ImageId { ino, generation: rest as u32, subvolume: 0 }
}

/// Makes the file a finished snapshot in all but its name.
fn finish(target: &RealFile, name: &Name, image: ImageId) -> io::Result<()> {
    target.sync_all()?;
    let stat = target.stat()?;
    let record = record::Record {
        v: record::VERSION,
        state: record::State::Finished,
        job: name.job,
        t0: name.t0,
        hold: HOLD.into(),
        point_in_time: name.kind != Consistency::Mixed,
        quiesced: name.kind == Consistency::Quiesced,
        image,
        fs: Uuid::from_bytes(target.fs()?.uuid),
        ino: stat.ino,
        subvolume: stat.subvolume,
        generation: stat.id().known_generation(),
        size: stat.size,
        mtime_ns: stat.mtime_ns.to_string(),
    };
    target.set_record(Some(&record.to_bytes()))?;
    target.set_mode(0o400)
}

/// A stream, and how far it was read.
struct Stream<'a> {
    input: &'a mut dyn Read,
    /// Bytes that were read.
    at: u64,
    /// The number of the record that is read, from 1 on; 0 is the beginning.
    record: u64,
    /// Where it began.
    began: u64,
    /// Of what was read of it.
    crc: u32,
    sums: Option<Sums<'a>>,
    order: Order,
}

impl Read for Stream<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(bytes)?;
        self.at += read as u64;
        if self.sums.is_some() {
            self.crc = crc32c::crc32c_append(self.crc, &bytes[..read]);
        }
        Ok(read)
    }
}

impl<'a> Stream<'a> {
    fn new(input: &'a mut dyn Read, sums: Option<Sums<'a>>) -> Self {
        Self { input, at: 0, record: 0, began: 0, crc: 0, sums, order: Order::default() }
    }

    fn beginning(&mut self) -> Result<()> {
        read_beginning(self).map_err(|e| self.malformed(&e))?;
        self.check_sum()
    }

    /// Reads what it says of itself; the first record behind that.
    fn head(&mut self) -> Result<Record> {
        loop {
            match self.next()? {
                Record::From(_) | Record::To(_) | Record::Size(_) => self.check_sum()?,
                first => return Ok(first),
            }
        }
    }

    fn next(&mut self) -> Result<Record> {
        self.record += 1;
        self.began = self.at;
        let record = Record::read(self).map_err(|e| self.malformed(&e))?;
        self.order.take(&record).map_err(|e| self.wrong(&e.to_string()))?;
        Ok(record)
    }

    fn data(&mut self, range: ByteRange, target: &RealFile, buffer: &mut [u8], room: &mut Room<'_>) -> Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let piece = &mut buffer[..(range.end() - at).min(PIECE as u64) as usize];
            ByteRange::at(at, piece.len() as u64).map_or(Ok(()), |range| room.for_data(range))?;
            self.read_exact(piece).map_err(|e| self.malformed(&e.into()))?;
            target.write_at(at, piece).map_err(cannot)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Looks at the checksum of the record that was read.
    fn check_sum(&mut self) -> Result<()> {
        let (at, length, crc) = (self.began, self.at - self.began, std::mem::take(&mut self.crc));
        let Some(sums) = &mut self.sums else { return Ok(()) };
        let expected = sums.next()?;
        if expected == Some(Line::Sum { at, length, crc }) {
            return Ok(());
        }
        Err(self.wrong("it is not what its checksum says"))
    }

    /// Nothing comes behind the end.
    fn end(&mut self) -> Result<()> {
        let bytes = self.at;
        if let Some(sums) = &mut self.sums
            && (sums.next()? != Some(Line::End { records: sums.lines - 1, bytes }) || sums.next()?.is_some())
        {
            return Err(self.wrong("its checksums are of another stream"));
        }
        match self.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.wrong("something comes behind its end")),
            Err(e) => Err(self.malformed(&Malformed::Read(e))),
        }
    }

    fn malformed(&self, what: &Malformed) -> Error {
        self.wrong(&what.to_string())
    }

    fn wrong(&self, what: &str) -> Error {
        let place = format!("byte {}, in record {} that begins at {}", self.at, self.record, self.began);
        let hint = "nothing was kept of it: get the stream again, and see whether it was sent to its end";
        Error::new(Kind::Failed, format!("the stream is not right: {what} ({place})"), hint)
    }
}

/// The checksums beside a stream.
struct Sums<'a> {
    input: &'a mut dyn BufRead,
    lines: u64,
}

impl<'a> Sums<'a> {
    fn new(input: &'a mut dyn BufRead) -> Result<Self> {
        let mut sums = Self { input, lines: 0 };
        match sums.line()? {
            Some(line) if line == sums::BEGINNING => Ok(sums),
            _ => Err(no_sums("they are none", None)),
        }
    }

    fn next(&mut self) -> Result<Option<Line>> {
        let Some(line) = self.line()? else { return Ok(None) };
        self.lines += 1;
        Line::parse(&line).map(Some).ok_or_else(|| no_sums(&format!("line {} is none", self.lines + 1), None))
    }

    fn line(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let read = self.input.take(sums::LINE as u64).read_line(&mut line);
        read.map_err(|e| no_sums("they cannot be read", Some(e)))?;
        let whole = line.strip_suffix('\n').map(str::to_owned);
        if whole.is_none() && !line.is_empty() { Err(no_sums("a line has no end", None)) } else { Ok(whole) }
    }
}

fn no_sums(why: &str, error: Option<io::Error>) -> Error {
    let hint = "get them again; without --checksum the stream is taken as it is";
    let error = Error { source: error, ..Error::new(Kind::Failed, "", hint) };
    Error { what: format!("the checksums of the stream are not right: {why}"), ..error }
}
