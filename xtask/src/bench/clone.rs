//! `cargo xtask bench clone`: the main job beside `cp --reflink=always`, and what else the project promises of it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use super::figures::Figures;
use super::pairs::Bench;
use crate::program::Program;
use crate::sandbox::{self, Kind, LoopFs, MIB};
use crate::{image, setup};

/// The image of 65 thousand extents.
const SMALL: u64 = 256 * MIB;

/// Arguments of `cargo xtask bench clone`.
#[derive(Args)]
pub struct Clone {
    /// Install what is missing first (apt-get; root or sudo)
    #[arg(long)]
    setup: bool,
    /// Size of the image; a gibibyte has about 262144 extents
    #[arg(long, default_value = "4G", value_parser = image::size)]
    size: u64,
    /// How many times each side is run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: u32,
    /// One file system only
    #[arg(long, value_enum)]
    fs: Option<Kind>,
    /// A smoke test: images of 256M, one pair
    #[arg(long, conflicts_with_all = ["size", "pairs"])]
    quick: bool,
    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
    /// Use this rclone-img instead of building the workspace's
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

impl Clone {
    /// Measures on each file system and prints the figures; how many goals are missed.
    pub fn run(&self) -> Result<usize> {
        sandbox::watch_signals()?;
        sandbox::sweep(&[]);
        setup::ensure(setup::LOOP, self.setup, "bench clone")?;
        if !setup::is_root() {
            bail!("making loop-mounted file systems needs root");
        }
        let program = Program::at_or_built(self.program.as_deref())?;
        let kinds = self.fs.map_or(Kind::BOTH.to_vec(), |kind| vec![kind]);
        let all = kinds.into_iter().map(|kind| self.on(kind, &program)).collect::<Result<Vec<Figures>>>()?;
        let text = if self.json {
            format!("{:#}\n", json!({"v": 1, "figures": all.iter().map(Figures::json).collect::<Vec<_>>()}))
        } else {
            all.iter().map(Figures::text).collect::<String>() + self.farewell()
        };
        // A reader that has gone away is no failure.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(all.iter().map(Figures::missed).sum())
    }

    fn on(&self, kind: Kind, program: &Program) -> Result<Figures> {
        let (size, pairs) = if self.quick { (SMALL, 1) } else { (self.size, self.pairs) };
        // Btrfs keeps its trees twice, and a million extents with their clones have trees of some hundred MiB.
        // XFS sets 128 KiB aside for each shared block that is rewritten, and takes minutes to give it back.
        let room = size * 2 + 1024 * MIB;
        eprintln!("{}: filling {} MiB for the loop device once, so that no run pays for it", kind.name(), room / MIB);
        let file_system = LoopFs::make(kind, room, true)?;
        let mut bench = Bench::new(program, file_system.path(), kind.name(), size)?;
        for pair in 0..pairs {
            bench.pair(pair)?;
        }
        bench.small(SMALL)?;
        Ok(bench.finish())
    }

    fn farewell(&self) -> &'static str {
        if self.quick {
            "\nA smoke test: figures of so small an image say little. Without --quick they belong in docs/BENCHMARKS.md.\n"
        } else {
            "\nThese figures belong in docs/BENCHMARKS.md, with the machine, the kernel and this command; where one is\n\
             missed, say there why.\n"
        }
    }
}
