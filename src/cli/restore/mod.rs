//! `restore SNAP IMG`: an image rolled back to a snapshot; `resume IMG` and `abort IMG` of one that was interrupted.

pub mod args;
mod names;
mod resume;
mod roll;
mod source;
mod status;
mod told;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use self::args::RestoreArgs;
pub use self::resume::{abort, resume};
use self::roll::roll;
pub use self::status::{status, unfinished};
use self::told::told;
use super::args::{Output, Verb, parse};
use super::diff::open;
use super::signals::Stop;
use super::{snapshot, words};
use crate::changes::still::Still;
use crate::disk::real::{RealDisk, RealFile, directory_of, share_a_device};
use crate::disk::{Access, Disk, DiskFile, Stat};
use crate::engine::restore::intent::{VERSION, source_was};
use crate::engine::restore::{Found, Intent, Names, Restore, is_live, look, open_image, own, refused};
use crate::error::{Error, Kind, Result};
use crate::hold::filter::link::Link;
use crate::range::{ByteRange, Geometry};
use crate::record::Verdict;
use crate::rotate::found::Snapshot;
use crate::stream::receive::HOLD;

/// How often it is tried to have the image alone, and how long after one another.
const ATTEMPTS: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(20);

/// The most links that are followed, as the kernel does.
const LINKS: usize = 40;

/// An image's directory and names; the image itself may be aside.
struct Place {
    disk: RealDisk,
    dir: PathBuf,
    names: Names,
}

/// Runs the verb.
///
/// # Errors
/// Refused where somebody has the image open, or the snapshot is not one of it; interrupted where it was told to stop; failed where a step
/// does not succeed.
pub fn run(args: &RestoreArgs) -> Result<u8> {
    let began = Instant::now();
    let place = place(&args.image)?;
    free(&place, &args.image)?;
    let mut source = open(&args.snapshot)?;
    let before = image(&place, args, &source)?;
    if let Some(kept) = &args.keep_current {
        names::may_be(kept, &place)?;
        if kept.symlink_metadata().is_ok() {
            let what = format!("{} is there already", words::name(kept));
            return Err(Error::new(
                Kind::Refused,
                what,
                "choose another name for --keep-current, or remove that snapshot",
            ));
        }
        // Before it is made: the same command would be refused for it alone.
        source::may_be_kept(&place, &source)?;
        keep(&place, kept, &args.output)?;
    }
    let stop = Stop::on_signals()?;
    let undo = args.keep_current.as_deref();
    let (restore, file) =
        begin(&place, args, &mut source, &before, &stop).map_err(|e| names::beside(&place, undo, e))?;
    let restored = roll(restore, &file, &mut source, &stop, &args.image, &args.output)?;
    told(&args.image, (Some(&args.snapshot), undo), &args.output, "restored", Some((restored, began)))?;
    Ok(0)
}

/// Says what is to be done, and takes the image aside, which is what it was `before`.
fn begin<'a>(
    place: &'a Place,
    args: &RestoreArgs,
    source: &mut Still,
    before: &Stat,
    stop: &Stop,
) -> Result<(Restore<'a, RealDisk>, RealFile)> {
    let name = words::name(&args.image);
    let reader = open_named(place, &args.image, Access::Read)?;
    // Nobody has written to it since it was kept, and nobody can now.
    let file = open_alone(place, &args.image, reader)?;
    let now = file.stat().map_err(|e| cannot(&name, e))?;
    if (now.id(), now.size, now.mtime_ns) != (before.id(), before.size, before.mtime_ns) {
        return Err(Error::new(
            Kind::Refused,
            format!("{name} was changed while it was looked at"),
            "run the command again",
        ));
    }
    let kept = args.keep_current.as_deref().map(absolute).transpose()?;
    let kept_is = kept.as_ref().map(|path| source::kept_is(Path::new(OsStr::from_bytes(path)))).transpose()?;
    let kept_source = source::keep(place, source, stop)?;
    let job = source.record().map(|record| record.job).filter(|_| kept_source.id() == source.stat().id());
    let intent = Intent {
        begun: 0,
        v: VERSION,
        image: now.id(),
        source: kept_source.id(),
        job,
        source_was: Some(source_was(&kept_source)),
        snapshot: source.path().to_string_lossy().into_owned(),
        snapshot_bytes: source.path().as_os_str().as_bytes().to_owned(),
        kept,
        kept_is,
        began: Timestamp::now(),
    };
    // From here on whoever opens the snapshot for writing is left waiting; who has been until now is not.
    let go_on = if stop.asked() { Err(Error::told_to_stop()) } else { source.check() };
    go_on.inspect_err(|_| source::let_go(place, kept_source.id()))?;
    let begun = Restore::begin(&place.disk, &place.names, &intent, &file, before);
    Ok((begun.inspect_err(|_| source::let_go(place, kept_source.id()))?, file))
}

/// Makes sure that no restore of the image has been begun, as far as that is known.
fn free(place: &Place, image: &Path) -> Result<()> {
    let name = words::name(image);
    match look(&place.disk, &place.names)? {
        Found::Nothing => Ok(()),
        Found::Foreign => {
            let what = format!(
                "a file of the name {name}.restore or {name}.restored is in the way, and is none of this program's"
            );
            let hint = match place.disk.stat(place.names.aside()) {
                Ok(None) => "move it away; an empty one a crash may have left",
                _ => {
                    "a restore of another version of this program may have left it: end it with that one, and move nothing away"
                }
            };
            Err(Error::new(Kind::Refused, what, hint))
        }
        Found::Anothers => Err(refused(&place.disk, &place.names)?),
        Found::Astray(intent) => Err(names::astray(place, &intent)),
        _ if is_live(&place.disk, &place.names)? => Err(Error::new(
            Kind::Busy,
            format!("{name} is being restored"),
            "wait for it; 'rclone-img status' shows it",
        )),
        found @ Found::Empty => Restore::take(&place.disk, &place.names, &found)?.forget(),
        _ => {
            let hint = format!("'rclone-img resume {}' goes on with it", words::shell(image));
            Err(Error::new(Kind::Refused, format!("an earlier restore of {name} was interrupted"), hint))
        }
    }
}

/// Looks at the image and whether the snapshot is one of it; takes nothing.
fn image(place: &Place, args: &RestoreArgs, source: &Still) -> Result<Stat> {
    let name = words::name(&args.image);
    let refuse = |what: String, hint: &str| Err(Error::new(Kind::Refused, what, hint));
    // Before it is opened: the snapshot is leased.
    let named = place.disk.stat(&place.names.image).map_err(|e| cannot(&name, e))?;
    if named.is_some_and(|it| (it.dev, it.ino) == (source.stat().dev, source.stat().ino)) {
        return refuse(format!("{name} is the snapshot itself"), "name the image that is to be rolled back");
    }
    // Nor is it opened for writing where a server has it: to that one somebody would have come past it.
    if let Some(error) = named.and_then(|it| served((it.dev, it.ino), &name)) {
        return Err(error);
    }
    // A snapshot is nothing to be overwritten, whatever else is to be forced: the two were exchanged.
    let itself = Snapshot::at(&place.disk, &place.names.image).map(|(found, _)| found.verdict);
    if itself == Some(Verdict::Valid) {
        let hint = format!(
            "the snapshot comes first, and then the image: rclone-img restore {} IMG",
            words::shell(&args.image)
        );
        return refuse(format!("{name} is a finished snapshot and no image"), &hint);
    }
    let reader = open_named(place, &args.image, Access::Read)?;
    let stat = reader.stat().map_err(|e| cannot(&name, e))?;
    if let (Some(at), false) = (names::mounted_at(place, &stat), args.force) {
        return refuse(
            format!("{name} is mounted at {}, where it would be a mixture meanwhile", words::name(&at)),
            "unmount that, or say --force",
        );
    }
    if stat.nlink > 1 && !args.force {
        return refuse(
            format!("{name} has {} links, whose names would lead to a mixture meanwhile", stat.nlink),
            "remove the others, or say --force",
        );
    }
    let snapshot = words::name(&args.snapshot);
    match source.record() {
        _ if args.force => {}
        None => {
            let hint = "name a snapshot ('rclone-img list' shows them); --force takes the file's bytes as they are now, whatever they are";
            return refuse(format!("{snapshot} is no finished snapshot, or was changed since"), hint);
        }
        Some(record) if !record.point_in_time => {
            let hint = "choose another one ('rclone-img list'), or say --force";
            return refuse(
                format!("{snapshot} is NOT A POINT IN TIME: the guest's file systems may be damaged in it"),
                hint,
            );
        }
        Some(record) if record.hold == HOLD => {
            return refuse(
                format!("{snapshot} was received from elsewhere: nothing says that it is of {name}"),
                "say --force if it is",
            );
        }
        Some(record) if record.image != stat.id() => {
            return refuse(
                format!("{snapshot} is a snapshot of another image than {name}"),
                "name one of this image, or say --force",
            );
        }
        Some(_) => {}
    }
    let file = open_alone(place, &args.image, reader).map_err(|error| match error.kind {
        Kind::Refused => served((stat.dev, stat.ino), &name).unwrap_or(error),
        _ => error,
    })?;
    // Tried before anything is renamed.
    let tried = trial(place, source).map_err(|e| cannot(&name, e));
    let same_flags = file.no_cow().and_then(|on| Ok(on == source.file().no_cow()?)).map_err(|e| cannot(&name, e))?;
    if !share_a_device(source.file(), &file).map_err(|e| cannot(&name, e))? || !same_flags {
        let hint = "they cannot share blocks: shut the VM down, 'cp SNAP NEW', give NEW the image's owner and mode ('chown --reference=IMG NEW', 'chmod --reference=IMG NEW'), then rename it";
        return refuse(
            format!("{snapshot} and {name} are on different file systems or devices, or differ in +C (chattr)"),
            hint,
        );
    }
    tried?;
    Ok(stat)
}

/// The server that has it open: the VM behind it is nobody who has.
fn served((dev, ino): (u64, u64), name: &str) -> Option<Error> {
    let link = Link::find(dev, ino).ok().flatten()?;
    let what = format!("somebody has {name} open: 'rclone-img serve' (pid {})", link.pid);
    let hint = "shut the VM down first, and then stop the server: a VM that runs on keeps in memory what is there no more; then run the command \
                again";
    Some(Error::new(Kind::Refused, what, hint))
}

/// What is refused because somebody has the image open is tried again for a moment: who only looks at a file has it open no longer.
fn soon<T>(place: &Place, attempt: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if error.kind == Kind::Refused => place.disk.wait(BETWEEN),
            other => return other,
        }
    }
    attempt()
}

/// Clones the snapshot's first block into a file without a name beside the image.
fn trial(place: &Place, source: &Still) -> io::Result<()> {
    let file = place.disk.create_unnamed()?;
    let geometry = Geometry { size: source.size(), block: source.file().fs()?.block };
    source::prepare(&file, source)?;
    let first = ByteRange::new(0, source.size().min(1)).and_then(|first| geometry.cover(first));
    first.map_or(Ok(()), |first| file.clone_range(source.file(), first).map(drop))
}

/// Makes a snapshot of what the image is.
fn keep(place: &Place, kept: &Path, output: &Output) -> Result<()> {
    let image = place.dir.join(&place.names.image);
    let mut line: Vec<OsString> = ["rclone-img", "snapshot", "--consistency", "frozen"].map(OsString::from).into();
    // What it says of itself advises to bring it up to date, which would undo it.
    line.push(if output.json { "--json".into() } else { "-q".into() });
    line.extend(["--".into(), image.into(), kept.into()]);
    match parse(line) {
        Ok(Verb::Snapshot(args)) => match snapshot::snapshot(&args)? {
            0 => Ok(()),
            _ => Err(Error::new(
                Kind::Failed,
                "what the image is now could not be kept",
                "see above; the image was not touched",
            )),
        },
        Ok(_) | Err(_) => Err(Error::new(Kind::Usage, "--keep-current needs the name of a new file", "name one")),
    }
}

/// The place of an image that may be aside; links are followed.
fn place(image: &Path) -> Result<Place> {
    let cannot = |e| Error::io(Kind::Refused, format!("cannot find {}", words::name(image)), "check the path", e);
    // The file that links lead to may be aside.
    let mut real = image.to_owned();
    for _ in 0..LINKS {
        let Ok(target) = std::fs::read_link(&real) else { break };
        real = real.parent().unwrap_or(Path::new(".")).join(target);
    }
    let name = real.file_name().ok_or_else(|| cannot(io::ErrorKind::InvalidInput.into()))?;
    let dir = directory_of(&real).canonicalize().map_err(cannot)?;
    Ok(Place { disk: RealDisk::open_dir(&dir).map_err(cannot)?, names: Names::new(name), dir })
}

/// Opens for writing what `reader` has open, where nobody else has: that would break the lease of whoever reads it, a job of the hold `frozen` say,
/// which asking for one's own by a descriptor that only reads does not.
fn open_alone(place: &Place, image: &Path, reader: RealFile) -> Result<RealFile> {
    let alone = |file: &RealFile| soon(place, || own(file, &place.names.image));
    alone(&reader)?;
    drop(reader);
    let file = open_named(place, image, Access::Write)?;
    alone(&file).map(|()| file)
}

fn open_named(place: &Place, image: &Path, access: Access) -> Result<RealFile> {
    let name = words::name(image);
    // A pipe, or a device, is not opened to find out what it is.
    let regular = place.disk.stat(&place.names.image).map_err(|e| cannot(&name, e))?.is_none_or(|stat| stat.regular);
    if !regular {
        return Err(Error::new(Kind::Refused, format!("{name} is not a regular file"), "name the image itself"));
    }
    let opened = match access {
        Access::Read => place.disk.open(&place.names.image, access),
        Access::Write => open_image(&place.disk, &place.names.image),
    };
    opened.map_err(|e| match e.raw_os_error() {
        Some(libc::EAGAIN) => Error::io(Kind::Refused, format!("somebody has {name} for himself"), "wait for it", e),
        // Another restore may have taken it aside in this moment.
        Some(libc::ENOENT) => free(place, image).err().unwrap_or_else(|| {
            let hint = "name an image that is there; where it is lost: 'cp --reflink=always SNAP IMG', then give it its owner and mode";
            Error::io(Kind::Refused, format!("there is no {name}"), hint, e)
        }),
        _ => cannot(&name, e),
    })
}

fn cannot(name: &str, error: io::Error) -> Error {
    Error::io(Kind::Refused, format!("cannot open {name}"), "check the path and its permissions", error)
}

fn absolute(path: &Path) -> Result<Vec<u8>> {
    let cannot = |e| Error::io(Kind::Refused, format!("cannot find {}", words::name(path)), "check the path", e);
    Ok(path.canonicalize().map_err(cannot)?.into_os_string().into_vec())
}
