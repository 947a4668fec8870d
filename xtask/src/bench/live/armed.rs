//! What an access costs more because it is watched, where it may go on at once: its cluster is in the snapshot already.
//!
//! A real job clones an image as slowly as it can be told to. Meanwhile one block at the image's start, long in the snapshot, is
//! read through two descriptors in turn: one that was opened before the service was there, which makes no events, and one that
//! was opened under it. The read is one that waits for no lock (RWF_NOWAIT): on XFS it would wait for the clone call that runs, the
//! watched and the other alike, but the other has long come back when it begins. A second thread keeps the responder busy, or does not. A yardstick goes with it: a byte to another thread
//! of the responder's priority and back, which is what two wake-ups cost on this machine in the same moments, with somebody else who asks that
//! thread where somebody else keeps the responder busy. No responder can take less.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
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
pub const BYTES: u64 = 1024 * MIB;

/// How long each measurement takes.
const TIME: Duration = Duration::from_millis(500);

/// Ends the yardstick's thread.
const NOBODY: u8 = 2;

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
        let (asleep, busy) = (cost(&unarmed, &armed, None), cost(&unarmed, &armed, Some(&other)));
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

/// Both descriptors and the yardstick in turn. With `other` somebody else reads through that as fast as he can, and in the yardstick's
/// turns he asks its thread as well: that one is as busy then as the responder is.
fn cost(unarmed: &File, armed: &File, other: Option<&File>) -> Result<Cost> {
    let pipe = || io::pipe().context("a pipe");
    let (mut asked, ask) = pipe()?;
    let [(answered, answer), (answered_other, answer_other)] = [pipe()?, pipe()?];
    let over_there = |who: u8, mut answered: &PipeReader| -> Result<()> {
        (&ask).write_all(&[who])?;
        Ok(answered.read_exact(&mut [0])?)
    };
    let (at_the_yardstick, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let answering = scope.spawn(move || -> Result<()> {
            raise::answering_thread().map_err(|e| anyhow!("{e}"))?;
            let mut who = [0];
            while asked.read(&mut who)? == 1 && who != [NOBODY] {
                if who == [0] { &answer } else { &answer_other }.write_all(&who)?;
            }
            Ok(())
        });
        let other = other.map(|file| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let at_the_yardstick = at_the_yardstick.load(Ordering::Relaxed);
                    let _ = if at_the_yardstick { over_there(1, &answered_other) } else { read(file) };
                }
            })
        });
        let yardstick = || over_there(0, &answered);
        let cost = in_turn([&|| read(unarmed), &|| read(armed), &yardstick], &at_the_yardstick);
        stop.store(true, Ordering::Relaxed);
        other.map(|it| it.join());
        (&ask).write_all(&[NOBODY])?;
        answering.join().map_err(|_| anyhow!("the thread that answers has panicked"))??;
        cost
    })
}

/// `last` is set while it is the last one's turn.
fn in_turn(ways: [&dyn Fn() -> Result<()>; 3], last: &AtomicBool) -> Result<Cost> {
    let mut took = [const { Vec::new() }; 3];
    let began = Instant::now();
    while began.elapsed() < TIME {
        for (nth, (way, took)) in ways.iter().zip(&mut took).enumerate() {
            last.store(nth + 1 == ways.len(), Ordering::Relaxed);
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
