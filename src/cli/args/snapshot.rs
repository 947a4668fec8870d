//! The arguments of `snapshot`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;

use super::JobArgs;
use crate::cli::values;
use crate::hold::HoldKind;
use crate::quiesce::Method;

pub const SNAPSHOT_EXAMPLES: &str = "\
Holds, the ways to keep the point in time:
  frozen  Nobody has the image open for writing. A writer that comes meanwhile waits for at most
          half a second, and is let in. It has nothing to do with a guest that is frozen (--qga).
  filter  The VM has the image from 'rclone-img serve', which all its writes go through.
  guard   A VM that runs is watched: what it is about to read or write waits until that is cloned.
          Needs root, Linux 6.14, and an image that was opened under 'rclone-img guard'.
  atomic  A single call for the whole image, which stalls its users for as long as it takes.
  none    Not of one instant, and marked so wherever it is shown.
  auto    frozen, else filter, else guard, else atomic if it is short, else refused.

What a job puts at DST is complete and synced, and of one instant unless --consistency none was \
asked for. Until then the work is in DST.partial and DST.journal, and with --refresh there is no \
DST; the same command, or resume, goes on from them. SIGINT, SIGTERM and SIGHUP end the job after \
the clone call that is running, with a checkpoint (exit 4). Under the holds guard and filter, and of \
several images, the point in time is lost with it (exit 6): the same command takes a new one and \
keeps the finished work.

A thaw that failed changes no exit code, since the snapshot is as good as any: it is told on \
standard error at the end, whatever was asked for, in 'finished' (--json) and by --metrics.

Examples:
  rclone-img snapshot vm.img vm.snap
  rclone-img snapshot --latency 5ms --wait 10m vm.img vm.snap
  rclone-img snapshot --refresh --metrics /var/lib/node_exporter/vm.prom vm.img vm.snap
  rclone-img snapshot --qga /run/vm/agent.sock vm.img vm.snap
  rclone-img snapshot root.img=root.snap data.img=data.snap
  rclone-img snapshot --dry-run vm.img vm.snap";

/// `--consistency`: how the point in time is to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consistency {
    /// The first hold that applies; refused where none does.
    Auto,
    /// This one; refused where it does not apply.
    Hold(HoldKind),
}

/// `snapshot SRC DST`, `snapshot SRC=DST...`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(
    override_usage = "rclone-img snapshot [OPTIONS] <SRC> <DST>\n       rclone-img snapshot [OPTIONS] <SRC=DST>..."
)]
pub struct SnapshotArgs {
    /// The image, a regular file or a symbolic link to one, and the snapshot to make of it, on the same file system, which may exist only with --refresh or --force; or SRC=DST for each of several images: all snapshots are then of one instant, and all are put into place or none
    #[arg(value_name = "SRC DST", required = true)]
    images: Vec<PathBuf>,
    /// Each image with its snapshot.
    #[arg(skip)]
    pub pairs: Vec<(PathBuf, PathBuf)>,
    /// How it is taken.
    #[command(flatten)]
    pub take: TakeArgs,
    /// Bring the older snapshot DST to a new point in time, cloning only what differs
    #[arg(long)]
    pub refresh: bool,
    /// Start over even if a partial file could be used
    #[arg(long, conflicts_with = "refresh")]
    pub restart: bool,
    /// The snapshot is one of those that `rotate` keeps by its rules
    #[arg(long, hide = true)]
    pub by_rules: bool,
    /// Replace an existing DST, and what stands in the way of the job at DST.partial and DST.journal
    #[arg(long)]
    pub force: bool,
    /// Give the snapshot write permission for its owner, and what others have on the image
    #[arg(long)]
    pub writable: bool,
    /// Say what would be done; touch nothing
    #[arg(long)]
    pub dry_run: bool,
    /// What the job verbs share.
    #[command(flatten)]
    pub job: JobArgs,
}

/// How a snapshot is taken.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct TakeArgs {
    /// The most that one clone call covers, 4K to 1T in multiples of 4096 bytes
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = values::chunk)]
    pub chunk: u64,
    /// The unit in which finished work is recorded, and the least that is cloned for a guest that waits; a power of two from 4K to 64M, at most --chunk [default: 64K; 8K under guard and filter, more where the image is larger than 512 GiB]
    #[arg(long, value_name = "SIZE", value_parser = values::cluster)]
    pub cluster: Option<u64>,
    /// How the point in time is kept: by one of the holds that 'snapshot --help' tells of
    #[arg(long, value_name = "HOLD", default_value = "auto", value_parser = consistency())]
    pub consistency: Consistency,
    /// How long an access of the guest may wait for the holds guard and filter before the snapshot breaks, 100ms to 30s; the job lets it go after four fifths of that
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = values::guest_deadline)]
    pub guest_deadline: Duration,
    /// The socket of the QMP monitor of a QEMU that was started before 'rclone-img guard': it is made to open its image anew, so that its accesses can be watched; may be given several times
    #[arg(long, value_name = "SOCKET")]
    pub qmp: Vec<PathBuf>,
    /// The socket of the QEMU guest agent: the guest's file systems are frozen for the moment of the point in time; may be given once for each guest
    #[arg(long, value_name = "SOCKET")]
    pub qga: Vec<PathBuf>,
    /// A command for /bin/sh that freezes what writes to the image for the moment of the point in time, with --thaw
    #[arg(long, value_name = "COMMAND", requires = "thaw", conflicts_with = "qga")]
    pub freeze: Option<OsString>,
    /// The command that thaws what --freeze has frozen; run whatever happens, also after a freeze that failed, and up to five times where it fails
    #[arg(long, value_name = "COMMAND", requires = "freeze", conflicts_with = "qga")]
    pub thaw: Option<OsString>,
    /// How long a freeze may take, and how long it may last until the point in time is set, 1s to 10m; after that the guest is thawed, and the snapshot is as after a power cut
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::freeze_timeout)]
    pub freeze_timeout: Duration,
    /// No snapshot of an image in use unless its guest was frozen; one that nobody has open for writing needs no freeze
    #[arg(long)]
    pub require_freeze: bool,
}

impl SnapshotArgs {
    /// What no parser of a single argument sees; fills in the pairs.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn check(&mut self) -> Result<(), (ErrorKind, String)> {
        self.pairs = pairs(&self.images).map_err(|why| (ErrorKind::ValueValidation, why))?;
        self.take.check()
    }
}

impl TakeArgs {
    /// What no parser of a single argument sees.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), (ErrorKind, String)> {
        let quiesces = !self.quiesce().is_empty();
        if self.require_freeze && !quiesces {
            let what = "--require-freeze needs --qga, or --freeze and --thaw";
            return Err((ErrorKind::MissingRequiredArgument, what.into()));
        }
        if self.consistency == Consistency::Hold(HoldKind::None) && quiesces {
            let what = "--consistency none keeps no instant for which a guest could be frozen";
            return Err((ErrorKind::ArgumentConflict, what.into()));
        }
        if let Some(cluster) = self.cluster.filter(|cluster| *cluster > self.chunk) {
            let what = format!("--cluster is {cluster} bytes, more than --chunk, {}", self.chunk);
            return Err((ErrorKind::ValueValidation, format!("{what}: a cluster is at most a chunk")));
        }
        Ok(())
    }

    /// How the guests are frozen for the point in time: nothing where nobody asked for that.
    pub fn quiesce(&self) -> Vec<Method> {
        let commands = self.freeze.clone().zip(self.thaw.clone());
        let commands = commands.map(|(freeze, thaw)| Method::Commands { freeze, thaw });
        self.qga.iter().cloned().map(Method::Agent).chain(commands).collect()
    }
}

/// `SRC DST`, or `SRC=DST` once or more. Two arguments are pairs only if both have a `=`; a name with one can so be given in
/// the first form.
fn pairs(images: &[PathBuf]) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let pairs: Option<Vec<_>> = images.iter().map(|it| pair(it)).collect();
    match (pairs, images) {
        (Some(pairs), _) => Ok(pairs),
        (None, [src, dst]) => Ok(vec![(src.into(), dst.into())]),
        (None, _) => Err("name an image and a snapshot, SRC DST, or SRC=DST for each of several images".into()),
    }
}

/// `SRC=DST`.
pub fn pair(text: &Path) -> Option<(PathBuf, PathBuf)> {
    let bytes = text.as_os_str().as_bytes();
    let at = bytes.iter().position(|b| *b == b'=')?;
    let (src, dst) = (&bytes[..at], &bytes[at + 1..]);
    let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
    (!src.is_empty() && !dst.is_empty()).then(|| (path(src), path(dst)))
}

fn consistency() -> impl TypedValueParser<Value = Consistency> {
    let names = ["auto"].into_iter().chain(HoldKind::ALL.map(HoldKind::name));
    PossibleValuesParser::new(names).map(|name| {
        let hold = HoldKind::ALL.into_iter().find(|hold| hold.name() == name);
        hold.map_or(Consistency::Auto, Consistency::Hold)
    })
}
