//! The command line.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use reflink_img_guest::{latency, stamp};

/// Plays the guest of a VM image, and judges the snapshots that are made of it meanwhile.
#[derive(Parser)]
#[command(name = "reflink-img-guest", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Subcommand)]
pub enum Verb {
    /// Make an image, every sector a stamp of generation 0
    Fill(Fill),
    /// Write stamps at random, and a log of them, until standard input is closed or SIGTERM comes
    Stamp(Stamp),
    /// Tell whether there is one instant at which the images were what the snapshots show (exit 7 where not)
    Verify(Verify),
    /// Time a reader, a writer and a flusher of an image, until standard input is closed or SIGTERM comes
    Latency(Latency),
}

/// Arguments of `fill`.
#[derive(Args)]
pub struct Fill {
    /// The image, which must not exist
    pub image: PathBuf,
    /// Its size, a multiple of 4K
    #[arg(long, value_parser = size)]
    pub size: u64,
    /// Write it in random order, 4 KiB at a time: nearly every block is an extent
    #[arg(long)]
    pub fragment: bool,
    /// What chance begins with
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Arguments of `stamp`.
#[derive(Args)]
pub struct Stamp {
    /// The image
    #[arg(required_unless_present = "images")]
    pub image: Option<PathBuf>,
    /// Several images, for one log
    #[arg(long, value_delimiter = ',', value_name = "A,B", conflicts_with = "image")]
    pub images: Vec<PathBuf>,
    /// The log; a file that is there is replaced. Best on a tmpfs
    #[arg(long)]
    pub log: PathBuf,
    /// Go on with the log of an earlier run on the same images, as they were left
    #[arg(long = "continue")]
    pub go_on: bool,
    /// Submit each write after the one before it has ended, to the images in turn (mode buffered, which then syncs each
    /// write, or direct)
    #[arg(long)]
    pub dependent: bool,
    /// How to write
    #[arg(long, value_enum)]
    pub mode: Mode,
    /// How many threads write
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub writers: u32,
    /// What chance begins with
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The bytes that are written to
    #[arg(long, value_name = "START..END", value_parser = span, default_value = "..")]
    pub span: Range<u64>,
    /// The longest write
    #[arg(long, value_parser = size, default_value = "64K")]
    pub max_write: u64,
    /// How many writes each thread has under way, with libaio and io_uring
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub depth: u32,
    /// The most operations a second, of all threads together
    #[arg(long, value_name = "N/s", value_parser = rate)]
    pub rate: Option<u64>,
    /// The longest to go on
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
    /// Flush each image so often
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub flush_every: Option<u64>,
}

/// Arguments of `verify`.
#[derive(Args)]
pub struct Verify {
    /// The snapshots, in the order of the images in the log
    #[arg(required = true, value_delimiter = ',', value_name = "SNAPSHOT,...")]
    pub snapshots: Vec<PathBuf>,
    /// The log of the writer; it may still be writing
    #[arg(long)]
    pub log: PathBuf,
    /// Look for T0 here only, in ns of CLOCK_MONOTONIC
    #[arg(long, value_name = "NS..NS", value_parser = instants, default_value = "..")]
    pub t0_range: RangeInclusive<u64>,
}

/// Arguments of `latency`.
#[derive(Args)]
pub struct Latency {
    /// The image, which `fill` made: its stamps are written once more, so nothing in it changes
    pub image: PathBuf,
    /// The file for the accesses; one that is there is replaced. Best on a tmpfs
    #[arg(long)]
    pub out: PathBuf,
    /// Through the page cache, instead of past it
    #[arg(long)]
    pub buffered: bool,
    /// Without the writer: beside a `stamp` of the same image, whose stamps it would overwrite
    #[arg(long)]
    pub no_writes: bool,
    /// How many threads write
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "no_writes", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub writers: u32,
    /// A read and a write every so often, instead of as fast as it goes; the percentiles then count what a stall kept from
    /// being made
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(1..))]
    pub every: Option<u64>,
    /// Flush the image so often
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub flush_every: u64,
    /// What chance begins with
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The longest to go on
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
}

/// How to write.
#[derive(Clone, Copy, ValueEnum)]
pub enum Mode {
    /// Through the page cache, any number of sectors
    Buffered,
    /// Past it, 4 KiB and multiples
    Direct,
    /// As direct, several under way
    Libaio,
    /// As direct, several under way
    Uring,
    /// As uring, file and buffers registered with the ring and the file closed
    UringFixed,
    /// As direct, with a hole punched every fourth time
    Punch,
    /// All of them: through the page cache in the lower half of the span, past it in the upper
    Mix,
    /// As mix, without uring-fixed: the image stays among the open files
    MixOpen,
}

impl Stamp {
    /// As the library has it.
    pub fn options(self) -> stamp::Options {
        let mode = match self.mode {
            Mode::Buffered => stamp::Mode::Buffered,
            Mode::Direct => stamp::Mode::Direct,
            Mode::Libaio => stamp::Mode::Libaio,
            Mode::Uring => stamp::Mode::Uring,
            Mode::UringFixed => stamp::Mode::UringFixed,
            Mode::Punch => stamp::Mode::Punch,
            Mode::Mix => stamp::Mode::Mix,
            Mode::MixOpen => stamp::Mode::MixOpen,
        };
        stamp::Options {
            images: self.image.into_iter().chain(self.images).collect(),
            log: self.log,
            go_on: self.go_on,
            dependent: self.dependent,
            mode,
            writers: self.writers,
            seed: self.seed,
            span: self.span,
            max_write: self.max_write,
            depth: self.depth as usize,
            rate: self.rate,
            longest: self.seconds.map(Duration::from_secs),
            flush_every: self.flush_every.map(Duration::from_millis),
        }
    }
}

impl Latency {
    /// As the library has it.
    pub fn options(self) -> latency::Options {
        latency::Options {
            image: self.image,
            out: self.out,
            buffered: self.buffered,
            writers: if self.no_writes { 0 } else { self.writers },
            every: self.every.map(Duration::from_micros),
            flush_every: Duration::from_millis(self.flush_every),
            seed: self.seed,
            longest: self.seconds.map(Duration::from_secs),
        }
    }
}

/// A size: `4096`, `64K`, `1GiB`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches("iB") {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("sizes are like 4096, 64K, 1G".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "sizes are like 4096, 64K, 1G".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|it| *it > 0)
        .ok_or_else(|| "must be more than 0 and less than 16E".to_owned())
}

/// A range of bytes, `1M..2M`, `..2M`, `1M..`.
fn span(text: &str) -> Result<Range<u64>, String> {
    let (start, end) = text.split_once("..").ok_or("a range is like 1M..2M")?;
    let or = |text: &str, default| if text.is_empty() || text == "0" { Ok(default) } else { size(text) };
    let span = or(start, 0)?..or(end, u64::MAX)?;
    if span.is_empty() { Err("an empty range".to_owned()) } else { Ok(span) }
}

/// Instants, `5..9`, `..9`, `5..`, both ends included.
fn instants(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (start, end) = text.split_once("..").ok_or("a range is like 1000..2000")?;
    let or = |text: &str, default| if text.is_empty() { Ok(default) } else { text.parse() };
    let number = |_| "an instant is a number of nanoseconds".to_owned();
    let range = or(start, 0).map_err(number)?..=or(end, u64::MAX).map_err(number)?;
    if range.is_empty() { Err("an empty range".to_owned()) } else { Ok(range) }
}

/// A rate: `500/s`, or only `500`.
fn rate(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).parse().ok().filter(|it| *it > 0);
    number.ok_or_else(|| "a rate is like 500/s".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn values_are_read() {
        assert_eq!([size("64K"), size("1GiB"), size("512")], [Ok(65536), Ok(1 << 30), Ok(512)]);
        assert!(["", "K", "1X", "-1", "0", "99999999T"].iter().all(|text| size(text).is_err()));
        assert_eq!(span("1M..2M"), Ok(1 << 20..2 << 20));
        assert_eq!(span(".."), Ok(0..u64::MAX));
        assert_eq!(span("0..4K"), Ok(0..4096));
        assert!(span("2M..1M").is_err() && span("1M").is_err());
        assert_eq!(instants("5..9"), Ok(5..=9));
        assert_eq!(instants(".."), Ok(0..=u64::MAX));
        assert_eq!([rate("500/s"), rate("7")], [Ok(500), Ok(7)]);
        assert!(rate("0").is_err());
    }

    #[test]
    fn an_image_is_named_once() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' ')).is_ok();
        assert!(parse("g stamp a --log l --mode mix"));
        assert!(parse("g stamp --images a,b --log l --mode direct --dependent"));
        assert!(!parse("g stamp --log l --mode mix"));
        assert!(!parse("g stamp a --images b --log l --mode mix"));
    }
}
