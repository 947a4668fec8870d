//! `cargo xtask bench live`: what a running guest feels of a snapshot, beside those who have no regard for it.
//!
//! - [`stage`]: the file system, the armed image, its guest, and the runs.
//! - [`contender`]: who runs beside the guest.
//! - [`felt`]: a run's accesses, in figures.
//! - [`armed`]: an access that is watched and goes on at once.
//! - [`goals`]: the figures beside their goals.
//! - [`picture`]: the timelines, as an SVG.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use crate::program::{self, Program};
use crate::sandbox::{self, Kind, LoopFs, MIB};
use crate::{image, setup};

mod armed;
mod contender;
mod felt;
mod goals;
pub(super) mod guest;
mod picture;
mod stage;

use contender::Who;
use goals::Figures;
use stage::{Scene, Stage};

/// The image with three writers.
const SMALL: u64 = 256 * MIB;

/// The least and the most that an idle guest is watched.
const IDLE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(20));

/// Arguments of `cargo xtask bench live`.
#[derive(Args)]
pub struct Live {
    /// Install what is missing first (apt-get; root or sudo)
    #[arg(long)]
    setup: bool,
    /// Size of the image; a gibibyte has about 262144 extents
    #[arg(long, default_value = "4G", value_parser = image::size)]
    size: u64,
    /// How often each is run
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How often cp and the loop are run beside the guest, which takes long and misses every goal by far
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    rivals: u32,
    /// One file system only
    #[arg(long, value_enum)]
    fs: Option<Kind>,
    /// A smoke test: images of 256M, one run
    #[arg(long, conflicts_with_all = ["size", "runs"])]
    quick: bool,
    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
    /// Write the picture here; a whole run writes docs/live.svg
    #[arg(long, value_name = "PATH")]
    svg: Option<PathBuf>,
    /// Use this rclone-img instead of building the workspace's
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

impl Live {
    /// Measures on each file system, prints the figures and draws the picture; how many goals are missed.
    pub fn run(&self) -> Result<usize> {
        sandbox::watch_signals()?;
        sandbox::sweep(&[]);
        setup::ensure(setup::LOOP, self.setup, "bench live")?;
        if !setup::is_root() {
            bail!("watching accesses, and making loop-mounted file systems, needs root");
        }
        let program = Program::at_or_built(self.program.as_deref())?;
        let guest = program::built("reflink-img-guest", "reflink-img-guest")?;
        let kinds = self.fs.map_or(Kind::BOTH.to_vec(), |kind| vec![kind]);
        let on = |kind| {
            let figures = self.on(kind, &program, &guest)?;
            if !self.json {
                say(&figures.text());
            }
            Ok(figures)
        };
        let all = kinds.into_iter().map(on).collect::<Result<Vec<Figures>>>()?;
        if self.json {
            say(&format!("{:#}\n", json!({"v": 1, "figures": all.iter().map(Figures::json).collect::<Vec<_>>()})));
        }
        if let Some(path) = self.picture() {
            std::fs::write(&path, picture::draw(&all)).with_context(|| format!("write {}", path.display()))?;
            eprintln!("drawn: {}", path.display());
        }
        Ok(all.iter().map(Figures::missed).sum())
    }

    /// Where the picture goes. That of a part, or of a small image, must not replace the one in the documentation.
    fn picture(&self) -> Option<PathBuf> {
        let whole = self.fs.is_none() && !self.quick && self.size >= 4096 * MIB;
        self.svg.clone().or_else(|| whole.then(|| program::workspace().join("docs/live.svg")))
    }

    fn on(&self, kind: Kind, program: &Program, guest: &std::path::Path) -> Result<Figures> {
        let (bytes, runs) = if self.quick { (SMALL, 1) } else { (self.size, self.runs) };
        // What the guest rewrites of a shared image is allocated anew.
        let room = 2 * bytes + SMALL * 2 + armed::BYTES + 1024 * MIB;
        eprintln!("{}: filling {} MiB for the loop device once, so that no run pays for it", kind.name(), room / MIB);
        let file_system = LoopFs::make(kind, room, true)?;
        let mut stage = Stage::new(program, guest, file_system.path(), bytes, SMALL)?;
        let mut figures = Figures::new(kind.name(), bytes);
        figures.extents = image::extents(&stage.image(Scene::Plain));
        for number in 0..runs {
            eprintln!("{}: run {} of {runs}", kind.name(), number + 1);
            for scene in [Scene::Plain, Scene::Dirty, Scene::Busy] {
                self.scene(&mut stage, scene, number, &mut figures)?;
            }
        }
        (figures.unquiet, figures.again) = (stage.unquiet, stage.again);
        stage.end()?;
        let armed = armed::measure(program, guest, &file_system.path())?;
        eprint!("  {}", goals::told(armed));
        figures.armed = Some(armed);
        Ok(figures)
    }

    fn scene(&self, stage: &mut Stage<'_>, scene: Scene, number: u32, figures: &mut Figures) -> Result<()> {
        // A dirty image is cloned as any other when it was flushed.
        if scene != Scene::Dirty {
            let (alone, whole) = stage.quiet_cp(scene)?;
            figures.quiet(scene, alone, whole);
        }
        let idle = (figures.last_quiet(scene) * 2).clamp(IDLE.0, IDLE.1);
        figures.add(scene, Who::Idle, stage.idle(scene, idle)?);
        let (run, removal) = stage.snapshot(scene, &[], scene == Scene::Plain)?;
        figures.add(scene, Who::Snapshot, run);
        if let Some(removal) = removal {
            figures.add(scene, Who::Remove, removal);
        }
        if scene == Scene::Plain {
            let (run, _) = stage.snapshot(scene, &["--latency", "50ms"], false)?;
            figures.add(scene, Who::Relaxed, run);
            if number < self.rivals {
                for who in [Who::Cp, Who::Loop] {
                    figures.add(scene, who, stage.rival(scene, who)?);
                }
            }
        }
        Ok(())
    }
}

/// Text for whoever reads; one who has gone away is no failure.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Runs by scene and contender.
type Runs = BTreeMap<(Scene, Who), Vec<stage::Run>>;
