//! The kernel's side of the bargain: what `sys`, `disk::real` and `hold::holders` rely on, on real XFS and Btrfs.

mod support;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::{Uid, setfsuid};
use rclone_img::disk::real::{RealDisk, RealFile};
use rclone_img::disk::{Access, Disk, DiskFile, FsKind};
use rclone_img::extent::Extent;
use rclone_img::hold::holders::{Holder, Holding, holders};
use rclone_img::range::{ByteRange, CloneRange, Geometry, PowerOfTwo};
use rclone_img::sys::lease::{self, Lease};
use rclone_img::sys::ofd::{self, Lock};
use rclone_img::sys::{fiemap as walker, inode};
use support::{FsType, LEAST, Sandbox, make_fragmented, sync_counts};

/// Set for the child that maps a file; the value is its path.
const CHILD_MAPS: &str = "RCLIMG_TEST_CHILD_MAPS";

/// Set for the child that looks for holders as an unprivileged user; the value is the file's path.
const CHILD_SEARCHES: &str = "RCLIMG_TEST_CHILD_SEARCHES";

fn on_both(test: impl Fn(FsType, &Sandbox)) {
    for kind in FsType::ALL {
        if let Some(sandbox) = Sandbox::new(kind, LEAST) {
            test(kind, &sandbox);
        }
    }
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("not empty")
}

fn whole(size: u64) -> CloneRange {
    Geometry { size, block: PowerOfTwo::new(4096).expect("a power of two") }.whole().expect("not empty")
}

fn map(file: &RealFile, range: ByteRange, max: usize) -> Vec<Extent> {
    let mut extents = Vec::new();
    file.map(range, max, true, &mut extents).expect("map");
    extents
}

/// A process that does something with a file and says so on a line; ended and waited for on drop.
struct Other(Child);

impl Other {
    fn start(command: &mut Command, said: &str) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("spawn");
        let mut other = Self(child);
        let lines = BufReader::new(other.0.stdout.take().expect("piped")).lines();
        let told = lines.map_while(Result::ok).any(|line| line.contains(said));
        assert!(told, "the child ended without a word");
        other
    }

    /// Has the file open as descriptor 9, in the shell's words for the mode.
    fn opens(mode: &str, path: &Path) -> Self {
        let script = format!("exec 9{mode}\"$1\"; echo ready; read wait");
        Self::start(Command::new("sh").args(["-c", &script, "sh"]).arg(path), "ready")
    }

    fn pid(&self) -> Option<u32> {
        Some(self.0.id())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It has ended already where its test failed; there is nobody to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_walk_agrees_with_the_oracle_in_batches_of_any_size() {
    on_both(|kind, sandbox| {
        let path = sandbox.path().join("image");
        make_fragmented(&path, 4096);
        let oracle: Vec<_> = fiemap::fiemap(&path).expect("open").map(|e| e.expect("fiemap")).collect();
        assert!(oracle.len() > 3000, "{kind:?} merged all but {} extents", oracle.len());
        let file = RealFile::open_image(&path).expect("open");
        for batch in [1, 7, 256, 1024, 3000, 5000] {
            let mut extents: Vec<Extent> = Vec::new();
            let mut at = 0;
            while let Some(rest) = ByteRange::new(at, 4096 * 4096) {
                let more = map(&file, rest, batch);
                at = more.last().map_or(rest.end(), |e| e.logical.end());
                let done = more.len() < batch;
                extents.extend(more);
                if done {
                    break;
                }
            }
            let ours = extents.iter().map(|e| (e.logical.start(), e.physical, e.logical.len(), e.flags.bits()));
            let theirs = oracle.iter().map(|e| (e.fe_logical, e.fe_physical, e.fe_length, e.fe_flags.bits()));
            assert!(ours.eq(theirs), "{kind:?} in batches of {batch}");
        }
        let count = walker::count(file.as_fd(), range(0, u64::MAX)).expect("count");
        assert_eq!(count, oracle.len() as u64, "{kind:?}");
        if kind == FsType::Xfs {
            assert_eq!(file.extent_count(), Some(count));
        } else {
            assert_eq!(file.extent_count(), None);
        }
    });
}

#[test]
fn a_ranged_walk_begins_and_ends_at_the_extents_that_touch_the_range() {
    on_both(|kind, sandbox| {
        let path = sandbox.path().join("image");
        fs::write(&path, vec![7; 1 << 20]).expect("write");
        let file = OpenOptions::new().write(true).open(&path).map(RealFile::from).expect("open");
        file.set_len(4 << 20).expect("a hole behind it");
        let file = RealFile::open_image(&path).expect("open");
        let middle = map(&file, range(300_000, 400_000), 10);
        assert_eq!(middle.len(), 1, "{kind:?}");
        assert!(middle[0].logical.start() <= 300_000 && middle[0].logical.end() >= 400_000, "{kind:?}");
        assert_eq!(map(&file, range(2 << 20, 3 << 20), 10), [], "a hole has no extents");
        assert_eq!(map(&file, range(0, 4 << 20), 0), [], "none asked for");
    });
}

#[test]
fn a_clone_shares_blocks_up_to_a_tail_that_is_no_whole_block() {
    on_both(|kind, sandbox| {
        let size = (1 << 20) + 777;
        let source = sandbox.path().join("image");
        fs::write(&source, (0..size).map(|i| (i / 511) as u8).collect::<Vec<_>>()).expect("write");
        let disk = RealDisk::open_dir(&sandbox.path()).expect("open");
        let from = disk.open(OsStr::new("image"), Access::Read).expect("open");
        let to = disk.create_new(OsStr::new("snapshot")).expect("create");
        to.set_len(size as u64).expect("size");
        to.clone_range(&from, whole(size as u64)).expect("clone");
        to.sync_all().expect("fsync");
        assert!(fs::read(&source).expect("read") == fs::read(sandbox.path().join("snapshot")).expect("read"));
        let (extents, shared) = sync_counts(&sandbox.path().join("snapshot"));
        assert!(extents > 0 && shared == extents, "{kind:?}: {shared} of {extents} extents are shared");
        let all = range(0, 2 << 20);
        let addresses = |file| map(file, all, 100).iter().map(|e| (e.logical, e.physical)).collect::<Vec<_>>();
        assert_eq!(addresses(&from), addresses(&to), "{kind:?}");
        // The tail inside a longer destination is what the kernel must refuse.
        to.set_len(4 << 20).expect("longer");
        let refused = to.clone_range(&from, whole(size as u64)).expect_err("an unaligned end inside the file");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{kind:?}");
    });
}

#[test]
fn a_writer_refuses_the_lease_and_is_named() {
    on_both(|kind, sandbox| {
        let path = sandbox.path().join("image");
        fs::write(&path, [0; 4096]).expect("write");
        let image = RealFile::open_image(&path).expect("open");
        {
            let writer = Other::opens("<>", &path);
            let refused = lease::take(image.as_fd(), Lease::Read).expect_err("a writer");
            assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN), "{kind:?}");
            let found = holders(image.as_fd()).expect("search").found;
            let expect = Holder { pid: writer.pid(), comm: "sh".to_owned(), what: Holding::Descriptor(9) };
            assert_eq!(found, [expect], "{kind:?}");
        }
        let reader = Other::opens("<", &path);
        assert_eq!(holders(image.as_fd()).expect("search").found, [], "{kind:?}: a reader is none");
        lease::take(image.as_fd(), Lease::Read).expect("readers do not mind");
        assert_eq!(lease::held(image.as_fd()).expect("ask"), Lease::Read);
        // A second opener for writing, which does not wait: it breaks the lease, and the signal must not end this process.
        let late = nix::fcntl::open(
            &path,
            nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        );
        assert_eq!(late.err(), Some(nix::errno::Errno::EWOULDBLOCK), "{kind:?}");
        assert_eq!(lease::held(image.as_fd()).expect("ask"), Lease::None, "{kind:?}: being broken");
        lease::release(image.as_fd()).expect("release");
        lease::release(image.as_fd()).expect("releasing none is no error");
        drop(reader);
    });
}

#[test]
fn a_loop_device_is_named_and_a_read_only_one_is_not() {
    on_both(|kind, sandbox| {
        let path = sandbox.path().join("image");
        File::create(&path).and_then(|f| f.set_len(1 << 20)).expect("create");
        let image = RealFile::open_image(&path).expect("open");
        for read_only in [false, true] {
            let device = LoopDevice::on(&path, read_only);
            let found = holders(image.as_fd()).expect("search").found;
            let what = Holding::LoopDevice(device.0.clone());
            let expect = (!read_only).then_some(Holder { pid: None, comm: String::new(), what });
            assert_eq!(found, expect.into_iter().collect::<Vec<_>>(), "{kind:?}");
        }
    });
}

/// A loop device, detached on drop.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn on(path: &Path, read_only: bool) -> Self {
        let mut losetup = Command::new("losetup");
        if read_only {
            losetup.arg("--read-only");
        }
        let output = losetup.args(["--find", "--show"]).arg(path).output().expect("losetup");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // The sandbox detaches what is left.
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_shared_mapping_outlives_its_descriptor_and_is_named() {
    on_both(|kind, sandbox| {
        let path = sandbox.path().join("image");
        fs::write(&path, [0; 8192]).expect("write");
        let image = RealFile::open_image(&path).expect("open");
        let itself = std::env::current_exe().expect("this test");
        let mut command = Command::new(itself);
        command.args(["--exact", "child_that_maps_a_file", "--nocapture"]).env(CHILD_MAPS, &path);
        let mapper = Other::start(&mut command, "mapped");
        let found = holders(image.as_fd()).expect("search").found;
        let named: Vec<_> = found.iter().map(|h| (h.pid, h.what.clone())).collect();
        assert_eq!(named, [(mapper.pid(), Holding::Mapping)], "{kind:?}");
    });
}

/// Not a test: what the one above starts. Maps the file shared, for reading as yet, closes it and waits to be ended.
#[test]
fn child_that_maps_a_file() {
    let Some(path) = std::env::var_os(CHILD_MAPS) else { return };
    let file = OpenOptions::new().read(true).write(true).open(path).expect("open");
    let (any, flags) = (std::ptr::null_mut(), libc::MAP_SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours, and nobody reads it.
    let at = unsafe { libc::mmap(any, 8192, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
    assert_ne!(at, libc::MAP_FAILED);
    drop(file);
    println!("mapped");
    std::io::stdout().flush().expect("tell the parent");
    // The end of the input is the parent's end.
    std::io::stdin().lines().for_each(drop);
}

#[test]
fn somebody_elses_processes_are_counted_where_they_cannot_be_seen() {
    let Some(sandbox) = Sandbox::new(FsType::Xfs, LEAST) else { return };
    let path = sandbox.path().join("image");
    fs::write(&path, [0; 4096]).expect("write");
    // Where the test was built need not be open to that user.
    let itself = sandbox.path().join("search");
    fs::copy(std::env::current_exe().expect("this test"), &itself).expect("copy");
    let _writer = Other::opens("<>", &path);
    let mut command = Command::new(itself);
    command.args(["--exact", "child_that_searches", "--nocapture"]).env(CHILD_SEARCHES, &path).uid(65_534);
    Other::start(&mut command, "found nobody");
}

/// Not a test: what the one above starts.
#[test]
fn child_that_searches() {
    let Some(path) = std::env::var_os(CHILD_SEARCHES) else { return };
    let image = RealFile::open_image(Path::new(&path)).expect("open");
    let seen = holders(image.as_fd()).expect("search");
    assert!(seen.hidden > 0);
    assert_eq!(seen.found, []);
    assert_eq!(seen.insist().found[0].what, Holding::Unknown);
    println!("found nobody");
}

#[test]
fn qemus_lock_is_seen() {
    on_both(|kind, sandbox| {
        let path = sandbox.path().join("image");
        fs::write(&path, [0; 4096]).expect("write");
        let image = RealFile::open_image(&path).expect("open");
        let qemu = File::open(&path).expect("open");
        assert!(ofd::try_lock(qemu.as_fd(), range(101, 102), Lock::Read).expect("lock"));
        let found = holders(image.as_fd()).expect("search").found;
        assert_eq!(found, [Holder { pid: None, comm: String::new(), what: Holding::QemuLock }], "{kind:?}");
    });
}

#[test]
fn a_change_shows_in_the_stat_and_a_new_file_has_another_identity() {
    on_both(|kind, sandbox| {
        let disk = RealDisk::open_dir(&sandbox.path()).expect("open");
        let name = OsStr::new("image");
        let file = disk.create_new(name).expect("create");
        let before = file.stat().expect("stat");
        assert!(before.regular && before.nlink == 1 && before.mode == 0o600);
        assert_eq!(before.subvolume, if kind == FsType::Btrfs { 5 } else { 0 }, "{kind:?}");
        // Kernels before 6.13 stamp files by the tick, so the first change may show none.
        let changed = (0..10_000_000).any(|i| {
            file.set_mode(0o600 | (i & 1)).expect("chmod");
            file.stat().expect("stat").ctime_ns > before.ctime_ns
        });
        assert!(changed, "{kind:?}");
        drop(file);
        disk.unlink(name).expect("unlink");
        let again = disk.create_new(name).expect("create").stat().expect("stat");
        assert_ne!((again.ino, again.generation), (before.ino, before.generation), "{kind:?}");
    });
}

#[test]
fn a_remount_is_another_instance_of_the_same_file_system() {
    on_both(|kind, sandbox| {
        let facts = || RealFile::open_image(&sandbox.path()).expect("open").fs().expect("facts");
        let before = facts();
        assert_eq!(facts(), before, "{kind:?}");
        assert_eq!(before.kind, if kind == FsType::Xfs { FsKind::Xfs } else { FsKind::Btrfs });
        assert_ne!(before.uuid, [0; 16]);
        assert_eq!(before.block.get(), 4096);
        assert_ne!(before.mount_instance, 0, "{kind:?}");
        sandbox.unmount();
        sandbox.mount();
        let after = facts();
        assert_ne!(after.mount_instance, before.mount_instance, "{kind:?}");
        assert_eq!((after.uuid, after.block), (before.uuid, before.block));
    });
}

#[test]
fn owning_a_file_takes_the_only_descriptor() {
    on_both(|kind, sandbox| {
        let disk = RealDisk::open_dir(&sandbox.path()).expect("open");
        let name = OsStr::new("snapshot");
        let file = disk.create_new(name).expect("create");
        {
            let reader = Other::opens("<", &sandbox.path().join(name));
            assert!(!file.try_own().expect("ask"), "{kind:?}: a reader");
            drop(reader);
        }
        assert!(file.try_own().expect("ask"), "{kind:?}");
        let late = disk.open(name, Access::Read).expect_err("under a write lease");
        assert_eq!(late.raw_os_error(), Some(libc::EWOULDBLOCK), "{kind:?}");
        file.disown().expect("release");
        let _reader = disk.open(name, Access::Read).expect("open");
        assert!(!file.try_own().expect("ask"), "{kind:?}: a reader in this very process");
    });
}

#[test]
fn a_protected_snapshot_of_ones_own_can_be_opened_for_writing() {
    let Some(sandbox) = Sandbox::new(FsType::Xfs, LEAST) else { return };
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let path = sandbox.path();
    // The kernel keeps this user id by the thread: the rest of the tests stay root.
    let user = std::thread::spawn(move || {
        setfsuid(Uid::from_raw(65_534));
        let disk = RealDisk::open_dir(&path).expect("open");
        let name = OsStr::new("snapshot");
        disk.create_new(name).expect("create").set_mode(0o444).expect("chmod");
        let file = disk.open(name, Access::Write).expect("open for writing");
        file.write_at(0, b"x").expect("write");
        assert_eq!(file.stat().expect("stat").mode, 0o644);
        // Once the first descriptor is closed, also in a process that another test is just starting.
        assert!((0..1_000_000).any(|_| file.try_own().expect("ask")));
    });
    user.join().expect("the user's thread");
}

#[test]
fn no_cow_sticks_to_an_empty_file_and_to_no_other() {
    on_both(|kind, sandbox| {
        let disk = RealDisk::open_dir(&sandbox.path()).expect("open");
        let file = disk.create_new(OsStr::new("image")).expect("create");
        assert!(!file.no_cow().expect("ask"));
        file.set_no_cow(false).expect("clear already");
        if kind == FsType::Xfs {
            file.set_no_cow(true).expect_err("XFS has no such flag");
            return;
        }
        file.set_no_cow(true).expect("set");
        assert!(file.no_cow().expect("ask"));
        let full = disk.create_new(OsStr::new("full")).expect("create");
        full.write_at(0, &[1; 8192]).expect("write");
        let refused = full.set_no_cow(true).expect_err("not empty");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        assert!(!inode::no_cow(full.as_fd()).expect("ask"));
    });
}

#[test]
fn a_record_is_kept_replaced_and_removed() {
    on_both(|kind, sandbox| {
        let disk = RealDisk::open_dir(&sandbox.path()).expect("open");
        let file = disk.create_new(OsStr::new("snapshot")).expect("create");
        assert_eq!(file.record().expect("read"), None, "{kind:?}");
        for record in [&[1_u8; 200][..], &[2; 3]] {
            file.set_record(Some(record)).expect("write");
            assert_eq!(file.record().expect("read").as_deref(), Some(record), "{kind:?}");
        }
        file.set_record(None).expect("remove");
        file.set_record(None).expect("removing none is no error");
        assert_eq!(file.record().expect("read"), None, "{kind:?}");
    });
}
