//! The command line: every verb and flag once. Help, man pages and completions are made from [`command`].
//!
//! [`parse`] turns arguments into plain data before anything happens; what it hands on is in range. Only what is built
//! is accepted. Paths are taken as bytes: any name that the kernel accepts works.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::diff::args::{DiffArgs, EXAMPLES as DIFF_EXAMPLES};
use super::fleece::args::{EXAMPLES as FLEECE_EXAMPLES, FleeceArgs};
use super::guard::args::{EXAMPLES as GUARD_EXAMPLES, GuardArgs};
use super::list::{EXAMPLES as LIST_EXAMPLES, ListArgs};
use super::receive::{EXAMPLES as RECEIVE_EXAMPLES, ReceiveArgs};
use super::restore::args::{EXAMPLES as RESTORE_EXAMPLES, RestoreArgs};
use super::rotate::args::{EXAMPLES as ROTATE_EXAMPLES, RotateArgs};
use super::send::{EXAMPLES as SEND_EXAMPLES, SendArgs};
use super::serve::args::{EXAMPLES as SERVE_EXAMPLES, ServeArgs};
use super::values::{self, MinFree};
use super::verify::{EXAMPLES as VERIFY_EXAMPLES, VerifyArgs};

mod snapshot;

use snapshot::SNAPSHOT_EXAMPLES;
pub use snapshot::{Consistency, SnapshotArgs, TakeArgs, pair};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; the hint says what is left and how to go on
  2  usage
  3  refused, nothing was touched
  4  interrupted; the same command goes on
  5  another job has the image or the snapshot (--wait waits)
  6  broken, or the point in time is lost: there is no snapshot
  7  the answer is \"differs\" (verify, diff --exit-code)

Examples:
  rclone-img check vm.img
  rclone-img snapshot vm.img vm.snap
  rclone-img resume vm.snap";

const RESUME_EXAMPLES: &str = "\
Goes on to the same point in time, or says that it is lost (exit 6); never takes a new one. To take \
a new one from what is there, run snapshot again. A point in time of several images, or of the holds \
guard and filter, does not outlive its run; but where all the snapshots of several images were \
complete, resume of any one puts all into place. Of an image whose restore was interrupted it ends \
the restore: it clones what is left of the snapshot, which IMG.restore-source is another name of.

Examples:
  rclone-img resume vm.snap
  rclone-img resume vm.img";

const STATUS_EXAMPLES: &str = "\
Takes no lock and disturbs no job. Of a directory it shows the jobs, fleeces, and restores that were
interrupted. Of a job that runs under the hold guard or filter it tells, to root or to the job's
user, how much is done and how the guest's accesses fare, of all the job's images together. With one
PATH, exits with 0 (a finished snapshot, or a job, a restore or a fleece that runs), 4 (can be
resumed, a restore that was interrupted, a fleece that no server has), 6 (broken, a fleece that is
lost, or a file that is no snapshot: modified, copied, or not made by this program) or 3 (there is
nothing); with several, with the highest.

Examples:
  rclone-img status
  rclone-img status --json /var/lib/libvirt/images/vm.snap";

const ABORT_EXAMPLES: &str = "\
Of an image whose restore was interrupted it goes back to what --keep-current has kept. Of a fleece that no server has (DST is vm.img.NAME.fleece) what it has kept is removed.

A job that is running is stopped first. A finished snapshot is never touched. A refresh that has
cloned nothing yet is put back as it was; where it has begun to clone, the old snapshot is gone
with it. A job of several images is taken back whole, whichever
of its snapshots is named; once all of them are complete it is not, and resume puts all into place.

Example:
  rclone-img abort vm.snap";

const MAP_EXAMPLES: &str = "\
Flushes nothing and changes nothing; data that has no blocks yet is shown as the kernel shows it.

Examples:
  rclone-img map vm.img
  rclone-img map --json vm.img";

const CHECK_EXAMPLES: &str = "\
Exits with 0 if a snapshot now would be of one instant, else with 3. Of a directory it shows the \
files that somebody has open for writing, who, and whether they were opened under 'rclone-img guard': \
the VMs that were not are to be shut down and started again, or migrated. Exits with 3 if one of \
them cannot be snapshotted at one instant, or if not all processes could be looked into. \
'rclone-img snapshot --dry-run' tells the same with the options of a snapshot.

Examples:
  rclone-img check vm.img
  rclone-img check /var/lib/libvirt/images";

#[derive(Parser, Debug)]
#[command(
    name = "rclone-img",
    version,
    about = "Snapshot a VM's raw disk image on XFS or Btrfs by reflink, in bounded steps that can be interrupted and resumed",
    after_help = EXIT_CODES,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// What to do, with everything that was said about it.
#[derive(Subcommand, Clone, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Make a reflink snapshot DST of the image SRC
    #[command(after_help = SNAPSHOT_EXAMPLES)]
    Snapshot(SnapshotArgs),
    /// Go on with the interrupted job of DST
    #[command(after_help = RESUME_EXAMPLES)]
    Resume(ResumeArgs),
    /// Show unfinished jobs, or how one snapshot stands
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Stop the job of DST and remove its partial file and journal
    #[command(after_help = ABORT_EXAMPLES)]
    Abort(AbortArgs),
    /// Show how fragmented a file is, and how long a clone of it takes here
    #[command(after_help = MAP_EXAMPLES)]
    Map(MapArgs),
    /// Say which holds apply to the image SRC, and why not; of a directory, which images are in use unarmed
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Keep images armed, so that snapshots can later be made while their VMs run
    #[command(after_help = GUARD_EXAMPLES)]
    Guard(GuardArgs),
    /// Give the image SRC to a VM over NBD
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServeArgs),
    /// Read one instant of a served image over NBD, while only what is overwritten is kept
    #[command(after_help = FLEECE_EXAMPLES, disable_help_subcommand = true)]
    Fleece(FleeceArgs),
    /// Show what has changed between two snapshots, without reading data
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArgs),
    /// Say whether two files have the same bytes
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// Roll the image IMG back to a snapshot, which costs what has changed since
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(RestoreArgs),
    /// Take a snapshot and remove those that are not wanted any more: for cron
    #[command(after_help = ROTATE_EXAMPLES)]
    Rotate(RotateArgs),
    /// Show the snapshots that there are, with their age and size
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Send a snapshot, or what has changed in it, as a stream
    #[command(after_help = SEND_EXAMPLES)]
    Send(SendArgs),
    /// Make a snapshot of a stream
    #[command(after_help = RECEIVE_EXAMPLES)]
    Receive(ReceiveArgs),
}

/// What is said of progress, and where.
#[derive(Args, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Output {
    /// One JSON object a line on standard output
    #[arg(long)]
    pub json: bool,
    /// Nothing but errors on standard error
    #[arg(short, long)]
    pub quiet: bool,
}

/// What `snapshot` and `resume` have in common.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct JobArgs {
    /// What a clone call should take at most, 1ms to 10s: a target that calls are sized by, not a guarantee, as a call may have to wait for the file system; also what auto lets a single call for the whole image take [default: under the hold frozen 100ms, guard 1ms (Btrfs 1.5ms), filter and none 1ms; for that single call 5ms]
    #[arg(long, value_name = "TIME", value_parser = values::latency)]
    pub latency: Option<Duration>,
    /// Free space below which no job starts and a running one stops: 0% to 99%, or a size; on Btrfs the same part of what is for metadata as well
    #[arg(long, value_name = "FREE", default_value = "5%", value_parser = values::min_free)]
    pub min_free: MinFree,
    /// How long to wait for another job on the image or on DST, or for another rotate in the directory of the snapshots, 0s to 24h
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = values::wait)]
    pub wait: Duration,
    /// Write a Prometheus text file at the end, however the job ends
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Where reports go.
    #[command(flatten)]
    pub output: Output,
}

/// `resume DST`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ResumeArgs {
    /// The snapshot whose job was interrupted
    #[arg(value_name = "DST")]
    pub dst: PathBuf,
    /// Of a restore: take IMG.restore-source as it is now, also where it was changed or replaced
    #[arg(long)]
    pub force: bool,
    /// What the job verbs share.
    #[command(flatten)]
    pub job: JobArgs,
}

/// `status [PATH...]`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct StatusArgs {
    /// Snapshots, or directories to look for jobs in [default: the current directory]
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// One JSON object a job, one a line
    #[arg(long)]
    pub json: bool,
}

/// `abort DST`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct AbortArgs {
    /// The snapshot whose job is to end, with those of other images that it may have
    #[arg(value_name = "DST")]
    pub dst: PathBuf,
    /// Remove the partial file and the journal even if they cannot be recognised as ours
    #[arg(long)]
    pub force: bool,
    /// Where reports go.
    #[command(flatten)]
    pub output: Output,
}

/// `map FILE`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct MapArgs {
    /// A regular file, or a symbolic link to one
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// `check SRC`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct CheckArgs {
    /// The image, or a directory of images
    #[arg(value_name = "SRC")]
    pub src: PathBuf,
    /// One JSON object; of a directory, one an image in use
    #[arg(long)]
    pub json: bool,
}

/// The definition of the command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses a command line, the program's name first.
///
/// # Errors
/// Usage errors, and the requests for help and for the version, as clap has them.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Verb, clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    let mut verb = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command()))?.verb;
    let (name, checked) = match &mut verb {
        Verb::Snapshot(args) => ("snapshot", args.check()),
        Verb::Receive(args) => ("receive", args.check()),
        Verb::Rotate(args) => {
            let given = matches.subcommand().map_or(&matches, |(_, given)| given);
            ("rotate", args.check(given, &definition("snapshot")))
        }
        _ => return Ok(verb),
    };
    checked.map_err(|(kind, why)| definition(name).error(kind, why))?;
    Ok(verb)
}

/// What a verb's command line is.
fn definition(verb: &str) -> clap::Command {
    let mut whole = command();
    whole.build();
    whole.find_subcommand(verb).cloned().unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use crate::hold::HoldKind;

    use super::{Consistency, Duration, MinFree, OsString, SnapshotArgs, Verb, command, parse};

    fn snapshot(args: &[&str]) -> SnapshotArgs {
        let line = ["rclone-img", "snapshot"].iter().chain(args).map(OsString::from);
        match parse(line).expect("a good command line") {
            Verb::Snapshot(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let args = snapshot(&["a", "b"]);
        assert_eq!((args.take.chunk, args.take.cluster, args.take.consistency), (64 << 20, None, Consistency::Auto));
        assert_eq!((args.job.latency, args.job.wait), (None, Duration::ZERO));
        assert_eq!((args.job.min_free, args.job.metrics), (MinFree::Percent(5), None));
        assert!(!(args.refresh || args.restart || args.force || args.writable || args.dry_run));
    }

    #[test]
    fn every_hold_that_is_built_can_be_named() {
        for hold in HoldKind::ALL {
            assert_eq!(snapshot(&["a", "b", "--consistency", hold.name()]).take.consistency, Consistency::Hold(hold));
        }
        assert_eq!(snapshot(&["a", "b", "--consistency", "auto"]).take.consistency, Consistency::Auto);
    }

    #[test]
    fn names_may_have_any_bytes() {
        let name = OsString::from_vec(b"vm \n\xff.img".to_vec());
        let verb = parse(["rclone-img".into(), "map".into(), name.clone()]).expect("a good command line");
        assert!(matches!(verb, Verb::Map(args) if args.file.as_os_str() == name));
    }

    #[test]
    fn a_cluster_is_at_most_a_chunk() {
        assert_eq!(snapshot(&["a", "b", "--chunk", "32K"]).take.chunk, 32 << 10);
        let line = ["rclone-img", "snapshot", "a", "b", "--chunk", "32K", "--cluster", "64K"].map(OsString::from);
        let error = parse(line).expect_err("larger than a chunk").to_string();
        assert!(error.contains("a cluster is at most a chunk"), "{error}");
    }
}
