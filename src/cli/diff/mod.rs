//! `diff OLD NEW`: what differs, range by range, in bounded memory.

pub mod args;
mod qemu_map;
mod text;

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::args::{DiffArgs, Format};
use super::meter::Meter;
use super::service::log::with_path;
use super::{json, place, words};
use crate::changes::Span;
use crate::changes::content::compared;
use crate::changes::maps::{Sides, comparable, rest, spans};
use crate::changes::still::{self, Still};
use crate::error::Result;

/// The exit code of an answer that is "differs".
pub const DIFFERS: u8 = 7;

/// How many spans are told before it is asked again whether the files are still what they were.
const CHECK: u64 = 1024;

/// Runs the verb.
///
/// # Errors
/// Refused where somebody may write to one of the two; failed where one cannot be read, or was changed meanwhile.
pub fn run(args: &DiffArgs) -> Result<u8> {
    let mut old = open(&args.old)?;
    let mut new = open(&args.new)?;
    let cannot_read = |e| still::cannot_read_one(&args.old, &args.new, e);
    let comparable = comparable(&**old.file(), &**new.file()).map_err(cannot_read)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut teller: Box<dyn Teller> = match args.format {
        _ if args.quiet => Box::new(Silent),
        Some(Format::QemuMap) => Box::new(qemu_map::QemuMap::default()),
        None if args.json => Box::new(Lines),
        None => Box::new(text::Text::new(new.size())),
    };
    if !comparable && !args.content {
        let what = "the block maps of the two say nothing of each other (two file systems, or neither XFS nor Btrfs): all that is not a hole in both counts as changed; --content compares it";
        super::warn(Some(what.into()));
    }
    let began = Instant::now();
    let mut sums = Sums { sizes: [old.size(), new.size()], comparable, content: args.content, ..Sums::default() };
    let told = tell(args, (&mut old, &mut new), &mut *teller, &mut sums, &mut out);
    let heard = told.map_err(|e| match e {
        Trouble::Reading(e) => cannot_read(e),
        Trouble::Writing(e) => super::written(Err(e)).err().unwrap_or_else(crate::error::Error::told_to_stop),
        Trouble::Changed(e) => e,
    })?;
    sums.took = began.elapsed();
    if !heard {
        return Ok(sums.exit_code(args));
    }
    super::written(teller.end(args, &sums, &mut out).and_then(|()| out.flush()))?;
    Ok(sums.exit_code(args))
}

/// Opens one of two files.
///
/// # Errors
/// Refused where it is no regular file, or somebody may write to it.
pub fn open(path: &Path) -> Result<Still> {
    let (path, file) = place::open_regular(path)?;
    Still::of(std::sync::Arc::new(file), &path)
}

enum Trouble {
    Reading(io::Error),
    Writing(io::Error),
    Changed(crate::error::Error),
}

/// Tells of all spans; whether somebody hears it to the end. Where nobody does any more it goes on, without a word, until the answer is known
/// that the exit code is.
fn tell(
    args: &DiffArgs,
    (old, new): (&mut Still, &mut Still),
    teller: &mut dyn Teller,
    sums: &mut Sums,
    out: &mut dyn Write,
) -> std::result::Result<bool, Trouble> {
    let common = old.size().min(new.size());
    let (old_file, new_file) = (old.file().clone(), new.file().clone());
    let sides = Sides { old: &*old_file, new: &*new_file, common, comparable: sums.comparable };
    let both = spans(sides).chain(rest(&*new_file, common, new.size()));
    let all: Box<dyn Iterator<Item = io::Result<Span>>> = match args.content {
        true => Box::new(compared(&*old_file, &*new_file, common, both)),
        false => Box::new(both),
    };
    let mut until_check = CHECK;
    // The maps alone are through in a moment.
    let mut heard = true;
    let mut meter = Meter::new("comparing", Some(new.size()), !args.content || args.quiet);
    for span in all {
        let span = span.map_err(Trouble::Reading)?;
        sums.add(&span);
        meter.at(span.range.end());
        if heard {
            heard = written_or_gone(teller.span(&span, out))?;
        }
        if !heard && (!args.exit_code || sums.differ()) {
            break;
        }
        until_check -= 1;
        if until_check == 0 {
            old.check().and_then(|()| new.check()).map_err(Trouble::Changed)?;
            until_check = CHECK;
        }
    }
    old.check().and_then(|()| new.check()).map_err(Trouble::Changed)?;
    Ok(heard)
}

/// False where nobody reads any more, which is no error.
fn written_or_gone(result: io::Result<()>) -> std::result::Result<bool, Trouble> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Trouble::Writing(e)),
    }
}

/// How differences are told.
trait Teller {
    /// A range; they come in order and without gaps.
    fn span(&mut self, span: &Span, out: &mut dyn Write) -> io::Result<()>;

    /// That was all.
    fn end(&mut self, args: &DiffArgs, sums: &Sums, out: &mut dyn Write) -> io::Result<()>;
}

struct Silent;

impl Teller for Silent {
    fn span(&mut self, _: &Span, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self, _: &DiffArgs, _: &Sums, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// What all ranges come to, in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Sums {
    sizes: [u64; 2],
    comparable: bool,
    content: bool,
    ranges: u64,
    data: u64,
    zero: u64,
    equal: u64,
    took: Duration,
}

impl Sums {
    fn add(&mut self, span: &Span) {
        let sum = match (span.what.equal, span.what.zero) {
            (true, _) => &mut self.equal,
            (false, true) => &mut self.zero,
            (false, false) => &mut self.data,
        };
        *sum += span.range.len();
        self.ranges += u64::from(!span.what.equal);
    }

    fn exit_code(&self, args: &DiffArgs) -> u8 {
        if args.exit_code && self.differ() { DIFFERS } else { 0 }
    }

    fn differ(&self) -> bool {
        self.ranges > 0 || self.sizes[0] != self.sizes[1]
    }
}

/// The name of what NEW has where it differs.
fn kind(span: &Span) -> &'static str {
    if span.what.zero { "zero" } else { "data" }
}

struct Lines;

impl Teller for Lines {
    fn span(&mut self, span: &Span, out: &mut dyn Write) -> io::Result<()> {
        if span.what.equal {
            return Ok(());
        }
        let (offset, length) = (span.range.start(), span.range.len());
        writeln!(out, "{{\"offset\":{offset},\"length\":{length},\"kind\":\"{}\"}}", kind(span))
    }

    fn end(&mut self, args: &DiffArgs, sums: &Sums, out: &mut dyn Write) -> io::Result<()> {
        json::write_line(out, &object(args, sums))
    }
}

fn object(args: &DiffArgs, sums: &Sums) -> Value {
    let object = json!({
        "v": json::VERSION, "event": "finished", "old_size": sums.sizes[0], "new_size": sums.sizes[1], "ranges": sums.ranges,
        "data_bytes": sums.data, "zero_bytes": sums.zero, "equal_bytes": sums.equal, "content": sums.content,
        "comparable": sums.comparable, "elapsed_ms": json::ms(sums.took),
    });
    with_path(with_path(object, "old", &args.old), "new", &args.new)
}

/// Both names, for a line.
fn names(args: &DiffArgs) -> String {
    format!("{} since {}", words::name(&args.new), words::name(&args.old))
}
