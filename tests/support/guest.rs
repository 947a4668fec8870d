//! A guest in the test's own process: an image opened under arming marks, threads that use it, and what they felt.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rclone_img::sys::fanotify::{Group, Mark};

use super::{BLOCK, Random, until};

/// As long as this lives, what is opened in the directory can be watched: what `rclone-img guard` does.
pub struct Armed(Group);

impl Armed {
    pub fn directory(dir: &Path) -> Self {
        let group = Group::pre_content().expect("Linux 6.14 or later");
        group.mark(File::open(dir).expect("a directory").as_fd(), Mark::ArmDirectory).expect("a mark");
        Self(group)
    }
}

/// What a guest felt.
#[derive(Debug, Default)]
pub struct Felt {
    pub accesses: u64,
    pub errors: Vec<String>,
    pub longest: Duration,
}

impl Felt {
    /// Not an access has failed. Tells what was felt, past the test runner, which keeps what a test prints to itself unless it fails.
    pub fn assert_unharmed(&self, what: &str) {
        let Self { accesses, errors, longest } = self;
        let _ = writeln!(io::stderr(), "{what}: {accesses} accesses, {} errors, longest {longest:.1?}", errors.len());
        assert_eq!(*errors, [""; 0], "{what}");
    }
}

/// Threads that read and write an image: past the page cache, and one through it.
pub struct Guest {
    stop: Arc<AtomicBool>,
    accesses: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Felt>>,
}

impl Guest {
    pub fn start(image: &Path) -> Self {
        let (stop, accesses) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let open = |flags| {
            let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(image);
            Arc::new(file.unwrap_or_else(|e| panic!("{}: {e}", image.display())))
        };
        let (direct, buffered) = (open(libc::O_DIRECT), open(0));
        let kinds = [(Arc::clone(&direct), false), (direct, true), (buffered, true)];
        let threads = kinds.into_iter().enumerate().map(|(seed, (file, writes))| {
            let (stop, accesses) = (Arc::clone(&stop), Arc::clone(&accesses));
            thread::spawn(move || use_image(&file, writes, seed as u64, &stop, &accesses))
        });
        let threads = threads.collect();
        Self { stop, accesses, threads }
    }

    /// Waits until each thread can have made accesses from here on: the guest runs.
    pub fn runs_on(&self) {
        let before = self.accesses.load(Ordering::Relaxed);
        assert!(until(|| self.accesses.load(Ordering::Relaxed) > before + 100), "the guest hangs");
    }

    /// Ends it; every access that was begun has come back.
    pub fn stop(self) -> Felt {
        self.stop.store(true, Ordering::Relaxed);
        let ended = until(|| self.threads.iter().all(JoinHandle::is_finished));
        assert!(ended, "an access of the guest hangs");
        let felt = self.threads.into_iter().map(|t| t.join().expect("no panic"));
        felt.fold(Felt::default(), |mut sum, one| {
            sum.accesses += one.accesses;
            sum.errors.extend(one.errors);
            sum.longest = sum.longest.max(one.longest);
            sum
        })
    }
}

fn use_image(file: &File, writes: bool, seed: u64, stop: &AtomicBool, accesses: &AtomicU64) -> Felt {
    let random = Random::new(seed);
    let blocks = file.metadata().expect("metadata").len() / BLOCK;
    let mut buffer = vec![seed as u8; 2 * BLOCK as usize];
    let aligned = buffer.as_ptr().align_offset(BLOCK as usize);
    let buffer = &mut buffer[aligned..aligned + BLOCK as usize];
    let mut felt = Felt::default();
    while !stop.load(Ordering::Relaxed) {
        let at = random.below(blocks) * BLOCK;
        let began = Instant::now();
        let result = if writes { file.write_all_at(buffer, at) } else { file.read_exact_at(buffer, at) };
        felt.longest = felt.longest.max(began.elapsed());
        felt.accesses += 1;
        accesses.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = result {
            felt.errors.push(format!("at {at}: {error}"));
        }
        // A guest that never rests would leave two cores to nobody else.
        thread::sleep(Duration::from_micros(200));
    }
    felt
}
