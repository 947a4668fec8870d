//! `rclone-img` snapshots a VM's raw disk image on XFS or Btrfs by reflink, in bounded steps that can be interrupted and
//! resumed. `docs/DESIGN.md` has the design; what it marks (later) is not built.
//!
//! The modules, in reading order; `docs/ARCHITECTURE.md` has the bird's eye view and the invariants.
//!
//! - [`error`]: what went wrong, for people and scripts.
//! - [`range`]: byte offsets and ranges as types. Pure.
//! - [`extent`]: block maps and their comparison. Pure.
//! - [`plan`]: chunks and pacing. Pure.
//! - [`cbw`]: the states of the clusters of an image. Pure.
//! - [`journal`]: the on-disk state of a job: format (pure) and file.
//! - [`record`]: what a finished snapshot carries about itself. Pure.
//! - [`disk`]: what the engine asks of files; the kernel's, and a simulated one.
//! - [`sys`]: system calls; the only `unsafe`.
//! - [`children`]: processes to wait for, inherited ones as well.
//! - [`qemu`]: QEMU's monitor and its guest agent.
//! - [`quiesce`]: freezing what writes to an image, and thawing it whatever happens.
//! - [`hold`]: how every byte not yet cloned stays as it was at T0.
//! - [`changes`]: what differs between two files that nobody writes to.
//! - [`engine`]: one job from begin to rename.
//! - [`serve`]: an image given to a VM over NBD.
//! - [`rotate`]: which snapshots are kept, and how the others go.
//! - [`stream`]: what has changed, sent away and received.
//! - [`threads`]: the locks and threads of what is tried under a scheduler of its own.
//! - [`cli`]: arguments, reports, exit codes; one file per verb.

pub mod cbw;
pub mod changes;
pub mod children;
pub mod cli;
pub mod disk;
pub mod engine;
pub mod error;
pub mod extent;
pub mod hold;
pub mod journal;
pub mod plan;
pub mod qemu;
pub mod quiesce;
pub mod range;
pub mod record;
pub mod rotate;
pub mod serve;
pub mod stream;
pub mod sys;
pub mod threads;
