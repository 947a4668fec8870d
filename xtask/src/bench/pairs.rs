//! The runs of `cargo xtask bench clone` on one file system: both sides of a ratio in turn, each first in every other pair.

use std::fs::OpenOptions;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::unistd::Pid;

use super::figures::{Figures, Measure};
use crate::program::{self, Program};
use crate::{image, run, sandbox};

/// How long to wait for a file system to calm down before a run counts as unquiet.
const CALM: Duration = Duration::from_secs(120);

/// An image on a file system, and what was measured there.
pub struct Bench<'a> {
    program: &'a Program,
    folder: PathBuf,
    source: PathBuf,
    figures: Figures,
}

impl<'a> Bench<'a> {
    /// Makes the image in `folder`.
    pub fn new(program: &'a Program, folder: PathBuf, file_system: &'static str, bytes: u64) -> Result<Self> {
        eprintln!("{file_system}: making an image of {} MiB, 4 KiB at a time in random order", bytes >> 20);
        let source = folder.join("vm.img");
        image::make(&source, bytes)?;
        let mut figures = Figures::new(file_system, bytes);
        figures.extents = image::extents(&source);
        Ok(Self { program, folder, source, figures })
    }

    /// Everything measured.
    pub fn finish(self) -> Figures {
        self.figures
    }

    /// One pair: `cp`, the whole job, a job that somebody's writing ends, the job with short calls, the refresh, `map` and `filefrag`.
    pub fn pair(&mut self, number: u32) -> Result<()> {
        eprintln!("{}: pair {}", self.figures.file_system, number + 1);
        let ours_first = number % 2 == 1;
        let (cp, job) = if ours_first {
            let job = self.job()?;
            (self.cp()?, job)
        } else {
            (self.cp()?, self.job()?)
        };
        self.figures.add(Measure::WholeJob, job / cp);
        self.writer()?;
        let refresh = self.paced_and_refreshed()?;
        self.figures.add(Measure::Refresh, refresh / cp);
        let (theirs, ours) = if ours_first {
            let ours = self.map()?;
            (self.filefrag()?, ours)
        } else {
            (self.filefrag()?, self.map()?)
        };
        self.figures.add(Measure::Map, ours / theirs);
        Ok(())
    }

    /// A job on a small image, for its memory.
    pub fn small(&mut self, bytes: u64) -> Result<()> {
        let (source, target) = (self.folder.join("small.img"), self.folder.join("small.snap"));
        image::make(&source, bytes)?;
        self.calm()?;
        let run = measured(&mut self.program.snapshot(&source, &target, &[]))?;
        program::finished(&run.outcome.stdout)?;
        self.figures.add(Measure::PeakMemorySmall, run.peak_mib);
        program::remove(&target)?;
        std::fs::remove_file(&source).with_context(|| format!("remove {}", source.display()))
    }

    fn cp(&mut self) -> Result<f64> {
        self.calm()?;
        let target = self.folder.join("cp.img");
        let copy = run::checked(Command::new("cp").arg("--reflink=always").args([&self.source, &target]))?;
        let sync = run::checked(Command::new("sync").arg(&target))?;
        std::fs::remove_file(&target).with_context(|| format!("remove {}", target.display()))?;
        Ok(self.seconds("cp + sync", copy.took + sync.took))
    }

    fn job(&mut self) -> Result<f64> {
        self.calm()?;
        let target = self.folder.join("vm.snap");
        let run = measured(&mut self.program.snapshot(&self.source, &target, &["--consistency", "frozen"]))?;
        program::finished(&run.outcome.stdout)?;
        self.figures.add(Measure::PeakMemory, run.peak_mib);
        program::remove(&target)?;
        Ok(self.seconds("snapshot", run.outcome.took))
    }

    /// Somebody opens the image for writing when a quarter is cloned.
    fn writer(&mut self) -> Result<()> {
        self.calm()?;
        let (source, target) = (&self.source, self.folder.join("vm.snap"));
        let mut waited = None;
        let mut job = self.program.snapshot(source, &target, &[]);
        let outcome = run::watched(&mut job, |_| {
            if program::share_done(source, &target).is_none_or(|done| done < 0.25) {
                return ControlFlow::Continue(());
            }
            let began = Instant::now();
            waited = Some(OpenOptions::new().write(true).open(source).map(|_| began.elapsed()));
            ControlFlow::Break(())
        })?;
        program::remove(&target)?;
        let Some(waited) = waited else {
            run::require_success(&job, outcome)?;
            eprintln!("  the job was over before anybody could open the image");
            return Ok(());
        };
        let waited = waited.with_context(|| format!("open {} for writing", source.display()))?;
        self.figures.add(Measure::Writer, waited.as_secs_f64() * 1000.0);
        Ok(())
    }

    /// A snapshot made of short calls, and its refresh once 1 % of the image was rewritten.
    fn paced_and_refreshed(&mut self) -> Result<f64> {
        self.calm()?;
        let target = self.folder.join("vm.snap");
        let paced = run::checked(&mut self.program.snapshot(&self.source, &target, &["--latency", "5ms"]))?;
        let report = program::finished(&paced.stdout)?;
        self.seconds("snapshot --latency 5ms", paced.took);
        // A program that does not tell the percentile is held to its longest call, which is no less.
        let call = report["call_p99_ms"].as_f64().or_else(|| report["longest_call_ms"].as_f64());
        self.figures
            .add(Measure::LongestCall, call.context("the job reports neither call_p99_ms nor longest_call_ms")?);

        image::rewrite_one_percent(&self.source, self.figures.bytes)?;
        run::checked(Command::new("sync").arg(&self.source))?;
        self.calm()?;
        let refresh = run::checked(&mut self.program.snapshot(&self.source, &target, &["--refresh"]))?;
        program::finished(&refresh.stdout)?;
        // A fast refresh that is wrong is worth nothing.
        image::require_equal(&self.source, &target)?;
        program::remove(&target)?;
        Ok(self.seconds("snapshot --refresh", refresh.took))
    }

    fn map(&mut self) -> Result<f64> {
        self.calm()?;
        let map = run::checked(&mut self.program.map(&self.source))?;
        Ok(self.seconds("map", map.took))
    }

    fn filefrag(&mut self) -> Result<f64> {
        self.calm()?;
        let filefrag = run::checked(Command::new("filefrag").arg(&self.source))?;
        Ok(self.seconds("filefrag", filefrag.took))
    }

    /// Waits until what went before is over.
    fn calm(&mut self) -> Result<()> {
        if !sandbox::settle(&self.folder, CALM)? {
            self.figures.unquiet += 1;
        }
        Ok(())
    }

    fn seconds(&mut self, command: &'static str, took: Duration) -> f64 {
        let seconds = took.as_secs_f64();
        eprintln!("  {command}: {seconds:.3} s");
        self.figures.add_seconds(command, seconds);
        seconds
    }
}

/// A run and the most memory it had.
pub(super) struct Measured {
    /// How it ended.
    pub(super) outcome: run::Outcome,
    /// In MiB.
    pub(super) peak_mib: f64,
}

/// Runs a command and watches its memory.
pub(super) fn measured(command: &mut Command) -> Result<Measured> {
    let mut peak_kib = 0;
    let outcome = run::watched(command, |pid| {
        // Nothing is read once it has ended; what was read last stays.
        peak_kib = peak_kib.max(high_water_kib(pid).unwrap_or(0));
        ControlFlow::Continue(())
    })?;
    let outcome = run::require_success(command, outcome)?;
    Ok(Measured { outcome, peak_mib: f64::from(peak_kib) / 1024.0 })
}

/// The most resident memory a process has had. The kernel keeps count itself, so looking now and then misses nothing but
/// the last moments.
fn high_water_kib(pid: Pid) -> Option<u32> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_while_it_lives() {
        let mine = high_water_kib(nix::unistd::getpid()).unwrap();
        assert!(mine > 100, "{mine}");
        assert_eq!(high_water_kib(Pid::from_raw(i32::MAX)), None);
    }
}
