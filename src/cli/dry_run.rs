//! `snapshot --dry-run`: what would be done, with nothing touched.

use std::io::Write;

use super::args::SnapshotArgs;
use super::images::{look_at_images, places};
use super::snapshot::{choose_hold, jobs, options};
use super::{json, place, words};
use crate::engine::job;
use crate::engine::recover::Start;
use crate::engine::report::Nobody;
use crate::error::Result;

/// Runs `snapshot --dry-run`: a line for each image.
///
/// # Errors
/// As `snapshot` would refuse.
pub fn run(args: &SnapshotArgs) -> Result<u8> {
    let look = || {
        let places = places(args)?;
        let images = look_at_images(args, &places)?;
        for (image, (src, _)) in images.iter().zip(&args.pairs) {
            super::warn(place::warning(&*image.file, src).filter(|_| !args.job.output.quiet));
        }
        let mut chosen = choose_hold(args, &images, &places)?;
        let options = options(args, chosen.hold.kind(), &images)?;
        let plans =
            job::dry_run(&jobs(&places, &images, &options, &chosen.why, &Nobody, &|| false), chosen.hold.as_mut())?;
        Ok((plans, chosen))
    };
    let dsts: Vec<_> = args.pairs.iter().map(|(_, dst)| dst.as_path()).collect();
    let (plans, chosen) = look().map_err(|error| place::on_one_of(&dsts, error))?;
    let (kind, why) = (chosen.hold.kind(), &chosen.why);
    for (plan, (src, dst)) in plans.iter().zip(&args.pairs) {
        let replaces = args.force && matches!(plan.start, Start::Fresh { .. } | Start::Renew(_)) && dst.exists();
        let start = would(&plan.start) + if replaces { ", in the place of the file that is there" } else { "" };
        let text = if args.job.output.json {
            let object = serde_json::json!({
                "v": 1, "event": "dry-run", "src": json::path(src).0, "dst": json::path(dst).0, "would": start,
                "hold": kind.name(), "why": why, "point_in_time": kind.point_in_time(), "bytes": plan.bytes,
                "extents": plan.extents,
            });
            format!("{object}\n")
        } else {
            let extents = plan.extents.map_or_else(String::new, |n| format!(", {}", words::count(n, "extent")));
            format!(
                "{}: {start}; hold {} ({why}); {}{extents}; nothing was touched, run it without --dry-run to do it\n",
                words::name(dst),
                kind.name(),
                words::bytes(plan.bytes),
            )
        };
        super::written(std::io::stdout().write_all(text.as_bytes()))?;
    }
    Ok(0)
}

fn would(start: &Start) -> String {
    match start {
        Start::Fresh { discard: false } => "would make a new snapshot".into(),
        Start::Fresh { discard: true } => "would throw the unfinished work away and make a new snapshot".into(),
        Start::Continue => "would go on from the journal at the same point in time".into(),
        Start::Renew(why) => {
            format!(
                "would take a new point in time and keep what holds of the earlier job's work, as that one's is lost: {why}"
            )
        }
        Start::Refresh => "would bring the existing snapshot to a new point in time".into(),
        Start::RollForward => "would put the complete snapshot into place".into(),
    }
}
