//! `cargo xtask demo`: the README's first command. It clones one fragmented image with `cp --reflink=always` and with
//! rclone-img while others use the file system, kills a job and takes it up again, and shows what each felt like. It
//! judges nothing by its speed: it fails only where a clone is not what it should be.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use crate::probe::{Felt, Probes};
use crate::program::{self, Program};
use crate::sandbox::{self, Kind, LoopFs, MIB, Sandbox};
use crate::{image, run, setup};

mod killed;
mod show;

/// How long nobody clones, to show what the machine does by itself.
const IDLE: Duration = Duration::from_secs(2);

/// How long to wait for a file system to calm down between two tools.
const CALM: Duration = Duration::from_secs(15);

/// Arguments of `cargo xtask demo`.
#[derive(Args)]
pub struct Demo {
    /// Install what is missing first (apt-get; root or sudo)
    #[arg(long)]
    setup: bool,
    /// Use this folder on an XFS or Btrfs of your own instead of loop devices; needs no root
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// Size of the image
    #[arg(long, default_value = "512M", value_parser = image::size)]
    size: u64,
    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
    /// Use this rclone-img instead of building the workspace's
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// One tool's turn.
struct Turn {
    tool: &'static str,
    /// From its start to the snapshot on disk; nothing where no tool ran.
    took: Option<Duration>,
    felt: Felt,
    /// The part of the probes' time that the turn lasted.
    start: Duration,
    end: Duration,
    /// Whether the result has the image's bytes; nothing where there is no result.
    equal: Option<bool>,
}

/// Everything that happened on one file system.
struct Scene {
    file_system: String,
    bytes: u64,
    extents: Option<u64>,
    turns: Vec<Turn>,
    killed: killed::Killed,
}

impl Demo {
    /// Runs the demonstration and prints it.
    pub fn run(&self) -> Result<()> {
        sandbox::watch_signals()?;
        sandbox::sweep(self.dir.as_deref().as_slice());
        let mut scenes = Vec::new();
        if let Some(dir) = &self.dir {
            if self.setup {
                setup::install(setup::LOOP)?;
            }
            let program = Program::at_or_built(self.program.as_deref())?;
            require_reflinks(dir)?;
            let folder = Sandbox::inside(dir)?;
            scenes.push(self.scene(&program, folder.path(), dir.display().to_string())?);
        } else {
            setup::ensure(setup::LOOP, self.setup, "demo")?;
            if !setup::is_root() {
                bail!(
                    "making loop-mounted file systems needs root: run this as root, or on your own XFS or Btrfs with \
                     `cargo xtask demo --dir PATH`"
                );
            }
            let program = Program::at_or_built(self.program.as_deref())?;
            for kind in Kind::BOTH {
                let file_system = LoopFs::make(kind, 2 * self.size + 1024 * MIB, false)?;
                scenes.push(self.scene(&program, &file_system.path(), format!("{}, loop-mounted", kind.name()))?);
            }
        }
        let text = if self.json {
            let scenes: Vec<_> = scenes.iter().map(show::json).collect();
            format!("{:#}\n", json!({"v": 1, "scenes": scenes}))
        } else {
            scenes.iter().map(show::text).collect::<String>() + &show::farewell(self.dir.is_none())
        };
        // A reader that has gone away is no failure.
        let _ = std::io::stdout().write_all(text.as_bytes());
        if scenes
            .iter()
            .any(|it| it.turns.iter().any(|turn| turn.equal == Some(false)) || it.killed.equal == Some(false))
        {
            bail!("a clone differs from its image: this is a bug in rclone-img or in the kernel, please report it");
        }
        Ok(())
    }

    fn scene(&self, program: &Program, folder: &Path, file_system: String) -> Result<Scene> {
        say(&format!("{file_system}: making an image of {} MiB, 4 KiB at a time in random order", self.size / MIB));
        let source = folder.join("vm.img");
        image::make(&source, self.size)?;
        let extents = image::extents(&source);
        let stage = Stage { program, folder, source };
        let mut turns = vec![stage.idle()?];
        turns.push(stage.turn("cp --reflink=always", |target| {
            let copy = run::checked(Command::new("cp").arg("--reflink=always").args([&stage.source, target]))?;
            run::checked(Command::new("sync").arg(target))?;
            Ok(copy)
        })?);
        turns.push(stage.snapshot("rclone-img snapshot", &[])?);
        turns.push(stage.snapshot("  with --latency 5ms", &["--latency", "5ms"])?);
        say("killing a job halfway, and resuming it");
        let killed = killed::kill_and_resume(program, &stage.source, &folder.join("killed.snap"))?;
        Ok(Scene { file_system, bytes: self.size, extents, turns, killed })
    }
}

/// What every turn on one file system has in common.
struct Stage<'a> {
    program: &'a Program,
    folder: &'a Path,
    source: PathBuf,
}

impl Stage<'_> {
    fn idle(&self) -> Result<Turn> {
        sandbox::settle(self.folder, CALM)?;
        let probes = self.probes()?;
        let start = probes.now();
        std::thread::sleep(IDLE);
        let end = probes.now();
        Ok(Turn { tool: "nobody clones", took: None, felt: probes.stop()?, start, end, equal: None })
    }

    fn snapshot(&self, tool: &'static str, extra: &[&str]) -> Result<Turn> {
        self.turn(tool, |target| {
            let outcome = run::checked(&mut self.program.snapshot(&self.source, target, extra))?;
            program::finished(&outcome.stdout)?;
            Ok(outcome)
        })
    }

    fn turn(&self, tool: &'static str, clone: impl FnOnce(&Path) -> Result<run::Outcome>) -> Result<Turn> {
        say(tool.trim());
        sandbox::settle(self.folder, CALM)?;
        let target = self.folder.join("vm.snap");
        let probes = self.probes()?;
        let start = probes.now();
        let clock = Instant::now();
        clone(&target)?;
        let took = clock.elapsed();
        let end = probes.now();
        let felt = probes.stop()?;
        let equal = compare(&self.source, &target);
        program::remove(&target)?;
        Ok(Turn { tool, took: Some(took), felt, start, end, equal: Some(equal) })
    }

    fn probes(&self) -> Result<Probes> {
        Probes::start(&self.source, &self.folder.join("other.file"))
    }
}

/// Whether the two files have the same bytes; says where they do not.
fn compare(source: &Path, target: &Path) -> bool {
    image::require_equal(source, target).inspect_err(|error| eprintln!("{error:#}")).is_ok()
}

fn require_reflinks(dir: &Path) -> Result<()> {
    let folder = Sandbox::inside(dir)?;
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    std::fs::write(&one, [1; 8192]).with_context(|| format!("write to {}", dir.display()))?;
    run::checked(Command::new("cp").arg("--reflink=always").args([&one, &other])).map(|_| ()).with_context(|| {
        format!(
            "{} is not on a file system with reflinks (XFS made with reflink=1, or Btrfs); without --dir, as root, \
             the demo makes its own",
            dir.display()
        )
    })
}

fn say(step: &str) {
    eprintln!("- {step}");
}
