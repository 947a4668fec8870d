//! `check SRC`: which holds apply to an image now, and why not; of a directory, see [`check_dir`].

use std::io::{self, Write};

use serde_json::json;

use super::args::CheckArgs;
use super::place::{self, Image};
use super::values::MinFree;
use super::{check_dir, words};
use crate::disk::DiskFile;
use crate::disk::real::{RealDisk, directory_of};
use crate::engine::job::LATENCY_ATOMIC;
use crate::engine::room;
use crate::error::{Error, Kind, Result};
use crate::hold::choose::{self, Candidate, Means};
use crate::range::Geometry;

/// Exit code where no hold that keeps one instant applies.
pub(super) const NO_INSTANT: u8 = 3;

/// What `snapshot` leaves to the guests by itself.
const MIN_FREE: MinFree = MinFree::Percent(5);

/// Runs `check`: 0 where a snapshot now, beside the image, would be made and of one instant, else 3.
///
/// # Errors
/// Refused where the image cannot be looked at.
pub fn run(args: &CheckArgs) -> Result<u8> {
    if args.src.is_dir() {
        return check_dir::run(args);
    }
    let image = place::open_image(&args.src)?;
    super::warn(place::warning(&*image.file, &args.src));
    let candidates = choose::survey(&[image.held()], LATENCY_ATOMIC, &Means::default());
    // Every block that a snapshot shares is one that the guest's next write allocates anew.
    let may_allocate = image.file.stat().map(|s| s.size).unwrap_or(0);
    let obstacles = obstacles(&image);
    let taken = candidates.iter().find(|c| c.applies && obstacles.is_empty());
    let text = if args.json {
        let holds: Vec<_> = candidates
            .iter()
            .map(|c| json!({"hold": c.kind.name(), "applies": c.applies, "why": c.why, "hint": c.hint}))
            .collect();
        let object = json!({
            "v": 1, "event": "check", "src": args.src.to_string_lossy(), "point_in_time": taken.is_some(),
            "hold": taken.map(|c| c.kind.name()), "holds": holds, "may_allocate_bytes": may_allocate,
            "obstacles": obstacles.iter().map(|it| json!({"what": it.to_string(), "hint": it.hint})).collect::<Vec<_>>(),
        });
        format!("{object}\n")
    } else {
        person(args, &candidates, &obstacles, taken, may_allocate)
    };
    super::written(std::io::stdout().write_all(text.as_bytes()))?;
    Ok(if taken.is_some() { 0 } else { NO_INSTANT })
}

/// What a snapshot beside the image would be refused for, whatever the hold.
fn obstacles(image: &Image) -> Vec<Error> {
    let cannot = |e| Error::io(Kind::Refused, "cannot look at the image", "check the path", e);
    let beside = || -> Result<RealDisk> { RealDisk::open_dir(directory_of(&image.path)).map_err(cannot) };
    let clones = || {
        let geometry =
            image.file.stat().and_then(|stat| Ok(Geometry { size: stat.size, block: image.file.fs()?.block }));
        room::can_clone(&beside()?, &*image.file, geometry.map_err(cannot)?)
    };
    let has_room = || room::is_enough(&beside()?, MIN_FREE.into());
    // Snapshots may be kept where this user may write, which beside the image he may not.
    let elsewhere = |e: &Error| {
        e.source.as_ref().and_then(io::Error::raw_os_error).is_some_and(|it| it == libc::EACCES || it == libc::EPERM)
    };
    let found = [clones(), has_room(), place::is_unlocked(image)].into_iter().filter_map(Result::err);
    found.filter(|e| !elsewhere(e)).collect()
}

fn person(
    args: &CheckArgs,
    candidates: &[Candidate],
    obstacles: &[Error],
    taken: Option<&Candidate>,
    may_allocate: u64,
) -> String {
    let name = words::name(&args.src);
    let mut text = String::new();
    for candidate in candidates {
        let yes = if candidate.applies { "yes" } else { "no " };
        text += &format!("{yes}  {:<8}{}\n", candidate.kind.name(), words::line(&candidate.why));
        if !candidate.hint.is_empty() {
            text += &format!("             {}\n", words::line(&candidate.hint));
        }
    }
    for obstacle in obstacles {
        text += &format!("no   {}\n             {}\n", words::line(&obstacle.to_string()), words::line(&obstacle.hint));
    }
    text += &format!(
        "While the snapshot is kept, writes to the image may take up to {} of new space.\n",
        words::bytes(may_allocate)
    );
    text += &match taken {
        Some(c) => format!(
            "A snapshot now is of one instant (hold {}): rclone-img snapshot {} DST\n",
            c.kind.name(),
            words::shell(&args.src)
        ),
        None if !obstacles.is_empty() => {
            format!("No snapshot of {name} can be made beside it now; see the ways out above.\n")
        }
        None => format!("No snapshot of {name} can be of one instant now; see the ways out above.\n"),
    };
    text
}
