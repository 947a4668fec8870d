//! The project's own commands: `cargo xtask VERB`. One file or folder per verb; what two verbs share stands beside them.
//!
//! - [`setup`]: what the verbs need from the distribution.
//! - [`demo`], [`mod@test`], [`mod@bench`]: the README's two commands, and the figures of `docs/BENCHMARKS.md`.
//! - [`generate`]: `cargo xtask gen`, man pages and completions from the definition of the flags.
//! - [`tidy`]: the rules of the design that a compiler does not check.
//! - [`sandbox`]: file systems of one's own on loop devices, and their removal whatever happens.
//! - [`run`]: every child process, so that an interrupted verb ends its own and no others.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod chart;
mod demo;
mod generate;
mod image;
mod probe;
mod program;
mod run;
mod sandbox;
mod setup;
mod test;
mod tidy;

/// Commands of the rclone-img workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what the other verbs need from the distribution (apt-get; root or sudo)
    Setup,
    /// Clone a fragmented image with cp and with rclone-img while others use the file system, and show the difference
    Demo(demo::Demo),
    /// Run every test: unit, simulation, command line, kernel
    Test(test::Test),
    /// Measure against the goals of docs/BENCHMARKS.md
    Bench(bench::Bench),
    /// Write man pages and completions from the definition of the flags, or check that they are current
    Gen(generate::Gen),
    /// Check the rules of the design that a compiler does not check
    Tidy,
}

fn main() -> ExitCode {
    let ended = verb(Arguments::parse().verb);
    // What failed because of an interruption is not worth a word, and the thread that cleans up ends the process.
    run::park_if_stopping();
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn verb(verb: Verb) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match verb {
        Verb::Setup => setup::install(setup::ALL).map(done),
        Verb::Demo(demo) => demo.run().map(done),
        Verb::Test(test) => test.run(),
        Verb::Bench(bench) => bench.run(),
        Verb::Gen(files) => files.run().map(done),
        Verb::Tidy => tidy::run().map(done),
    }
}
