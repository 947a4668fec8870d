//! The verb's part of the command line.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What stands below the options in the help.
pub const EXAMPLES: &str = "\
What differs is found by the two block maps: a range with the same blocks in both is equal, and no
data is read. What is said to be equal, is. What is told as changed may have the same bytes in
blocks of its own: --content reads it and leaves that out. Compressed data, and files on two file
systems, can be compared in no other way.

Nobody may write to either meanwhile: a finished snapshot, or an image that is not in use.

Examples:
  rclone-img diff vm-monday.snap vm-tuesday.snap
  rclone-img diff --json vm-monday.snap vm-tuesday.snap | jq 'select(.kind)'
  rclone-img diff --exit-code -q vm.snap vm.img || echo changed";

/// How differences are written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// As 'qemu-img map --output=json' has it, of an overlay with the differences over OLD
    QemuMap,
}

/// `diff OLD NEW`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct DiffArgs {
    /// The former state: a snapshot, or an image that is not in use
    #[arg(value_name = "OLD")]
    pub old: PathBuf,
    /// The state that is compared with it
    #[arg(value_name = "NEW")]
    pub new: PathBuf,
    /// Read what the maps do not prove, and leave out what has the same bytes
    #[arg(long)]
    pub content: bool,
    /// Exit with 7 where there are differences
    #[arg(long)]
    pub exit_code: bool,
    /// One JSON object a range, one a line, and one with the sums at the end
    #[arg(long)]
    pub json: bool,
    /// Another form on standard output
    #[arg(long, value_name = "FORM", value_enum, conflicts_with_all = ["json", "quiet"])]
    pub format: Option<Format>,
    /// Nothing on standard output: for --exit-code
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
}
