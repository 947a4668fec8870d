//! The verb's part of the command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, Command};
use jiff::Zoned;

use crate::cli::args::{JobArgs, TakeArgs, pair};
use crate::rotate::pattern::Pattern;
use crate::rotate::policy::Policy;

/// What stands below the options in the help.
pub const EXAMPLES: &str = "\
For cron: takes a snapshot of each image, all of one instant, and then removes those that no
--keep option wants. What is kept is the most recent snapshot of each of the last N hours, days,
weeks, months or years that have one, by the clock on the wall, as 'restic forget' does it since its
version 0.16: as long as there are fewer than N the oldest snapshot is kept as well. Only finished
snapshots of the same image, with names of the same pattern, that nobody has changed since or has
open, are ever removed; none before the new one is complete, and none where that fails. What an
interrupted run has left is ended, or taken back; what can still be resumed not before the new one
is complete; --prune-only leaves it. It knows nothing of who needs a snapshot as the base of his next
increment: what is kept must cover the longest time that 'send' may not reach the other host.
--recycle costs the space of one snapshot more of each image.

The last component of PATTERN has conversions of strftime(3). In a crontab write each % as \\%.

Examples:
  rclone-img rotate vm.img=/snaps/vm-%Y%m%dT%H%M%S%z.snap --keep-daily 7 --keep-weekly 4
  rclone-img rotate --qga /run/vm.sock root.img=root-%F-%H%M.snap data.img=data-%F-%H%M.snap --keep-last 14
  rclone-img rotate --prune-only vm.img=/snaps/vm-%Y%m%dT%H%M%S%z.snap --keep-last 3
  rclone-img rotate --prune-only /backup/vm-%Y%m%dT%H%M%S%z.snap --keep-monthly 12";

/// `rotate SRC=PATTERN...`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(override_usage = "rclone-img rotate [OPTIONS] <SRC=PATTERN>...")]
pub struct RotateArgs {
    /// An image, and how its snapshots are called; with --prune-only a pattern alone, for snapshots that were received
    #[arg(value_name = "SRC=PATTERN", required = true)]
    images: Vec<PathBuf>,
    /// Each image with the pattern of its snapshots.
    #[arg(skip)]
    pub pairs: Vec<(Option<PathBuf>, Pattern)>,
    /// What is handed on to 'snapshot'.
    #[arg(skip)]
    pub handed_on: Vec<OsString>,
    /// What is kept.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Take no snapshot: works on a full file system as well
    #[arg(long)]
    pub prune_only: bool,
    /// Leave the newest snapshot that no rule keeps for the next run, which makes it the new one, cloning only what differs
    #[arg(long, conflicts_with = "prune_only")]
    pub recycle: bool,
    /// Say what would be taken, kept and removed; touch nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How the snapshots are taken.
    #[command(flatten)]
    pub take: TakeArgs,
    /// What the job verbs share.
    #[command(flatten)]
    pub job: JobArgs,
}

/// `--keep-...`: how many.
#[derive(Args, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeepArgs {
    /// Keep the last N snapshots
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_last: Option<u32>,
    /// Keep the most recent snapshot of each of the last N hours that have one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_hourly: Option<u32>,
    /// The same of days
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_daily: Option<u32>,
    /// The same of weeks, from Monday on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_weekly: Option<u32>,
    /// The same of months
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_monthly: Option<u32>,
    /// The same of years
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_yearly: Option<u32>,
}

impl KeepArgs {
    /// What is kept; `None` where nothing would be.
    pub fn policy(&self) -> Option<Policy> {
        let all =
            [self.keep_last, self.keep_hourly, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly];
        Policy::new(all.map(Option::unwrap_or_default))
    }
}

impl RotateArgs {
    /// What no parser of a single argument sees; fills in the pairs and what is handed on.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&mut self, matches: &ArgMatches, definition: &Command) -> Result<(), (ErrorKind, String)> {
        if self.keep.policy().is_none() {
            let what = "say what is to be kept: --keep-last, --keep-daily, ...; without that all would be removed";
            return Err((ErrorKind::MissingRequiredArgument, what.into()));
        }
        let now = Zoned::now();
        let wrong = |why: String| (ErrorKind::ValueValidation, why);
        for text in &self.images {
            let (src, path) = match pair(text) {
                Some((src, path)) => (Some(src), path),
                None if self.prune_only => (None, text.clone()),
                None => return Err(wrong(format!("'{}' is not SRC=PATTERN", text.display()))),
            };
            let pattern = Pattern::new(&path, &now).map_err(|why| wrong(format!("'{}': {why}", path.display())))?;
            if self.pairs.iter().any(|(_, other)| *other == pattern) {
                return Err(wrong(format!("'{}' is named twice", path.display())));
            }
            self.pairs.push((src, pattern));
        }
        self.take.check()?;
        self.handed_on = handed_on(matches, definition);
        Ok(())
    }
}

/// Those options that were given and that `snapshot` has as well, as they were given.
fn handed_on(matches: &ArgMatches, snapshot: &Command) -> Vec<OsString> {
    let mut line = Vec::new();
    for arg in snapshot.get_arguments() {
        let id = arg.get_id().as_str();
        let given = matches.try_contains_id(id).is_ok_and(|known| known)
            && matches.value_source(id) == Some(ValueSource::CommandLine);
        let Some(long) = arg.get_long().filter(|_| given && id != "dry_run") else { continue };
        let flag = OsString::from(format!("--{long}"));
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            line.push(flag);
            continue;
        }
        for value in matches.get_raw(id).into_iter().flatten() {
            line.extend([flag.clone(), value.to_owned()]);
        }
    }
    line
}

/// The directory and the name of a path, for a message.
pub fn shown(dir: &Path, name: &std::ffi::OsStr) -> String {
    crate::cli::words::name(if dir == Path::new(".") { PathBuf::from(name) } else { dir.join(name) })
}
