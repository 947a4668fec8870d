//! `filter`: the image is served by `rclone-img serve`, which is in the path of each write.
//!
//! The server makes writes wait for what the job clones, and while a clone call runs (DESIGN section 4); the job is a process of its own,
//! so that nothing that happens to it costs the guest its disk. [`wire`] is what the two say to each other, [`link`] the job's end of it.
//! A server that loses its job lets all writes go on. A job that loses its server goes on with the next one ([`served`], [`handover`]).

pub mod handover;
pub mod link;
pub mod served;
pub mod strangers;
pub mod wire;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::stat::fstat;
use uuid::Uuid;

use self::link::{AT_ONCE, Link};
use self::served::Served;
use self::wire::ToServer;
use super::choose::{Image, Means};
use super::guard::raise;
use super::guard::table::{self, Figures, Table};
use super::{Demand, Hold, HoldKind, T0, settle};
use crate::cbw::{Clusters, Tally};
use crate::disk::DiskFile;
use crate::error::{Error, Kind, Result};
use crate::range::ByteRange;
use crate::sys::process;

/// How long the server's word is waited for that a job has left.
const LEAVES: Duration = Duration::from_secs(1);

/// The longest sleep while there is no server: the next one's clients wait.
const LOOKS: Duration = Duration::from_millis(5);

/// The hold.
pub struct Filter {
    images: Vec<Image>,
    means: Means,
    served: Vec<Served>,
    /// Those that were let go: their servers learn from the end of the connection that the snapshots are where they are to be.
    left: Vec<Link>,
    felt: Option<Tally>,
    /// How far the job is, for `status`.
    shown: Option<Shown>,
}

/// What a job shows of itself while it runs; how its guests fare their servers know.
struct Shown {
    table: Table,
    clusters: Vec<Arc<Clusters>>,
    promoted: u64,
    began: Duration,
}

impl Shown {
    /// None where there is no memory to share: then nothing is shown.
    fn begin(clusters: &[Arc<Clusters>], deadline: Duration) -> Option<Self> {
        let table = Table::create(deadline, 0).ok()?;
        let shown = Self { table, clusters: clusters.to_vec(), promoted: 0, began: table::now() };
        shown.tell();
        Some(shown)
    }

    fn tell(&self) {
        self.table.tell(&Figures::of(&self.clusters, self.promoted, self.began));
    }
}

impl Filter {
    /// A hold over images, at least one, that has talked to nobody yet.
    pub fn new(images: Vec<Image>, means: &Means) -> Self {
        Self { images, means: means.clone(), served: Vec::new(), left: Vec::new(), felt: None, shown: None }
    }

    /// The servers' processes.
    pub fn servers(&self) -> Vec<u32> {
        self.served.iter().map(Served::pid).collect()
    }

    /// Whether each image has a server whose clients may write.
    pub fn is_served(images: &[Image]) -> bool {
        let find = |image| ids(image).and_then(|(dev, ino)| Link::find(dev, ino));
        images.iter().all(|image| find(image).is_ok_and(|link| link.is_some_and(|link| link.writes)))
    }

    /// Asks all servers, one after the other.
    fn ask(&mut self, limit: Duration, message: impl Fn(usize) -> ToServer) -> Result<()> {
        self.served.iter_mut().enumerate().try_for_each(|(index, served)| served.ask(limit, &message(index)))
    }

    /// Waits until nobody but its server has any of the images open for writing. All are heard in turn: guests of one wait for this job while
    /// another one's next server comes.
    ///
    /// # Errors
    /// Why the snapshots are lost, in words.
    fn all_are_alone(&mut self) -> std::result::Result<(), String> {
        let began = Instant::now();
        let mut waits: Vec<usize> = (0..self.served.len()).collect();
        loop {
            let mut still = Vec::new();
            for (index, served) in self.served.iter_mut().enumerate() {
                if !waits.contains(&index) {
                    served.heard()?;
                } else if !served.ends_alone(began)? {
                    still.push(index);
                }
            }
            waits = still;
            if waits.is_empty() {
                return Ok(());
            }
            std::thread::sleep(LOOKS);
        }
    }

    fn tell(&mut self, image: usize, message: &ToServer) {
        if let Some(served) = self.served.get_mut(image) {
            served.tell(message);
        }
    }
}

/// How clients know a snapshot.
fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// What a server is found by.
fn ids((image, _): &Image) -> io::Result<(u64, u64)> {
    let stat = fstat(&**image)?;
    Ok((stat.st_dev, stat.st_ino))
}

impl Hold for Filter {
    fn kind(&self) -> HoldKind {
        HoldKind::Filter
    }

    fn prepare(&mut self) -> Result<()> {
        // Without the right to it the job takes longer, and the server's deadline is what bounds a write's wait.
        let _ = raise::cloning_thread();
        self.served.clear();
        let job = Uuid::new_v4().simple().to_string();
        for (index, image) in self.images.iter().enumerate() {
            self.served.push(Served::find(image, self.means.making.get(index), &job)?);
        }
        let pid = std::process::id();
        let unknown = |e| Error::io(Kind::Refused, "cannot look at this process", "check /proc", e);
        let pid_start = process::start_ticks(pid).map_err(unknown)?;
        let deadline_us = u64::try_from(self.means.deadline.as_micros()).unwrap_or(u64::MAX);
        let names: Vec<_> = self.means.making.iter().map(|it| name(&it.snapshot)).collect();
        let prepare = |index: usize| ToServer::Prepare {
            job: job.clone(),
            pid,
            pid_start,
            deadline_us,
            name: names.get(index).cloned().flatten(),
        };
        self.ask(AT_ONCE, prepare).map_err(|e| Error { kind: Kind::Refused, ..e })?;
        // Those who close the image are told of by now: who comes in between is told of when he goes.
        self.served.iter().try_for_each(Served::alone)
    }

    fn settle(&mut self) -> Result<()> {
        settle::images(&self.images).map(drop)
    }

    fn begin(&mut self, clusters: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        let sizes: Vec<_> = clusters.iter().map(|it| (it.size(), it.cluster().get())).collect();
        // Nobody's write goes on before all of them wait.
        let limit = self.means.deadline + AT_ONCE;
        self.ask(limit, |index| ToServer::Gather { size: sizes[index].0, cluster: sizes[index].1 })?;
        let at = Timestamp::now();
        let cannot = |e| Error::io(Kind::Failed, "cannot look at the image", "check the kernel's log", e);
        let stats: io::Result<Vec<_>> = self.images.iter().map(|(image, _)| image.stat()).collect();
        let stats = stats.map_err(cannot)?;
        if stats.iter().zip(clusters).any(|(stat, clusters)| stat.size != clusters.size()) {
            return Err(super::resized_before_t0());
        }
        self.ask(AT_ONCE, |_| ToServer::Watch)?;
        self.served.iter_mut().zip(clusters).for_each(|(served, clusters)| served.began(clusters));
        self.shown = Shown::begin(clusters, self.means.deadline);
        Ok(stats.into_iter().map(|image| T0 { at, image }).collect())
    }

    fn demand(&mut self) -> Demand {
        for (index, served) in self.served.iter_mut().enumerate() {
            match served.heard() {
                Err(why) => return Demand::Broken(why),
                Ok(Some(range)) => return Demand::Promote(index, range),
                Ok(None) => {}
            }
        }
        Demand::Nothing
    }

    fn promoted(&mut self, image: usize, _: ByteRange) {
        self.shown.iter_mut().for_each(|shown| shown.promoted += 1);
        self.tell(image, &ToServer::Promoted);
    }

    fn calling(&mut self, image: usize) {
        if let Some(served) = self.served.get_mut(image) {
            served.calling(self.means.deadline);
        }
    }

    fn called(&mut self, image: usize) {
        self.tell(image, &ToServer::Called);
    }

    fn done(&mut self, image: usize, range: ByteRange) {
        self.tell(image, &ToServer::Done { start: range.start(), end: range.end() });
        self.shown.iter().for_each(Shown::tell);
    }

    fn idle(&mut self, time: Duration, sleep: &dyn Fn(Duration)) {
        if self.served.is_empty() {
            return sleep(time);
        }
        if self.served.iter().any(Served::has_news) {
            return;
        }
        let fds: Vec<_> = self.served.iter().filter_map(Served::wakes).collect();
        let all_there = fds.len() == self.served.len();
        link::wait(&fds, if all_there { time } else { time.min(LOOKS) });
    }

    fn felt(&self) -> Option<Tally> {
        self.felt
    }

    fn end(&mut self) -> Result<()> {
        let again = "run the same command again: it takes a new point in time";
        let broken = |why| Error::new(Kind::Broken, why, again);
        // Who came meanwhile and is still there is seen now, while nothing is renamed yet.
        self.all_are_alone().map_err(broken)?;
        self.images.iter().try_for_each(|(image, path)| super::still_at(image, path))?;
        let mut felt = Tally::default();
        for served in &mut self.served {
            let its = served.end().map_err(broken)?;
            felt.seen += its.seen;
            felt.waited += its.waited;
            felt.longest = felt.longest.max(its.longest);
        }
        self.felt = Some(felt);
        Ok(())
    }

    fn release(&mut self) {
        self.shown = None;
        self.left.extend(self.served.drain(..).map(|served| served.leave(LEAVES)));
    }
}
