//! The verb's part of the command line.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::args::Output;

/// What stands below the options in the help.
pub const EXAMPLES: &str = "\
Runs until SIGTERM or SIGINT; requests that it has taken are answered first. The export 'disk',
which is also the default, is the image as it is now; snapshot/NAME are its snapshots, from their
point in time on, and fleeces ('rclone-img fleece'). Only the user who started it (and root)
can connect; under systemd SocketUser= says who. An image that a QEMU has open for writing is
refused, and so is a finished snapshot without --read-only.

While it runs, 'rclone-img snapshot SRC DST' by the same user makes its snapshot through it (hold
filter): what a client is about to overwrite is cloned first. Nobody else may write to the image.
Where it ends, a QEMU waits for the next one for reconnect-delay seconds; then the guest gets errors.

With --cache writeback a client's flush puts what it wrote on the disk, as QEMU's cache mode of
that name does. --cache none goes past the page cache; a write that is not of whole blocks of
4 KiB goes through it all the same, with no other at that moment.
packaging/ has units for systemd, with socket activation.

Examples:
  rclone-img serve vm.img --socket vm.sock
  qemu-system-x86_64 -drive 'file=nbd+unix:///?socket=vm.sock,format=raw,if=virtio,file.reconnect-delay=30'
  nbdinfo 'nbd+unix:///?socket=vm.sock'";

/// How the image is read and written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cache {
    /// Through the page cache; a flush makes it last
    Writeback,
    /// Past the page cache (O_DIRECT)
    None,
}

/// `serve SRC`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ServeArgs {
    /// The raw image
    #[arg(value_name = "SRC")]
    pub src: PathBuf,
    /// The Unix socket that clients connect to; one that nobody listens to any more is replaced [default: the one that systemd hands over]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Clients cannot write
    #[arg(long)]
    pub read_only: bool,
    /// How the image is read and written
    #[arg(long, value_name = "MODE", value_enum, default_value = "writeback")]
    pub cache: Cache,
    /// The most clients at a time, 1 to 1024; one more is sent away
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub connections: u16,
    /// Where reports go.
    #[command(flatten)]
    pub output: Output,
}
