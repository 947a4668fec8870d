//! `check SRC`: which holds apply to an image now, and why not; of a directory, see [`check_dir`].

use std::io::Write;

use serde_json::json;

use super::args::CheckArgs;
use super::{check_dir, place, words};
use crate::disk::DiskFile;
use crate::engine::job::LATENCY_ATOMIC;
use crate::error::Result;
use crate::hold::choose::{self, Candidate, Means};

/// Exit code where no hold that keeps one instant applies.
pub(super) const NO_INSTANT: u8 = 3;

/// Runs `check`: 0 where a snapshot now would be of one instant, else 3.
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
    let taken = candidates.iter().find(|c| c.applies);
    let text = if args.json {
        let holds: Vec<_> = candidates
            .iter()
            .map(|c| json!({"hold": c.kind.name(), "applies": c.applies, "why": c.why, "hint": c.hint}))
            .collect();
        let object = json!({
            "v": 1, "event": "check", "src": args.src.to_string_lossy(), "point_in_time": taken.is_some(),
            "hold": taken.map(|c| c.kind.name()), "holds": holds, "may_allocate_bytes": may_allocate,
        });
        format!("{object}\n")
    } else {
        person(args, &candidates, taken, may_allocate)
    };
    super::written(std::io::stdout().write_all(text.as_bytes()))?;
    Ok(if taken.is_some() { 0 } else { NO_INSTANT })
}

fn person(args: &CheckArgs, candidates: &[Candidate], taken: Option<&Candidate>, may_allocate: u64) -> String {
    let name = words::name(&args.src);
    let mut text = String::new();
    for candidate in candidates {
        let yes = if candidate.applies { "yes" } else { "no " };
        text += &format!("{yes}  {:<8}{}\n", candidate.kind.name(), words::line(&candidate.why));
        if !candidate.hint.is_empty() {
            text += &format!("             {}\n", words::line(&candidate.hint));
        }
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
        None => format!("No snapshot of {name} can be of one instant now; see the ways out above.\n"),
    };
    text
}
