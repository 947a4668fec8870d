//! One image of the hold, and its server, which may be gone for a while.
//!
//! | the server | what the job does |
//! |---|---|
//! | is there | asks and tells it |
//! | is gone | clones on: nobody can write; looks for the next one before each call |
//! | is there again, and all writes have waited for the job | says what is done, and goes on |
//! | is there again, and they have not | is broken |
//! | is gone at the end | takes what it has left ([`super::handover`]): whoever comes later need not wait |

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::stat::fstat;

use super::handover;
use super::link::{AT_ONCE, Link};
use super::strangers::Strangers;
use super::wire::{ToJob, ToServer};
use crate::cbw::{Clusters, Tally};
use crate::disk::process;
use crate::error::{Error, Kind, Result};
use crate::hold::choose::{Image, Making};
use crate::hold::holders;
use crate::range::ByteRange;
use crate::sys::process as processes;

/// What to do about a server that is gone, or does not speak as it should.
const START_ANEW: &str =
    "see whether the server runs ('rclone-img serve'), then run the same command again: it takes a new point in time";

/// How long a server may take to end that has let its jobs go: its last descriptors are closed by then. What its fleeces have in memory may take
/// 10 s to be written, and disks of theirs that do not answer are waited for for 5 s, up to four times.
const ENDS: Duration = Duration::from_secs(35);

/// How often it is looked whether it has none open any more, though it is still there.
const LOOKS: Duration = Duration::from_millis(250);

/// How long the end of a server may take from the first descriptor that it closes to the last.
const HANGS_UP: Duration = Duration::from_millis(500);

/// How often that is looked at.
const MOMENT: Duration = Duration::from_millis(2);

/// How long a next server may have the image before it answers: it takes up its fleeces first, for at most 5 s.
const COMES: Duration = Duration::from_secs(8);

/// An image, and who serves it.
pub struct Served {
    image: Image,
    ids: (u64, u64),
    making: Option<Making>,
    link: Link,
    /// The server's process.
    server: OwnedFd,
    strangers: Strangers,
    job: String,
    clusters: Option<Arc<Clusters>>,
    away: bool,
    /// Why the snapshot is lost, where that is known.
    lost: Option<String>,
}

impl Served {
    /// The image with the server that it has; `job` is the job's name.
    ///
    /// # Errors
    /// Refused where nobody serves it to writers, and where others can write to it.
    pub fn find(image: &Image, making: Option<&Making>, job: &str) -> Result<Self> {
        let name = image.1.display();
        let silent = |e| Error::io(Kind::Refused, format!("the server of '{name}' does not answer"), START_ANEW, e);
        let ids = super::ids(image).map_err(silent)?;
        let link = Link::find(ids.0, ids.1).map_err(silent)?.filter(|link| link.writes);
        let hint = "start it: 'rclone-img serve IMAGE --socket PATH', by the same user as this command";
        let none = || Error::new(Kind::Refused, format!("nobody serves '{name}' to writers"), hint);
        let link = link.ok_or_else(none)?;
        let server = processes::open(link.pid).map_err(silent)?;
        let deaf = |e| Error::io(Kind::Refused, "who closes the image is not told", "check the limits (fs.inotify)", e);
        let strangers = Strangers::of(&*image.0).map_err(deaf)?;
        Ok(Self {
            image: image.clone(),
            ids,
            making: making.cloned(),
            link,
            server,
            strangers,
            job: job.to_owned(),
            clusters: None,
            away: false,
            lost: None,
        })
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.link.pid
    }

    /// Whether nobody but its server has the image open for writing.
    ///
    /// # Errors
    /// Refused where somebody has.
    pub fn alone(&self) -> Result<()> {
        let name = self.image.1.display();
        let hint = "end what has the image open, or give it its disk through the server as well";
        let cannot =
            |e| Error::io(Kind::Refused, format!("who else has '{name}' open cannot be found out"), "check /proc", e);
        let other = holders::past((*self.image.0).as_fd(), self.link.pid).map_err(cannot)?;
        let past =
            |other| Error::new(Kind::Refused, format!("'{name}' may be written to past its server: {other}"), hint);
        other.map_or(Ok(()), |other| Err(past(other)))
    }

    /// Asks the server for something that it has to do, before there is a T0.
    ///
    /// # Errors
    /// Where it will not, or is gone.
    pub fn ask(&mut self, limit: Duration, message: &ToServer) -> Result<()> {
        match self.link.ask(message, limit) {
            Ok(ToJob::Ok) => Ok(()),
            Ok(ToJob::Refused { why }) => Err(Error::new(Kind::Failed, why, "run the same command again")),
            Ok(_) => Err(gone(io::ErrorKind::InvalidData.into())),
            Err(e) => Err(gone(e)),
        }
    }

    /// T0 is set, and these are the states of the image's clusters. Clients may read it from now on; those of a server that cannot open the
    /// file cannot, and the snapshot is as good.
    pub fn began(&mut self, clusters: &Arc<Clusters>) {
        self.clusters = Some(Arc::clone(clusters));
        self.show();
    }

    /// What the server wants: why the snapshot is lost, or what somebody waits for. One that is gone is looked for.
    pub fn heard(&mut self) -> std::result::Result<Option<ByteRange>, String> {
        if self.away {
            self.look_for_another();
        } else if self.strangers.came() && !self.has_hung_up() {
            self.lost(&self.written_past());
        } else if self.link.listen().is_err() {
            self.left();
        }
        // By its path, which opens nothing; nobody's server does.
        if self.is_resized() {
            self.lost(&format!("somebody has changed the size of '{}'", self.image.1.display()));
        }
        let broken = self.link.broken().filter(|_| !self.away).map(str::to_owned);
        match self.lost.clone().or(broken) {
            Some(why) => Err(why),
            None => Ok(self.link.wanted()),
        }
    }

    /// Whether [`Served::heard`] has something to tell.
    pub fn has_news(&self) -> bool {
        self.lost.is_some() || self.link.has_news()
    }

    /// What can be waited on; nothing while there is no server.
    pub fn wakes(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        (!self.away).then(|| self.link.as_fd())
    }

    /// Tells the server something that has no answer.
    pub fn tell(&mut self, message: &ToServer) {
        if !self.away && self.link.say(message).is_err() {
            self.left();
        }
    }

    /// Writes wait from now on for a clone call. A server that does not answer in time has let them go on.
    pub fn calling(&mut self, limit: Duration) {
        if self.away {
            return;
        }
        match self.link.ask(&ToServer::Calling, limit) {
            Ok(ToJob::Ok) => {}
            Err(e) if e.kind() != io::ErrorKind::TimedOut => self.left(),
            Err(e) => self.lost(&gone(e).to_string()),
            Ok(_) => self.lost(&gone(io::ErrorKind::InvalidData.into()).to_string()),
        }
    }

    /// At the end, which `began` to be asked so long ago: whether nobody but its server has the image open for writing. Not yet where that is gone
    /// and somebody has, who may be the next one: that is no stranger, and answers in a moment.
    ///
    /// # Errors
    /// Why the snapshot is lost, in words.
    pub fn ends_alone(&mut self, began: Instant) -> std::result::Result<bool, String> {
        self.heard()?;
        let of = self.pid();
        let Err(past) = self.alone() else { return Ok(true) };
        // The server may have ended, or the next one come, while it was looked who has the image.
        self.heard()?;
        let is_another = self.away || self.pid() != of;
        if is_another && began.elapsed() < COMES { Ok(false) } else { Err(past.to_string()) }
    }

    /// All is done, and writes go on for good: how they fared.
    ///
    /// # Errors
    /// Why the snapshot is lost, in words.
    pub fn end(&mut self) -> std::result::Result<Tally, String> {
        self.heard()?;
        // Without a server QEMU's lock is that of the next one, which answers in a moment, or of somebody who writes past it.
        let until = Instant::now() + COMES;
        while self.away && holders::qemu_lock((*self.image.0).as_fd()).map_or(true, |lock| lock.is_some()) {
            if Instant::now() >= until {
                return Err(self.written_past());
            }
            std::thread::sleep(MOMENT);
            self.heard()?;
        }
        if !self.away {
            match self.link.ask(&ToServer::End, AT_ONCE) {
                Ok(ToJob::Ended { why: Some(why), .. }) => return Err(why),
                Ok(ToJob::Ended { seen, waited, longest_us, .. }) => {
                    return Ok(Tally { seen, waited, longest: Duration::from_micros(longest_us) });
                }
                Ok(_) => return Err(gone(io::ErrorKind::InvalidData.into()).to_string()),
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(gone(e).to_string()),
                Err(_) => self.left(),
            }
        }
        match self.lost.clone() {
            Some(why) => Err(why),
            None if self.take_left() => Ok(Tally::default()),
            None => Err("its server was started again, and writes have gone on without the job".into()),
        }
    }

    /// Lets the writes go on, whatever was done. What is given back tells the server, by its end, that the snapshot is where it is to be.
    pub fn leave(mut self, limit: Duration) -> Link {
        if self.away {
            self.take_left();
        } else {
            // Who hangs up lets the writes go on as well, but not before the server has seen it: the next job would find this one still there.
            let _ = self.link.ask(&ToServer::Leave, limit);
        }
        self.link
    }

    /// Takes what the server has left; whether it was there: nobody has written since.
    fn take_left(&self) -> bool {
        handover::path(self.ids.0, self.ids.1, &self.job).is_some_and(|path| handover::take(&path))
    }

    /// Whether the image has another size than at T0.
    fn is_resized(&self) -> bool {
        let now = fstat(&*self.image.0).map_or(0, |stat| stat.st_size.cast_unsigned());
        self.clusters.as_ref().is_some_and(|clusters| clusters.size() != now)
    }

    fn written_past(&self) -> String {
        let name = self.image.1.display();
        format!("somebody had '{name}' open for writing past its server, and may have written to it")
    }

    fn lost(&mut self, why: &str) {
        self.lost.get_or_insert_with(|| why.to_owned());
    }

    /// The server is gone. Its own end closes the image: who else has is asked from then on.
    fn left(&mut self) {
        if self.clusters.is_none() {
            return self.lost(&gone(io::ErrorKind::UnexpectedEof.into()).to_string());
        }
        let until = Instant::now() + ENDS;
        let (mut looked, mut had_let_go) = (Instant::now(), false);
        while !process::has_ended(&self.server) {
            if Instant::now() >= until {
                return self.lost("its server has let the job go, and still runs");
            }
            if looked.elapsed() >= LOOKS {
                let has_let_go = self.has_let_go();
                // Twice: what it has just let go is closed, and told of, a moment later.
                if has_let_go && had_let_go {
                    break;
                }
                (looked, had_let_go) = (Instant::now(), has_let_go);
            }
            std::thread::sleep(MOMENT);
        }
        if self.strangers.came_with_its_end() {
            return self.lost(&self.written_past());
        }
        self.away = true;
    }

    /// Whether a server that is still there has no descriptor of the image any more: one that was stopped in order, and of which a thread waits
    /// for the disk of a fleece, which nobody can end.
    fn has_let_go(&self) -> bool {
        let has = |it: &holders::Holder| it.pid == Some(self.link.pid);
        holders::holders((*self.image.0).as_fd())
            .is_ok_and(|all| !all.hidden.contains(&self.link.pid) && !all.found.iter().any(has))
    }

    /// Whether the server ends: it is that which closes the image then, before it hangs up.
    fn has_hung_up(&mut self) -> bool {
        let until = Instant::now() + HANGS_UP;
        while self.link.listen().is_ok() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(MOMENT);
        }
        true
    }

    /// The next server has opened the image, as others may have since the last one's end: nobody waits at either. Whoever has is found, and is
    /// not forgotten when the next one ends as well, whose closing would hide his:
    /// - Who has closed it before the openings are forgotten is told of then.
    /// - Who opened it before that and has not closed it is found by the look that follows, or closes it before the look comes to him, which
    ///   is told of after the look.
    /// - Who opens it later is remembered: by his closing while this server runs, by his opening once it has ended.
    ///
    /// Its own openings are all forgotten: it answers here after the last of them. If it ends meanwhile its closing might be anybody's. Its
    /// clients wait for that look, as they do for what follows: nothing is written through it before all is known.
    fn look_for_another(&mut self) {
        if self.strangers.came() {
            return self.lost(&self.written_past());
        }
        let Ok(Some(link)) = Link::find(self.ids.0, self.ids.1) else { return };
        let Ok(server) = processes::open(link.pid) else { return };
        (self.link, self.server) = (link, server);
        if !self.strangers.server_came() {
            return self.lost(&self.written_past());
        }
        if let Err(other) = self.alone() {
            return self.lost(&other.to_string());
        }
        if self.strangers.came() {
            return self.lost(&self.written_past());
        }
        match self.come_back() {
            Ok(Ok(())) => {
                self.away = false;
                self.show();
            }
            Ok(Err(why)) => self.lost(&why),
            // That one is gone as well.
            Err(_) => {}
        }
    }

    /// Says to a new server what is done, and where the snapshot is made.
    fn come_back(&mut self) -> io::Result<std::result::Result<(), String>> {
        let answered = |answer| match answer {
            ToJob::Ok => Ok(Ok(())),
            ToJob::Refused { why } => Ok(Err(why)),
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        };
        if let Err(why) = answered(self.link.ask(&ToServer::Return { job: self.job.clone() }, AT_ONCE)?)? {
            return Ok(Err(why));
        }
        let Some(clusters) = &self.clusters else { return Ok(Ok(())) };
        for (run, _) in
            ByteRange::new(0, clusters.size()).into_iter().flat_map(|it| clusters.runs(it)).filter(|it| it.1)
        {
            self.link.say(&ToServer::Done { start: run.start(), end: run.end() })?;
        }
        answered(self.link.ask(&ToServer::Watch, AT_ONCE)?)
    }

    fn show(&mut self) {
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        let Some(Making { partial, snapshot }) = &self.making else { return };
        let show = ToServer::Show { partial: bytes(partial), snapshot: bytes(snapshot) };
        if self.link.ask(&show, AT_ONCE).is_err() {
            self.left();
        }
    }
}

fn gone(error: io::Error) -> Error {
    let error = if error.kind() == io::ErrorKind::UnexpectedEof { io::Error::other("it has ended") } else { error };
    Error::io(Kind::Broken, "the server of the image does not answer", START_ANEW, error)
}
