//! The writer on files of whatever file system has the temporary files; kernel tests do the same on XFS and Btrfs.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::locks::Locks;
use super::pace::Pace;
use super::ways::Way;
use super::writer::Writer;
use super::{Mode, Options, Outcome, run};
use crate::engine::{Ended, Engine};
use crate::fill::fill;
use crate::image::Image;
use crate::log::format::State;
use crate::log::{History, Kind, Log, Subject};
use crate::scratch::Scratch;
use crate::stop::Stop;
use crate::sys::uring::Uring;
use crate::verify::verify;

const MIB: u64 = 1 << 20;

fn options(scratch: &Scratch, images: &[&str], mode: Mode) -> Options {
    Options {
        images: images.iter().map(|name| scratch.path(name)).collect(),
        log: scratch.path("log"),
        go_on: false,
        dependent: false,
        mode,
        writers: 2,
        seed: 3,
        span: 0..u64::MAX,
        max_write: 16 << 10,
        depth: 4,
        rate: None,
        longest: None,
        flush_every: None,
    }
}

/// Writes until the log has so many operations.
fn write(options: &Options, operations: usize) {
    let stop = Stop::new();
    let watched = (Arc::clone(&stop), options.log.clone());
    let watcher = thread::spawn(move || {
        while !watched.0.wait(Some(Duration::from_millis(5))) {
            if History::read(&watched.1).is_ok_and(|it| it.records.len() > operations) {
                watched.0.ask();
            }
        }
    });
    let outcome = run(options, &stop, || {});
    stop.ask();
    watcher.join().unwrap();
    let outcome = outcome.unwrap();
    assert_eq!(outcome.errors, 0);
    assert!(outcome.operations.count > 0);
}

fn judged(options: &Options, images: &[PathBuf]) -> crate::verify::Verdict {
    verify(images, &options.log, 0..=u64::MAX).unwrap()
}

#[test]
fn every_mode_leaves_what_its_log_says() {
    let scratch = Scratch::new();
    fill(&scratch.path("a"), 8 * MIB, false, 0).unwrap();
    use Mode::{Buffered, Direct, Libaio, Mix, MixOpen, Punch, Uring as Ring, UringFixed};
    let mut modes = vec![Buffered, Direct, Libaio, Punch, Ring, UringFixed, Mix, MixOpen];
    let kinds = [ErrorKind::PermissionDenied, ErrorKind::Unsupported];
    let ring = Uring::new(File::open(scratch.path("a")).unwrap(), 1, 4096, false);
    if ring.is_err_and(|error| kinds.contains(&error.kind())) {
        eprintln!("SKIPPED: this system gives no io_uring");
        modes.truncate(4);
    }
    for mode in modes {
        let options = Options { flush_every: Some(Duration::from_millis(20)), ..options(&scratch, &["a"], mode) };
        write(&options, 600);
        let verdict = judged(&options, &options.images);
        assert!(verdict.good, "{mode:?}: {}", verdict.json());
        assert_eq!(verdict.sectors, 8 * MIB / 512);
        let history = History::read(&options.log).unwrap();
        let punches = history.records.iter().filter(|it| it.kind == Kind::Punch).count();
        assert_eq!(punches > 0, matches!(mode, Punch | Mix | MixOpen), "{mode:?}: {punches} punches");
        assert!(overlaps(&history).is_none(), "{mode:?}");
    }
}

/// Two operations that were under way on one sector at once, or logged in another order than that of time.
fn overlaps(history: &History) -> Option<u64> {
    let mut ends = vec![0; (history.images[0].0.size / 512) as usize];
    (0..).zip(&history.records).filter(|(_, it)| it.changes()).find_map(|(generation, record)| {
        let first = record.offset as usize / 512;
        let wrong = ends[first..first + record.length as usize / 512].iter_mut().any(|end| {
            let wrong = *end > record.start;
            *end = record.settled();
            wrong
        });
        wrong.then_some(generation)
    })
}

#[test]
fn a_piecewise_copy_of_a_busy_image_is_bad_and_a_torn_sector_is_seen() {
    let scratch = Scratch::new();
    let (image, copy) = (scratch.path("a"), scratch.path("copy"));
    fill(&image, 4 * MIB, false, 0).unwrap();
    let busy = options(&scratch, &["a"], Mode::Direct);
    write(&busy, 300);
    fs::copy(&image, &copy).unwrap();
    let file = File::options().read(true).write(true).open(&copy).unwrap();
    write(&Options { go_on: true, ..busy.clone() }, 900);
    // The second half is copied later than the first.
    let mut half = vec![0; 2 * MIB as usize];
    File::open(&image).unwrap().read_exact_at(&mut half, 2 * MIB).unwrap();
    file.write_all_at(&half, 2 * MIB).unwrap();
    let verdict = judged(&busy, std::slice::from_ref(&copy));
    assert!(!verdict.good && verdict.bad > 0 && verdict.torn == 0, "{}", verdict.json());
    // Back to one instant, but for one sector, the half of which is another's.
    fs::copy(&image, &copy).unwrap();
    assert!(judged(&busy, std::slice::from_ref(&copy)).good);
    let mut part = [0; 256];
    file.read_exact_at(&mut part, 512).unwrap();
    file.write_all_at(&part, 1024).unwrap();
    let verdict = judged(&busy, std::slice::from_ref(&copy));
    assert_eq!((verdict.good, verdict.bad, verdict.torn), (false, 1, 1), "{}", verdict.json());
}

#[test]
fn dependent_writes_to_two_images_have_one_order() {
    let scratch = Scratch::new();
    for name in ["a", "b"] {
        fill(&scratch.path(name), MIB, true, 9).unwrap();
    }
    for mode in [Mode::Direct, Mode::Buffered] {
        let options = Options { dependent: true, ..options(&scratch, &["a", "b"], mode) };
        write(&options, 60);
        let history = History::read(&options.log).unwrap();
        let writes: Vec<_> = history.records.iter().filter(|it| it.changes()).collect();
        assert!(writes.windows(2).all(|pair| pair[0].end <= pair[1].start && pair[0].image != pair[1].image));
        let verdict = judged(&options, &options.images);
        assert!(verdict.good && verdict.prefix.is_some(), "{}", verdict.json());
        // The images in the wrong order are each other's snapshots, and bad.
        let swapped: Vec<PathBuf> = options.images.iter().rev().cloned().collect();
        assert!(!judged(&options, &swapped).good);
    }
    assert!(run(&Options { dependent: true, ..options(&scratch, &["a"], Mode::Uring) }, &Stop::new(), || {}).is_err());
}

#[test]
fn the_span_is_kept_to() {
    let scratch = Scratch::new();
    fill(&scratch.path("a"), 4 * MIB, false, 0).unwrap();
    let options = Options { span: MIB + 100..2 * MIB + 100, ..options(&scratch, &["a"], Mode::Direct) };
    write(&options, 100);
    let history = History::read(&options.log).unwrap();
    let mut writes = history.records.iter().filter(|it| it.changes());
    assert!(writes.all(|it| it.offset >= MIB + 4096 && it.offset + it.length <= 2 * MIB));
    let nothing = Options { span: 8 * MIB..9 * MIB, ..options };
    assert!(run(&nothing, &Stop::new(), || {}).unwrap_err().to_string().contains("span"));
}

#[test]
fn the_first_pass_renews_old_stamps_and_refuses_what_is_none() {
    let scratch = Scratch::new();
    let path = scratch.path("a");
    fill(&path, MIB, false, 0).unwrap();
    write(&options(&scratch, &["a"], Mode::Direct), 50);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 512], 1024).unwrap();
    let base = Image::open(&path, true, false).unwrap().first_pass().unwrap();
    assert!(base.get(1) && !base.get(2) && base.get(3));
    let mut fresh = fs::read(&path).unwrap();
    fill(&scratch.path("b"), MIB, true, 0).unwrap();
    fresh[1024..1536].copy_from_slice(&fs::read(scratch.path("b")).unwrap()[1024..1536]);
    assert!(fresh == fs::read(scratch.path("b")).unwrap());
    file.write_all_at(b"somebody's data", 5000).unwrap();
    let refused = Image::open(&path, true, false).unwrap().first_pass().unwrap_err();
    assert!(refused.to_string().contains("sector 9"), "{refused}");
}

/// An engine without a file, whose writes fail in every way there is.
struct Failing {
    count: u64,
    ended: Vec<Ended>,
    buffer: Vec<u8>,
}

impl Engine for Failing {
    fn slots(&self) -> usize {
        4
    }

    fn buffer(&mut self, _slot: usize) -> &mut [u8] {
        &mut self.buffer
    }

    fn write(&mut self, slot: usize, _offset: u64, length: usize) -> io::Result<()> {
        self.count += 1;
        let result = match self.count % 4 {
            0 => return Err(ErrorKind::PermissionDenied.into()),
            1 => Err(ErrorKind::StorageFull.into()),
            2 => Ok(length - 512),
            _ => Ok(length),
        };
        self.ended.push(Ended { slot, result });
        Ok(())
    }

    fn wait(&mut self, list: &mut Vec<Ended>) -> io::Result<()> {
        list.append(&mut self.ended);
        Ok(())
    }
}

#[test]
fn errors_are_logged_and_the_guest_goes_on() {
    let scratch = Scratch::new();
    let options = options(&scratch, &["a"], Mode::Direct);
    let subject = Subject { size: MIB, device: 1, inode: 1 };
    let log = Log::create_for(&options.log, &[subject], false, 100).unwrap();
    let locks = Locks::new(MIB / 512);
    let engine = Box::new(Failing { count: 0, ended: Vec::new(), buffer: vec![0; 16 << 10] });
    let ways = vec![Way { engine, punch: None, unit: 4096, region: 0..MIB }];
    let (pace, stop) = (Pace::new(None, 1), Stop::new());
    let mut writer = Writer::new(0, 0, &options, ways, pace, &log, &locks, &stop);
    // It goes on until the log has no more room.
    assert!(writer.run().unwrap_err().to_string().contains("is full"));
    let failed = log.records().filter(|it| it.state == State::Failed).count();
    let done = log.records().filter(|it| it.state == State::Done).count();
    assert!(failed >= 70 && done >= 20, "{failed} failed, {done} done");
    assert_eq!(Outcome::of(&log).errors, failed as u64);
}
