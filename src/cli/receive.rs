//! `receive [STREAM] [--base OLD] -o NEW`: a stream, made a snapshot.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use clap::error::ErrorKind;
use serde_json::json;

use super::diff::open;
use super::meter::Meter;
use super::send::sums_of;
use super::service::log::with_path;
use super::values::{self, MinFree};
use super::{json, last_words, words};
use crate::disk::real::{NewFile, RealDisk, directory_of};
use crate::engine::room;
use crate::error::{Error, Kind, Result};
use crate::record::Verdict;
use crate::rotate::found::{Snapshot, snapshots};
use crate::stream::format::name::{Kind as Consistency, Name};
use crate::stream::receive::{Received, Watch, base_of, exists, hinted, receive};

/// What stands below the options in the help.
pub const EXAMPLES: &str = "\
What is received is a snapshot like any other: its file is there when the whole stream is in it and
on the disk, and not before. A stream with changes is applied to a reflink clone of --base, which
stays as it is and must be the very snapshot that the stream needs. Of a stream that is cut off, out
of order or otherwise not right nothing is left, and the message says where it goes wrong. What the
format cannot tell is a byte of data that has changed on the way: see --checksum.

Examples:
  ssh host rclone-img send vm-1.snap | rclone-img receive -o vm-1.snap
  rclone-img receive --base vm-1.snap -o vm-2.snap < vm-1-2.diff
  rclone-img receive --checksum --base vm-1.snap -o vm-2.snap vm-1-2.diff";

/// `receive [STREAM]`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ReceiveArgs {
    /// A stream of 'rclone-img send' [default: standard input]
    #[arg(value_name = "STREAM")]
    pub stream: Option<PathBuf>,
    /// The snapshot since which the stream has the changes, on the file system of NEW
    #[arg(long, value_name = "OLD")]
    pub base: Option<PathBuf>,
    /// The new snapshot
    #[arg(short, long, value_name = "NEW")]
    pub output: PathBuf,
    /// Hold every record against STREAM.sums; there are none on a pipe
    #[arg(long)]
    pub checksum: bool,
    /// Free space below which nothing more is written: 0% to 99%, or a size
    #[arg(long, value_name = "FREE", default_value = "5%", value_parser = values::min_free)]
    pub min_free: MinFree,
    /// One JSON object on standard output at the end
    #[arg(long)]
    pub json: bool,
    /// Nothing but errors on standard error
    #[arg(short, long)]
    pub quiet: bool,
}

impl ReceiveArgs {
    /// What no parser of a single argument sees.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> std::result::Result<(), (ErrorKind, String)> {
        if self.checksum && self.stream.is_none() {
            let what = "--checksum needs the stream in a file: STREAM and STREAM.sums";
            return Err((ErrorKind::MissingRequiredArgument, what.into()));
        }
        Ok(())
    }
}

/// Runs the verb.
///
/// # Errors
/// Refused where NEW is there or OLD is not the stream's base; failed where the stream is not right, or NEW cannot be written.
pub fn run(args: &ReceiveArgs) -> Result<u8> {
    let name = words::name(&args.output);
    let new = NewFile::at(&args.output).map_err(|e| match e.raw_os_error() {
        Some(libc::EEXIST) => exists(e),
        _ => Error::io(Kind::Refused, format!("cannot make {name}"), "check the directory and its permissions", e),
    });
    let new = new.map_err(|e| on(&name, e))?;
    let mut input = input(args)?;
    let find = |name: &Name| base_beside(args, name);
    let mut base = match args.base.as_deref().map(open).transpose() {
        Ok(base) => base,
        // What should have been named the stream knows.
        Err(e) if e.errno() == Some(libc::ENOENT) => {
            let needed = base_of(&mut *input).ok().flatten();
            return Err(hinted(e, needed.as_ref(), &find));
        }
        Err(e) => return Err(e),
    };
    let mut sums = args.stream.as_deref().filter(|_| args.checksum).map(|path| read(&sums_of(path))).transpose()?;
    let began = Instant::now();
    let mut meter = Meter::new(format!("receiving {name}"), None, args.json || args.quiet);
    let mut progress = |done| meter.at(done);
    let mut room = |dir: &RealDisk, needed: u64| room::for_more(dir, args.min_free.into(), needed);
    let watch = Watch { progress: &mut progress, room: &mut room, find: &find };
    let sums = sums.as_mut().map(|sums| sums as &mut dyn BufRead);
    let received = receive(&mut *input, sums, base.as_mut(), new, watch).map_err(|e| on(&name, e))?;
    drop(meter);
    tell(args, &received, began)?;
    Ok(0)
}

/// The snapshot of this name in the directories of what was named on the command line.
fn base_beside(args: &ReceiveArgs, name: &Name) -> Option<String> {
    args.base.iter().chain([&args.output]).find_map(|path| {
        let dir = directory_of(path);
        let all = snapshots(dir, &RealDisk::open_dir(dir).ok()?, |_| true).ok()?;
        let is = |it: &Snapshot| it.verdict == Verdict::Valid && Name::from(&it.record) == *name;
        all.iter().find(|it| is(it)).map(|it| words::shell(path.with_file_name(&it.name)))
    })
}

fn on(name: &str, error: Error) -> Error {
    Error { what: format!("{name}: {}", error.what), ..error }
}

fn input(args: &ReceiveArgs) -> Result<Box<dyn Read>> {
    match &args.stream {
        Some(path) => Ok(Box::new(read(path)?)),
        None if io::stdin().is_terminal() => {
            let hint = "name a file, or pipe 'rclone-img send' into this command";
            Err(Error::new(Kind::Refused, "there is no stream on standard input", hint))
        }
        None => Ok(Box::new(BufReader::new(io::stdin()))),
    }
}

fn read(path: &Path) -> Result<BufReader<File>> {
    let cannot = |e| Error::io(Kind::Refused, format!("cannot open {}", words::name(path)), "check the path", e);
    File::open(path).map(|file| BufReader::with_capacity(256 << 10, file)).map_err(cannot)
}

fn tell(args: &ReceiveArgs, received: &Received, began: Instant) -> Result<()> {
    if args.json {
        let object = json!({
            "v": json::VERSION, "event": "finished", "t0": received.snapshot.t0.to_string(), "size": received.snapshot.size,
            "snapshot": received.snapshot.to_string(), "base": received.base.map(|base| base.to_string()),
            "point_in_time": received.snapshot.kind != Consistency::Mixed, "records": received.records, "data_bytes": received.data,
            "stream_bytes": received.stream, "elapsed_ms": json::ms(began.elapsed()),
        });
        return super::written(json::write_line(&mut io::stdout(), &with_path(object, "dst", &args.output)));
    }
    if !args.quiet {
        let (name, data) = (words::name(&args.output), words::bytes(received.data));
        let t0 = received.snapshot.t0;
        let torn = if received.snapshot.kind == Consistency::Mixed { "; NOT A POINT IN TIME" } else { "" };
        last_words(format!("{name}: the snapshot of T0 {t0:.0} is complete ({data} of data received){torn}\n"));
    }
    Ok(())
}
