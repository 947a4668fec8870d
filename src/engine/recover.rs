//! What is there already, and what it means for a job that is about to start. Decides, does nothing. Pure.

use uuid::Uuid;

use crate::disk::{FsFacts, HostFacts, Stat};
use crate::error::{Error, Kind, Result};
use crate::hold::kind::HoldKind;
use crate::journal::format::{FormatError, Header, Loaded, State};
use crate::record::{Record, Verdict};

/// The world as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// The image.
    pub image: &'a Stat,
    /// Its absolute path.
    pub image_path: &'a [u8],
    /// Its file system.
    pub fs: &'a FsFacts,
    /// The host.
    pub host: &'a HostFacts,
    /// The hold that this run would use.
    pub hold: HoldKind,
}

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// `resume`: the same T0 or nothing.
    pub same_t0_only: bool,
    /// `--refresh`: an existing snapshot is brought up to date.
    pub refresh: bool,
    /// `--restart`: unfinished work is thrown away.
    pub restart: bool,
    /// `--force`: files that are not provably ours may be replaced.
    pub force: bool,
}

/// A file that exists, with its record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Existing {
    /// What it is.
    pub stat: Stat,
    /// The UUID of its file system; zero where that is not known.
    pub fs: [u8; 16],
    /// The record it carries, if any.
    pub record: Option<Record>,
}

impl Existing {
    /// What the record says; `None` where there is none.
    pub fn verdict(&self) -> Option<Verdict> {
        Some(self.record.as_ref()?.verdict((self.stat.id(), self.fs), self.stat.size, self.stat.mtime_ns))
    }

    /// Whether a job has put its record on this very file.
    pub fn is_of(&self, job: [u8; 16]) -> bool {
        self.record.as_ref().is_some_and(|r| r.job == Uuid::from_bytes(job) && r.ino == self.stat.ino)
    }
}

/// What the directory has under the job's names.
#[derive(Clone, Debug)]
pub struct Found {
    /// DST.
    pub dst: Option<Existing>,
    /// DST.partial.
    pub partial: Option<Existing>,
    /// What DST.journal is, looked at by its name.
    pub journal_stat: Option<Stat>,
    /// DST.journal, read.
    pub journal: Option<std::result::Result<Loaded, FormatError>>,
}

/// Where the job starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Start {
    /// Nothing is there that counts: make new files. `discard` what an old job left.
    Fresh {
        /// Remove the old job's partial file and journal first.
        discard: bool,
    },
    /// Go on at the journal's T0.
    Continue,
    /// Take the partial file to a new T0 by refresh, for this reason.
    Renew(String),
    /// Take the snapshot at DST to a new T0 by refresh.
    Refresh,
    /// The job was complete but for its last steps: do them.
    RollForward,
}

/// Why T0 cannot be kept, in words; `None` where it can.
pub fn t0_lost(header: &Header, here: &Here<'_>) -> Option<String> {
    if header.state == State::Preparing {
        return Some("the job was stopped before it had a point in time".into());
    }
    if header.state == State::Broken {
        return Some(header.reason.clone());
    }
    if !header.group.is_alone() {
        return Some("it was that of several images, and does not outlive their run".into());
    }
    image_lost(header, here)
}

/// Why the image cannot be proved to be as it was at T0, in words; `None` where it can.
pub fn image_lost(header: &Header, here: &Here<'_>) -> Option<String> {
    let Here { image, fs, host, hold, .. } = *here;
    let now = (image.ino, image.generation, image.subvolume, fs.uuid);
    let then = (header.image.ino, header.image.generation, header.image.subvolume, header.fs);
    if header.hold != hold {
        return Some(format!("it was kept by the hold '{}', and this run's is '{}'", header.hold.name(), hold.name()));
    }
    if !header.hold.keeps_t0() {
        return Some(format!("under the hold '{}' a point in time does not outlive its run", header.hold.name()));
    }
    if now != then {
        return Some("the image was replaced by another file".into());
    }
    if image.size != header.image.size {
        return Some(format!("the image was resized, from {} to {} bytes", header.image.size, image.size));
    }
    if !header.hold.point_in_time() {
        return None;
    }
    if header.boot != host.boot_id {
        return Some("the host was rebooted".into());
    }
    if header.mount_instance == 0 || header.mount_instance != fs.mount_instance || header.image.dev != image.dev {
        return Some("the file system was unmounted, or mounted elsewhere".into());
    }
    (image.ctime_ns != header.image.ctime_ns).then(|| "the image was changed".into())
}

/// Where a job starts, given what is there.
///
/// # Errors
/// Refused, with words, where something is in the way; broken where `resume` cannot have its T0.
pub fn decide(found: &Found, wish: Wish, here: &Here<'_>) -> Result<Start> {
    let stats = [found.dst.as_ref().map(|e| e.stat), found.partial.as_ref().map(|e| e.stat), found.journal_stat];
    for stat in stats.into_iter().flatten() {
        // Through a hard link as well: whatever a job may replace or remove, it must not be the image.
        if (stat.dev, stat.ino) == (here.image.dev, here.image.ino) {
            let what = "the snapshot's name, or that of its partial file or journal, is the image itself";
            return Err(Error::new(Kind::Refused, what, "use another name"));
        }
    }
    if found.dst.as_ref().is_some_and(|d| !d.stat.regular) {
        let what =
            "the snapshot's name is taken by something that is not a regular file (a directory, a link, a device)";
        return Err(Error::new(Kind::Refused, what, "use another name"));
    }
    trusted(found, here)?;
    match &found.journal {
        None if wish.same_t0_only => Err(Error::new(
            Kind::Refused,
            "there is no job to resume: no journal".to_owned(),
            "start one with 'rclone-img snapshot'",
        )),
        None => without_journal(found, wish, here),
        // Without a partial file nothing is lost with a damaged journal: its first write was torn, or its job had ended.
        Some(Err(error))
            if *error == FormatError::NeverBegun || *error == FormatError::Damaged && found.partial.is_none() =>
        {
            if wish.same_t0_only {
                return Err(lost("the job was stopped before it began"));
            }
            without_journal(found, wish, here).map(discarding)
        }
        Some(Err(error)) => unreadable(*error, wish),
        Some(Ok(loaded)) => with_journal(&loaded.header, found, wish, here),
    }
}

/// In a directory that others may write to as well, a journal or a partial file may be theirs: what it says, or who has it
/// open, is not to be relied on, and nothing of the image is to be put into it.
fn trusted(found: &Found, here: &Here<'_>) -> Result<()> {
    let uid = here.host.uid;
    let journal = found.journal_stat.is_none_or(|s| is_own(&s, uid));
    let mine = |it: &Existing| it.stat.uid == uid || it.stat.uid == here.image.uid;
    let partial = found.partial.as_ref().is_none_or(|p| mine(p) && !is_open_to_others(p));
    if journal && partial { Ok(()) } else { Err(strangers()) }
}

/// The same of a job that is complete, by a journal of one's own, without the image: root may have given the partial file to
/// its owner, whoever that was, and what was to stay writable may be so to others.
pub(super) fn trusted_when_complete(found: &Found, header: &Header, host: &HostFacts) -> Result<()> {
    const ROOT: u32 = 0;
    let mine = |it: &Existing| it.stat.uid == host.uid || host.uid == ROOT;
    let closed = |it: &Existing| !is_open_to_others(it) || header.writable && it.stat.nlink == 1;
    if found.partial.as_ref().is_none_or(|p| mine(p) && closed(p)) { Ok(()) } else { Err(strangers()) }
}

/// Whether a journal is this user's alone.
pub fn is_own(journal: &Stat, uid: u32) -> bool {
    journal.uid == uid && journal.mode & 0o022 == 0
}

fn is_open_to_others(partial: &Existing) -> bool {
    partial.record.is_some() && (partial.stat.mode & 0o022 != 0 || partial.stat.nlink != 1)
}

/// Nothing of a job is acted on that somebody else may have made up.
pub(super) fn strangers() -> Error {
    Error::new(
        Kind::Refused,
        "the journal or the partial file belongs to another user, or others may write to it",
        "run as the user who began the job; where that was nobody of yours, move DST.partial and DST.journal away",
    )
}

fn without_journal(found: &Found, wish: Wish, here: &Here<'_>) -> Result<Start> {
    if found.partial.is_some() && !wish.force {
        return Err(Error::new(
            Kind::Refused,
            "a partial file is there, and no journal says what it is".to_owned(),
            "move it away, or use --force to replace it",
        ));
    }
    let discard = found.partial.is_some();
    match &found.dst {
        None => Ok(Start::Fresh { discard }),
        Some(dst) if wish.refresh => {
            may_be_refreshed(dst, wish.force, here)?;
            Ok(Start::Refresh)
        }
        Some(_) if wish.force => Ok(Start::Fresh { discard }),
        Some(_) => Err(Error::new(
            Kind::Refused,
            "the snapshot exists already".to_owned(),
            "use another name, --refresh to bring it up to date, or --force to replace it",
        )),
    }
}

/// A refresh destroys what the file held, so it must be ours and nobody else's.
fn may_be_refreshed(dst: &Existing, force: bool, here: &Here<'_>) -> Result<()> {
    let refuse = |what: &str, hint: &str| Err(Error::new(Kind::Refused, what.to_owned(), hint));
    if dst.stat.nlink != 1 {
        return refuse("what is to be refreshed has other hard links, which would change with it", "use another name");
    }
    if dst.stat.uid != here.host.uid && dst.stat.uid != here.image.uid {
        return refuse("what is to be refreshed belongs to another user", "use another name");
    }
    let of = dst.record.as_ref().map(|r| (r.image.ino, r.image.generation, r.image.subvolume, *r.fs.as_bytes()));
    let image = (here.image.ino, here.image.generation, here.image.subvolume, here.fs.uuid);
    let why = match dst.verdict() {
        Some(Verdict::Valid) if of == Some(image) => return Ok(()),
        _ if force => return Ok(()),
        Some(Verdict::Valid) => "it is a snapshot of another image, or of a file that the image has replaced",
        None => "it has no record of a finished snapshot",
        Some(Verdict::InProgress) => "its record says that it was never finished",
        Some(Verdict::Copy) => {
            "it is a copy of a snapshot, not the snapshot, or its file system has got another UUID since"
        }
        Some(Verdict::Modified) => "it was modified since it was made",
    };
    let what = format!("what is to be refreshed may not be ours to overwrite: {why}");
    refuse(&what, "use --force if its content may be lost")
}

fn unreadable(error: FormatError, wish: Wish) -> Result<Start> {
    let ours = !matches!(error, FormatError::Foreign | FormatError::Version(_));
    if ours && wish.restart && wish.force {
        return Ok(Start::Fresh { discard: true });
    }
    let kind = if wish.same_t0_only && ours { Kind::Broken } else { Kind::Refused };
    Err(Error::new(kind, format!("the journal cannot be used: {error}"), error.hint()))
}

/// Whether all that a job has left to do is the rename and the journal's end.
pub fn is_complete(header: &Header, found: &Found) -> bool {
    header.state == State::Committing
        && (is_in_place(header, found)
            || found.partial.as_ref().is_some_and(|p| p.is_of(header.job)) && partial_is_ours(header, found))
}

/// Whether the snapshot that this journal is of is under its name.
pub fn is_in_place(header: &Header, found: &Found) -> bool {
    found.dst.as_ref().is_some_and(|d| d.is_of(header.job) && d.verdict() == Some(Verdict::Valid))
}

/// Whether the partial file is a snapshot that was to be refreshed, as it was: a clone changes its modification time, and
/// growing it its size. After a reboot its time proves nothing: what was cloned may be there, and the old time as well.
pub fn is_untouched(header: &Header, found: &Found, host: &HostFacts) -> bool {
    let Some(partial) = found.partial.as_ref().filter(|_| header.refreshes) else { return false };
    let same = |old: Record| old.size == partial.stat.size && old.mtime_ns == partial.stat.mtime_ns.to_string();
    let old = Record::from_bytes(&header.old_record);
    header.state == State::Preparing || header.boot == host.boot_id && old.is_some_and(same)
}

/// Whether the partial file, if any, is the one that the journal speaks of.
pub fn partial_is_ours(header: &Header, found: &Found) -> bool {
    match &found.partial {
        None => true,
        // A kill may have come between the file and its record; an empty file has nothing that could be lost.
        Some(p) if header.partial_ino == 0 => p.is_of(header.job) || p.stat.size == 0,
        // The number of a file that was removed is given to the next one, so the record must be the job's as well, or what a
        // refresh has not replaced yet or has put back.
        Some(p) => {
            let old = header.refreshes && p.record == Record::from_bytes(&header.old_record);
            p.stat.ino == header.partial_ino && (p.is_of(header.job) || old)
        }
    }
}

fn with_journal(header: &Header, found: &Found, wish: Wish, here: &Here<'_>) -> Result<Start> {
    let finished = is_in_place(header, found);
    let partial_is_ours = partial_is_ours(header, found);
    if !partial_is_ours && !wish.force {
        return Err(Error::new(
            Kind::Refused,
            "the partial file is not the one that the journal speaks of".to_owned(),
            "move it away, or use --force to replace it",
        ));
    }
    let then = (header.image.ino, header.image.generation, header.image.subvolume);
    let same_file = (here.image.ino, here.image.generation, here.image.subvolume) == then;
    // A replaced image keeps its path, and its job is taken to a new T0; another image's job is left alone.
    if !same_file && here.image_path != header.image_path && !wish.restart && !wish.same_t0_only {
        return Err(Error::new(
            Kind::Refused,
            format!("the journal is of another image, {}", String::from_utf8_lossy(&header.image_path).escape_debug()),
            "use another name for the snapshot, or --restart to throw that job's work away",
        ));
    }
    if header.state == State::Committing && !wish.restart {
        let complete = is_complete(header, found);
        // `resume` asks for the job's own T0; `snapshot` for one that the image still has, as for any interrupted job.
        let kept = wish.same_t0_only || t0_lost(header, here).is_none();
        match (complete, kept, finished) {
            (true, _, true) if wish.refresh => return without_journal(found, wish, here).map(discarding),
            (true, true, _) => return Ok(Start::RollForward),
            (true, false, true) => return without_journal(found, wish, here).map(discarding),
            _ => {}
        }
    }
    if wish.restart && found.dst.is_some() && !wish.force {
        let hint = "use another name, or --force to replace it";
        return Err(Error::new(Kind::Refused, "the snapshot exists already", hint));
    }
    if wish.restart && partial_is_ours && is_untouched(header, found, here.host) {
        let what = "the partial file is the old snapshot, which the refresh has not begun to change";
        return Err(Error::new(Kind::Refused, what, "'rclone-img abort' puts it back; --refresh goes on with it"));
    }
    if wish.restart || !partial_is_ours {
        return Ok(Start::Fresh { discard: true });
    }
    let not_taken_yet = header.refreshes && found.partial.is_none();
    let may_replace = header.replace || wish.force || not_taken_yet;
    if found.dst.is_some() && !may_replace {
        return Err(Error::new(
            Kind::Refused,
            "an unfinished job is there, and a file of the snapshot's name as well".to_owned(),
            "move that file away and resume, or use --force to replace it",
        ));
    }
    match (t0_lost(header, here), &found.partial) {
        (Some(why), _) if wish.same_t0_only => Err(lost(&why)),
        (_, None) if wish.same_t0_only => Err(lost("the partial file is gone")),
        (_, None) => without_journal(found, wish, here).map(discarding),
        (Some(_), Some(_)) if header.state == State::Preparing && !header.refreshes => {
            Ok(Start::Fresh { discard: true })
        }
        (None, Some(_)) => Ok(Start::Continue),
        (Some(why), Some(_)) => Ok(Start::Renew(why)),
    }
}

/// The start, with the old job's files removed first.
fn discarding(start: Start) -> Start {
    match start {
        Start::Fresh { .. } => Start::Fresh { discard: true },
        other => other,
    }
}

/// A point in time that somebody asked for is lost.
pub fn lost(why: &str) -> Error {
    Error::new(
        Kind::Broken,
        format!("the job's point in time is lost: {why}"),
        "run the same 'rclone-img snapshot' again: it takes a new point in time and keeps the finished work",
    )
}
