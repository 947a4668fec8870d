//! `guard PATH...`: arms images, so that a snapshot job can later watch whoever has them open.
//!
//! It holds the marks of [`crate::hold::arm`] and does nothing else: it is in nobody's way while it runs, hangs or is
//! stopped, and writes nothing. What it arms is looked at again every ten seconds, because files are replaced and file
//! systems mounted late. After a reload there is a new set of marks, and only then are the old ones gone.
//!
//! One thread: [`Wakes`] sleep, [`roster`] knows what has changed, [`tell`] and [`notify`] pass it on.

pub mod args;
pub mod config;
pub mod roster;
pub mod tell;

use std::time::{Duration, Instant};

use crate::cli::service::notify;
use crate::cli::service::wakes::{Wake, Wakes};
use crate::error::{Error, Kind, Result};
use crate::hold::arm::Arming;
use args::GuardArgs;
use config::{Source, Target};
use roster::{Roster, Standing};
use tell::Teller;

/// The time between two rounds.
const ROUND: Duration = Duration::from_secs(10);

/// Runs `guard` until SIGTERM or SIGINT: 0 then.
///
/// # Errors
/// Refused without the right to arm, on a kernel that cannot, and where all paths are there and none can be armed;
/// usage where the configuration is wrong.
pub fn run(args: &GuardArgs) -> Result<u8> {
    let mut wakes = Wakes::on_signals()?;
    let source = Source::new(args)?;
    let targets = source.read()?;
    // A current directory would keep its file system from being unmounted.
    let _ = std::env::set_current_dir("/");
    let mut teller = Teller::new(args.output);
    let mut guard = Guard { source, arming: Arming::new()?, roster: Roster::new(targets, &Roster::default()) };
    let news = guard.round();
    let tally = guard.roster.tally();
    if tally.refused == tally.all() {
        return Err(none_armed(&news, &mut teller));
    }
    // First of all, so that a reader who is slow does not keep a boot waiting.
    notify::ready(&tell::status(&guard.roster));
    teller.changed(&news);
    teller.started(tally);
    let watchdog = notify::watchdog();
    let mut next = Instant::now() + ROUND;
    loop {
        let limit = next.saturating_duration_since(Instant::now());
        let wake = wakes.wait(watchdog.map_or(limit, |most| most.min(limit)));
        if watchdog.is_some() {
            notify::alive();
        }
        match wake {
            Wake::Stop => break,
            Wake::Reload => guard.reload(&mut teller),
            Wake::Time if Instant::now() < next => continue,
            Wake::Time => {
                let news = guard.round();
                teller.changed(&news);
                if !news.is_empty() {
                    notify::status(&tell::status(&guard.roster));
                }
            }
        }
        next = Instant::now() + ROUND;
    }
    notify::stopping();
    teller.stopped();
    Ok(0)
}

struct Guard {
    source: Source,
    arming: Arming,
    roster: Roster,
}

impl Guard {
    /// Arms everything; what has changed by it.
    fn round(&mut self) -> Vec<(Target, Standing)> {
        self.roster.round(|target| self.arming.arm(&target.path, target.reach).into())
    }

    /// Reads the configuration again and arms what it names now; what it names no longer is let go after that.
    fn reload(&mut self, teller: &mut Teller) {
        notify::reloading();
        match self.source.read().and_then(|targets| Ok((targets, Arming::new()?))) {
            Ok((targets, arming)) => {
                let old = std::mem::replace(&mut self.arming, arming);
                self.roster = Roster::new(targets, &self.roster);
                let news = self.round();
                drop(old);
                notify::ready(&tell::status(&self.roster));
                teller.changed(&news);
                teller.reloaded(self.roster.tally());
            }
            Err(error) => {
                let news = self.round();
                notify::ready(&format!("not reloaded; {}", tell::status(&self.roster)));
                teller.changed(&news);
                teller.kept(&error);
            }
        }
    }
}

/// There is nothing to wait for: every path is there, and none can be armed. The first one's reason is the error, the
/// others' are told.
fn none_armed(news: &[(Target, Standing)], teller: &mut Teller) -> Error {
    match news {
        [(_, Standing::Refused(why, hint)), others @ ..] => {
            teller.changed(others);
            Error::new(Kind::Refused, why.clone(), hint.clone())
        }
        _ => Error::new(Kind::Refused, "there is nothing to arm", "name an image, or a directory of images"),
    }
}
