//! The verb's part of the command line.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::Output;

/// What stands below the options in the help.
pub const EXAMPLES: &str = "\
Only what differs is cloned (where the snapshot is in another subvolume of a Btrfs, all of it is,
first), and the image stays the same file, with its owner, its labels and the VM's definition.
Nobody may have it open, not even to read it. While it is rolled back it is called IMG.restoring, so
that no VM can boot a mixture; after an interruption 'rclone-img resume IMG' goes on, and where
--keep-current was given 'rclone-img abort IMG' goes back. Whoever opens it meanwhile waits; if that
takes 30 s (two thirds of /proc/sys/fs/lease-break-time), even where he would not wait and is gone,
the restore ends, and 'rclone-img resume IMG' clones what is left. So it is where somebody opens
SNAP for writing. An image that is mounted as a file, as into a container, is refused without
--force: root finds that wherever a process is, others only where they may look. Who uses it on
another host by NFS version 3 from this one is not found: shut that VM down first.

Examples:
  rclone-img restore vm-monday.snap vm.img --keep-current vm-before.snap
  rclone-img resume vm.img";

/// `restore SNAP IMG`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct RestoreArgs {
    /// The snapshot
    #[arg(value_name = "SNAP")]
    pub snapshot: PathBuf,
    /// The image that becomes what the snapshot is
    #[arg(value_name = "IMG")]
    pub image: PathBuf,
    /// First make this snapshot of what the image is now
    #[arg(long, value_name = "PATH")]
    pub keep_current: Option<PathBuf>,
    /// Also where SNAP is of another image, was received, is not of one instant or no finished snapshot, and where IMG has several links or is mounted as a file
    #[arg(long)]
    pub force: bool,
    /// Where reports go.
    #[command(flatten)]
    pub output: Output,
}
