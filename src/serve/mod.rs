//! An image given to a VM over NBD, with `rclone-img` in the path of each access.
//!
//! - [`codec`]: the protocol's bytes. Pure.
//! - [`negotiation`]: from a client's first option to the export that it uses. Pure.
//! - [`session`]: one client, from its first byte to its last.
//! - [`buffers`]: memory for the data of requests.
//! - [`device`]: what a session asks of the disk behind an export; [`disk`] is the image itself, [`direct`] the same past
//!   the page cache, with [`blocks`], its locks.
//! - [`gate`]: whether a write may go on, and who waits; [`filtered`] is a disk behind it, and [`control`] hears what jobs have to say.
//! - [`view`]: a point in time, read while it is kept and afterwards; [`changes`] tells what differs from an earlier one.
//! - [`fleece`]: points in time of which only what is overwritten is kept.
//! - [`points`]: the points in time that there are; [`finished`] finds the snapshots among them, and [`names`] are taken for those that are to be.
//! - [`orphans`]: points in time whose jobs an earlier server has had.
//! - [`exports`]: what there is to be had.
//! - [`server`]: those who connect.

pub mod blocks;
pub mod buffers;
pub mod changes;
pub mod codec;
pub mod control;
pub mod device;
pub mod direct;
pub mod disk;
pub mod exports;
pub mod filtered;
pub mod finished;
pub mod fleece;
pub mod gate;
pub mod names;
pub mod negotiation;
pub mod orphans;
pub mod points;
pub mod server;
pub mod session;
pub mod view;
pub mod wait;
