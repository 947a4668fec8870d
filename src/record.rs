//! What a finished snapshot carries about itself, in the extended attribute `user.reflink-img`.
//!
//! Guarantees: a file whose record is [`Verdict::Valid`] is the very file that a job of ours completed, unchanged since. A copy
//! has another inode number, or is on another file system, and a written one has another modification time; neither is ever a base, recycled or removed
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

impl ImageId {
    /// The generation, where it is known.
    pub fn known_generation(&self) -> Option<u32> {
        Some(self.generation).filter(|it| *it != 0)
    }
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
    /// Its inode's generation: whoever gets its number once it is removed has another. None where the file system tells none, and of
    /// records that were written before this was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
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

    /// What the record says about this file, on the file system with this UUID, of this size (bytes) and modification time (ns since
    /// 1970).
    pub fn verdict(&self, file: (ImageId, [u8; 16]), size: u64, mtime_ns: i128) -> Verdict {
        match self.state {
            _ if !self.is_on(file) => Verdict::Copy,
            State::InProgress => Verdict::InProgress,
            State::Finished if self.size == size && self.mtime_ns == mtime_ns.to_string() => Verdict::Valid,
            State::Finished => Verdict::Modified,
        }
    }

    /// Whether it was put on this very file. What a file system, or an older record, does not tell says nothing.
    fn is_on(&self, (file, fs): (ImageId, [u8; 16])) -> bool {
        let fs = Uuid::from_bytes(fs);
        let same_fs = self.fs == fs || self.fs.is_nil() || fs.is_nil();
        let same_generation = self.generation.is_none_or(|own| file.known_generation().is_none_or(|its| its == own));
        same_fs && same_generation && (self.ino, self.subvolume) == (file.ino, file.subvolume)
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
            fs: Uuid::from_u128(9),
            ino: 42,
            subvolume: 5,
            generation: Some(3),
            size: 4096,
            mtime_ns: "1700000000123456789".into(),
        }
    }

    #[test]
    fn a_copy_and_a_modified_snapshot_are_told_from_the_real_one() {
        const FS: u128 = 9;
        const TIME: i128 = 1_700_000_000_123_456_789;
        let itself = ImageId { ino: 42, generation: 3, subvolume: 5 };
        let told = |record: &Record, file, fs: u128| record.verdict((file, fs.to_be_bytes()), 4096, TIME);
        let check = |file, expect| assert_eq!(told(&record(), file, FS), expect, "{file:?}");
        check(itself, Verdict::Valid);
        check(ImageId { ino: 43, ..itself }, Verdict::Copy);
        // A snapshot of the subvolume has it under the same number.
        check(ImageId { subvolume: 6, ..itself }, Verdict::Copy);
        check(ImageId { generation: 4, ..itself }, Verdict::Copy);
        assert_eq!(told(&record(), itself, 10), Verdict::Copy);
        let changed = |size, time| record().verdict((itself, FS.to_be_bytes()), size, time);
        assert_eq!([changed(4097, TIME), changed(4096, TIME - 1)], [Verdict::Modified; 2]);
        // What is not told.
        assert_eq!(told(&record(), ImageId { generation: 0, ..itself }, 0), Verdict::Valid);
        let older = Record { generation: None, fs: Uuid::nil(), ..record() };
        assert_eq!(told(&older, ImageId { generation: 4, ..itself }, 8), Verdict::Valid);
        let unfinished = Record { state: State::InProgress, ..record() };
        let verdict = |ino| unfinished.verdict((ImageId { ino, ..itself }, FS.to_be_bytes()), 1, 1);
        assert_eq!([42, 43].map(verdict), [Verdict::InProgress, Verdict::Copy]);
    }

    #[test]
    fn bytes_round_trip_and_strangers_are_none() {
        assert_eq!(Record::from_bytes(&record().to_bytes()), Some(record()));
        let older = Record { generation: None, ..record() };
        assert_eq!(Record::from_bytes(&older.to_bytes()), Some(older));
        assert_eq!(Record::from_bytes(&Record { v: 2, ..record() }.to_bytes()), None);
        assert_eq!(Record::from_bytes(b"{}"), None);
        assert_eq!(Record::from_bytes(b"\xff"), None);
    }
}
