//! `restore SNAP IMG`: an image rolled back to a snapshot; `resume IMG` and `abort IMG` of one that was interrupted.

pub mod args;
mod names;
mod resume;
mod source;
mod status;
mod told;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use self::args::RestoreArgs;
pub use self::resume::{abort, resume};
pub use self::status::{status, unfinished};
use self::told::told;
use super::args::{Output, Verb, parse};
use super::diff::open;
use super::meter::Meter;
use super::signals::Stop;
use super::{snapshot, words};
use crate::changes::still::Still;
use crate::disk::real::{RealDisk, RealFile, directory_of, share_a_device};
use crate::disk::{Access, Disk, DiskFile, Stat};
use crate::engine::restore::intent::VERSION;
use crate::engine::restore::{Found, Intent, Names, Owned, Restore, Restored, is_live, look, own};
use crate::error::{Error, Kind, Result};
use crate::range::{ByteRange, Geometry};
use crate::record::Verdict;
use crate::rotate::found::Snapshot;
use crate::stream::receive::HOLD;

/// What the kernel's patience is where it does not tell, in seconds: its default (Documentation/admin-guide/sysctl/fs.rst).
const LEASE_BREAK_TIME: u64 = 45;

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
    let name = words::name(&args.image);
    match look(&place.disk, &place.names)? {
        Found::Nothing => {}
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
            return Err(Error::new(Kind::Refused, what, hint));
        }
        Found::Astray(_) => return Err(names::astray(&place)),
        _ if is_live(&place.disk, &place.names)? => {
            return Err(Error::new(
                Kind::Busy,
                format!("{name} is being restored"),
                "wait for it; 'rclone-img status' shows it",
            ));
        }
        _ => {
            let hint = format!("'rclone-img resume {}' goes on with it", words::shell(&args.image));
            return Err(Error::new(Kind::Refused, format!("an earlier restore of {name} was interrupted"), hint));
        }
    }
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
        keep(&place, kept, &args.output)?;
    }
    let stop = Stop::on_signals()?;
    let file = open_image(&place, &name)?;
    // Nobody has written to it since it was kept, and nobody can now.
    soon(&place, || own(&file, &place.names.image))?;
    let now = file.stat().map_err(|e| cannot(&name, e))?;
    if (now.id(), now.size, now.mtime_ns) != (before.id(), before.size, before.mtime_ns) {
        return Err(Error::new(
            Kind::Refused,
            format!("{name} was changed while it was looked at"),
            "run the command again",
        ));
    }
    let kept = args.keep_current.as_deref().map(absolute).transpose()?;
    let kept_source = source::keep(&place, &source, &stop)?;
    let job = source.record().map(|record| record.job).filter(|_| kept_source == source.stat().id());
    let intent = Intent {
        begun: 0,
        v: VERSION,
        image: now.id(),
        source: kept_source,
        job,
        snapshot: source.path().to_string_lossy().into_owned(),
        snapshot_bytes: source.path().as_os_str().as_bytes().to_owned(),
        kept,
        began: Timestamp::now(),
    };
    if stop.asked() {
        source::let_go(&place);
        return Err(Error::told_to_stop());
    }
    let begun = Restore::begin(&place.disk, &place.names, &intent, &file);
    let restore = begun.inspect_err(|_| source::let_go(&place))?;
    let restored = roll(restore, &file, &mut source, &stop, &args.image, &args.output)?;
    let undo = args.keep_current.as_deref();
    told(&args.image, (Some(&args.snapshot), undo), &args.output, "restored", Some((restored, began)))?;
    Ok(0)
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
    // A snapshot is nothing to be overwritten, whatever else is to be forced: the two were exchanged.
    let itself = Snapshot::at(&place.disk, &place.names.image).map(|(found, _)| found.verdict);
    if itself == Some(Verdict::Valid) {
        let hint = format!(
            "the snapshot comes first, and then the image: rclone-img restore {} IMG",
            words::shell(&args.image)
        );
        return refuse(format!("{name} is a finished snapshot and no image"), &hint);
    }
    let file = open_image(place, &name)?;
    let stat = file.stat().map_err(|e| cannot(&name, e))?;
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
    soon(place, || own(&file, &place.names.image))?;
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

fn roll(
    restore: Restore<'_, RealDisk>,
    file: &RealFile,
    source: &mut Still,
    stop: &Stop,
    image: &Path,
    output: &Output,
) -> Result<Restored> {
    let mut meter =
        Meter::new(format!("restoring {}", words::name(image)), Some(source.size()), output.json || output.quiet);
    let snapshot = std::sync::Arc::clone(source.file());
    let told = |e: Error| Error { what: format!("{}: {}", words::name(image), e.what), ..e };
    let owned = Owned::new(file, patience(), restore.now());
    let restored = restore.roll(&owned, &snapshot, |done| {
        meter.at(done);
        source.check()?;
        match stop.asked() {
            false => Ok(()),
            true => {
                let hint =
                    format!("'rclone-img resume {}' goes on; until then there is no such image", words::shell(image));
                Err(Error::new(Kind::Interrupted, "the restore was told to stop", hint))
            }
        }
    });
    let restored = restored.map_err(told)?;
    source.check().and_then(|()| restore.complete(&owned)).map_err(told)?;
    Ok(restored)
}

/// For how long somebody who opens the image is left waiting: two thirds of what the kernel allows, which 0 means without a limit.
fn patience() -> Duration {
    let text = std::fs::read_to_string("/proc/sys/fs/lease-break-time").ok();
    let seconds = text.and_then(|text| text.trim().parse().ok()).unwrap_or(LEASE_BREAK_TIME);
    if seconds == 0 { Duration::MAX } else { Duration::from_secs(seconds) * 2 / 3 }
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

fn open_image(place: &Place, name: &str) -> Result<RealFile> {
    // A pipe, or a device, is not opened to find out what it is.
    let regular = place.disk.stat(&place.names.image).map_err(|e| cannot(name, e))?.is_none_or(|stat| stat.regular);
    if !regular {
        return Err(Error::new(Kind::Refused, format!("{name} is not a regular file"), "name the image itself"));
    }
    place.disk.open(&place.names.image, Access::Write).map_err(|e| match e.raw_os_error() {
        Some(libc::EAGAIN) => Error::io(Kind::Refused, format!("somebody has {name} for himself"), "wait for it", e),
        Some(libc::ENOENT) => {
            let hint = "name an image that is there; where it is lost: 'cp --reflink=always SNAP IMG', then give it its owner and mode";
            Error::io(Kind::Refused, format!("there is no {name}"), hint, e)
        }
        _ => cannot(name, e),
    })
}

fn cannot(name: &str, error: io::Error) -> Error {
    Error::io(Kind::Refused, format!("cannot open {name}"), "check the path and its permissions", error)
}

fn absolute(path: &Path) -> Result<Vec<u8>> {
    let cannot = |e| Error::io(Kind::Refused, format!("cannot find {}", words::name(path)), "check the path", e);
    Ok(path.canonicalize().map_err(cannot)?.into_os_string().into_vec())
}
