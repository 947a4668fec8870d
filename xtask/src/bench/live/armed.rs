//! What an access costs more because it is watched, where it may go on at once: its cluster is in the snapshot already.
//!
//! A real job clones an image as slowly as it can be told to. Meanwhile one block at the image's start, long in the snapshot, is
//! read through two descriptors in turn: one that was opened before the service was there, which makes no events, and one that
//! was opened under it. The read is one that waits for no lock (RWF_NOWAIT): on XFS it would wait for the clone call that runs, the
//! watched and the other alike, but the other has long come back when it begins. A second thread keeps the responder busy, or does not. A yardstick goes with it: a byte to another thread
//! of the responder's priority and back, which is what two wake-ups cost on this machine in the same moments. No responder can
//! take less.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rclone_img::hold::guard::raise;
use reflink_img_guest::sys::read_at_once;

use crate::bench::figures::Spread;
use crate::image::BLOCK;
use crate::program::{self, Program};
use crate::run::{self, Background};
use crate::sandbox::MIB;

/// Enough for some seconds, with calls of 64 KiB: on the fastest machine so far 256 MiB took less than three.
const BYTES: u64 = 1024 * MIB;

/// How long each measurement takes.
const TIME: Duration = Duration::from_secs(1);

/// Accesses between two looks at the clock.
const TURN: usize = 50;

/// Nanoseconds of an access, the medians.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Not watched.
    pub unarmed: f64,
    /// Watched.
    pub armed: f64,
    /// A byte to a thread that waits for it, and back.
    pub handed_over: f64,
}

/// The cost with a responder that is busy with somebody else, and with one that has to be woken.
#[derive(Clone, Copy, Debug)]
pub struct Armed {
    /// Busy.
    pub busy: Cost,
    /// Asleep.
    pub asleep: Cost,
}

/// Measures both on the file system at `folder`.
pub fn measure(program: &Program, guest: &Path, folder: &Path) -> Result<Armed> {
    let (image, target) = (folder.join("armed.img"), folder.join("armed.snap"));
    super::guest::fill(guest, &image, BYTES)?;
    let open = || File::open(&image).with_context(|| format!("open {}", image.display()));
    let unarmed = open()?;
    let guard = Background::start(&program.guard(folder))?;
    guard.wait_for("\"started\"")?;
    let (armed, other) = (open()?, open()?);
    let slowly = ["--consistency", "guard", "--chunk", "64K", "--latency", "1ms"];
    let mut job = program.snapshot(&image, &target, &slowly);
    let mut measured = None;
    let outcome = run::watched(&mut job, |_| {
        if program::share_done(&image, &target).is_none_or(|done| done < 0.05) {
            return ControlFlow::Continue(());
        }
        let asleep = cost(&unarmed, &armed);
        let stop = AtomicBool::new(false);
        let busy = thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = read(&other);
                }
            });
            let busy = cost(&unarmed, &armed);
            stop.store(true, Ordering::Relaxed);
            busy
        });
        let still = program::beside(&target, ".partial").exists();
        measured = Some((asleep, busy, still));
        ControlFlow::Break(())
    })?;
    run::require_success(&job, outcome)?;
    guard.stop()?;
    program::remove(&target)?;
    let (asleep, busy, still) = measured.context("the job was over before anything could be measured")?;
    ensure!(still, "the job was over before the measurement was: its image is too small for this machine");
    Ok(Armed { busy: busy?, asleep: asleep? })
}

/// Both descriptors and the yardstick in turn.
fn cost(unarmed: &File, armed: &File) -> Result<Cost> {
    let (answered, mut answer) = io::pipe().context("a pipe")?;
    let (mut asked, ask) = io::pipe().context("a pipe")?;
    thread::scope(|scope| {
        // Ends when the other end is closed.
        let answering = scope.spawn(move || -> Result<()> {
            raise::answering_thread().map_err(|e| anyhow!("{e}"))?;
            let mut byte = [0];
            while asked.read(&mut byte)? == 1 {
                answer.write_all(&byte)?;
            }
            Ok(())
        });
        let cost = in_turn([&|| read(unarmed), &|| read(armed), &|| {
            (&ask).write_all(&[0])?;
            Ok((&answered).read_exact(&mut [0])?)
        }]);
        drop((ask, answered));
        answering.join().map_err(|_| anyhow!("the thread that answers has panicked"))??;
        cost
    })
}

fn in_turn(ways: [&dyn Fn() -> Result<()>; 3]) -> Result<Cost> {
    let mut took = [const { Vec::new() }; 3];
    let began = Instant::now();
    while began.elapsed() < TIME {
        for (way, took) in ways.iter().zip(&mut took) {
            for _ in 0..TURN {
                let access = Instant::now();
                way()?;
                took.push(access.elapsed().as_nanos() as f64);
            }
        }
    }
    let [unarmed, armed, handed_over] = took.map(|took| Spread::of(&took).median);
    Ok(Cost { unarmed, armed, handed_over })
}

/// Reads what is in the page cache, or nothing if somebody has the inode's lock.
fn read(file: &File) -> Result<()> {
    match read_at_once(file, &mut [0; BLOCK as usize], 0) {
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e).context("read the image"),
        _ => Ok(()),
    }
}
