//! A file system with an image, armed before its guest opens it, and the runs beside that guest.

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use rclone_img::hold::guard::raise;
use reflink_img_guest::clock;
use reflink_img_guest::latency::Accesses;
use serde_json::Value;

use super::contender::{self, Who};
use super::felt::{self, Felt};
use super::guest::{self, Guest};
use crate::image::{Aligned, BLOCK, Random};
use crate::program::{self, Program};
use crate::run::{self, Background};
use crate::sandbox::{self, MIB, Sandbox};

/// How long to wait for a file system to calm down before a run counts as unquiet.
const CALM: Duration = Duration::from_secs(120);

/// Bytes that are dirty when a job of [`Scene::Dirty`] starts.
const DIRTY: u64 = 256 * MIB;

/// How often a job is tried that ends without a snapshot.
const TRIES: u32 = 3;

/// Under which circumstances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scene {
    /// A large image with one reader and one writer.
    Plain,
    /// The same, with much of it dirty in the page cache at the start.
    Dirty,
    /// A small image with three writers.
    Busy,
}

impl Scene {
    /// As the tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "one reader, one writer",
            Self::Dirty => "256 MiB dirty at the start",
            Self::Busy => "three writers, 256 MiB image",
        }
    }

    fn writers(self) -> u32 {
        if self == Self::Busy { 3 } else { 1 }
    }
}

/// One run.
pub struct Run {
    /// From the start of the contender to the snapshot in place.
    pub took: Duration,
    /// `rclone-img` alone: from T0 to the end of the hold.
    pub window: Option<Duration>,
    /// `rclone-img` alone: the longest access, in ms, before T0, in the window, and after it.
    pub parts: Option<[f64; 3]>,
    /// What the guest felt.
    pub felt: Felt,
    /// CPU time that this machine's hypervisor kept to itself meanwhile, of all CPUs together: everybody here stood still.
    pub stolen: Duration,
    /// What `rclone-img` reported.
    pub report: Option<Value>,
}

/// The file system, its images and those who look after them.
pub struct Stage<'a> {
    program: &'a Program,
    guest: PathBuf,
    folder: PathBuf,
    logs: Sandbox,
    guard: Background,
    /// Runs that began before the file system had calmed down.
    pub unquiet: u32,
    /// Jobs that ended without a snapshot, and were made again.
    pub again: u32,
}

impl<'a> Stage<'a> {
    /// Makes the images in `folder`, and arms what is in it.
    pub fn new(program: &'a Program, guest_program: &Path, folder: PathBuf, bytes: u64, small: u64) -> Result<Self> {
        for (scene, bytes) in [(Scene::Plain, bytes), (Scene::Busy, small)] {
            let image = Self::image_in(&folder, scene);
            eprintln!("  making an image of {} MiB, 4 KiB at a time in random order", bytes / MIB);
            guest::fill(guest_program, &image, bytes)?;
        }
        let logs = Sandbox::with_room(256 * MIB)?;
        let guard = Background::start(&program.guard(&folder))?;
        guard.wait_for("\"started\"")?;
        Ok(Self { program, guest: guest_program.to_owned(), folder, logs, guard, unquiet: 0, again: 0 })
    }

    /// Ends the service.
    pub fn end(self) -> Result<()> {
        self.guard.stop()
    }

    /// The image of a scene.
    pub fn image(&self, scene: Scene) -> PathBuf {
        Self::image_in(&self.folder, scene)
    }

    fn image_in(folder: &Path, scene: Scene) -> PathBuf {
        folder.join(if scene == Scene::Busy { "small.img" } else { "vm.img" })
    }

    /// How long `cp` takes with nobody there: alone, and to the copy in place.
    pub fn quiet_cp(&mut self, scene: Scene) -> Result<(Duration, Duration)> {
        self.calm()?;
        let target = self.folder.join("cp.img");
        let began = Instant::now();
        let alone = contender::cp(&self.image(scene), &target)?;
        let whole = began.elapsed();
        program::remove(&target)?;
        Ok((alone, whole))
    }

    /// A guest with nobody else, for a while.
    pub fn idle(&mut self, scene: Scene, time: Duration) -> Result<Run> {
        let wait = |_: &Path| {
            thread::sleep(time);
            Ok(())
        };
        self.beside(scene, wait).map(|(run, ..)| run)
    }

    /// `cp` or the plain loop.
    pub fn rival(&mut self, scene: Scene, who: Who) -> Result<Run> {
        let (image, target) = (self.image(scene), self.folder.join("vm.snap"));
        let (run, ..) = self.beside(scene, |_| match who {
            Who::Cp => contender::cp(&image, &target).map(drop),
            _ => contender::plain_loop(&image, &target),
        })?;
        program::remove(&target)?;
        Ok(run)
    }

    /// The program; and where it is asked for, the removal of its snapshot beside the same guest, watched for as long as the
    /// making took: it goes on in the background.
    ///
    /// A job that breaks is made again, from the start: on a machine with others on it a process may be there that cannot be
    /// looked into, and no figure comes of a refusal. How often it was is told.
    pub fn snapshot(&mut self, scene: Scene, extra: &[&str], and_remove: bool) -> Result<(Run, Option<Run>)> {
        for _ in 1..TRIES {
            match self.snapshot_once(scene, extra, and_remove) {
                Err(error) => eprintln!("  made again: {error:#}"),
                made => return made,
            }
            self.again += 1;
            program::remove(&self.folder.join("vm.snap"))?;
        }
        self.snapshot_once(scene, extra, and_remove)
    }

    fn snapshot_once(&mut self, scene: Scene, extra: &[&str], and_remove: bool) -> Result<(Run, Option<Run>)> {
        let (image, target) = (self.image(scene), self.folder.join("vm.snap"));
        let mut command = self.program.snapshot(&image, &target, &[&["--consistency", "guard"], extra].concat());
        let mut removing = None;
        let (mut run, accesses, (report, began, within, stolen)) = self.beside(scene, |_| {
            let (began, realtime) = (clock::now(), Timestamp::now());
            let (job, stolen) = (Instant::now(), stolen_so_far());
            let report = program::finished(&run::checked(&mut command)?.stdout)?;
            let (took, ended, stolen) = (job.elapsed(), clock::now(), stolen_so_far() - stolen);
            if and_remove {
                thread::sleep(Duration::from_millis(500));
                let from = clock::now();
                let removal = Instant::now();
                program::remove(&target)?;
                let returned = removal.elapsed();
                thread::sleep(took.saturating_sub(returned));
                removing = Some((returned, from..clock::now()));
            }
            Ok((report, (began, realtime), began..ended, stolen))
        })?;
        // The guest ran beside the removal as well: only the job's time is the job's.
        let stolen_later = run.stolen.saturating_sub(stolen);
        run.stolen = stolen;
        run.took = Duration::from_nanos(within.end - within.start);
        run.felt = Felt::of(&accesses, &within);
        let window = Duration::from_secs_f64(report["window_ms"].as_f64().context("no window_ms")? / 1e3);
        let t0: Timestamp = report["t0"].as_str().context("no t0")?.parse()?;
        let t0 = began.0 + u64::try_from(t0.duration_since(began.1).as_nanos()).context("T0 before the job")?;
        let end = t0 + window.as_nanos() as u64;
        let parts = [within.start..t0, t0..end, end..within.end.max(end + 1)];
        run.parts = Some(parts.map(|part| felt::longest_in(&accesses, &part)));
        (run.window, run.report) = (Some(window), Some(report));
        let removal = removing.map(|(took, within)| Run {
            took,
            window: None,
            parts: None,
            felt: Felt::of(&accesses, &within),
            stolen: stolen_later,
            report: None,
        });
        program::remove(&target)?;
        Ok((run, removal))
    }

    /// Runs something beside a guest.
    fn beside<T>(&mut self, scene: Scene, act: impl FnOnce(&Path) -> Result<T>) -> Result<(Run, Accesses, T)> {
        self.calm()?;
        let image = self.image(scene);
        let guest = Guest::start(&self.guest, &image, scene.writers(), self.logs.path())?;
        if scene == Scene::Dirty {
            dirty(&image)?;
        }
        let (start, stolen) = (clock::now(), stolen_so_far());
        let done = act(&image)?;
        let within: Range<u64> = start..clock::now();
        let stolen = stolen_so_far() - stolen;
        let accesses = guest.end()?;
        let took = Duration::from_nanos(within.end - within.start);
        let felt = Felt::of(&accesses, &within);
        Ok((Run { took, window: None, parts: None, felt, stolen, report: None }, accesses, done))
    }

    fn calm(&mut self) -> Result<()> {
        if !sandbox::settle(&self.folder, CALM)? {
            self.unquiet += 1;
        }
        Ok(())
    }
}

/// Nothing where the kernel does not tell.
fn stolen_so_far() -> Duration {
    raise::stolen().unwrap_or_default()
}

/// Writes to the page cache, at random; the bytes are those of the guest's writer, or are not looked at.
fn dirty(image: &Path) -> Result<()> {
    let file: File = OpenOptions::new().write(true).open(image).with_context(|| format!("open {}", image.display()))?;
    let blocks = fs::metadata(image)?.len() / BLOCK;
    let (mut random, mut buffer) = (Random::new(), Aligned::new());
    for _ in 0..(DIRTY / BLOCK).min(blocks / 4) {
        file.write_all_at(buffer.block(), random.below(blocks) * BLOCK)?;
    }
    Ok(())
}
