//! What a finished snapshot carries about itself, in the extended attribute `user.reflink-img`.
//!
//! Guarantees: a file whose record is [`Verdict::Valid`] is the very file that a job of ours completed, unchanged since. A copy
//! has another inode number and a written one another modification time; neither is ever a base, recycled or removed
//! without `--force` (DESIGN section 9). The value is JSON so that `getfattr` shows it to a person. Pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The attribute's name.
pub const ATTRIBUTE: &str = "user.reflink-img";

/// The version of the format that this program writes and the only one that it reads.
pub const VERSION: u32 = 1;

/// How far the file has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A job is writing it, or was interrupted.
    InProgress,
    /// A finished snapshot.
    Finished,
}

/// Which image the snapshot is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ImageId {
    /// The image's inode number.
    pub ino: u64,
    /// Its generation, 0 where unknown.
    pub generation: u32,
    /// The Btrfs subvolume it is in, 0 elsewhere.
    pub subvolume: u64,
}

/// The record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Format version.
    pub v: u32,
    /// How far the file has come.
    pub state: State,
    /// The job that made it.
    pub job: Uuid,
    /// The instant it shows; the epoch's beginning while there is none.
    pub t0: Timestamp,
    /// The name of the hold.
    pub hold: String,
    /// Whether it is of one instant.
    pub point_in_time: bool,
    /// Whether the guest's file systems were frozen at T0.
    pub quiesced: bool,
    /// The image.
    pub image: ImageId,
    /// UUID of the file system.
    pub fs: Uuid,
    /// The snapshot's own inode number.
    pub ino: u64,
    /// The Btrfs subvolume that it is in itself, 0 elsewhere: a snapshot of the subvolume has the same inode numbers.
    pub subvolume: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its modification time in nanoseconds since 1970; text, because JSON numbers end at 2^53 for many readers.
    pub mtime_ns: String,
}

/// What a record says about the file that carries it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The finished snapshot itself, unchanged.
    Valid,
    /// A job's unfinished work.
    InProgress,
    /// A copy of a snapshot: not a snapshot.
    Copy,
    /// A snapshot that was written to since.
    Modified,
}

impl Record {
    /// The attribute's value.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has no map with keys that are not text")
    }

    /// Reads an attribute's value; `None` where it is not a record of this version.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|r: &Self| r.v == VERSION)
    }

    /// What the record says about a file with this inode number and subvolume, size (bytes) and modification time (ns since
    /// 1970).
    pub fn verdict(&self, (ino, subvolume): (u64, u64), size: u64, mtime_ns: i128) -> Verdict {
        match self.state {
            _ if (self.ino, self.subvolume) != (ino, subvolume) => Verdict::Copy,
            State::InProgress => Verdict::InProgress,
            State::Finished if self.size == size && self.mtime_ns == mtime_ns.to_string() => Verdict::Valid,
            State::Finished => Verdict::Modified,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            v: VERSION,
            state: State::Finished,
            job: Uuid::from_u128(7),
            t0: Timestamp::UNIX_EPOCH,
            hold: "frozen".into(),
            point_in_time: true,
            quiesced: false,
            image: ImageId { ino: 5, generation: 6, subvolume: 0 },
            fs: Uuid::nil(),
            ino: 42,
            subvolume: 5,
            size: 4096,
            mtime_ns: "1700000000123456789".into(),
        }
    }

    #[test]
    fn a_copy_and_a_modified_snapshot_are_told_from_the_real_one() {
        let check = |ino, size, mtime, expect| assert_eq!(record().verdict((ino, 5), size, mtime), expect);
        check(42, 4096, 1_700_000_000_123_456_789, Verdict::Valid);
        let elsewhere = record().verdict((42, 6), 4096, 1_700_000_000_123_456_789);
        assert_eq!(elsewhere, Verdict::Copy, "a snapshot of the subvolume has it under the same number");
        check(43, 4096, 1_700_000_000_123_456_789, Verdict::Copy);
        check(42, 4097, 1_700_000_000_123_456_789, Verdict::Modified);
        check(42, 4096, 1_700_000_000_123_456_788, Verdict::Modified);
        let unfinished = Record { state: State::InProgress, ..record() };
        assert_eq!(unfinished.verdict((42, 5), 1, 1), Verdict::InProgress);
        assert_eq!(unfinished.verdict((43, 5), 1, 1), Verdict::Copy);
    }

    #[test]
    fn bytes_round_trip_and_strangers_are_none() {
        assert_eq!(Record::from_bytes(&record().to_bytes()), Some(record()));
        assert_eq!(Record::from_bytes(&Record { v: 2, ..record() }.to_bytes()), None);
        assert_eq!(Record::from_bytes(b"{}"), None);
        assert_eq!(Record::from_bytes(b"\xff"), None);
    }
}
