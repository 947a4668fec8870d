//! What the guard tells, and how it says it.

use serde_json::{Value, json};

use super::config::Target;
use super::roster::{Roster, Standing, Tally};
use crate::cli::args::Output;
use crate::cli::service::log::{Log, with_path};
use crate::cli::{error_lines, words};
use crate::error::Error;
use crate::hold::arm::What;

/// Tells what happens.
pub struct Teller(Log);

impl Teller {
    /// Tells in this way.
    pub fn new(output: Output) -> Self {
        Self(Log::new(output))
    }

    /// Targets that stand otherwise than before.
    pub fn changed(&mut self, news: &[(Target, Standing)]) {
        for (target, standing) in news {
            self.stands(target, standing);
        }
    }

    fn stands(&mut self, target: &Target, standing: &Standing) {
        let name = words::name(&target.path);
        match standing {
            Standing::Armed(armed) => {
                let (what, text) = match armed.what {
                    What::File => ("file", "armed"),
                    What::Directory => ("directory", "armed: the files in this directory, and those that it will have"),
                    What::FileSystem => ("file-system", "armed: all files on its file system"),
                };
                self.0.event(with_path(json!({"event": "armed", "what": what}), "path", &target.path));
                self.0.notice(&format!("{name}: {text}"));
            }
            Standing::Missing(why) => {
                self.0.event(with_path(json!({"event": "missing", "why": why}), "path", &target.path));
                self.0.notice(&format!(
                    "{name}: not there now ({why}; is the name right?); looked for every {} s",
                    super::ROUND.as_secs()
                ));
            }
            Standing::Refused(why, hint) => {
                self.0.event(with_path(json!({"event": "refused", "why": why, "hint": hint}), "path", &target.path));
                self.0.error(&format!("warning: {}\nhint: {}\n", words::line(why), words::line(hint)));
            }
        }
    }

    /// Every target was tried for the first time.
    pub fn started(&mut self, tally: Tally) {
        self.0.event(with(tally, "started"));
        let next = match tally.armed {
            0 => "what is started before something is armed is not: create or mount what is missing first",
            _ => {
                "leave this running; shut the VMs that run already down and start them again: a reboot opens nothing anew"
            }
        };
        let before = if tally.armed == 0 { "" } else { "; what was opened before is not, until it is opened again" };
        self.0.notice(&format!("{}{before}\nnext: {next}", counts(tally)));
    }

    /// The targets are those of the configuration as it is now.
    pub fn reloaded(&mut self, tally: Tally) {
        self.0.event(with(tally, "reloaded"));
        self.0.notice(&format!("reloaded: {}", counts(tally)));
    }

    /// It was to be reloaded and cannot be.
    pub fn kept(&mut self, error: &Error) {
        self.0.event(json!({"event": "not-reloaded", "error": error.to_string(), "hint": error.hint}));
        self.0.error(&format!("{}the configuration from before is kept\n", error_lines(error)));
    }

    /// The end.
    pub fn stopped(&mut self) {
        self.0.event(json!({"event": "stopped"}));
        self.0.notice(
            "stopped; what is open stays armed, what is opened from now on is not\n\
             next: start it again before a VM is started",
        );
    }
}

/// One line on how all targets stand, for a service manager's status.
pub fn status(roster: &Roster) -> String {
    let counts = counts(roster.tally());
    match roster.first_unarmed() {
        Some((target, Standing::Missing(_))) => format!("{counts}; {} is not there", words::name(&target.path)),
        Some((_, Standing::Refused(why, _))) => format!("{counts}; {}", words::line(why)),
        _ => counts,
    }
}

fn counts(tally: Tally) -> String {
    let (armed, all) = (tally.armed, tally.all());
    format!("{armed} of {} armed", words::count(all, "path"))
}

fn with(tally: Tally, event: &str) -> Value {
    json!({"event": event, "armed": tally.armed, "missing": tally.missing, "refused": tally.refused})
}

#[cfg(test)]
mod tests {
    use super::{Standing, Tally, Target, counts, status};
    use crate::cli::guard::roster::Roster;
    use crate::hold::arm::Reach;

    #[test]
    fn the_status_counts_and_names_the_first_that_is_wanting() {
        let target = |path: &str| Target { path: path.into(), reach: Reach::Path };
        let mut roster = Roster::new(vec![target("/a"), target("/b\n")], &Roster::default());
        let stands = |target: &Target| match target.path.to_str() {
            Some("/a") => Standing::Refused("no\nroom".into(), String::new()),
            _ => Standing::Missing("why".into()),
        };
        roster.round(stands);
        assert_eq!(status(&roster), "0 of 2 paths armed; no\\nroom");
        let mut roster = Roster::new(vec![target("/b\n")], &Roster::default());
        roster.round(stands);
        assert_eq!(status(&roster), "0 of 1 path armed; /b\\n is not there");
        assert_eq!(counts(Tally { armed: 1, missing: 1, refused: 1 }), "1 of 3 paths armed");
    }
}
