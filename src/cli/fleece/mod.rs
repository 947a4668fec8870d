//! `fleece start|stop|list SRC`: asks the server of an image; what is kept, it keeps.

pub mod args;
pub mod orphan;

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use self::args::{FleeceArgs, ListArgs, OnCbwError, StartArgs, StopArgs, What};
use super::serve::socket;
use super::service::log::with_path;
use super::values::MinFree;
use super::{json, last_words, words};
use crate::error::{Error, Kind, Result};
use crate::hold::filter::link::Link;
use crate::hold::filter::wire::{FleeceOrder, FleeceState, FleeceTerms, ToJob, ToServer};
use crate::hold::holders;

/// How long the server may take: what is dirty of the image is put on the disk first, and the maps of image and base are read.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs the verb.
///
/// # Errors
/// Refused where nobody serves the image, or its server will not.
pub fn run(args: &FleeceArgs) -> Result<u8> {
    match &args.what {
        What::Start(args) => start(args),
        What::Stop(args) => stop(args),
        What::List(args) => list(args),
    }
}

fn start(args: &StartArgs) -> Result<u8> {
    let order = FleeceOrder {
        name: args.name.clone(),
        sidecar: args.sidecar.as_deref().map(absolute).transpose()?,
        base: args.base.as_deref().map(absolute).transpose()?,
        terms: FleeceTerms {
            cluster: args.cluster,
            deadline_us: u64::try_from(args.guest_deadline.as_micros()).unwrap_or(u64::MAX),
            break_guest_write: args.on_cbw_error == OnCbwError::BreakGuestWrite,
            max_sidecar: args.max_sidecar.unwrap_or(u64::MAX),
            ram: args.ram,
            min_free: match args.min_free {
                MinFree::Percent(percent) => (percent, 0),
                MinFree::Bytes(bytes) => (0, bytes),
            },
            durable: args.durable,
        },
    };
    let (at, all) = fleeces(ask(&args.src, &ToServer::Fleece(order))?)?;
    let Some(fleece) = all.first() else { return Err(nonsense()) };
    let uri = at.as_deref().map(|at| socket::uri(&export(&args.name), at));
    if args.output.json {
        let mut object = object("fleece-started", &args.src, &args.name);
        object["t0"] = fleece.t0.clone().into();
        object["base"] = fleece.base.clone().into();
        object["uri"] = uri.into();
        say(&object)?;
    } else if !args.output.quiet {
        let (name, shell) = (words::name(&args.src), words::shell(&args.src));
        let read = match (uri, &fleece.base) {
            (None, _) => format!("read the export {} of its server", export(&args.name)),
            (Some(uri), None) => format!("nbdcopy '{uri}' COPY"),
            (Some(uri), Some(base)) => {
                let base = words::line(base);
                format!("read what has changed (docs/NBD.md): nbdinfo --map='qemu:dirty-bitmap:{base}' '{uri}'")
            }
        };
        last_words(format!(
            "{name}: fleece {} of T0 {:.19}Z\nnext: {read}; then rclone-img fleece stop {shell} --name {}\n",
            args.name, fleece.t0, args.name
        ));
    }
    Ok(0)
}

fn stop(args: &StopArgs) -> Result<u8> {
    let name = words::name(&args.src);
    // One that is lost, and that no server has taken up, has its name all the same.
    let left = lost(&args.src)?.into_iter().find(|it| it.name == args.name);
    let why = match left {
        Some(left) => left.found.remove().map(|_| Some(left.why))?,
        None => {
            let (_, all) = fleeces(ask(&args.src, &ToServer::EndFleece { name: args.name.clone() })?)?;
            all.into_iter().next().and_then(|it| it.lost)
        }
    };
    if args.output.json {
        let mut object = object("fleece-stopped", &args.src, &args.name);
        object["lost"] = why.clone().into();
        say(&object)?;
    } else if why.is_none() && !args.output.quiet {
        last_words(format!("{name}: fleece {} is ended, and what it had kept is gone\n", args.name));
    }
    match why {
        None => Ok(0),
        Some(why) => {
            let what = format!("{name}: fleece {} is ended; it was lost: {}", args.name, words::line(&why));
            let hint = "a backup that had not read all of it by then is not complete: begin another one";
            Err(Error::new(Kind::Broken, what, hint))
        }
    }
}

fn list(args: &ListArgs) -> Result<u8> {
    let (at, all) = fleeces(ask(&args.src, &ToServer::Fleeces)?)?;
    let left = lost(&args.src)?;
    if all.is_empty() && left.is_empty() && !args.json {
        super::written(std::io::stdout().write_all(b"no fleeces; 'rclone-img fleece start' begins one\n"))?;
    }
    for fleece in &all {
        let uri = at.as_deref().map(|at| socket::uri(&export(&fleece.name), at));
        if args.json {
            let mut object = object("fleece", &args.src, &fleece.name);
            object["t0"] = fleece.t0.clone().into();
            object["base"] = fleece.base.clone().into();
            object["kept_bytes"] = fleece.bytes.into();
            object["copied_bytes"] = fleece.copied.into();
            object["lost"] = fleece.lost.clone().into();
            object["waited"] = fleece.waited.into();
            object["longest_guest_wait_ms"] = json::ms(Duration::from_micros(fleece.longest_us)).into();
            object["uri"] = uri.into();
            say(&object)?;
        } else {
            super::written(std::io::stdout().write_all(person(fleece, uri.as_deref(), &args.src).as_bytes()))?;
        }
    }
    for fleece in &left {
        if args.json {
            let mut object = object("fleece", &args.src, &fleece.name);
            object["t0"] = fleece.t0.map(|it| it.to_string()).into();
            object["lost"] = fleece.why.clone().into();
            say(&object)?;
        } else {
            let t0 = fleece.t0.map(|it| format!("T0 {it:.0}; ")).unwrap_or_default();
            let line = format!("{}: {t0}{}", fleece.name, is_lost(&fleece.why, &args.src, &fleece.name));
            super::written(std::io::stdout().write_all(line.as_bytes()))?;
        }
    }
    let any = !left.is_empty() || all.iter().any(|it| it.lost.is_some());
    Ok(if any { Kind::Broken.exit_code() } else { 0 })
}

/// Those that are lost, and that no server has.
fn lost(src: &Path) -> Result<Vec<orphan::Lost>> {
    let cannot = |e| {
        let what = format!("cannot look for fleeces beside {}", words::name(src));
        Error::io(Kind::Refused, what, "check the directory's permissions", e)
    };
    orphan::lost(src).map_err(cannot)
}

fn is_lost(why: &str, src: &Path, name: &str) -> String {
    let end = format!("rclone-img fleece stop {} --name {name}", words::shell(src));
    format!("LOST: {}; '{end}' removes it\n", words::line(why))
}

fn person(fleece: &FleeceState, uri: Option<&str>, src: &Path) -> String {
    let longest = words::time(Duration::from_micros(fleece.longest_us));
    let how = match &fleece.lost {
        Some(why) => {
            return format!("{}: T0 {:.19}Z; {}", fleece.name, fleece.t0, is_lost(why, src, &fleece.name));
        }
        None => format!(
            "{} kept ({} copied); {} of the guest waited, {longest} at most",
            words::bytes(fleece.bytes),
            words::bytes(fleece.copied),
            words::count(fleece.waited, "write")
        ),
    };
    let base = fleece.base.as_ref().map(|base| format!(", what has changed since {}", words::line(base)));
    let uri = uri.map(|uri| format!("; {uri}")).unwrap_or_default();
    format!("{}: T0 {:.19}Z{}; {how}{uri}\n", fleece.name, fleece.t0, base.unwrap_or_default())
}

/// The name of the export.
fn export(name: &str) -> String {
    [crate::serve::exports::SNAPSHOT, name].concat()
}

fn object(event: &str, src: &Path, name: &str) -> Value {
    with_path(json!({"v": json::VERSION, "event": event, "name": name}), "src", src)
}

fn say(object: &Value) -> Result<()> {
    super::written(json::write_line(&mut std::io::stdout(), object))
}

fn absolute(path: &Path) -> Result<Vec<u8>> {
    let cannot = |e| Error::io(Kind::Refused, format!("cannot find {}", words::name(path)), "check the path", e);
    Ok(path.canonicalize().map_err(cannot)?.into_os_string().into_vec())
}

/// Asks the server of an image.
fn ask(src: &Path, message: &ToServer) -> Result<ToJob> {
    let name = words::name(src);
    let cannot = |e| Error::io(Kind::Refused, format!("cannot look at {name}"), "check the path", e);
    // Not opened: its server would look at all processes for who that was.
    let stat = fs::metadata(src).map_err(cannot)?;
    let again = "see whether the server runs ('rclone-img serve'), and what it says";
    let silent = |e| Error::io(Kind::Failed, format!("the server of {name} does not answer"), again, e);
    let none = || {
        let hint = format!(
            "start it: 'rclone-img serve {} --socket PATH', by the same user as this command; what is left of fleeces shows \
             'rclone-img status' in the image's directory",
            words::shell(src)
        );
        Error::new(Kind::Refused, format!("no server of this user has {name}"), hint)
    };
    let mut link = Link::find(stat.dev(), stat.ino()).map_err(silent)?.ok_or_else(none)?;
    // It looks who else writes, with its rights.
    if matches!(message, ToServer::Fleece(_)) && !holders::all_are_seen(&link.pid.to_string()) {
        super::warn(Some(format!("{name}: its server (pid {}): {}", link.pid, holders::NOT_ALL_SEEN)));
    }
    match link.ask(message, PATIENCE).map_err(silent)? {
        ToJob::Refused { why } => Err(Error::new(
            Kind::Refused,
            format!("{name}: {why}"),
            format!("'rclone-img fleece list {}' and 'rclone-img status' show what there is", words::shell(src)),
        )),
        answer => Ok(answer),
    }
}

fn fleeces(answer: ToJob) -> Result<(Option<PathBuf>, Vec<FleeceState>)> {
    match answer {
        ToJob::Fleeces { socket, all } => {
            Ok((socket.map(|path| PathBuf::from(std::ffi::OsString::from_vec(path))), all))
        }
        _ => Err(nonsense()),
    }
}

fn nonsense() -> Error {
    Error::new(Kind::Failed, "the server's answer makes no sense", "start the server anew, of this version")
}
