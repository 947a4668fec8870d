//! `check DIR`: which images of a directory are in use, by whom, and whether their users were started armed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::args::CheckArgs;
use super::check::NO_INSTANT;
use super::place::{self, Image};
use super::{json, words};
use crate::disk::real::RealDisk;
use crate::disk::{Access, Disk};
use crate::engine::job::LATENCY_ATOMIC;
use crate::engine::names::{JOURNAL, PARTIAL};
use crate::engine::restore::intent::{self as restore, Intent, is_meanwhile};
use crate::error::{Error, Kind, Result};
use crate::hold::HoldKind;
use crate::hold::choose::{self, Candidate, Means};
use crate::hold::guard::preflight::{self, Survey};
use crate::hold::holders::{self, Files, Holder};

/// An image in use.
struct Used {
    path: PathBuf,
    /// Who escapes a watch, and who does not; or why nobody can tell.
    survey: std::result::Result<Survey, (String, String)>,
    /// Those who were found, where nobody can tell.
    found: Vec<Holder>,
    /// The hold that a snapshot now would have.
    hold: Option<&'static str>,
}

/// Runs `check` of a directory: 0 where each image in use could be snapshotted at one instant now, else 3.
///
/// # Errors
/// Refused where the directory or the processes cannot be looked at.
pub fn run(args: &CheckArgs) -> Result<u8> {
    let (used, hidden) = in_use(&args.src)?;
    let unseen = unseen(hidden);
    let mut text = String::new();
    for image in &used {
        text += &if args.json { format!("{}\n", object(image)) } else { person(image) };
    }
    if !args.json {
        text += &sum(&args.src, &used, unseen.as_deref());
    }
    super::written(std::io::stdout().write_all(text.as_bytes()))?;
    super::warn(unseen.clone().filter(|_| args.json));
    let all = unseen.is_none() && used.iter().all(|image| image.hold.is_some());
    Ok(if all { 0 } else { NO_INSTANT })
}

/// The images of a directory that somebody has open for writing, and how many processes could not be looked into.
fn in_use(dir: &Path) -> Result<(Vec<Used>, usize)> {
    let files = regular_files(dir)?;
    let cannot = |e| {
        let hint = "check that /proc is mounted, and run as root";
        Error::io(Kind::Refused, "who has the images open for writing cannot be found out", hint, e)
    };
    let search = holders::search(&Files::new(files.iter().map(|(identity, _)| *identity))).map_err(cannot)?;
    let hidden = holders::that_count(&search.hidden).len();
    let mut images: Vec<(PathBuf, Vec<Holder>, Option<Image>)> = Vec::new();
    for ((_, path), found) in files.into_iter().zip(search.found).filter(|(_, found)| !found.is_empty()) {
        let image = place::open_image(&path).ok();
        images.push((path, found, image));
    }
    let open: Vec<_> = images.iter().filter_map(|(.., image)| Some(Arc::clone(&image.as_ref()?.file))).collect();
    let mut surveys = match preflight::of_all(&open, Means::default().deadline) {
        Ok(surveys) => Ok(surveys.into_iter()),
        Err(error) => Err((error.to_string(), error.hint)),
    };
    let look = |(path, found, image): (PathBuf, Vec<Holder>, Option<Image>)| {
        let Some(image) = image else {
            let why = ("the image cannot be opened".to_owned(), "check its permissions".to_owned());
            return Used { path, survey: Err(why), found, hold: None };
        };
        let survey = match &mut surveys {
            Ok(surveys) => Ok(surveys.next().unwrap_or_default()),
            Err(why) => Err(why.clone()),
        };
        let armed = survey.as_ref().is_ok_and(|s| s.obstacle().is_none() && !s.armed.is_empty());
        let hold = if armed { Some("guard") } else { first(&image) };
        Used { path, survey, found, hold }
    };
    Ok((images.into_iter().map(look).collect(), hidden))
}

/// The hold that `auto` would take.
fn first(image: &Image) -> Option<&'static str> {
    let candidates: Vec<Candidate> = choose::survey(&[image.held()], LATENCY_ATOMIC, &Means::default());
    candidates.iter().find(|c| c.applies).map(|c| c.kind.name())
}

type Identified = ((u64, u64), PathBuf);

/// The regular files of a directory but for those of jobs, each once whatever names it has, in the order of [`Files`].
fn regular_files(dir: &Path) -> Result<Vec<Identified>> {
    let cannot = |e| {
        Error::io(Kind::Refused, format!("cannot list {}", words::name(dir)), "check the directory's permissions", e)
    };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name();
        let of_job = is_meanwhile(&name)
            || [PARTIAL, JOURNAL].iter().any(|suffix| name.as_bytes().ends_with(suffix.as_bytes()))
            || is_intent(dir, &name);
        // One that has just gone is no image any more.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() && !of_job {
            let path = files.entry((metadata.dev(), metadata.ino())).or_insert_with(|| entry.path());
            *path = entry.path().min(path.clone());
        }
    }
    let mut files: Vec<Identified> = files.into_iter().collect();
    files.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(files)
}

/// Whether it is a restore's, which whoever works on that has open. An image may have such a name, too.
fn is_intent(dir: &Path, name: &OsStr) -> bool {
    restore::Names::of_intent(name).is_some()
        && RealDisk::open_dir(dir)
            .and_then(|disk| disk.open(name, Access::Read))
            .and_then(|file| Intent::read(&file))
            .is_ok_and(|intent| intent.is_some())
}

fn person(image: &Used) -> String {
    let name = words::name(&image.path);
    let mut text = String::new();
    match &image.survey {
        _ if image.hold == Some(HoldKind::Filter.name()) => {
            return format!(
                "served     {name}: its writes go through 'rclone-img serve'; a snapshot now is of one instant (hold filter)\n"
            );
        }
        Ok(survey) => {
            let armed = survey.armed.iter().map(|holder| format!("armed      {name}: {holder}"));
            let not = survey.escapes.iter().map(|holder| format!("NOT ARMED  {name}: {}", preflight::escape(holder)));
            armed.chain(not).for_each(|line| text += &format!("{}\n", words::line(&line)));
            if !survey.escapes.is_empty() {
                text += &format!("             {}\n", words::line(&survey.remedy()));
            }
        }
        Err((why, hint)) => {
            for holder in &image.found {
                text += &format!("{}\n", words::line(&format!("?          {name}: {holder}")));
            }
            text += &format!(
                "             whether it is armed cannot be told: {}; {}\n",
                words::line(why),
                words::line(hint)
            );
        }
    }
    if let Some(hold) = image.hold.filter(|hold| *hold != "guard") {
        text += &format!("             all the same, a snapshot now is of one instant (hold {hold})\n");
    }
    text
}

/// Why there may be users of the images who were not found.
fn unseen(hidden: usize) -> Option<String> {
    let out_of_sight = preflight::everybody_is_seen().err().map(|error| format!("{error}: {}", error.hint));
    let processes = || words::count_of(hidden as u64, "process", "processes");
    out_of_sight.or_else(|| {
        (hidden > 0).then(|| format!("{} could not be looked into, and may have images open: run as root", processes()))
    })
}

fn sum(dir: &Path, used: &[Used], unseen: Option<&str>) -> String {
    let name = words::name(dir);
    let unseen = unseen.map_or_else(String::new, |why| format!("{why}\n"));
    if used.is_empty() {
        let unsure = if unseen.is_empty() { "" } else { "cannot tell who uses the images: " };
        return format!("{unseen}{name}: {unsure}nobody was found who has an image open for writing\n");
    }
    let without = used.iter().filter(|image| image.hold.is_none()).count();
    let images = words::count(used.len() as u64, "image");
    let told = match without {
        0 => "all can be snapshotted at one instant now".to_owned(),
        _ => format!("{without} of which cannot be snapshotted at one instant now"),
    };
    format!("{unseen}{name}: {images} in use; {told}\n")
}

fn object(image: &Used) -> Value {
    let holder = |holder: &Holder, armed: Option<bool>| json!({"pid": holder.pid, "comm": holder.comm, "how": holder.to_string(), "armed": armed});
    let (holders, armed, hint): (Vec<_>, _, _) = match &image.survey {
        Ok(survey) => {
            let armed = survey.armed.iter().map(|h| holder(h, Some(true)));
            let all = armed.chain(survey.escapes.iter().map(|h| holder(h, Some(false))));
            (all.collect(), Some(survey.obstacle().is_none()), survey.remedy())
        }
        Err((why, hint)) => (image.found.iter().map(|h| holder(h, None)).collect(), None, format!("{why}; {hint}")),
    };
    let (src, bytes) = json::path(&image.path);
    let mut object = json!({
        "v": 1, "event": "check", "src": src, "point_in_time": image.hold.is_some(), "hold": image.hold,
        "armed": armed, "holders": holders, "hint": hint,
    });
    if let Some(bytes) = bytes {
        object["src_bytes"] = bytes.into();
    }
    object
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::record::ImageId;

    #[test]
    fn what_a_restore_is_to_do_is_no_image_and_an_image_of_such_a_name_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let intent = Intent {
            begun: 0,
            v: restore::VERSION,
            image: ImageId::default(),
            source: ImageId::default(),
            job: None,
            source_was: None,
            snapshot: "vm.snap".into(),
            snapshot_bytes: b"vm.snap".into(),
            kept: None,
            kept_is: None,
            began: Timestamp::UNIX_EPOCH,
        };
        let text = serde_json::to_vec(&intent).expect("JSON");
        for (name, bytes) in
            [("vm.img.restore", &text[..]), ("b.img.restored", &text), ("old.restored", b"a disk"), ("vm.img", &text)]
        {
            std::fs::write(dir.path().join(name), bytes).expect("a file");
        }
        let found = regular_files(dir.path()).expect("files");
        let names: Vec<_> = found.iter().filter_map(|(_, path)| path.file_name()?.to_str()).collect();
        // In the order of their inodes.
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>(), [&"old.restored", &"vm.img"].into());
    }
}
