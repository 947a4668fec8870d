//! Jobs that make a snapshot of what is served: what they say ([`crate::hold::filter::wire`]), and what is done about it.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send};

use super::fleece::all::Fleeces;
use super::gate::{Gate, News, OnError, Point, Tell, Watch};
use super::names::{Made, Taken};
use super::orphans::Orphans;
use super::points::Points;
use super::session::Stream;
use crate::cbw::{Clusters, STATES_MAX};
use crate::hold::choose::GUEST_DEADLINE_MAX;
use crate::hold::filter::handover::{self, Handover};
use crate::hold::filter::wire::{Lines, ToJob, ToServer, VERSION, line};
use crate::range::{ByteRange, PowerOfTwo};

/// The most jobs that are listened to: one of them can have the image, the others are told so.
pub const MOST: usize = 8;

/// The smallest unit that is cloned for a write.
const LEAST_CLUSTER: u64 = 4096;

/// What is served.
#[derive(Clone)]
pub struct Served {
    /// Its gate.
    pub gate: Arc<Gate>,
    /// Its points in time.
    pub points: Arc<Points>,
    /// What an earlier server has left.
    pub orphans: Arc<Orphans>,
    /// Points in time of which only what is overwritten is kept.
    pub fleeces: Arc<Fleeces>,
    /// The path of the socket that clients connect to, if it has one.
    pub socket: Option<Vec<u8>>,
    /// The image's device.
    pub dev: u64,
    /// Its inode.
    pub ino: u64,
    /// Its size, in bytes.
    pub size: u64,
    /// Whether clients may write.
    pub writes: bool,
}

/// Listens to a job until it hangs up.
///
/// # Errors
/// Where it does not speak as a job does, or the connection fails.
pub fn serve(stream: &UnixStream, served: &Served) -> io::Result<()> {
    let mut job = Job { stream, served, watch: None, handover: None, left: None, shown: None, name: None };
    let ended = hear(stream, &mut job);
    // The name is free when nobody reads by it what was not finished.
    let (shown, _name) = (job.shown.take(), job.name.take());
    drop(job);
    // A job goes when its snapshot is where it is to be, which nobody may hold any longer: the next one may be about to overwrite it.
    served.points.look();
    if let Some(point) = shown.filter(|_| !served.orphans.is_leaving()) {
        served.points.ended(&point);
    }
    ended
}

fn hear(stream: &UnixStream, job: &mut Job<'_>) -> io::Result<()> {
    let (mut lines, mut bytes) = (Lines::default(), [0; 4096]);
    loop {
        while let Some(message) = lines.message()? {
            if let Some(answer) = job.hear(message)? {
                let mut stream = stream;
                stream.write_all(&line(&answer)?)?;
            }
        }
        let mut stream = stream;
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(got) => lines.feed(&bytes[..got]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

struct Job<'a> {
    stream: &'a UnixStream,
    served: &'a Served,
    watch: Option<Watch>,
    /// What is left to the next server from [`ToServer::Gather`] on; not yet with size and cluster.
    handover: Option<Handover>,
    /// Where it is.
    left: Option<PathBuf>,
    /// What clients can read of it.
    shown: Option<Point>,
    /// By which name.
    name: Option<Taken>,
}

impl Job<'_> {
    /// What is answered.
    fn hear(&mut self, message: ToServer) -> io::Result<Option<ToJob>> {
        let answer = |done: Result<(), String>| Some(done.map_or_else(|why| ToJob::Refused { why }, |()| ToJob::Ok));
        let nothing = || "there is no job".to_owned();
        Ok(match message {
            ToServer::Hello { .. } => {
                let Served { dev, ino, writes, .. } = *self.served;
                self.served.points.look();
                Some(ToJob::Image { version: VERSION, pid: std::process::id(), dev, ino, writes })
            }
            ToServer::Prepare { job, pid, pid_start, deadline_us, name } => {
                let deadline_us = Duration::from_micros(deadline_us).min(GUEST_DEADLINE_MAX).as_micros() as u64;
                let handover = Handover { job, pid, pid_start, deadline_us, size: 0, cluster: 0 };
                answer(match name.map_or(Ok(()), |name| self.take_name(&name)) {
                    Ok(()) => self.prepare(handover)?,
                    taken => taken,
                })
            }
            ToServer::Return { job } => answer(self.take_back(&job)?),
            ToServer::Gather { size, cluster } => {
                let gathered = self.unit(size, cluster).and_then(|cluster| {
                    let watch = self.watch.as_ref().ok_or_else(nothing)?;
                    self.leave_behind(size, cluster);
                    watch.gather(size, cluster)
                });
                answer(gathered)
            }
            ToServer::Watch => answer(self.watch.as_ref().ok_or_else(nothing).and_then(Watch::watch)),
            ToServer::Show { partial, snapshot } => {
                let [partial, snapshot] = [partial, snapshot].map(|path| PathBuf::from(OsString::from_vec(path)));
                let point = self.watch.as_ref().and_then(Watch::point).ok_or_else(nothing);
                answer(point.and_then(|point| self.show(&partial, &snapshot, point)))
            }
            ToServer::Calling => {
                self.watch.iter().for_each(Watch::calling);
                Some(ToJob::Ok)
            }
            ToServer::Called => {
                self.watch.iter().for_each(Watch::called);
                None
            }
            ToServer::Done { start, end } => {
                let range = ByteRange::new(start, end.min(self.served.size));
                self.watch.iter().zip(range).for_each(|(watch, range)| watch.done(range));
                None
            }
            ToServer::Promoted => {
                self.watch.iter().for_each(Watch::promoted);
                None
            }
            ToServer::Fleece(order) => Some(match self.fleeces().and_then(|fleeces| fleeces.start(&order)) {
                Ok(fleece) => self.told_of(|name| name == fleece.name()),
                Err(why) => ToJob::Refused { why },
            }),
            ToServer::EndFleece { name } => {
                self.served.fleeces.look(&name);
                let last = self.told_of(|it| it == name);
                // Also of what is served read-only: an earlier server may have left it.
                Some(match self.served.fleeces.stop(&name) {
                    Ok(()) => last,
                    Err(why) => ToJob::Refused { why },
                })
            }
            ToServer::Fleeces => Some(self.told_of(|_| true)),
            ToServer::Leave => {
                self.watch = None;
                Some(ToJob::Ok)
            }
            ToServer::End => {
                // All writes may go on from now on, also with another server.
                self.let_go();
                let ended = self.watch.take().map(Watch::end);
                let (why, tally) = ended.unwrap_or_else(|| (Some(nothing()), Default::default()));
                let longest_us = u64::try_from(tally.longest.as_micros()).unwrap_or(u64::MAX);
                Some(ToJob::Ended { why, seen: tally.seen, waited: tally.waited, longest_us })
            }
        })
    }

    fn take_name(&mut self, name: &str) -> Result<(), String> {
        self.name = Some(self.served.fleeces.take_name(name, Made::Snapshot)?);
        Ok(())
    }

    fn show(&mut self, partial: &Path, snapshot: &Path, point: Point) -> Result<(), String> {
        // A job that has come back took its name from another server.
        if let (None, Some(name)) = (&self.name, snapshot.file_name()) {
            self.take_name(&name.to_string_lossy())?;
        }
        self.shown = Some(point.clone());
        self.served.points.show(partial, snapshot, point).map_err(|e| e.to_string())
    }

    fn prepare(&mut self, handover: Handover) -> io::Result<Result<(), String>> {
        if !self.served.writes {
            return Ok(Err("nobody writes to what is served read-only".into()));
        }
        self.watch = None;
        let tell = self.tell(&handover.job)?;
        let watch = self.served.gate.watch(handover.deadline(), OnError::BreakSnapshot, tell);
        self.left = self.left_by(&handover.job);
        self.handover = Some(handover);
        Ok(watch.map(|watch| self.watch = Some(watch)))
    }

    fn fleeces(&self) -> Result<&Fleeces, String> {
        let writes = Some(&*self.served.fleeces).filter(|_| self.served.writes);
        writes.ok_or_else(|| "nobody writes to what is served read-only: read it as it is".into())
    }

    /// How the fleeces of these names stand.
    fn told_of(&self, which: impl Fn(&str) -> bool) -> ToJob {
        ToJob::Fleeces { socket: self.served.socket.clone(), all: self.served.fleeces.states(which) }
    }

    /// A job whose server is gone: this one has had the writes wait for it from its first moment on.
    fn take_back(&mut self, job: &str) -> io::Result<Result<(), String>> {
        let Some(watch) = self.served.orphans.take(job) else {
            return Ok(Err("writes have gone on without the job since its server was started again".into()));
        };
        watch.retell(self.tell(job)?);
        self.watch = Some(watch);
        self.left = self.left_by(job);
        Ok(Ok(()))
    }

    /// What the next server needs to know if this one is killed. Where it cannot be written down, T0 is lost then.
    fn leave_behind(&self, size: u64, cluster: PowerOfTwo) {
        if let (Some(handover), Some(left)) = (&self.handover, &self.left) {
            let _ = Handover { size, cluster: cluster.get(), ..handover.clone() }.write(left);
        }
    }

    fn let_go(&self) {
        if let Some(left) = &self.left {
            handover::take(left);
        }
    }

    fn left_by(&self, job: &str) -> Option<PathBuf> {
        handover::path(self.served.dev, self.served.ino, job)
    }

    /// How a job is told.
    fn tell(&self, job: &str) -> io::Result<Tell> {
        let stream = self.stream.try_clone()?;
        let left = self.left_by(job);
        let orphans = Arc::clone(&self.served.orphans);
        Ok(Box::new(move |news| {
            if orphans.is_leaving() {
                return;
            }
            // Before the write goes on for which it is broken.
            if let (News::Broken(_), Some(left)) = (&news, &left) {
                handover::take(left);
            }
            let message = match news {
                News::Wanted(range) => ToJob::Wanted { start: range.start(), end: range.end() },
                News::Broken(why) => ToJob::Broken { why },
            };
            // At most two of these are on their way at a time, which any socket has room for: one that has not belongs to a job that
            // does not listen, and writes wait for this.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let sent = line(&message).map(|line| send(stream.as_raw_fd(), &line, flags) == Ok(line.len()));
            if !sent.unwrap_or(false) {
                stream.close();
            }
        }))
    }

    fn unit(&self, size: u64, cluster: u64) -> Result<PowerOfTwo, String> {
        if size != self.served.size {
            return Err(format!("the image has {size} bytes, and had {} when it was first served", self.served.size));
        }
        let unit = PowerOfTwo::new(cluster).filter(|unit| unit.get() >= LEAST_CLUSTER);
        let unit = unit.ok_or("a cluster is a power of two, and 4 KiB at least")?;
        if Clusters::memory(size, unit) > STATES_MAX {
            return Err("the image has more clusters than there is memory for: choose a larger --cluster".into());
        }
        Ok(unit)
    }
}
