//! `guard`: a VM has the image open and writes to it, unchanged and unaware.
//!
//! fanotify's pre-content events stop each access before it happens and tell its range; what it may change is cloned first,
//! then it goes on. [`watch`] is the group and [`answer`] the thread that answers, on the pure machine of [`crate::cbw`];
//! [`preflight`] finds out who escapes it; [`supervisor`] is the process that answers when this one cannot, and [`table`] and
//! [`link`] are what the two share; [`raise`] makes a process fit to be waited for.

pub mod access;
pub mod answer;
pub mod link;
pub mod preflight;
pub mod raise;
pub mod supervisor;
pub mod table;
pub mod watch;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::stat::fstat;

use self::preflight::Survey;
use self::table::Figures;
use self::watch::Watch;
use super::{Demand, Hold, HoldKind, T0};
use crate::cbw::{Clusters, Tally};
use crate::disk::real::RealFile;
use crate::disk::{DiskFile, Stat};
use crate::error::{Error, Kind, Result};
use crate::range::ByteRange;
use crate::sys::fanotify;

/// A round of writing dirty data back that takes no longer leaves little for the clone calls to write.
const SHORT_ROUND: Duration = Duration::from_millis(20);

/// How many rounds before T0 at most: a guest that never stops writing must not keep the job from starting.
const ROUNDS: u32 = 8;

/// The hold.
pub struct Guard {
    image: Arc<RealFile>,
    path: PathBuf,
    deadline: Duration,
    watch: Option<Arc<Watch>>,
    clusters: Vec<Arc<Clusters>>,
    armed: usize,
    began: Duration,
    /// The look at who escapes that is made once the image is marked.
    second_look: Option<JoinHandle<Result<Survey>>>,
    felt: Option<Tally>,
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
    /// A hold that has marked nothing yet. The image's descriptor must be [`exempt`].
    pub fn new(image: Arc<RealFile>, path: PathBuf, deadline: Duration) -> Self {
        let (watch, clusters, second_look) = (None, Vec::new(), None);
        Self { image, path, deadline, watch, clusters, armed: 0, began: Duration::ZERO, second_look, felt: None }
    }

    /// How many descriptors that are open for writing were found, all of which can be watched.
    pub fn armed(&self) -> usize {
        self.armed
    }

    fn watch(&self) -> &Arc<Watch> {
        self.watch.as_ref().expect("a hold that has begun has a watch")
    }

    fn size(&self) -> Result<u64> {
        let cannot =
            |e: nix::Error| Error::io(Kind::Failed, "cannot look at the image", "check the kernel's log", e.into());
        Ok(fstat(&*self.image).map_err(cannot)?.st_size as u64)
    }

    /// Why T0 is lost, if it is, by the look of the image and of what the second look has found.
    fn lost(&mut self) -> Option<String> {
        if let Some(why) = self.watch().broken() {
            return Some(why);
        }
        let (was, now) = (self.clusters[0].size(), self.size().unwrap_or(0));
        if was != now {
            return Some(answer::resized(was, now));
        }
        let looked = self.second_look.take_if(|look| look.is_finished())?;
        found(looked.join().unwrap_or_else(|_| Err(panicked())))
    }

    /// What is left to do for T0 when the image is marked: what it is, and the second look.
    fn marked(&mut self, images: &[Arc<Clusters>], watch: &Arc<Watch>) -> Result<Stat> {
        let cannot = |e| Error::io(Kind::Failed, "cannot look at the image", "check the kernel's log", e);
        let image = self.image.stat().map_err(cannot)?;
        if image.size != images[0].size() {
            return Err(super::resized_before_t0());
        }
        let (file, watch) = (Arc::clone(&self.image), Arc::clone(watch));
        let look = std::thread::Builder::new().name("second look".into());
        let look = look.spawn(move || preflight::look(&file, &watch));
        let hint = "check the limit of processes";
        let look = look.map_err(|e| Error::io(Kind::Failed, "cannot look again for who writes unseen", hint, e))?;
        self.second_look = Some(look);
        Ok(image)
    }

    fn break_off(&self, why: String) -> Demand {
        self.watch().break_off(&why);
        Demand::Broken(why)
    }

    fn tell(&self) {
        let sum = |of: fn(&Clusters) -> u64| self.clusters.iter().map(|c| of(c)).sum();
        let figures = Figures {
            done_bytes: sum(Clusters::done_bytes),
            bytes: sum(Clusters::size),
            since_t0: table::now().saturating_sub(self.began),
            ..Figures::default()
        };
        self.watch().tell(figures);
    }
}

fn panicked() -> Error {
    Error::new(Kind::Failed, "the search for holders panicked", "report this")
}

/// What a look after T0 has found that makes the snapshot wrong, perhaps.
fn found(look: Result<Survey>) -> Option<String> {
    let error = match look {
        Ok(survey) => survey.obstacle()?,
        Err(error) => error,
    };
    Some(format!("somebody may have written unseen: {error}"))
}

impl Hold for Guard {
    fn kind(&self) -> HoldKind {
        HoldKind::Guard
    }

    fn prepare(&mut self) -> Result<()> {
        raise::cloning_thread()?;
        preflight::everybody_is_seen()?;
        let watch = Watch::open(&[Arc::clone(&self.image)], self.deadline)?;
        let survey = preflight::look(&self.image, &watch)?;
        if let Some(error) = survey.obstacle() {
            let what = format!("accesses to '{}' cannot all be watched: {}", self.path.display(), error.what);
            return Err(Error { what, ..error });
        }
        self.armed = survey.armed.len();
        self.watch = Some(Arc::new(watch));
        Ok(())
    }

    fn begin(&mut self, images: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        let cannot = |e| Error::io(Kind::Failed, "cannot write the image's dirty data", "check the kernel's log", e);
        let whole = ByteRange::new(0, images[0].size());
        for _ in 0..ROUNDS {
            let began = table::now();
            whole.map_or(Ok(()), |whole| self.image.write_back(whole)).map_err(cannot)?;
            if table::now() - began < SHORT_ROUND {
                break;
            }
        }
        let block = self.image.fs().map_err(cannot)?.block.get();
        self.clusters = images.to_vec();
        let watch = Arc::clone(self.watch());
        watch.begin(images, block)?;
        let at = Timestamp::now();
        self.began = table::now();
        self.marked(images, &watch).map(|image| vec![T0 { at, image }]).inspect_err(|_| {
            watch.end();
        })
    }

    fn demand(&mut self) -> Demand {
        self.watch().answer_ready();
        if let Some(why) = self.lost() {
            return self.break_off(why);
        }
        match self.watch().wanted() {
            Some((image, range)) => Demand::Promote(image, range),
            None => {
                self.tell();
                Demand::Nothing
            }
        }
    }

    fn promoted(&mut self, _: usize, _: ByteRange) {
        self.watch().answer_ready();
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
        let looked = self.second_look.take().map(|look| look.join().unwrap_or_else(|_| Err(panicked())));
        // Once more: what came and is still there would be seen now.
        let last = preflight::look(&self.image, self.watch());
        // What had ended the watch before made the looks see nothing.
        let why = self.watch().broken().or(looked.and_then(found)).or_else(|| found(last)).or_else(|| self.lost());
        if let Some(why) = why {
            self.watch().break_off(&why);
            return Err(broken(why));
        }
        if !self.watch().end() {
            return Err(broken(self.watch().broken().unwrap_or_else(|| "its supervisor has taken over".into())));
        }
        super::still_at(&self.image, &self.path)
    }

    fn release(&mut self) {
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
