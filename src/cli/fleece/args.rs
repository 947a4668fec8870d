//! The verb's part of the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::args::Output;
use crate::cli::values::{self, MinFree};
use crate::serve::fleece::all::is_name;

/// What stands below the options in the help.
pub const EXAMPLES: &str = "\
A fleece is a point in time of an image that 'rclone-img serve' has, for a backup program to
read over NBD while the VM runs on: only what the guest overwrites meanwhile is kept, and nothing
is left when it is ended. To keep a point in time for longer, make a snapshot. The export is
snapshot/NAME; a reader that says TRIM lets go of what it has read. Of one that is lost (list and
stop exit with 6) nothing that was read is of one instant for sure. docs/NBD.md has recipes.

Examples:
  rclone-img fleece start vm.img --name nightly
  nbdcopy 'nbd+unix:///snapshot/nightly?socket=vm.sock' backup.raw
  rclone-img fleece stop vm.img --name nightly";

/// What stands below the options of `fleece start`.
pub const START_EXAMPLES: &str = "\
Beside the image lies its map, vm.img.NAME.fleece, and in --sidecar what is kept,
vm.img.NAME.fleece-data (a sparse file: du shows what it takes). A server that is killed or stopped
leaves both, and the next one takes them up; after the host was started again, or the file system
mounted anew, only those of --durable whose server was not told to stop before. Any other is known
to be lost: 'rclone-img status' shows it, and 'rclone-img abort vm.img.NAME.fleece' removes it.

With --base only what has changed since that snapshot is kept. Reading anything else is refused
(EPERM), and the context qemu:dirty-bitmap:SNAP says where that is.

Example:
  rclone-img fleece start vm.img --name nightly --base vm.snap --sidecar /fast --max-sidecar 20G";

/// What happens where what the guest overwrites cannot be kept.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnCbwError {
    /// The guest's write goes on, and the fleece is lost
    BreakSnapshot,
    /// The guest's write fails, and the fleece stays whole
    BreakGuestWrite,
}

/// `fleece`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct FleeceArgs {
    /// What to do.
    #[command(subcommand)]
    pub what: What,
}

/// What to do with fleeces.
#[derive(Subcommand, Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// Begin a fleece of the served image SRC
    #[command(after_help = START_EXAMPLES)]
    Start(StartArgs),
    /// End a fleece of SRC, with what it has kept
    Stop(StopArgs),
    /// Show the fleeces of SRC
    List(ListArgs),
}

/// `fleece start SRC --name N`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct StartArgs {
    /// The image, which 'rclone-img serve' of the same user has
    #[arg(value_name = "SRC")]
    pub src: PathBuf,
    /// Its name: at most 64 letters, digits, '-', '_' and '.'
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: String,
    /// The directory in which is kept what the guest overwrites; where it is on the image's file system blocks are shared, else they are copied [default: the image's]
    #[arg(long, value_name = "DIR")]
    pub sidecar: Option<PathBuf>,
    /// A finished snapshot of the image: only what has changed since is kept, and may be read
    #[arg(long, value_name = "SNAP")]
    pub base: Option<PathBuf>,
    /// The unit that is kept; a power of two from 4K to 64M
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = values::cluster)]
    pub cluster: u64,
    /// How long a write of the guest may wait for it, 100ms to 30s
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = values::guest_deadline)]
    pub guest_deadline: Duration,
    /// What happens where what the guest overwrites cannot be kept, or not in time
    #[arg(long, value_name = "WHAT", value_enum, default_value = "break-snapshot")]
    pub on_cbw_error: OnCbwError,
    /// The most that is kept [default: as much as --min-free allows]
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    pub max_sidecar: Option<u64>,
    /// The most memory for what is copied and not on the sidecar's disk yet
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = values::bytes)]
    pub ram: u64,
    /// Free space, on the image's file system and on the sidecar's, below which the fleece is given up
    #[arg(long, value_name = "FREE", default_value = "5%", value_parser = values::min_free)]
    pub min_free: MinFree,
    /// What is kept is on the disk before the guest overwrites it, so that the fleece outlives a power cut while a server has it; each first write to a cluster takes as long as two syncs
    #[arg(long)]
    pub durable: bool,
    /// Where reports go.
    #[command(flatten)]
    pub output: Output,
}

/// What a fleece can be called.
fn name(text: &str) -> Result<String, String> {
    let why = "at most 64 letters, digits, '-', '_' and '.', and not '.' first";
    if is_name(text) { Ok(text.to_owned()) } else { Err(why.into()) }
}

/// `fleece stop SRC --name N`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct StopArgs {
    /// The image
    #[arg(value_name = "SRC")]
    pub src: PathBuf,
    /// The fleece's name
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Where reports go.
    #[command(flatten)]
    pub output: Output,
}

/// `fleece list SRC`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ListArgs {
    /// The image
    #[arg(value_name = "SRC")]
    pub src: PathBuf,
    /// One JSON object a fleece, one a line
    #[arg(long)]
    pub json: bool,
}
