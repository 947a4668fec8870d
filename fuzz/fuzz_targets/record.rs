//! A snapshot's record from arbitrary bytes, as anybody may have set the attribute: it never panics, and what it accepts it
//! writes back as it read it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rclone_img::record::{ImageId, Record, State, VERSION, Verdict};

fuzz_target!(|bytes: &[u8]| {
    let Some(record) = Record::from_bytes(bytes) else { return };
    assert_eq!(record.v, VERSION);
    assert_eq!(Record::from_bytes(&record.to_bytes()).as_ref(), Some(&record));
    let itself = ImageId { ino: record.ino, generation: 0, subvolume: record.subvolume };
    let another = ImageId { ino: record.ino.wrapping_add(1), ..itself };
    let fs = record.fs.into_bytes();
    assert_eq!(record.verdict((another, fs), record.size, 0), Verdict::Copy);
    if record.state == State::InProgress {
        assert_eq!(record.verdict((itself, fs), record.size, 0), Verdict::InProgress);
    }
});
