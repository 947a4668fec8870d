//! Snapshots under the hold `guard` of an image with a file system in it: what a real ext4 has written is written again by
//! `qemu-io`, in its order, while the snapshot is taken. The snapshot is the image after some number of those writes, the number at
//! T0; and e2fsck, which brings the journal's contents home first, has nothing to complain of. On real XFS and Btrfs.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::support::{Disk, QemuIo, Recording, Request, Sandbox, Taken, guard, has, must, on_both, runs, skipped};
use reflink_img_guest::clock;
use reflink_img_guest::sys::aio::Aio;

/// The image's size.
const SIZE: u64 = 32 << 20;

/// Writes under way at a time while the image is made.
const DEPTH: usize = 32;

/// How many files the workload makes: enough to fill the journal more than once.
const FILES: u32 = 240;

/// The bytes of a group of the file system, whose blocks are of 1 KiB.
const GROUP: usize = 8 << 20;

/// From when to when each request was under way, by the guest's clock.
type Times = Vec<(u64, u64)>;

/// The recording's first state as the image, written one block after the other in any order: in as many extents as blocks.
fn image(s: &Sandbox, recording: &Recording) {
    let path = s.path("a.img");
    let _ = fs::remove_file(&path);
    let file = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_DIRECT).open(path).expect("a file");
    file.set_len(SIZE).expect("its size");
    let mut engine = Aio::new(file, DEPTH, 4096).expect("libaio");
    let mut blocks: Vec<u64> = (0..SIZE / 4096).collect();
    reflink_img_guest::random::Random::new(SIZE).shuffle(&mut blocks);
    for some in blocks.chunks(DEPTH) {
        for (slot, block) in some.iter().enumerate() {
            let at = *block as usize * 4096;
            engine.buffer(slot)[..4096].copy_from_slice(&recording.disk[at..at + 4096]);
            engine.write(slot, at as u64, 4096).expect("submitted");
        }
        let mut left = some.len();
        while left > 0 {
            engine.wait(|_, result| left -= usize::from(result.expect("written") == 4096)).expect("waited");
        }
    }
}

/// Does one request and notes its times.
fn replay(s: &Sandbox, disk: &mut QemuIo, request: &Request, times: &mut Times) {
    let start = clock::now();
    let done = match request {
        Request::Flush => disk.does("flush"),
        Request::Write(offset, bytes) => {
            let source = s.outside("source");
            fs::write(&source, bytes).expect("the source");
            disk.does(&format!("write -s {} {offset} {}", source.display(), bytes.len()))
        }
    };
    assert!(done, "{:?}: not done", s.fs);
    times.push((start, clock::now()));
}

/// Replays all of it, with a snapshot taken from a third of it on.
fn taken_meanwhile(s: &Sandbox, recording: &Recording, flags: &[&str]) -> (Taken, Times) {
    let mut disk = QemuIo::open(&s.path("a.img"), "file.aio=native,cache.direct=on");
    let mut times = Times::new();
    let (before, after) = recording.requests.split_at(recording.requests.len() / 3);
    before.iter().for_each(|request| replay(s, &mut disk, request, &mut times));
    let taken = thread::scope(|scope| {
        let job = scope.spawn(|| Taken::by(s, &[flags, &["a.img", "a.snap"]].concat()));
        for request in after {
            replay(s, &mut disk, request, &mut times);
            if !job.is_finished() {
                // Else it would all be over before the job has begun.
                thread::sleep(Duration::from_millis(1));
            }
        }
        job.join().expect("a snapshot")
    });
    (taken, times)
}

/// After how many of the requests the disk was what the snapshot shows: each of these numbers.
fn prefixes(recording: &Recording, snapshot: &Path) -> Vec<usize> {
    let snapshot = fs::read(snapshot).expect("the snapshot");
    let mut disk = recording.disk.clone();
    assert_eq!(snapshot.len(), disk.len());
    let differing = |disk: &[u8], at: usize, len: usize| {
        let sectors = disk[at..at + len].chunks(512).zip(snapshot[at..at + len].chunks(512));
        sectors.filter(|(one, other)| one != other).count()
    };
    let mut differ = differing(&disk, 0, disk.len());
    let mut found = Vec::from_iter((differ == 0).then_some(0));
    for (number, request) in (1..).zip(&recording.requests) {
        if let Request::Write(offset, bytes) = request {
            let at = *offset as usize;
            differ -= differing(&disk, at, bytes.len());
            request.apply(&mut disk);
            differ += differing(&disk, at, bytes.len());
        }
        found.extend((differ == 0).then_some(number));
    }
    found
}

/// How e2fsck ends, and what it says.
fn e2fsck(flags: &[&str], disk: &Path) -> (Option<i32>, String) {
    let out = Command::new("e2fsck").args(flags).arg(disk).stdin(Stdio::null()).output().expect("e2fsck");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    println!("e2fsck {flags:?}: {:?}, {said}", out.status.code());
    (out.status.code(), said)
}

/// Whether a whole check, which changes nothing, finds nothing that it would ask about.
fn is_clean(disk: &Path) -> bool {
    let (code, said) = e2fsck(&["-f", "-n"], disk);
    code == Some(0) && !said.contains('?')
}

/// The disk at the end, with its first group, which describes all groups, from an earlier instant.
fn two_instants(recording: &Recording) -> Vec<u8> {
    let (third, all) = (recording.requests.len() / 3, recording.requests.len());
    let state = |number: usize| {
        let mut disk = recording.disk.clone();
        recording.requests[..number].iter().for_each(|request| request.apply(&mut disk));
        disk
    };
    let mut disk = state(all);
    disk[..GROUP].copy_from_slice(&state(third)[..GROUP]);
    disk
}

#[test]
fn a_journalled_file_system_is_whole_in_the_snapshot() {
    if !has("qemu-io") || !has("e2fsck") {
        return skipped("qemu-io or e2fsck is not installed");
    }
    let recording = std::cell::OnceCell::new();
    on_both(|s| {
        let Some(recording) = recording.get_or_init(|| Recording::make(&s.outside("recording"), SIZE, FILES)) else {
            return;
        };
        let _service = guard(s);
        let (snapshot, copy) = (s.path("a.snap"), s.path("copy"));
        // A round that no write has met proves nothing.
        let (mut round, mut met) = (0, 0);
        while met < runs(1, 10) {
            let what = format!("{:?}, round {round}", s.fs);
            round += 1;
            assert!(round < 10 * runs(1, 10), "{what}: {met} were met");
            image(s, recording);
            let (taken, times) = taken_meanwhile(s, recording, &["--latency", "1ms", "--cluster", "16K"]);
            let prefixes = prefixes(recording, &snapshot);
            println!("{what}: {prefixes:?} of {}; {}", recording.requests.len(), taken.finished[0]);
            assert_eq!(taken.finished[0]["hold"], "guard", "{what}");
            met += u32::from(taken.number("promoted") > 0);
            let ended = times.iter().take_while(|(_, end)| end < taken.t0.start()).count();
            let begun = times.iter().take_while(|(start, _)| start <= taken.t0.end()).count();
            let at_t0 = prefixes.iter().any(|number| (ended..=begun).contains(number));
            assert!(at_t0, "{what}: {ended} writes had ended at T0, {begun} had begun; it shows {prefixes:?}");
            must("cp", &[&"--reflink=always", &"--no-preserve=mode", &snapshot, &copy]);
            // Without -f nothing is checked that the journal has made whole.
            let (code, said) = e2fsck(&["-p"], &copy);
            assert!(matches!(code, Some(0 | 1)) && said.contains("recovering journal"), "{what}: {code:?}, {said}");
            assert!(is_clean(&copy), "{what}: the file system is damaged");
            fs::remove_file(&snapshot).expect("the snapshot");
        }
        // Without a hold. By chance one may be of one instant.
        let is_mixed = || {
            let _ = fs::remove_file(&snapshot);
            image(s, recording);
            taken_meanwhile(s, recording, &["--consistency", "none", "--chunk", "1M", "--latency", "1ms"]);
            prefixes(recording, &snapshot).is_empty()
        };
        assert!((0..5).any(|_| is_mixed()), "{:?}: copies without a hold are of one instant", s.fs);
        // e2fsck would have seen it if the snapshot were of two instants.
        fs::write(&copy, two_instants(recording)).expect("a copy");
        assert!(!is_clean(&copy), "{:?}: e2fsck finds nothing in a copy of two instants", s.fs);
    });
}
