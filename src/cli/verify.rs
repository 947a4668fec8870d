//! `verify SRC DST`: whether two files have the same bytes.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::diff::{DIFFERS, open};
use super::meter::{LOOK, Meter};
use super::service::log::with_path;
use super::{json, words};
use crate::changes::maps::{Sides, comparable, spans};
use crate::changes::still::{self, Still};
use crate::changes::verify::{Progress, Verified, verify};
use crate::error::Result;

/// What stands below the options in the help.
pub const EXAMPLES: &str = "\
What has the same blocks in both is equal and is not read; the rest is read and compared. Nobody may
write to either meanwhile. Exit 0: equal; 7: different, and the first differences are listed.

Examples:
  rclone-img verify vm.snap /backup/vm.raw
  rclone-img verify --json vm.snap vm.img";

/// `verify SRC DST`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct VerifyArgs {
    /// A snapshot, or an image that is not in use
    #[arg(value_name = "SRC")]
    pub src: PathBuf,
    /// What should have the same bytes
    #[arg(value_name = "DST")]
    pub dst: PathBuf,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Nothing but errors
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
}

/// Runs the verb.
///
/// # Errors
/// Refused where somebody may write to one of the two; failed where one cannot be read, or was changed meanwhile.
pub fn run(args: &VerifyArgs) -> Result<u8> {
    let mut src = open(&args.src)?;
    let mut dst = open(&args.dst)?;
    let began = Instant::now();
    let sizes = [src.size(), dst.size()];
    let verified = compare(args, &src, &dst)?;
    src.check()?;
    dst.check()?;
    let equal = verified.differing == 0 && sizes[0] == sizes[1];
    let mut out = io::stdout().lock();
    let told = if args.json {
        let first: Vec<_> = verified.first.iter().map(|it| json!({"offset": it.start(), "length": it.len()})).collect();
        let object = json!({
            "v": json::VERSION, "event": "finished", "equal": equal, "src_size": sizes[0], "dst_size": sizes[1],
            "proved_bytes": verified.proved, "read_bytes": verified.read, "differing_bytes": verified.differing, "first": first,
            "elapsed_ms": json::ms(began.elapsed()),
        });
        json::write_line(&mut out, &with_path(with_path(object, "src", &args.src), "dst", &args.dst))
    } else if args.quiet {
        Ok(())
    } else {
        out.write_all(text(args, &verified, sizes).as_bytes())
    };
    super::written(told)?;
    Ok(if equal { 0 } else { DIFFERS })
}

fn compare(args: &VerifyArgs, src: &Still, dst: &Still) -> Result<Verified> {
    let common = src.size().min(dst.size());
    let cannot_read = |e| still::cannot_read_one(&args.src, &args.dst, e);
    let comparable = comparable(&**src.file(), &**dst.file()).map_err(cannot_read)?;
    let sides = Sides { old: &**src.file(), new: &**dst.file(), common, comparable };
    let (progress, over) = (Progress::default(), AtomicBool::new(false));
    let verified = thread::scope(|scope| {
        let shows = scope.spawn(|| {
            let mut meter = Meter::new("comparing", Some(common), args.json || args.quiet);
            while !over.load(Ordering::Relaxed) {
                meter.at(progress.done.load(Ordering::Relaxed));
                thread::park_timeout(LOOK);
            }
        });
        let verified = verify(sides.old, sides.new, spans(sides), &progress, || Ok(()));
        over.store(true, Ordering::Relaxed);
        shows.thread().unpark();
        verified
    });
    verified.map_err(cannot_read)
}

fn text(args: &VerifyArgs, verified: &Verified, sizes: [u64; 2]) -> String {
    let (src, dst) = (words::name(&args.src), words::name(&args.dst));
    let how = format!("{} by their block maps, {} read", words::bytes(verified.proved), words::bytes(verified.read));
    if verified.differing == 0 && sizes[0] == sizes[1] {
        return format!("{src} and {dst} are equal: {}, {how}\n", words::bytes(sizes[0]));
    }
    let mut text = format!("{src} and {dst} differ ({how})\n");
    if sizes[0] != sizes[1] {
        text += &format!("  {src} has {} bytes, {dst} {}\n", sizes[0], sizes[1]);
    }
    if verified.differing > 0 {
        text += &format!("  {} differ; the first of them:\n", words::bytes(verified.differing));
        for range in &verified.first {
            text += &format!("{:>20}{:>20}\n", range.start(), range.len());
        }
    }
    text
}
