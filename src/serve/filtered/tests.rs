//! A disk that writes down what is done to it, behind a gate with a job.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::*;
use crate::range::PowerOfTwo;
use crate::serve::gate::{News, OnError, Watch};

const SIZE: u64 = 5 * PART;
const LONG: Duration = Duration::from_secs(600);

#[derive(Default)]
struct Log(Mutex<Vec<ByteRange>>);

impl Log {
    fn changes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.lock().expect("nobody panics").extend(ByteRange::at(offset, length));
        Ok(())
    }

    fn take(&self) -> Vec<ByteRange> {
        std::mem::take(&mut self.0.lock().expect("nobody panics"))
    }
}

impl Device for Log {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_now(&self, _: &mut [u8], _: u64) -> bool {
        false
    }

    fn write_now(&self, _: &[u8], _: u64) -> bool {
        false
    }

    fn read(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        unreachable!("nobody reads here")
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.changes(offset, bytes.len() as u64)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.changes(offset, length)
    }

    fn zero(&self, offset: u64, length: u64, _: bool, _: bool) -> io::Result<()> {
        self.changes(offset, length)
    }

    fn cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn extents(&self, _: u32, _: u64, _: u32, _: usize) -> io::Result<Extents> {
        unreachable!("nobody asks here")
    }
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("not empty")
}

/// Such a disk, with a job that watches all of it, and what that is told.
fn watched(deadline: Duration, on_error: OnError) -> (Arc<Log>, Arc<Filtered>, Watch, Receiver<News>) {
    let (log, gate) = (Arc::new(Log::default()), Arc::new(Gate::default()));
    let (tell, told) = channel();
    let watch = gate.watch(deadline, on_error, Box::new(move |news| drop(tell.send(news)))).expect("a job");
    watch.gather(SIZE, PowerOfTwo::new(4096).expect("a power of two")).expect("nobody writes");
    watch.watch().expect("T0");
    let disk: Arc<dyn Device> = Arc::clone(&log) as _;
    (log, Arc::new(Filtered::new(disk, gate, None)), watch, told)
}

#[test]
fn what_is_long_is_done_in_parts_that_follow_one_another() {
    let all = |from, to| parts(from, to - from).map(|it| (it.start(), it.end())).collect::<Vec<_>>();
    assert_eq!(all(0, 2 * PART), [(0, PART), (PART, 2 * PART)]);
    assert_eq!(all(5, PART + 7), [(5, PART), (PART, PART + 7)]);
    assert_eq!(all(PART - 1, PART), [(PART - 1, PART)]);
    assert_eq!(all(9, 9), []);
}

/// It is advice.
#[test]
fn a_discard_that_would_wait_for_too_long_is_left_out_and_breaks_nothing() {
    for on_error in [OnError::BreakSnapshot, OnError::BreakGuestWrite] {
        let (log, disk, watch, told) = watched(Duration::from_millis(10), on_error);
        watch.done(range(0, PART));
        watch.done(range(2 * PART, SIZE));
        disk.trim(0, SIZE).expect("no error");
        assert_eq!(log.take(), [range(0, PART)], "{on_error:?}: nothing of what comes after it");
        assert_eq!(told.try_recv(), Ok(News::Wanted(range(PART, 2 * PART))));
        assert!(told.try_recv().is_err() && watch.waiting().is_empty(), "{on_error:?}");
        watch.done(range(0, SIZE));
        disk.trim(PART, PART).expect("it is kept");
        assert_eq!(log.take(), [range(PART, 2 * PART)]);
        assert_eq!(watch.end().0, None, "{on_error:?}");
    }
}

/// Each has time of its own, and the next one is not waited for before its turn.
#[test]
fn long_zeroes_wait_for_one_part_after_the_other() {
    let (log, disk, watch, told) = watched(LONG, OnError::BreakGuestWrite);
    let zeroes = thread::spawn(move || disk.zero(4096, SIZE - 4096, false, false));
    for part in parts(4096, SIZE - 4096) {
        assert_eq!(told.recv_timeout(LONG), Ok(News::Wanted(part)));
        assert_eq!(watch.waiting(), [part]);
        watch.done(part);
        watch.promoted();
    }
    zeroes.join().expect("no panic").expect("no error");
    assert_eq!(log.take(), parts(4096, SIZE - 4096).collect::<Vec<_>>());
}
