//! `guard`: a VM has the image open and writes to it, unchanged and unaware.
//!
//! fanotify's pre-content events stop each access before it happens and tell its range; what it may change is cloned first,
//! then it goes on. [`watch`] is the group and [`answer`] the thread that answers, on the pure machine of [`crate::cbw`];
//! [`preflight`] finds out who escapes it, [`closings`] who may have done so and has gone, and [`monitors`] mends that for a
//! QEMU; [`supervisor`] is the process that answers when this one cannot, [`table`] and [`link`] are what the two share, and
//! [`show`] what others see of it; [`raise`] makes a process fit to be waited for, and [`pulse`] tells whether it was run all
//! the time.

pub mod access;
pub mod answer;
pub mod closings;
pub mod link;
pub mod monitors;
pub mod preflight;
pub mod pulse;
pub mod raise;
pub mod show;
pub mod supervisor;
pub mod table;
pub mod watch;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::stat::fstat;

use self::closings::Closings;
use self::table::Figures;
use self::watch::Watch;
use super::choose::{Image, Means};
use super::{Demand, Hold, HoldKind, T0, settle};
use crate::cbw::{Clusters, Tally};
use crate::disk::real::RealFile;
use crate::disk::{DiskFile, Stat};
use crate::error::{Error, Kind, Result};
use crate::range::ByteRange;
use crate::sys::fanotify;

/// How often, and with what pauses, mappings are looked for after T0 that were let go on before it. One that is made later than
/// the last of them is found if it is there when everything is looked at, or if its process has come after T0 and has closed the
/// image again; else what is mapped, made to grow and unmapped between two looks is not.
const LATE_MAPPING: [(usize, Duration); 2] = [(20, Duration::from_millis(1)), (20, Duration::from_millis(5))];

/// A mapping that is being taken down is out of sight before the kernel tells that its file is closed.
const LATE_CLOSING: Duration = Duration::from_millis(20);

/// So many accesses may wait while what lies beside one of them is cloned as well. Where there are more it is less: the last of
/// five hundred must not wait for five hundred times as long.
const FEW: f64 = 4.0;

/// The hold.
pub struct Guard {
    images: Vec<Image>,
    means: Means,
    watch: Option<Arc<Watch>>,
    clusters: Vec<Arc<Clusters>>,
    /// The processes whose descriptors of each image were looked at before T0, and can be watched.
    known: Vec<BTreeSet<u32>>,
    closings: Option<Closings>,
    armed: usize,
    /// Whether little was left to write back when T0 was set.
    settled: bool,
    began: Duration,
    /// The look at who escapes that is made once the image is marked.
    second_look: Option<JoinHandle<Option<String>>>,
    felt: Option<Tally>,
    /// Clusters cloned out of turn, and what was done when the last one was asked for.
    promoted: u64,
    done_before: u64,
}

/// The image through a descriptor that sends no events: the program's own calls would else wait for the program.
///
/// # Errors
/// Refused where the kernel gives none.
pub fn exempt(image: &RealFile, path: &Path) -> Result<RealFile> {
    let file = fanotify::exempt(image.as_fd(), || File::open(path)).map_err(|e| {
        let hint = "run as root (CAP_SYS_ADMIN) on Linux 6.14 or later";
        Error::io(Kind::Refused, "the image cannot be had in a way that does not watch the program itself", hint, e)
    })?;
    Ok(RealFile::from(File::from(file)))
}

impl Guard {
    /// A hold over images, at least one, that has marked nothing yet. Their descriptors must be [`exempt`].
    pub fn new(images: Vec<Image>, means: Means) -> Self {
        let (watch, clusters, second_look) = (None, Vec::new(), None);
        let (armed, settled, known, closings) = (0, true, Vec::new(), None);
        let (began, felt) = (Duration::ZERO, None);
        let (promoted, done_before) = (0, 0);
        Self {
            images,
            means,
            watch,
            clusters,
            known,
            closings,
            armed,
            settled,
            began,
            second_look,
            felt,
            promoted,
            done_before,
        }
    }

    /// How many descriptors that are open for writing were found, all of which can be watched.
    pub fn armed(&self) -> usize {
        self.armed
    }

    fn watch(&self) -> &Arc<Watch> {
        self.watch.as_ref().expect("a hold that has begun has a watch")
    }

    /// Why T0 is lost, if it is, by the look of the image and of what the second look has found.
    fn lost(&mut self) -> Option<String> {
        if let Some(why) = self.watch().broken() {
            return Some(why);
        }
        for ((image, _), clusters) in self.images.iter().zip(&self.clusters) {
            let now = fstat(&**image).map_or(0, |stat| stat.st_size as u64);
            if now != clusters.size() {
                return Some(answer::resized(clusters.size(), now));
            }
        }
        if let Some(why) = self.closings.as_ref().and_then(|closings| closings.lost(&self.images)) {
            return Some(why);
        }
        let looked = self.second_look.take_if(|look| look.is_finished())?;
        looked.join().unwrap_or_else(|_| panicked())
    }

    /// What is left to do for T0 when the images are marked: what they are, and the second look.
    fn marked(&mut self, clusters: &[Arc<Clusters>], watch: &Arc<Watch>) -> Result<Vec<Stat>> {
        let cannot = |e| Error::io(Kind::Failed, "cannot look at the image", "check the kernel's log", e);
        let stats: Vec<_> =
            self.images.iter().map(|(image, _)| image.stat()).collect::<std::io::Result<_>>().map_err(cannot)?;
        if stats.iter().zip(clusters).any(|(stat, clusters)| stat.size != clusters.size()) {
            return Err(super::resized_before_t0());
        }
        let (images, watch) = (self.images.clone(), Arc::clone(watch));
        let look = std::thread::Builder::new().name("second look".into());
        let look = look.spawn(move || second_look(&images, &watch));
        let hint = "check the limit of processes";
        let look = look.map_err(|e| Error::io(Kind::Failed, "cannot look again for who writes unseen", hint, e))?;
        self.second_look = Some(look);
        Ok(stats)
    }

    fn break_off(&self, why: String) -> Demand {
        self.watch().break_off(&why);
        Demand::Broken(why)
    }

    fn tell(&self) {
        self.watch().tell(Figures::of(&self.clusters, self.promoted, self.began));
    }
}

fn panicked() -> Option<String> {
    Some("the search for who writes unseen came to no end".into())
}

/// Somebody whose mapping was let go on just before T0 may have it just after: looks for that until it must be there, and then
/// at everything.
fn second_look(images: &[Image], watch: &Watch) -> Option<String> {
    let mut early = LATE_MAPPING.into_iter().flat_map(|(looks, pause)| std::iter::repeat_n(pause, looks));
    let mapped = early.find_map(|pause| {
        let found = watch.nobody_has_mapped().err();
        std::thread::sleep(pause);
        found.map(|error| format!("somebody may have written to an image unseen: {error}"))
    });
    mapped.or_else(|| escapes(images, watch))
}

/// What a look after T0 finds that makes the snapshot wrong, perhaps.
fn escapes(images: &[Image], watch: &Watch) -> Option<String> {
    images.iter().find_map(|(image, path)| {
        let error = match preflight::look(image, watch) {
            Ok(survey) => survey.obstacle()?,
            Err(error) => error,
        };
        Some(format!("somebody may have written to '{}' unseen: {error}", path.display()))
    })
}

fn cannot(error: std::io::Error) -> Error {
    Error::io(Kind::Failed, "cannot write the image's dirty data", "check the kernel's log", error)
}

impl Hold for Guard {
    fn kind(&self) -> HoldKind {
        HoldKind::Guard
    }

    fn prepare(&mut self) -> Result<()> {
        raise::cloning_thread()?;
        preflight::everybody_is_seen()?;
        let files: Vec<_> = self.images.iter().map(|(image, _)| Arc::clone(image)).collect();
        let watch = Watch::open(&files, self.means.deadline)?;
        monitors::arm_all(&self.means.monitors, &self.images, &watch)?;
        self.armed = 0;
        self.known.clear();
        for (image, path) in &self.images {
            let survey = preflight::look(image, &watch)?;
            if let Some(error) = survey.obstacle() {
                let what = format!("accesses to '{}' cannot all be watched: {}", path.display(), error.what);
                return Err(Error { what, ..error });
            }
            self.armed += survey.armed.len();
            self.known.push(survey.armed.iter().filter_map(|holder| holder.pid).collect());
        }
        self.watch = Some(Arc::new(watch));
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.settled = settle::images(&self.images)?;
        Ok(())
    }

    fn begin(&mut self, clusters: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        let blocks = self.images.iter().map(|(image, _)| Ok(image.fs()?.block.get()));
        let blocks: Vec<u64> = blocks.collect::<std::io::Result<_>>().map_err(cannot)?;
        self.clusters = clusters.to_vec();
        let watch = Arc::clone(self.watch());
        let unheard = |e| {
            let what = "the kernel does not tell who closes the image";
            Error::io(Kind::Refused, what, "check the limits (fs.fanotify) and the kernel's log", e)
        };
        // Before T0: whoever comes after it is told of when he goes.
        self.closings = Some(Closings::of(&self.images, &self.known).map_err(unheard)?);
        watch.begin(clusters, &blocks)?;
        let at = Timestamp::now();
        self.began = table::now();
        let stats = self.marked(clusters, &watch).inspect_err(|_| {
            watch.end();
        })?;
        Ok(stats.into_iter().map(|image| T0 { at, image }).collect())
    }

    fn demand(&mut self) -> Demand {
        self.watch().answer_ready();
        if let Some(why) = self.lost() {
            return self.break_off(why);
        }
        match self.watch().wanted() {
            Some((image, range)) => {
                self.done_before = self.clusters[image].done();
                Demand::Promote(image, range)
            }
            None => {
                self.tell();
                Demand::Nothing
            }
        }
    }

    fn promoted(&mut self, image: usize, _: ByteRange) {
        // One thread clones: what was done meanwhile was done for this.
        self.promoted += self.clusters[image].done().saturating_sub(self.done_before);
        self.watch().answer_ready();
    }

    fn beside(&self) -> f64 {
        // What is dirty would be written by the clone call, with the image's lock held.
        if self.settled { FEW / FEW.max(self.watch().tally().1 as f64) } else { 0.0 }
    }

    fn idle(&mut self, time: Duration, _: &dyn Fn(Duration)) {
        self.watch().idle(time);
    }

    fn felt(&self) -> Option<Tally> {
        self.felt.or_else(|| self.watch.as_ref().map(|watch| watch.tally().0))
    }

    fn end(&mut self) -> Result<()> {
        let hint = "run the same command again: it takes a new point in time";
        let broken = |why: String| Error::new(Kind::Broken, why, hint);
        // The looks take their time, and the last clone may have been what somebody waits for.
        self.watch().answer_ready();
        let looked = self.second_look.take().and_then(|look| look.join().unwrap_or_else(|_| panicked()));
        // Once more: what came and is still there would be seen now.
        // What had ended the watch before made the looks see nothing.
        let why = self.watch().broken().or(looked);
        let why = why.or_else(|| escapes(&self.images, self.watch())).or_else(|| {
            std::thread::sleep(LATE_CLOSING);
            self.lost()
        });
        if let Some(why) = why {
            self.watch().break_off(&why);
            return Err(broken(why));
        }
        if !self.watch().end() {
            return Err(broken(self.watch().broken().unwrap_or_else(|| "its supervisor has taken over".into())));
        }
        self.images.iter().try_for_each(|(image, path)| super::still_at(image, path))
    }

    fn release(&mut self) {
        self.closings = None;
        if let Some(watch) = self.watch.take() {
            watch.end();
            self.felt = Some(watch.tally().0);
            // The look has the watch as well; without it nobody would end the supervisor.
            if let Some(look) = self.second_look.take() {
                let _ = look.join();
            }
        }
    }
}
