//! `cargo xtask bench`: measurements against the goals in `docs/BENCHMARKS.md`.

use anyhow::Result;
use clap::Subcommand;

mod clone;
mod figures;
mod guard;
mod live;
mod pairs;

/// What to measure.
#[derive(Subcommand)]
pub enum Bench {
    /// The main job beside `cp --reflink=always`, on images of a million extents
    Clone(clone::Clone),
    /// An access by an armed descriptor beside one by an unarmed one
    Guard(guard::Guard),
    /// What a running guest feels of a snapshot, beside `cp --reflink=always` and a loop of clone calls
    Live(live::Live),
}

impl Bench {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Clone(clone) => clone.run(),
            Self::Guard(guard) => guard.run(),
            Self::Live(live) => live.run(),
        }
    }
}
