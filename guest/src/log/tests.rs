//! The log's two sides together.

use super::format::State;
use super::{History, Kind, Log, Subject};
use crate::bits::Bits;
use crate::scratch::Scratch;

const SUBJECT: Subject = Subject { size: 1 << 20, device: 3, inode: 4 };

#[test]
fn what_is_logged_is_read_while_the_writer_lives_and_when_it_was_killed() {
    let scratch = Scratch::new();
    let path = scratch.path("log");
    let log = Log::create(&path, &[SUBJECT, SUBJECT], false).unwrap();
    let mut base = Bits::new(SUBJECT.size / 512);
    base.set(77);
    log.set_base(1, &base);
    for (kind, image) in [(Kind::Write, 0), (Kind::Punch, 1)] {
        let generation = log.take().unwrap();
        log.begin(generation, kind, image, 5, &(512..4096));
        log.end(generation, kind == Kind::Write);
    }
    // Taken and never used: the writer was killed between the two.
    log.take().unwrap();
    let last = log.take().unwrap();
    log.begin(last, Kind::Flush, 0, 6, &(0..0));
    let check = |history: History| {
        assert_eq!(history.subjects(), [SUBJECT, SUBJECT]);
        assert!(history.images[1].1.get(77) && !history.images[0].1.get(77) && !history.dependent);
        let [_, write, punch, nothing, flush] = history.records[..] else { panic!("{:?}", history.records) };
        assert_eq!((write.kind, write.image, write.writer, write.offset, write.length), (Kind::Write, 0, 5, 512, 3584));
        assert!(write.start > 0 && write.start <= write.end && write.settled() == write.end);
        assert_eq!((punch.kind, punch.state, punch.image, punch.settled()), (Kind::Punch, State::Failed, 1, u64::MAX));
        assert_eq!(nothing.kind, Kind::Nothing);
        assert_eq!((flush.kind, flush.state, flush.settled()), (Kind::Flush, State::Begun, u64::MAX));
    };
    check(History::read(&path).unwrap());
    assert_eq!(log.records().count(), 3);
    // Not closed, as where it was killed; the next one goes on behind what there is.
    drop(log);
    let log = Log::open(&path, &[SUBJECT, SUBJECT], false).unwrap();
    assert_eq!(log.take().unwrap(), 5);
    assert_eq!(log.records().count(), 0, "none of its own yet");
    log.close().unwrap();
    check(History::read(&path).unwrap());
    assert!(std::fs::metadata(&path).unwrap().len() < 16 << 10);
}

#[test]
fn a_log_is_for_its_own_images() {
    let scratch = Scratch::new();
    let path = scratch.path("log");
    Log::create(&path, &[SUBJECT], true).unwrap().close().unwrap();
    assert_eq!(History::read(&path).unwrap().records.len(), 1);
    assert!(Log::open(&path, &[SUBJECT], false).is_err());
    assert!(Log::open(&path, &[Subject { inode: 5, ..SUBJECT }], true).is_err());
    assert!(Log::open(&path, &[SUBJECT], true).is_ok());
    std::fs::write(&path, "no log").unwrap();
    assert!(History::read(&path).unwrap_err().to_string().contains("no log of this version"));
}

#[test]
fn a_full_log_says_so() {
    let scratch = Scratch::new();
    let log = Log::create_for(&scratch.path("log"), &[SUBJECT], false, 3).unwrap();
    assert_eq!([log.take().unwrap(), log.take().unwrap()], [1, 2]);
    assert!(log.take().unwrap_err().to_string().contains("is full"));
    assert_eq!(log.records().count(), 0);
    log.close().unwrap();
}
