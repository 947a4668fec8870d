//! A disk that writes down what is done to it, behind a gate with a job.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::*;
use crate::range::PowerOfTwo;
use crate::serve::gate::{News, OnError, Watch};
use crate::serve::view::tests::Memory;

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

/// A direct read waits on Btrfs for a clone call, and nobody's read waits for what is not kept yet.
#[test]
fn reads_wait_for_nobody_and_go_elsewhere_while_a_clone_call_runs() {
    let gate = Arc::new(Gate::default());
    let watch = gate.watch(LONG, OnError::BreakSnapshot, Box::new(|_| ())).expect("a job");
    watch.gather(SIZE, PowerOfTwo::new(4096).expect("a power of two")).expect("nobody writes");
    let disk = Filtered::new(Memory::full_of(1, |_| ()), gate, Some(Memory::full_of(2, |_| ())));
    let read = || {
        let mut byte = [0];
        disk.read(&mut byte, 0).map(|()| byte[0]).expect("read")
    };
    assert_eq!(read(), 1, "T0 is not set, and nothing is kept");
    watch.watch().expect("T0");
    watch.calling();
    assert_eq!(read(), 2);
    watch.called();
    assert_eq!(read(), 1);
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

#[test]
fn a_closed_gate_lets_nobody_on_and_waits_for_whom_it_has_let() {
    let (gate, log) = (Arc::new(Gate::default()), Arc::new(Log::default()));
    let disk = Filtered::new(Arc::clone(&log) as Arc<dyn Device>, Arc::clone(&gate), None);
    let on = gate.enter(ByteRange::at(0, 4096).expect("not empty")).expect("nobody stops it");
    assert!(!gate.close(Duration::from_millis(1)));
    assert_eq!(disk.write(&[1; 512], 0).map_err(|e| e.raw_os_error()), Err(Some(libc::ESHUTDOWN)));
    assert!(!disk.write_now(&[1; 512], 0) && disk.zero(0, 512, false, false).is_err() && disk.trim(0, 512).is_err());
    assert_eq!(log.take(), []);
    // Nor does anybody wait who came before, or lose a point in time by that.
    let (_log, kept, watch, _told) = watched(LONG, OnError::BreakSnapshot);
    let waits = thread::spawn({
        let kept = Arc::clone(&kept);
        move || kept.write(&[1; 512], 0).map_err(|e| e.raw_os_error())
    });
    while watch.waiting().is_empty() {
        thread::yield_now();
    }
    assert!(kept.gate.close(LONG));
    assert_eq!(waits.join().expect("no panic"), Err(Some(libc::ESHUTDOWN)));
    assert!(watch.waiting().is_empty());
    let closed = thread::spawn({
        let gate = Arc::clone(&gate);
        move || gate.close(LONG)
    });
    drop(on);
    assert!(closed.join().expect("no panic"));
}
