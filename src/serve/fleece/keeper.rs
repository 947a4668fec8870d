//! The threads of a fleece: one keeps what a write waits for and looks at the space now and then, one looks for strangers.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Fleece, Look};
use crate::disk::real::RealDisk;
use crate::engine::job::MinFree;
use crate::engine::room;
use crate::range::ByteRange;
use crate::serve::gate::News;

/// How often it is said that the server is there, and strangers are looked for.
const LOOK: Duration = Duration::from_millis(50);

/// How often it looks at the free space.
const LOOK_AT_SPACE: Duration = Duration::from_secs(1);

/// And whenever it has kept so much: on a fast disk a guest overwrites gigabytes in a second.
const LOOK_AT_SPACE_EACH: u64 = 64 << 20;

/// How often it is tried again to say that it is lost.
const AGAIN: Duration = Duration::from_secs(1);

/// The most that is kept at once: more where what is waited for is longer, since a call for each of many pieces takes longer than all
/// their extents.
const PIECE: u64 = 256 << 10;
const LONG_PIECE: u64 = 4 << 20;

/// What is to be left to the guests.
pub struct Space {
    /// The directories of the image and of the sidecar.
    pub disks: Vec<RealDisk>,
    /// How much of their file systems.
    pub min_free: MinFree,
}

impl Space {
    /// Of the directories that these files are in, and a header's `min_free`.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a PathBuf>, min_free: (u8, u64)) -> Self {
        let open = |path: &PathBuf| RealDisk::open_dir(path.parent()?).ok();
        let min_free = match min_free {
            (percent, 0) => MinFree::Percent(f64::from(percent)),
            (_, bytes) => MinFree::Bytes(bytes),
        };
        Self { disks: files.into_iter().filter_map(open).collect(), min_free }
    }

    /// Whether there is so much.
    ///
    /// # Errors
    /// The figures, in words.
    pub fn is_enough(&self) -> Result<(), String> {
        let enough = self.disks.iter().try_for_each(|disk| room::is_enough(disk, self.min_free));
        enough.map_err(|e| e.to_string())
    }
}

/// What the gate has told and the thread has not heard.
#[derive(Default)]
pub struct Ears {
    heard: Mutex<Heard>,
    changed: Condvar,
    /// Something is being kept.
    keeping: AtomicBool,
}

#[derive(Default)]
struct Heard {
    wanted: bool,
    broken: Option<String>,
    over: bool,
}

impl Ears {
    /// The gate's word; does not wait.
    pub fn tell(&self, news: News) {
        let mut heard = self.lock();
        match news {
            News::Wanted(_) => heard.wanted = true,
            News::Broken(why) => heard.broken = Some(why),
        }
        drop(heard);
        self.changed.notify_all();
    }

    /// The thread is to end.
    pub fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Whether something is being kept; nothing more is, once the gate lets nobody wait.
    pub fn is_keeping(&self) -> bool {
        self.keeping.load(Ordering::Acquire)
    }

    fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Whether something is wanted, waited for at most so long.
    fn wanted(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut heard = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if heard.wanted || heard.broken.is_some() || heard.over || left.is_zero() {
                return std::mem::take(&mut heard.wanted);
            }
            heard = self.changed.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether it is at its end, or lost, waited for at most so long.
    fn is_done(&self, limit: Duration) -> bool {
        let lasts = |heard: &mut Heard| heard.broken.is_none() && !heard.over;
        let waited = self.changed.wait_timeout_while(self.lock(), limit, lasts);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn broken(&self) -> Option<String> {
        self.lock().broken.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until the fleece is at its end, or lost.
pub fn run(fleece: &Arc<Fleece>, space: &Space, lost: &dyn Fn(String)) {
    let (mut looked, mut looked_at_space, mut kept_then) = (Instant::now(), Instant::now(), 0);
    while !fleece.ears.is_over() {
        if let Some(why) = fleece.ears.broken() {
            let mut said = fleece.map.write_lost(&why);
            lost(why.clone());
            // Nobody reads it any more, and the guest may need the room: whatever of the image is shared has to be allocated once more. Not
            // before that is on the disk, or a next server would read what is gone; where there is no room for that either, later.
            while said.is_err() && !fleece.ears.is_over() {
                std::thread::sleep(AGAIN);
                said = fleece.map.write_lost(&why);
            }
            if said.is_ok() {
                fleece.sidecar.give_back();
            }
            return;
        }
        if fleece.ears.wanted(LOOK) {
            fleece.ears.keeping.store(true, Ordering::Release);
            keep(fleece);
            fleece.ears.keeping.store(false, Ordering::Release);
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            fleece.map.seen();
        }
        let kept = fleece.sidecar.sizes().0;
        if looked_at_space.elapsed() >= LOOK_AT_SPACE || kept >= kept_then + LOOK_AT_SPACE_EACH {
            (looked_at_space, kept_then) = (Instant::now(), kept);
            if let Err(full) = space.is_enough() {
                fleece.watch.break_off(&full);
            }
        }
    }
}

/// The other thread of it: looks for strangers, which may take a look at all processes, and what a write waits for must not wait for that.
pub fn look(fleece: &Fleece) {
    while !fleece.ears.is_done(LOOK) {
        fleece.look(Look::Briefly);
    }
}

/// Keeps what is waited for.
fn keep(fleece: &Fleece) {
    let clusters = &fleece.point.clusters;
    let unit = clusters.cluster();
    let mut pending = Vec::new();
    for range in fleece.watch.waiting() {
        let mut rest = Some(range);
        let most = (range.len() / 4).clamp(PIECE, LONG_PIECE);
        // What is lost is not kept any more: the guest may have overwritten it by now.
        while let Some(open) =
            rest.filter(|_| fleece.point.fate.lost().is_none()).and_then(|rest| clusters.open_part(rest))
        {
            let start = unit.align_down(open.start());
            let end = unit.align_up(open.end()).min(clusters.size()).min((start + most).max(start + unit.get()));
            let piece = ByteRange::new(start, end).expect("at least a cluster");
            rest = range.split(piece.end()).1;
            match kept(fleece, piece) {
                Ok(()) if fleece.durable => pending.push(piece),
                Ok(()) => fleece.watch.done(piece),
                Err(e) => cannot(fleece, piece, &e),
            }
        }
    }
    if !pending.is_empty() {
        match fleece.sidecar.commit(&pending, &|range| fleece.areas.is_wanted(range)) {
            Ok(()) => pending.iter().for_each(|piece| fleece.watch.done(*piece)),
            Err(e) => fleece.unsynced(&e),
        }
    }
    fleece.watch.promoted();
}

fn kept(fleece: &Fleece, piece: ByteRange) -> io::Result<()> {
    let around = |call: &mut dyn FnMut()| {
        fleece.watch.calling();
        call();
        fleece.watch.called();
    };
    fleece.sidecar.keep(piece, fleece.deadline, &around, &|range| fleece.areas.is_wanted(range))
}

fn cannot(fleece: &Fleece, piece: ByteRange, error: &io::Error) {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    let why = match errno {
        libc::ENOSPC => "the sidecar is full (--max-sidecar, or its file system)".to_owned(),
        _ => format!("what the guest overwrites cannot be kept: {error}"),
    };
    fleece.watch.cannot_keep(piece, &why, errno);
}
