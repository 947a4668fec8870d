//! `filter`: the image is served by `rclone-img serve`, which is in the path of each write.
//!
//! The server makes writes wait for what the job clones, and while a clone call runs (DESIGN section 4); the job is a process of its own,
//! so that nothing that happens to it costs the guest its disk. [`wire`] is what the two say to each other, [`link`] the job's end of it.
//! A server that loses its job lets all writes go on; a job that loses its server is broken.

pub mod link;
pub mod strangers;
pub mod wire;

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::stat::fstat;

use self::link::{AT_ONCE, Link};
use self::strangers::Strangers;
use self::wire::{ToJob, ToServer};
use super::choose::{Image, Making, Means};
use super::guard::raise;
use super::holders::{self, Holding};
use super::{Demand, Hold, HoldKind, T0, settle};
use crate::cbw::{Clusters, Tally};
use crate::disk::DiskFile;
use crate::error::{Error, Kind, Result};
use crate::range::ByteRange;

/// How long the server's word is waited for that a job has left.
const LEAVES: Duration = Duration::from_secs(1);

/// What to do about a server that is gone, or does not speak as it should.
const START_ANEW: &str =
    "see whether the server runs ('rclone-img serve'), then run the same command again: it takes a new point in time";

/// The hold.
pub struct Filter {
    images: Vec<Image>,
    deadline: Duration,
    making: Vec<Making>,
    links: Vec<Link>,
    /// Those that were let go: their servers learn from the end of the connection that the snapshots are where they are to be.
    left: Vec<Link>,
    strangers: Vec<Strangers>,
    felt: Option<Tally>,
    /// What the servers were to be told of and could not.
    lost: Option<String>,
}

impl Filter {
    /// A hold over images, at least one, that has talked to nobody yet.
    pub fn new(images: Vec<Image>, means: &Means) -> Self {
        let Means { deadline, making, .. } = means.clone();
        Self {
            images,
            deadline,
            making,
            links: Vec::new(),
            left: Vec::new(),
            strangers: Vec::new(),
            felt: None,
            lost: None,
        }
    }

    /// The servers' processes.
    pub fn servers(&self) -> Vec<u32> {
        self.links.iter().map(|link| link.pid).collect()
    }

    /// Whether each image has a server whose clients may write.
    pub fn is_served(images: &[Image]) -> bool {
        images.iter().all(|image| find(image).is_ok_and(|link| link.is_some_and(|link| link.writes)))
    }

    /// Whether nobody but its server has an image open for writing.
    fn alone(&self) -> Result<()> {
        for (image, link) in self.images.iter().zip(&self.links) {
            let name = image.1.display();
            let hint = "end what has the image open, or give it its disk through the server as well";
            let cannot = |e| {
                Error::io(Kind::Refused, format!("who else has '{name}' open cannot be found out"), "check /proc", e)
            };
            let found = holders::holders(std::os::fd::AsFd::as_fd(&*image.0)).map_err(cannot)?.found;
            // The lock is the server's: it could not have it if anybody else had.
            let other = found.iter().find(|it| it.pid != Some(link.pid) && it.what != Holding::QemuLock);
            if let Some(other) = other {
                return Err(Error::new(
                    Kind::Refused,
                    format!("'{name}' may be written to past its server: {other}"),
                    hint,
                ));
            }
        }
        Ok(())
    }

    /// Why T0 is lost, by what others did past the servers.
    fn written_past(&self) -> Option<String> {
        let came = self.strangers.iter().zip(&self.images).find(|(strangers, _)| strangers.came())?;
        let name = came.1.1.display();
        Some(format!("somebody had '{name}' open for writing past its server, and may have written to it"))
    }

    /// Clients may read the points in time from now on. Those of a server that cannot open a file cannot, and the snapshot is as good.
    fn show(&mut self) -> Result<()> {
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        for (link, Making { partial, snapshot }) in self.links.iter_mut().zip(&self.making) {
            let show = ToServer::Show { partial: bytes(partial), snapshot: bytes(snapshot) };
            link.ask(&show, AT_ONCE).map_err(gone)?;
        }
        Ok(())
    }

    /// Asks all servers, one after the other.
    fn ask(&mut self, limit: Duration, message: impl Fn(usize) -> ToServer) -> Result<()> {
        for (index, link) in self.links.iter_mut().enumerate() {
            match link.ask(&message(index), limit) {
                Ok(ToJob::Ok) => {}
                Ok(ToJob::Refused { why }) => return Err(Error::new(Kind::Failed, why, "run the same command again")),
                Ok(_) => return Err(gone(io::ErrorKind::InvalidData.into())),
                Err(e) => return Err(gone(e)),
            }
        }
        Ok(())
    }

    /// Tells the server of an image; where it is gone, that is found out before the next call.
    fn tell(&mut self, image: usize, message: &ToServer) {
        if let Some(link) = self.links.get_mut(image)
            && let Err(e) = link.say(message)
        {
            self.lost.get_or_insert_with(|| gone(e).to_string());
        }
    }
}

fn find((image, _): &Image) -> io::Result<Option<Link>> {
    let stat = fstat(&**image)?;
    Link::find(stat.st_dev, stat.st_ino)
}

fn gone(error: io::Error) -> Error {
    let error = if error.kind() == io::ErrorKind::UnexpectedEof { io::Error::other("it has ended") } else { error };
    Error::io(Kind::Broken, "the server of the image does not answer", START_ANEW, error)
}

impl Hold for Filter {
    fn kind(&self) -> HoldKind {
        HoldKind::Filter
    }

    fn prepare(&mut self) -> Result<()> {
        // Without the right to it the job takes longer, and the server's deadline is what bounds a write's wait.
        let _ = raise::cloning_thread();
        self.links.clear();
        for image in &self.images {
            let name = image.1.display();
            let hint = "start it: 'rclone-img serve IMAGE --socket PATH', by the same user as this command";
            let link = find(image).map_err(|e| {
                Error::io(Kind::Refused, format!("the server of '{name}' does not answer"), START_ANEW, e)
            })?;
            let link = link.filter(|link| link.writes);
            self.links.push(
                link.ok_or_else(|| Error::new(Kind::Refused, format!("nobody serves '{name}' to writers"), hint))?,
            );
        }
        let deadline_us = u64::try_from(self.deadline.as_micros()).unwrap_or(u64::MAX);
        self.ask(AT_ONCE, |_| ToServer::Prepare { deadline_us }).map_err(|e| Error { kind: Kind::Refused, ..e })?;
        let deaf = |e| Error::io(Kind::Refused, "who closes the image is not told", "check the limits (fs.inotify)", e);
        // First, and then the look: who comes in between is told of when he goes.
        let strangers = self.images.iter().map(|(image, _)| Strangers::of(&**image)).collect::<io::Result<_>>();
        self.strangers = strangers.map_err(deaf)?;
        self.alone()
    }

    fn settle(&mut self) -> Result<()> {
        settle::images(&self.images).map(drop)
    }

    fn begin(&mut self, clusters: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        let sizes: Vec<_> = clusters.iter().map(|it| (it.size(), it.cluster().get())).collect();
        // Nobody's write goes on before all of them wait.
        self.ask(self.deadline + AT_ONCE, |index| ToServer::Gather { size: sizes[index].0, cluster: sizes[index].1 })?;
        let at = Timestamp::now();
        let cannot = |e| Error::io(Kind::Failed, "cannot look at the image", "check the kernel's log", e);
        let stats: io::Result<Vec<_>> = self.images.iter().map(|(image, _)| image.stat()).collect();
        let stats = stats.map_err(cannot)?;
        if stats.iter().zip(clusters).any(|(stat, clusters)| stat.size != clusters.size()) {
            return Err(super::resized_before_t0());
        }
        self.ask(AT_ONCE, |_| ToServer::Watch)?;
        self.show()?;
        Ok(stats.into_iter().map(|image| T0 { at, image }).collect())
    }

    fn demand(&mut self) -> Demand {
        if let Some(why) = self.written_past() {
            return Demand::Broken(why);
        }
        for (index, link) in self.links.iter_mut().enumerate() {
            let heard = link.listen();
            if let Some(why) = link.broken() {
                return Demand::Broken(why.to_owned());
            }
            if let Err(e) = heard {
                return Demand::Broken(gone(e).to_string());
            }
            if let Some(range) = link.wanted() {
                return Demand::Promote(index, range);
            }
        }
        self.lost.clone().map_or(Demand::Nothing, Demand::Broken)
    }

    fn promoted(&mut self, image: usize, _: ByteRange) {
        self.tell(image, &ToServer::Promoted);
    }

    fn calling(&mut self, image: usize) {
        let Some(link) = self.links.get_mut(image) else { return };
        // One that does not answer in time has let the writes go on.
        match link.ask(&ToServer::Calling, self.deadline) {
            Ok(ToJob::Ok) => {}
            Ok(_) => self.lost = Some(gone(io::ErrorKind::InvalidData.into()).to_string()),
            Err(e) => self.lost = Some(gone(e).to_string()),
        }
    }

    fn called(&mut self, image: usize) {
        self.tell(image, &ToServer::Called);
    }

    fn done(&mut self, image: usize, range: ByteRange) {
        self.tell(image, &ToServer::Done { start: range.start(), end: range.end() });
    }

    fn idle(&mut self, time: Duration, sleep: &dyn Fn(Duration)) {
        if self.links.is_empty() {
            return sleep(time);
        }
        if self.links.iter().any(Link::has_news) {
            return;
        }
        let fds: Vec<_> = self.links.iter().map(std::os::fd::AsFd::as_fd).collect();
        link::wait(&fds, time);
    }

    fn felt(&self) -> Option<Tally> {
        self.felt
    }

    fn end(&mut self) -> Result<()> {
        let again = "run the same command again: it takes a new point in time";
        // Who came meanwhile and is still there is seen now, while nothing is renamed yet.
        let alone = self.alone().map_err(|e| Error { kind: Kind::Broken, hint: again.into(), ..e });
        let mut felt = Tally::default();
        let mut broken = self.lost.clone().or_else(|| self.written_past());
        for link in &mut self.links {
            match link.ask(&ToServer::End, AT_ONCE) {
                Ok(ToJob::Ended { why, seen, waited, longest_us }) => {
                    felt.seen += seen;
                    felt.waited += waited;
                    felt.longest = felt.longest.max(Duration::from_micros(longest_us));
                    broken = broken.or(why);
                }
                Ok(_) => return Err(gone(io::ErrorKind::InvalidData.into())),
                Err(e) => return Err(gone(e)),
            }
        }
        self.felt = Some(felt);
        if let Some(why) = broken {
            return Err(Error::new(Kind::Broken, why, again));
        }
        alone?;
        self.images.iter().try_for_each(|(image, path)| super::still_at(image, path))
    }

    fn release(&mut self) {
        for mut link in self.links.drain(..) {
            // Who hangs up lets the writes go on as well, but not before the server has seen it: the next job would find this one still there.
            let _ = link.ask(&ToServer::Leave, LEAVES);
            self.left.push(link);
        }
        self.strangers.clear();
    }
}
