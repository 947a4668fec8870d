//! Which hold: what `--consistency auto` takes, and what `check` tells.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::filter::Filter;
use super::frozen::Frozen;
use super::guard::Guard;
use super::live::Live;
use super::several::Several;
use super::{Hold, HoldKind};
use crate::disk::DiskFile;
use crate::disk::real::RealFile;
use crate::error::{Error, Kind, Result};
use crate::extent::walk::MapWalk;
use crate::range::ByteRange;

/// Whether a hold applies to an image now, and why.
#[derive(Debug)]
pub struct Candidate {
    /// The hold.
    pub kind: HoldKind,
    /// Whether it applies.
    pub applies: bool,
    /// Why, or why not.
    pub why: String,
    /// What the user can do, where it does not apply.
    pub hint: String,
}

/// A hold that was chosen.
pub struct Chosen<'a> {
    /// The hold, not prepared yet.
    pub hold: Box<dyn Hold + 'a>,
    /// Why it, in words.
    pub why: String,
}

/// An image: the file, and where it is expected to be when the job ends.
pub type Image = (Arc<RealFile>, PathBuf);

/// How long an access of a guest may wait before the snapshot breaks (DESIGN section 3).
const GUEST_DEADLINE: Duration = Duration::from_secs(1);

/// The longest that it may be told to: guests give an access up after 30 s or more.
pub const GUEST_DEADLINE_MAX: Duration = Duration::from_secs(30);

/// Where a snapshot is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Making {
    /// The file that it is made in.
    pub partial: PathBuf,
    /// Where it will be.
    pub snapshot: PathBuf,
}

/// What holds need besides the images.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Means {
    /// How long an access of a guest may wait.
    pub deadline: Duration,
    /// Sockets of monitors (QMP) of QEMUs that may be made to open the images anew.
    pub monitors: Vec<PathBuf>,
    /// Where the snapshots are made, in the order of the images, if others may read them meanwhile.
    pub making: Vec<Making>,
}

impl Default for Means {
    fn default() -> Self {
        Self { deadline: GUEST_DEADLINE, monitors: Vec::new(), making: Vec::new() }
    }
}

/// The hold of a kind over images, at least one.
pub fn make(kind: HoldKind, images: &[Image], means: &Means) -> Box<dyn Hold> {
    let single = |(file, path): &Image| -> Box<dyn Hold> {
        match kind {
            HoldKind::Frozen => Box::new(Frozen::new(Arc::clone(file), path.clone())),
            _ => Box::new(Live::new(Arc::clone(file), path.clone(), kind)),
        }
    };
    match (kind, images) {
        (HoldKind::Filter, _) => Box::new(Filter::new(images.to_vec(), means)),
        (HoldKind::Guard, _) => Box::new(Guard::new(images.to_vec(), means.clone())),
        (_, [image]) => single(image),
        _ => Box::new(Several(images.iter().map(single).collect())),
    }
}

/// The holds that keep one instant, in the order that `auto` tries them, each tried and let go. `stall` is how long a
/// single call may keep the images' users waiting.
pub fn survey(images: &[Image], stall: Duration, means: &Means) -> Vec<Candidate> {
    candidates(images, stall, means).collect()
}

/// Each is tried when it is asked for: to try the guard raises this process above others, for good.
fn candidates(images: &[Image], stall: Duration, means: &Means) -> impl Iterator<Item = Candidate> {
    // Of servers those who have none need not hear; and nobody looks for one where the image is frozen.
    let kinds = [HoldKind::Frozen, HoldKind::Filter, HoldKind::Guard, HoldKind::Atomic].into_iter();
    kinds.filter(|kind| *kind != HoldKind::Filter || Filter::is_served(images)).map(move |kind| match kind {
        HoldKind::Frozen => frozen(images),
        HoldKind::Filter => filter(images, means),
        HoldKind::Guard => guard(images, means),
        _ => atomic(images, stall),
    })
}

/// Whether the images can be frozen now; tried and let go.
pub fn frozen(images: &[Image]) -> Candidate {
    let mut frozen = make(HoldKind::Frozen, images, &Means::default());
    let tried = frozen.prepare();
    frozen.release();
    candidate(HoldKind::Frozen, tried.map(|()| "nobody has the image open for writing".into()))
}

fn filter(images: &[Image], means: &Means) -> Candidate {
    let mut filter = Filter::new(images.to_vec(), means);
    let tried = filter.prepare();
    let servers = filter.servers().iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    filter.release();
    candidate(
        HoldKind::Filter,
        tried.map(|()| format!("it is served by rclone-img (pid {servers}), which all writes go through")),
    )
}

fn guard(images: &[Image], means: &Means) -> Candidate {
    let mut guard = Guard::new(images.to_vec(), means.clone());
    let tried = guard.prepare();
    guard.release();
    let armed = guard.armed();
    candidate(
        HoldKind::Guard,
        tried.map(|()| match armed {
            1 => "the one descriptor open for writing that was found can be watched".into(),
            0 => "nobody has it open for writing now; who opens it while rclone-img guard runs can be watched".into(),
            2 => "both descriptors open for writing that were found can be watched".into(),
            _ => format!("all {armed} descriptors open for writing that were found can be watched"),
        }),
    )
}

fn candidate(kind: HoldKind, tried: Result<String>) -> Candidate {
    match tried {
        Ok(why) => applies(kind, why),
        Err(e) => Candidate { kind, applies: false, why: e.to_string(), hint: e.hint },
    }
}

/// What `auto` takes.
///
/// # Errors
/// Refused where no hold that keeps one instant applies, with the reasons and the ways out.
pub fn auto(images: &[Image], stall: Duration, means: &Means) -> Result<Chosen<'static>> {
    let mut tried = Vec::new();
    for candidate in candidates(images, stall, means) {
        if candidate.applies {
            let why = why(&candidate, &tried);
            return Ok(Chosen { hold: make(candidate.kind, images, means), why });
        }
        tried.push(candidate);
    }
    let reasons: Vec<String> = tried.iter().map(|c| format!("{}: {}", c.kind.name(), c.why)).collect();
    let hint = |kind: HoldKind| tried.iter().find(|c| c.kind == kind).map(|c| c.hint.as_str());
    // The best way out first; what stalls the guest is left to `check`.
    let hints = [HoldKind::Guard, HoldKind::Frozen].into_iter().filter_map(hint).filter(|hint| !hint.is_empty());
    let hints: Vec<&str> = hints.chain(["'rclone-img check' has all ways out"]).collect();
    let what = format!("no snapshot of one instant can be made now; {}", reasons.join("; "));
    Err(Error::new(Kind::Refused, what, hints.join("; or ")))
}

/// Why a hold was chosen, and those before it were not. That a guest that runs, or is served, is not frozen goes without saying.
fn why(chosen: &Candidate, before: &[Candidate]) -> String {
    let not = before
        .iter()
        .filter(|_| ![HoldKind::Guard, HoldKind::Filter].contains(&chosen.kind))
        .map(|c| format!("; not {}: {}", c.kind.name(), c.why));
    [chosen.why.clone()].into_iter().chain(not).collect()
}

fn applies(kind: HoldKind, why: String) -> Candidate {
    Candidate { kind, applies: true, why, hint: String::new() }
}

/// A single call is short enough where the image has few extents. The walk stops at the first extent too many.
fn atomic(images: &[Image], stall: Duration) -> Candidate {
    let not = |why: String| Candidate {
        kind: HoldKind::Atomic,
        applies: false,
        why,
        hint: "'rclone-img map' estimates for how long; --consistency atomic makes one all the same, if they can wait"
            .into(),
    };
    let [(image, _)] = images else {
        return Candidate { hint: String::new(), ..not("calls for several images are not of one instant".into()) };
    };
    let looked = image.fs().and_then(|fs| Ok((fs.kind.clone_cost_per_extent(), image.stat()?.size)));
    let (cost, size) = match looked {
        Ok(looked) => looked,
        Err(e) => return not(format!("cannot look at the image: {e}")),
    };
    let most = (stall.as_nanos() / cost.as_nanos().max(1)) as u64;
    let Some(range) = ByteRange::new(0, size) else { return not("the image is empty".into()) };
    let batch = usize::try_from(most + 1).unwrap_or(usize::MAX).min(1024);
    let mut walk = MapWalk::new(&**image, range, batch);
    let failed = walk.by_ref().take(most as usize + 1).find_map(std::result::Result::err);
    match failed {
        Some(e) => not(format!("cannot read the block map: {e}")),
        None if walk.seen() > most => not(format!(
            "one call for the whole image would stall its users for longer than {stall:?} (--latency): it has more than \
             {most} extents"
        )),
        None => applies(HoldKind::Atomic, format!("a single call for its extents ({}) is short", walk.seen())),
    }
}
