//! `cargo xtask bench increments`: what has changed, found, sent and recycled, beside the programs that do it by reading.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use reflink_img_guest::latency::{Accesses, Kind as Access};

use super::figures::Spread;
use super::live::guest::Guest;
use super::pairs::measured;
use crate::program::Program;
use crate::sandbox::{self, Kind, LoopFs, MIB, Sandbox};
use crate::{chart, image, program, run, setup};

/// How long to wait for a file system to calm down.
const CALM: Duration = Duration::from_secs(120);

/// The names of the snapshots that are rotated.
const PATTERN: &str = "snaps/vm-%Y%m%dT%H%M%S%.9f.snap";

/// Arguments of `cargo xtask bench increments`.
#[derive(Args)]
pub struct Increments {
    /// Install what is missing first (apt-get; root or sudo)
    #[arg(long)]
    setup: bool,
    /// Size of each image; a gibibyte in small pieces has about 262144 extents
    #[arg(long, default_value = "4G", value_parser = image::size)]
    size: u64,
    /// How many times each side is run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// One file system only
    #[arg(long, value_enum)]
    fs: Option<Kind>,
    /// One scene only
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Use this rclone-img instead of building the workspace's
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// A scene.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// An image in small pieces: diff, memory, rotation
    Small,
    /// An image in large pieces: diff beside cmp, send beside dd
    Large,
}

impl Increments {
    /// Measures on each file system and prints the figures; how many goals are missed.
    pub fn run(&self) -> Result<usize> {
        sandbox::watch_signals()?;
        sandbox::sweep(&[]);
        setup::ensure(setup::LOOP, self.setup, "bench increments")?;
        if !setup::is_root() {
            bail!("making loop-mounted file systems needs root");
        }
        let program = Program::at_or_built(self.program.as_deref())?;
        let guest = program::built("reflink-img-guest", "reflink-img-guest")?;
        let mut missed = 0;
        for kind in self.fs.map_or(Kind::BOTH.to_vec(), |kind| vec![kind]) {
            let mut scene =
                Scene { program: &program, guest: &guest, rows: Rows::default(), size: self.size, runs: self.runs };
            if self.part != Some(Part::Large) {
                scene.small_pieces(kind)?;
            }
            if self.part != Some(Part::Small) {
                scene.large_pieces(kind)?;
            }
            let text = format!("\n{}, {} MiB\n\n{}", kind.name(), self.size / MIB, chart::table(&scene.rows.lines));
            // A reader that has gone away is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            missed += scene.rows.missed;
        }
        Ok(missed)
    }
}

struct Rows {
    lines: Vec<Vec<String>>,
    missed: usize,
}

impl Default for Rows {
    fn default() -> Self {
        Self { lines: vec![["", "goal", "median", "min", "max", ""].map(str::to_owned).to_vec()], missed: 0 }
    }
}

impl Rows {
    /// A goal, what may be at most or must be at least, and what it was.
    fn add(&mut self, what: &str, goal: Option<(&str, f64)>, unit: &str, values: &[f64]) {
        let spread = Spread::of(values);
        let met =
            goal.is_none_or(|(sign, limit)| if sign == "<=" { spread.median <= limit } else { spread.median >= limit });
        self.missed += usize::from(!met);
        let verdict = match goal {
            None => "",
            Some(_) if met => "met",
            Some(_) => "MISSED",
        };
        let goal = goal.map_or_else(String::new, |(sign, limit)| format!("{sign} {limit} {unit}"));
        let show = |value: f64| format!("{value:.3} {unit}");
        self.lines.push(vec![
            what.into(),
            goal,
            show(spread.median),
            show(spread.min),
            show(spread.max),
            verdict.into(),
        ]);
    }
}

struct Scene<'a> {
    program: &'a Program,
    guest: &'a Path,
    rows: Rows,
    size: u64,
    runs: u32,
}

impl Scene<'_> {
    /// A million extents, of which one in a hundred was rewritten between two snapshots.
    fn small_pieces(&mut self, kind: Kind) -> Result<()> {
        eprintln!("{}: an image in small pieces", kind.name());
        let file_system = LoopFs::make(kind, self.size * 2 + 2048 * MIB, true)?;
        let folder = file_system.path();
        let [image, old, new, copy] = ["vm.img", "old.snap", "new.snap", "copy"].map(|name| folder.join(name));
        image::make(&image, self.size)?;
        run::checked(&mut self.program.snapshot(&image, &old, &[]))?;
        image::rewrite_one_percent(&image, self.size)?;
        run::checked(&mut self.program.snapshot(&image, &new, &[]))?;
        let (mut ratios, mut diffs, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.runs {
            sandbox::settle(&folder, CALM)?;
            let walk =
                |file: &Path| Ok::<_, anyhow::Error>(run::checked(&mut self.program.map(file))?.took.as_secs_f64());
            let slower = walk(&old)?.max(walk(&new)?);
            let diff = measured(self.program.verb("diff").arg("--json").args([&old, &new]))?;
            ratios.push(diff.outcome.took.as_secs_f64() / slower);
            diffs.push(diff.outcome.took.as_secs_f64());
            peaks.push(diff.peak_mib);
        }
        self.rows.add("diff, 1 % changed / map of the slower", Some(("<=", 1.2)), "x", &ratios);
        self.rows.add("  diff", None, "s", &diffs);
        let stream = folder.join("stream");
        let mut send = self.program.verb("send");
        send.args(["-q", "--from"]).args([&old, &new]).arg("-o").arg(&stream);
        let mut receive = self.program.verb("receive");
        receive.arg("-q").arg(&stream).arg("--base").arg(&old).arg("-o").arg(&copy);
        let mut verify = self.program.verb("verify");
        verify.arg("-q").args([&new, &copy]);
        let mut restore = self.program.verb("restore");
        restore.arg("-q").args([&old, &image]);
        for mut command in [send, receive, verify, restore] {
            peaks.push(measured(&mut command)?.peak_mib);
        }
        for path in [&image, &old, &new, &copy, &stream] {
            program::remove(path)?;
        }
        peaks.extend(self.recycled(&folder, &image)?);
        let what = "memory of diff, send, receive, verify, restore, rotate";
        self.rows.add(what, Some(("<=", 64.0)), "MiB", &[Spread::of(&peaks).max]);
        Ok(())
    }

    /// Rotation with and without recycling, beside a reader and a writer; its memory, in MiB, without that of the snapshot's own process.
    fn recycled(&mut self, folder: &Path, image: &Path) -> Result<Vec<f64>> {
        // Removing takes its time, twice in each run.
        let size = self.size / 8;
        image::make(image, size)?;
        let logs = Sandbox::with_room(256 * MIB)?;
        std::fs::create_dir(folder.join("snaps"))?;
        let pattern = format!("{}={}", image.display(), folder.join(PATTERN).display());
        let rotate = |keep: &str, more: &[&str]| {
            let mut command = self.program.verb("rotate");
            command.args(["-q", "--consistency", "none", "--keep-last", keep]).args(more).arg(&pattern);
            command
        };
        let mut ratios = Vec::new();
        let mut felt = [Vec::new(), Vec::new()];
        let mut peaks = Vec::new();
        for _ in 0..self.runs {
            let mut took = [0.0; 2];
            for (side, more) in [&[][..], &["--recycle"]].into_iter().enumerate() {
                // As the run before has left it: one that is kept and, for recycling, one that no rule keeps.
                for keep in ["1", if more.is_empty() { "1" } else { "2" }] {
                    image::rewrite_one_percent(image, size)?;
                    run::checked(&mut rotate(keep, &[]))?;
                }
                image::rewrite_one_percent(image, size)?;
                sandbox::settle(folder, CALM)?;
                let guest = Guest::start(self.guest, image, 1, logs.path())?;
                let rotated = measured(&mut rotate("1", more))?;
                let accesses = guest.end()?;
                took[side] = rotated.outcome.took.as_secs_f64();
                peaks.push(rotated.peak_mib);
                felt[side].push(felt_ms(&accesses));
            }
            eprintln!("  rotate: anew {:.1} s, recycled {:.1} s", took[0], took[1]);
            ratios.push(took[1] / took[0]);
        }
        self.rows.add("rotate --recycle / delete and clone anew, an eighth", None, "x", &ratios);
        self.rows.add("  guest's p99.9, anew", None, "ms", &felt[0]);
        self.rows.add("  guest's p99.9, recycled", None, "ms", &felt[1]);
        Ok(peaks)
    }

    /// Large extents: diff beside cmp, send beside dd.
    fn large_pieces(&mut self, kind: Kind) -> Result<()> {
        eprintln!("{}: an image in large pieces", kind.name());
        let file_system = LoopFs::make(kind, self.size * 2 + 1024 * MIB, true)?;
        let folder = file_system.path();
        let [image, old, new] = ["vm.img", "old.snap", "new.snap"].map(|name| folder.join(name));
        let write = |from: u64, bytes: u64| {
            let (seek, count) = (format!("seek={}", from / MIB), format!("count={}", bytes / MIB));
            let mut command = Command::new("dd");
            command
                .args(["if=/dev/urandom", "bs=1M", "conv=notrunc,fsync", &seek, &count])
                .arg(format!("of={}", image.display()));
            run::checked(&mut command)
        };
        write(0, self.size)?;
        run::checked(&mut self.program.snapshot(&image, &old, &[]))?;
        let (from, bytes) = (self.size / 4, self.size / 8);
        write(from, bytes)?;
        run::checked(&mut self.program.snapshot(&image, &new, &[]))?;
        let (mut faster, mut sends) = (Vec::new(), Vec::new());
        for _ in 0..self.runs {
            // In the page cache: cmp of two that are equal reads all of both.
            run::checked(Command::new("cmp").args([&old, &old]))?;
            run::checked(Command::new("cmp").args(["-s"]).args([&new, &new]))?;
            let equal = folder.join("equal.snap");
            run::checked(Command::new("cp").arg("--reflink=always").args([&old, &equal]))?;
            run::checked(Command::new("cmp").args([&old, &equal]))?;
            let cmp = run::checked(Command::new("cmp").args([&old, &equal]))?;
            let diff = run::checked(self.program.verb("diff").arg("--json").args([&old, &equal]))?;
            faster.push(cmp.took.as_secs_f64() / diff.took.as_secs_f64());
            program::remove(&equal)?;
            let cold = || std::fs::write("/proc/sys/vm/drop_caches", "3");
            sandbox::settle(&folder, CALM)?;
            cold()?;
            let mut send = Command::new("sh");
            send.args(["-c", "exec \"$0\" send -q --from \"$1\" \"$2\" > /dev/null"])
                .arg(self.program.path())
                .args([&old, &new]);
            let send = run::checked(&mut send)?;
            cold()?;
            let (skip, count) = (format!("skip={}", from / MIB), format!("count={}", bytes / MIB));
            let mut dd = Command::new("dd");
            dd.args(["bs=1M", &skip, &count, "of=/dev/null"]).arg(format!("if={}", new.display()));
            let dd = run::checked(&mut dd)?;
            sends.push(dd.took.as_secs_f64() / send.took.as_secs_f64());
        }
        self.rows.add("cmp in the page cache / diff", Some((">=", 100.0)), "x", &faster);
        self.rows.add("send --from, of dd's speed on the same ranges", Some((">=", 0.8)), "x", &sends);
        Ok(())
    }
}

/// p99.9 of reads or writes, whichever is worse, of a guest that has one of each every millisecond; in milliseconds.
fn felt_ms(accesses: &Accesses) -> f64 {
    let from = accesses.list.iter().map(|it| it.start()).min().unwrap_or(0);
    let to = accesses.list.iter().map(|it| it.end()).max().unwrap_or(0);
    let felt = [Access::Read, Access::Write].map(|kind| accesses.felt_every(kind, &(from..to), 1_000_000).p999);
    felt.into_iter().max().unwrap_or(0) as f64 / 1e6
}
