//! `cargo xtask test`: the README's second command. It runs every test there is, and what cargo prints last stays last.

use std::process::{Command, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;

use crate::{program, run, sandbox, setup};

/// The variable that tells the tests their base seed.
const SEED: &str = "REFLINK_IMG_SEED";

/// The variable that tells the tests to run their long counts in full.
const SOAK: &str = "REFLINK_IMG_SOAK";

/// The package whose tests have a scheduler of their own.
const INTERLEAVINGS: &str = "reflink-img-interleavings";

/// The package whose program writes and judges in the tests.
const GUEST: &str = "reflink-img-guest";

/// Arguments of `cargo xtask test`.
#[derive(Args)]
pub struct Test {
    /// Install what is missing first (apt-get; root or sudo)
    #[arg(long)]
    setup: bool,
    /// Run the long counts (kills, seeds) in full
    #[arg(long)]
    soak: bool,
    /// Base seed of everything random, to replay a run; otherwise REFLINK_IMG_SEED, else today's date
    #[arg(long)]
    seed: Option<u64>,
    /// Further arguments to cargo test; only the tests that they choose are run
    #[arg(last = true)]
    extra: Vec<String>,
}

impl Test {
    /// Runs the tests; their failure is this command's, without another word.
    pub fn run(&self) -> Result<ExitCode> {
        sandbox::watch_signals()?;
        sandbox::sweep(&[]);
        setup::ensure(setup::ALL, self.setup, "test")?;
        let seed = match (self.seed, std::env::var(SEED)) {
            (Some(seed), _) => seed,
            (None, Ok(text)) => text.parse().with_context(|| format!("{SEED}={text} is not a number"))?,
            (None, Err(_)) => today(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 86_400),
        };
        let soak = if self.soak { " --soak" } else { "" };
        eprintln!("seed {seed}; to run this again: cargo xtask test{soak} --seed {seed}");
        if !setup::is_root() {
            eprintln!("note: not root, so the tests on loop-mounted file systems are skipped, and say so");
        }
        let code = self.cargo(seed)?;
        sandbox::sweep(&[]);
        Ok(code)
    }

    fn cargo(&self, seed: u64) -> Result<ExitCode> {
        if !self.extra.is_empty() {
            return exit_code(self.prepare(seed).args(&self.extra));
        }
        // Else the first test that needs it would build it beside the others, which are to have the processors.
        let built = exit_code(program::cargo().args(["build", "--quiet", "--package", GUEST]))?;
        if built != ExitCode::SUCCESS {
            return Ok(built);
        }
        // --all-targets leaves the documentation's examples out. The library of the interleavings has the program's own modules in it, whose tests
        // belong to the program, and --all-targets would run them there as well. Both go first, so that the closing lines are those of the tests proper.
        let mut first = [self.prepare(seed), self.cargo_test(seed)];
        first[0].arg("--doc");
        first[1].args(["--package", INTERLEAVINGS, "--tests", "--no-fail-fast"]);
        for command in &mut first {
            let ended = exit_code(command)?;
            if ended != ExitCode::SUCCESS {
                return Ok(ended);
            }
        }
        exit_code(self.prepare(seed).args(["--exclude", INTERLEAVINGS, "--all-targets", "--no-fail-fast"]))
    }

    fn prepare(&self, seed: u64) -> Command {
        let mut command = self.cargo_test(seed);
        command.arg("--workspace");
        command
    }

    fn cargo_test(&self, seed: u64) -> Command {
        let mut command = program::cargo();
        command.arg("test").env(SEED, seed.to_string());
        if self.soak {
            command.env(SOAK, "1");
        }
        command
    }
}

fn exit_code(command: &mut Command) -> Result<ExitCode> {
    let status = run::attached(command)?;
    Ok(status.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(u8::try_from(code).unwrap_or(1))))
}

/// The date as a number that people recognise, 20261121, from the days since 1970 (Howard Hinnant's civil_from_days).
fn today(days: u64) -> u64 {
    let days = days + 719_468;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + days / 146_097 * 400 + u64::from(month <= 2);
    year * 10_000 + month * 100 + day
}

#[cfg(test)]
mod tests {
    use super::today;

    #[test]
    fn dates_are_read_off_the_calendar() {
        for (days, date) in [(0, 19_700_101), (59, 19_700_301), (11_016, 20_000_229), (20_778, 20_261_121)] {
            assert_eq!(today(days), date);
        }
    }
}
