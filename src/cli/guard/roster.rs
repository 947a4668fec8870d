//! The targets, and how each of them stands: what is told is what has changed. Pure.

use std::collections::BTreeMap;

use super::config::Target;
use crate::error::Error;
use crate::hold::arm::{Armed, Unarmed};

/// How a target stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is armed.
    Armed(Armed),
    /// It is not there, in the kernel's words.
    Missing(String),
    /// It cannot be armed: why, and what to do.
    Refused(String, String),
}

impl From<Result<Armed, Unarmed>> for Standing {
    fn from(tried: Result<Armed, Unarmed>) -> Self {
        match tried {
            Ok(armed) => Self::Armed(armed),
            Err(Unarmed::Missing(error)) => Self::Missing(error.to_string()),
            Err(Unarmed::Refused(error)) => {
                let why = error.to_string();
                let Error { hint, .. } = error;
                Self::Refused(why, hint)
            }
        }
    }
}

/// How many targets stand how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Armed.
    pub armed: u64,
    /// Not there.
    pub missing: u64,
    /// Not to be armed.
    pub refused: u64,
}

impl Tally {
    /// All of them.
    pub fn all(&self) -> u64 {
        self.armed + self.missing + self.refused
    }
}

/// The targets in their order.
#[derive(Default)]
pub struct Roster(Vec<(Target, Option<Standing>)>);

impl Roster {
    /// These targets; what `old` knows of one of them is not news.
    pub fn new(targets: Vec<Target>, old: &Self) -> Self {
        let known: BTreeMap<_, _> = old.0.iter().map(|(target, standing)| (target, standing)).collect();
        let with = |target: Target| {
            let standing = known.get(&target).copied().cloned().flatten();
            (target, standing)
        };
        Self(targets.into_iter().map(with).collect())
    }

    /// Tries every target; those that stand otherwise than before, and how.
    pub fn round(&mut self, mut arm: impl FnMut(&Target) -> Standing) -> Vec<(Target, Standing)> {
        let mut changed = Vec::new();
        for (target, standing) in &mut self.0 {
            let now = arm(target);
            if standing.as_ref() != Some(&now) {
                changed.push((target.clone(), now.clone()));
                *standing = Some(now);
            }
        }
        changed
    }

    /// How many stand how; those that were never tried do not count.
    pub fn tally(&self) -> Tally {
        self.0.iter().fold(Tally::default(), |mut tally, (_, standing)| {
            match standing {
                Some(Standing::Armed(_)) => tally.armed += 1,
                Some(Standing::Missing(_)) => tally.missing += 1,
                Some(Standing::Refused(..)) => tally.refused += 1,
                None => {}
            }
            tally
        })
    }

    /// The first target that is not armed, and how it stands.
    pub fn first_unarmed(&self) -> Option<(&Target, &Standing)> {
        let unarmed =
            |(_, standing): &&(Target, Option<Standing>)| !matches!(standing, Some(Standing::Armed(_)) | None);
        self.0.iter().find(unarmed).and_then(|(target, standing)| Some((target, standing.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Armed, Roster, Standing, Tally, Target};
    use crate::hold::arm::{Reach, What};

    fn target(path: &str) -> Target {
        Target { path: path.into(), reach: Reach::Path }
    }

    fn armed(ino: u64) -> Standing {
        Standing::Armed(Armed { what: What::File, identity: (1, ino) })
    }

    fn missing() -> Standing {
        Standing::Missing("not there".into())
    }

    /// The paths that a round tells of.
    fn told(roster: &mut Roster, stands: impl Fn(&str) -> Standing) -> Vec<String> {
        let text = |target: &Target| target.path.display().to_string();
        roster.round(|target| stands(&text(target))).iter().map(|(target, _)| text(target)).collect()
    }

    #[test]
    fn only_what_has_changed_is_told() {
        let mut roster = Roster::new(vec![target("/a"), target("/b")], &Roster::default());
        let at_first = |path: &str| if path == "/a" { armed(1) } else { missing() };
        assert_eq!(told(&mut roster, at_first), ["/a", "/b"]);
        assert_eq!(roster.tally(), Tally { armed: 1, missing: 1, refused: 0 });
        assert_eq!(roster.first_unarmed(), Some((&target("/b"), &missing())));
        assert_eq!(told(&mut roster, at_first), [""; 0]);
        assert_eq!(told(&mut roster, |path| if path == "/a" { armed(2) } else { missing() }), ["/a"], "replaced");
        assert_eq!(told(&mut roster, |_| armed(2)), ["/b"]);
        assert_eq!((roster.tally().all(), roster.first_unarmed()), (2, None));
    }

    #[test]
    fn what_stays_after_a_reload_is_no_news() {
        let mut roster = Roster::new(vec![target("/a"), target("/b")], &Roster::default());
        told(&mut roster, |_| armed(1));
        let mut roster = Roster::new(vec![target("/c"), target("/b")], &roster);
        assert_eq!(told(&mut roster, |_| armed(1)), ["/c"]);
    }
}
