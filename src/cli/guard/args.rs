//! The verb's part of the command line.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::Output;

/// What stands below the options in the help.
pub const EXAMPLES: &str = "\
Runs until SIGTERM or SIGINT. What is open when it starts is not armed until it is opened again:
start it before the VMs, or shut those down and start them again; a reboot inside a VM opens nothing
anew. What was opened while it ran stays armed, also when it has ended. It writes nothing, and nobody who has an image open ever waits for it. Paths
that are not there are looked for every 10 s, and so are files that were replaced: prefer
directories.
Arming needs root and Linux 6.14. packaging/ has a service.

A line of the configuration is an absolute path, to the line's end; or 'file-system' and such a
path; or a comment that begins with '#'. There is no quoting. SIGHUP reads it again, and where it
is wrong then, the one from before stays.

Examples:
  rclone-img guard /var/lib/libvirt/images
  rclone-img guard --file-system /var/lib/vz
  rclone-img guard --config /etc/rclone-img/guard.conf";

/// `guard PATH...`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct GuardArgs {
    /// An image, or a directory: the files in it, and those that it will have, but not those in directories below it
    #[arg(value_name = "PATH", required_unless_present_any = ["file_systems", "config"])]
    pub paths: Vec<PathBuf>,
    /// Arm all files on the file system that PATH is on; may be given several times
    #[arg(long = "file-system", value_name = "PATH")]
    pub file_systems: Vec<PathBuf>,
    /// Arm what this file names, one path a line
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where reports go.
    #[command(flatten)]
    pub output: Output,
}
