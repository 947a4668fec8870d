//! `reflink-img-guest VERB`: arguments to plain data, one line of JSON at the end, an exit code.
//!
//! Exit: 0 done, or good; 1 failed, or the guest had an I/O error; 2 usage; 7 the snapshot is bad.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use reflink_img_guest::latency::{self, Kind, summary};
use reflink_img_guest::stop::Stop;
use reflink_img_guest::{fill, stamp, verify};

mod args;

use args::{Arguments, Verb};

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Fill(it) => {
            fill::fill(&it.image, it.size, it.fragment, it.seed)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Stamp(it) => {
            let stop = Stop::on_signals_and_stdin()?;
            let outcome = stamp::run(&it.options(), &stop, || say("ready"))?;
            say(&outcome.json());
            Ok(if outcome.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Latency(it) => {
            let stop = Stop::on_signals_and_stdin()?;
            let felt = latency::run(&it.options(), &stop, || say("ready"))?;
            say(&felt.json());
            let good = Kind::ALL.iter().all(|kind| felt.errors(*kind, &summary::ALWAYS) == 0);
            Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Verify(it) => {
            let verdict = verify::verify(&it.snapshots, &it.log, it.t0_range)?;
            say(&verdict.json());
            Ok(if verdict.good { ExitCode::SUCCESS } else { ExitCode::from(7) })
        }
    }
}

/// A line for whoever has started this; one that has gone away is no failure.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
