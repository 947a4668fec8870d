//! `cargo xtask bench guard`: what an access costs more by a descriptor that is armed than by one that is not.
//!
//! Both descriptors are of one file, and the marks stand while both are measured: what is compared is what a VM has
//! from being armed, not what a host has from running the service. The marks are those of the program (`hold::arm`).

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use rclone_img::hold::arm::{Arming, Reach};
use rclone_img::sys::fanotify::{Group, Mark};
use serde_json::{Value, json};

use super::figures::Spread;
use crate::chart;
use crate::image::{Aligned, BLOCK, Random};
use crate::sandbox::{self, Kind, LoopFs, MIB};
use crate::setup;

/// The most that an access may cost more, in nanoseconds.
const GOAL: f64 = 500.0;

/// The file: little enough that it stays in the page cache, and is written back quickly.
const BYTES: u64 = 4 * MIB;

/// Accesses that are timed together, so that reading the clock does not count.
const BATCH: u32 = 100;

/// Arguments of `cargo xtask bench guard`.
#[derive(Args)]
pub struct Guard {
    /// Install what is missing first (apt-get; root or sudo)
    #[arg(long)]
    setup: bool,
    /// How many times each side is run
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// Accesses in one run, in thousands
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    thousands: u32,
    /// One file system only
    #[arg(long, value_enum)]
    fs: Option<Kind>,
    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
}

/// By which mark the descriptor is armed.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    reach: Reach,
    directory: bool,
}

const WAYS: [Way; 3] = [
    Way { name: "the file", reach: Reach::Path, directory: false },
    Way { name: "its directory", reach: Reach::Path, directory: true },
    Way { name: "its file system", reach: Reach::FileSystem, directory: true },
];

/// What is done to the file.
#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
}

/// A row of the table: nanoseconds an access, of each run.
struct Row {
    access: Access,
    way: &'static str,
    unarmed: Vec<f64>,
    armed: Vec<f64>,
}

impl Guard {
    /// Measures on each file system and prints the figures; how many rows miss the goal.
    pub fn run(&self) -> Result<usize> {
        sandbox::watch_signals()?;
        sandbox::sweep(&[]);
        setup::ensure(setup::LOOP, self.setup, "bench guard")?;
        if !setup::is_root() {
            bail!("arming files, and making loop-mounted file systems, needs root");
        }
        let kinds = self.fs.map_or(Kind::BOTH.to_vec(), |kind| vec![kind]);
        let all = kinds.into_iter().map(|kind| Ok((kind, self.on(kind)?))).collect::<Result<Vec<_>>>()?;
        let missed = all.iter().flat_map(|(_, rows)| rows).filter(|row| !row.met()).count();
        let met = missed == 0;
        let text = if self.json {
            let figures: Vec<Value> = all.iter().map(|(kind, rows)| json(*kind, rows)).collect();
            format!("{:#}\n", json!({"v": 1, "goal_ns": GOAL, "met": met, "figures": figures}))
        } else {
            let verdict = if met { "met" } else { "MISSED" };
            let goal = format!("\nGoal, at most {:.1} us more an access in the median: {verdict}.\n", GOAL / 1000.0);
            all.iter().map(|(kind, rows)| self.table(*kind, rows)).collect::<String>() + &goal
        };
        // A reader that has gone away is no failure.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(missed)
    }

    fn on(&self, kind: Kind) -> Result<Vec<Row>> {
        eprintln!("{}: making a file system in memory", kind.name());
        let file_system = LoopFs::make(kind, 512 * MIB, true)?;
        let path = file_system.path().join("vm.img");
        std::fs::write(&path, vec![1; BYTES as usize]).with_context(|| format!("write {}", path.display()))?;
        let unarmed = open(&path)?;
        let mut rows = Vec::new();
        for way in WAYS {
            let arming = Arming::new().map_err(words)?;
            let target = if way.directory { file_system.path() } else { path.clone() };
            arming.arm(&target, way.reach).map_err(|why| anyhow!("{} cannot be armed: {why:?}", target.display()))?;
            let armed = open(&path)?;
            if is_armed(&unarmed)? || !is_armed(&armed)? {
                bail!("{}: arming {} has not done what it should", kind.name(), way.name);
            }
            for access in [Access::Read, Access::Write] {
                sandbox::settle(&file_system.path(), Duration::from_secs(60))?;
                rows.push(self.pairs(access, way.name, &unarmed, &armed)?);
            }
        }
        Ok(rows)
    }

    fn pairs(&self, access: Access, way: &'static str, unarmed: &File, armed: &File) -> Result<Row> {
        let mut row = Row { access, way, unarmed: Vec::new(), armed: Vec::new() };
        let batches = (self.thousands * 1000 / BATCH).max(1);
        // What comes first finds nothing warm, and does not count.
        pair([unarmed, armed], access, batches)?;
        for number in 0..self.pairs {
            let (one, other) = if number % 2 == 0 {
                pair([unarmed, armed], access, batches)?.into()
            } else {
                let [armed, unarmed] = pair([armed, unarmed], access, batches)?;
                (unarmed, armed)
            };
            row.unarmed.push(one);
            row.armed.push(other);
        }
        Ok(row)
    }

    fn table(&self, kind: Kind, rows: &[Row]) -> String {
        let heading = ["4 KiB, page cache", "armed by", "unarmed", "armed", "more", "min", "max", "goal", ""];
        let mut cells = vec![heading.map(str::to_owned).to_vec()];
        let ns = |value: f64| format!("{value:.0} ns");
        for row in rows {
            let more = row.more();
            let verdict = if row.met() { "met" } else { "MISSED" };
            let [unarmed, armed] = [&row.unarmed, &row.armed].map(|runs| ns(Spread::of(runs).median));
            let figures = [unarmed, armed, ns(more.median), ns(more.min), ns(more.max), format!("<= {}", ns(GOAL))];
            let names = [row.access.name(), row.way].map(str::to_owned);
            cells.push(names.into_iter().chain(figures).chain([verdict.to_owned()]).collect());
        }
        let (name, pairs, thousands) = (kind.name(), self.pairs, self.thousands);
        format!("\n{name}: {pairs} pairs of runs of {thousands},000 accesses\n\n{}", chart::table(&cells))
    }
}

impl Access {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "pread",
            Self::Write => "pwrite",
        }
    }
}

impl Row {
    /// What an armed access costs more, pair by pair.
    fn more(&self) -> Spread {
        Spread::of(&self.armed.iter().zip(&self.unarmed).map(|(armed, unarmed)| armed - unarmed).collect::<Vec<_>>())
    }

    fn met(&self) -> bool {
        self.more().median <= GOAL
    }

    fn json(&self) -> Value {
        json!({
            "access": self.access.name(), "armed_by": self.way, "more_ns": self.more().median, "met": self.met(),
            "unarmed_ns": self.unarmed, "armed_ns": self.armed,
        })
    }
}

fn json(kind: Kind, rows: &[Row]) -> Value {
    json!({"file_system": kind.name(), "rows": rows.iter().map(Row::json).collect::<Vec<_>>()})
}

/// A pair of runs, whose batches take turns: what else the machine does meanwhile, and the file system's writing back,
/// falls on both. Nanoseconds of an access of each: the median of its batches.
fn pair(files: [&File; 2], access: Access, batches: u32) -> Result<[f64; 2]> {
    let (mut buffer, mut random) = (Aligned::new(), Random::new());
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..batches {
        for (file, took) in files.iter().zip(&mut took) {
            took.push(batch(file, access, &mut buffer, &mut random)?);
        }
    }
    Ok(took.map(|took| Spread::of(&took).median))
}

/// Nanoseconds of an access, the mean of a batch.
fn batch(file: &File, access: Access, buffer: &mut Aligned, random: &mut Random) -> Result<f64> {
    let begun = Instant::now();
    for _ in 0..BATCH {
        let at = random.below(BYTES / BLOCK) * BLOCK;
        match access {
            Access::Read => file.read_exact_at(black_box(buffer.block()), at),
            Access::Write => file.write_all_at(black_box(buffer.block()), at),
        }
        .context("access the file")?;
    }
    Ok(begun.elapsed().as_nanos() as f64 / f64::from(BATCH))
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("open {}", path.display()))
}

fn words(error: rclone_img::error::Error) -> anyhow::Error {
    anyhow!("{error} ({})", error.hint)
}

/// Whether an access by this descriptor makes an event where its file is watched. Figures of descriptors that are not
/// what they should be are worth nothing.
fn is_armed(file: &File) -> Result<bool> {
    let watch = Group::pre_content().context("make a fanotify group")?;
    watch.mark(file.as_fd(), Mark::PreAccess).context("watch the file")?;
    let over = AtomicBool::new(false);
    let mut seen = false;
    thread::scope(|scope| {
        let read = scope.spawn(|| {
            let read = file.read_at(&mut [], 0);
            over.store(true, Ordering::Release);
            read
        });
        while !over.load(Ordering::Acquire) {
            while let Some(event) = watch.read().context("read an event")? {
                seen = true;
                watch.allow(event.file.as_raw_fd()).context("let an access go on")?;
            }
            thread::sleep(Duration::from_millis(1));
        }
        read.join().map_err(|_| anyhow!("the reader panicked"))?.context("read nothing")?;
        Ok(seen)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_goal_is_held_to_the_median_of_the_differences() {
        let row = |armed: &[f64]| Row {
            access: Access::Read,
            way: "the file",
            unarmed: vec![1000.0, 2000.0, 1000.0],
            armed: armed.to_vec(),
        };
        assert!(row(&[1100.0, 2100.0, 9000.0]).met(), "one bad run in three");
        assert!(!row(&[1600.0, 2600.0, 1100.0]).met());
        assert_eq!(row(&[1600.0, 2100.0, 1100.0]).json()["more_ns"], 100.0);
    }

    #[test]
    fn accesses_take_time() {
        let mut file = tempfile_in_memory();
        file.write_all(&vec![0; BYTES as usize]).unwrap();
        for access in [Access::Read, Access::Write] {
            assert!(pair([&file, &file], access, 2).unwrap().iter().all(|took| *took > 0.0));
        }
    }

    fn tempfile_in_memory() -> File {
        let sandbox = crate::sandbox::Sandbox::inside(&std::env::temp_dir()).unwrap();
        let open = OpenOptions::new().read(true).write(true).create_new(true).open(sandbox.path().join("file"));
        open.unwrap()
    }
}
