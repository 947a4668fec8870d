//! `cargo xtask bench`: measurements against the goals in `docs/BENCHMARKS.md`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

mod clone;
mod figures;
mod guard;
mod increments;
mod live;
mod pairs;
mod serve;

/// Measurements.
#[derive(Args)]
pub struct Bench {
    /// Fail where a goal is missed
    #[arg(long, global = true)]
    check: bool,
    #[command(subcommand)]
    what: What,
}

/// What to measure.
#[derive(Subcommand)]
enum What {
    /// The main job beside `cp --reflink=always`, on images of a million extents
    Clone(clone::Clone),
    /// An access by an armed descriptor beside one by an unarmed one
    Guard(guard::Guard),
    /// What has changed, found, sent and recycled, beside the programs that read for it
    Increments(increments::Increments),
    /// What a running guest feels of a snapshot, beside `cp --reflink=always` and a loop of clone calls
    Live(live::Live),
    /// The NBD server beside nbdkit's file plugin and qemu-nbd
    Serve(serve::Serve),
}

impl Bench {
    /// Measures and prints, and says how many goals are missed.
    pub fn run(&self) -> Result<ExitCode> {
        let missed = match &self.what {
            What::Clone(clone) => clone.run()?,
            What::Guard(guard) => guard.run()?,
            What::Increments(increments) => increments.run()?,
            What::Live(live) => live.run()?,
            What::Serve(serve) => serve.run()?,
        };
        eprintln!("{}", told(missed));
        Ok(if self.check && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn told(missed: usize) -> String {
    match missed {
        0 => "every goal is met".into(),
        missed => format!("goals missed: {missed}; docs/BENCHMARKS.md says which were when it was written, and why"),
    }
}
