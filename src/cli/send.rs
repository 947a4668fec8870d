//! `send NEW [--from OLD] [-o STREAM]`: a snapshot, or what has changed in it, as a stream.

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::args::Output;
use super::diff::open;
use super::meter::Meter;
use super::service::log::with_path;
use super::{json, last_words, values, words};
use crate::disk::DiskFile;
use crate::disk::real::{Kept, NewFile};
use crate::error::{Error, Kind, Result};
use crate::stream::send::{Sent, Target, Wish, send};

/// What stands below the options in the help.
pub const EXAMPLES: &str = "\
The stream is RBD's diff format v1: 'rclone-img receive' makes a snapshot of it, and so does 'rbd
import-diff' in a Ceph pool; 'rbd merge-diff' joins two that follow one another. It says which
snapshot it is of and which one it needs. The format has no checksums: a receiver notices one that
is cut off, out of order or for another base, but not a byte of data that has changed on the way.
ssh and zstd notice that for you; for a stream that is stored, --checksum writes STREAM.sums.

Examples:
  rclone-img send vm-1.snap | ssh backup rclone-img receive -o /backup/vm-1.snap
  rclone-img send vm-2.snap --from vm-1.snap |
    ssh backup rclone-img receive --base /backup/vm-1.snap -o /backup/vm-2.snap
  rclone-img send vm-2.snap --from vm-1.snap --checksum -o vm-1-2.diff
  rclone-img send vm-2.snap --from vm-1.snap | rbd import-diff - pool/vm";

/// How the names of checksum files end.
const SUMS: &str = ".sums";

/// `send NEW`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct SendArgs {
    /// A finished snapshot
    #[arg(value_name = "NEW")]
    pub new: PathBuf,
    /// An earlier one: only what has changed since is sent
    #[arg(long, value_name = "OLD")]
    pub from: Option<PathBuf>,
    /// A new file for the stream [default: standard output]
    #[arg(short, long, value_name = "STREAM")]
    pub output: Option<PathBuf>,
    /// Write checksums of all records to STREAM.sums; there are none on a pipe
    #[arg(long, requires = "output")]
    pub checksum: bool,
    /// Read what the block maps do not prove, and leave out what has the same bytes: for compressed files
    #[arg(long, requires = "from")]
    pub content: bool,
    /// The most bytes a second, like 20M
    #[arg(long, value_name = "RATE", value_parser = values::bytes)]
    pub bwlimit: Option<u64>,
    /// One JSON object on standard output at the end
    #[arg(long, requires = "output")]
    pub json: bool,
    /// Nothing but errors on standard error
    #[arg(short, long)]
    pub quiet: bool,
}

/// Runs the verb.
///
/// # Errors
/// Refused where one of the two is no finished snapshot, or the stream would go to a terminal; failed where it cannot be written.
pub fn run(args: &SendArgs) -> Result<u8> {
    if args.output.is_none() && io::stdout().is_terminal() {
        let hint = "redirect it, or name a file with -o; 'rclone-img diff' shows what it would have";
        return Err(Error::new(Kind::Refused, "a stream is not for a terminal", hint));
    }
    let mut new = open(&args.new)?;
    let mut from = args.from.as_deref().map(open).transpose()?;
    let began = Instant::now();
    let wish = Wish { limit: args.bwlimit, content: args.content };
    let output = Output { json: args.json, quiet: args.quiet };
    let mut meter =
        Meter::new(format!("sending {}", words::name(&args.new)), Some(new.size()), output.json || output.quiet);
    let mut progress = |done| meter.at(done);
    let sent = match &args.output {
        None => {
            let mut out = io::stdout().lock();
            send(&mut new, from.as_mut(), Target { out: &mut out, sums: None }, wish, &mut progress)?
        }
        Some(path) => {
            let stream = at(path)?;
            let sums_path = sums_of(path);
            let sums = args.checksum.then(|| at(&sums_path)).transpose()?;
            let sent = {
                let mut out = stream.writer();
                let mut sums = sums.as_ref().map(|sums| BufWriter::new(sums.writer()));
                let sums = sums.as_mut().map(|sums| sums as &mut dyn Write);
                send(&mut new, from.as_mut(), Target { out: &mut out, sums }, wish, &mut progress)?
            };
            // The checksums first: a stream that is there has them. What takes long comes before both: whoever is killed in between leaves them
            // without a stream.
            stream.file().sync_all().map_err(|e| cannot(path, e))?;
            let sums = sums.map(NewFile::keep).transpose().map_err(|e| cannot(&sums_path, e))?;
            if let Err(e) = stream.keep() {
                // They are of no stream; what is there by now may be another send's.
                sums.into_iter().for_each(Kept::take_back);
                return Err(cannot(path, e));
            }
            sent
        }
    };
    drop(meter);
    tell(args, &sent, began)?;
    Ok(0)
}

/// The checksums of a stream.
pub fn sums_of(stream: &Path) -> PathBuf {
    let mut name = OsString::from(stream);
    name.push(SUMS);
    name.into()
}

fn at(path: &Path) -> Result<NewFile> {
    NewFile::at(path).map_err(|e| match e.raw_os_error() {
        Some(libc::EEXIST) => {
            let what = format!("{} is there already", words::name(path));
            Error::new(Kind::Refused, what, "choose another name, or move that file away")
        }
        _ => Error::io(
            Kind::Refused,
            format!("cannot make {}", words::name(path)),
            "check the directory and its permissions",
            e,
        ),
    })
}

fn cannot(path: &Path, error: io::Error) -> Error {
    Error::io(Kind::Failed, format!("cannot keep {}", words::name(path)), "mend the cause and send again", error)
}

fn tell(args: &SendArgs, sent: &Sent, began: Instant) -> Result<()> {
    if args.json {
        let object = json!({
            "v": json::VERSION, "event": "finished", "records": sent.records, "data_bytes": sent.data, "zero_bytes": sent.zero,
            "stream_bytes": sent.stream, "elapsed_ms": json::ms(began.elapsed()),
        });
        let mut object = with_path(object, "new", &args.new);
        if let Some(from) = &args.from {
            object = with_path(object, "from", from);
        }
        return super::written(json::write_line(&mut io::stdout(), &object));
    }
    if !args.quiet {
        let what = match &args.from {
            Some(from) => format!("what has changed since {}", words::name(from)),
            None => "all of it".into(),
        };
        let next = args.output.as_ref().map_or_else(String::new, |path| {
            let checksum = if args.checksum { " --checksum" } else { "" };
            let base = if args.from.is_some() { " --base COPY-OF-OLD" } else { "" };
            format!("\nnext: rclone-img receive {}{checksum}{base} -o COPY", words::shell(path))
        });
        let (data, zero) = (words::bytes(sent.data), words::bytes(sent.zero));
        let records = words::count(sent.records, "record");
        last_words(format!(
            "{}: sent {what}: {data} of data and {zero} of zeros in {records}{next}\n",
            words::name(&args.new)
        ));
    }
    Ok(())
}
