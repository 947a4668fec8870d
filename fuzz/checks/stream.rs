//! A stream from arbitrary bytes, as anybody may have sent it: it never panics, takes no memory for what it only announces, and what is
//! accepted lies in order within the size that it gives.

use std::io::Read;

use rclone_img::stream::format::order::Order;
use rclone_img::stream::format::sums::Line;
use rclone_img::stream::format::{Record, read_beginning};

/// Whatever these bytes are.
pub fn check(bytes: &[u8]) {
    String::from_utf8_lossy(bytes).lines().for_each(|line| {
        if let Some(sum) = Line::parse(line) {
            assert_eq!(sum.to_string(), line);
        }
    });
    let mut input = bytes;
    if read_beginning(&mut input).is_err() {
        return;
    }
    let (mut order, mut reached) = (Order::default(), 0);
    while let Ok(record) = Record::read(&mut input) {
        let mut written = Vec::new();
        record.write(&mut written).expect("memory");
        assert_eq!(Record::read(&mut &written[..]).expect("what was written"), record);
        if order.take(&record).is_err() {
            return;
        }
        if let Record::Data(range) | Record::Zero(range) = record {
            let size = order.head().size.expect("nothing comes before the size");
            assert!(range.start() >= reached && range.end() <= size);
            reached = range.end();
        }
        if let Record::Data(range) = record
            && std::io::copy(&mut (&mut input).take(range.len()), &mut std::io::sink())
                .is_ok_and(|read| read < range.len())
        {
            return;
        }
    }
}
