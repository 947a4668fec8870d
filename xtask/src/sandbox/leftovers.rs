//! Finding and removing sandboxes: one's own at the end, and those of runs that did not get to their end.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How the name of every sandbox begins, the tests' as well: `PREFIX WORD-PID-N`.
pub const PREFIX: &str = "reflink-img-";

/// The file in a sandbox that its maker keeps locked.
const OWNER: &str = "owner";

/// Claims a sandbox for this process. The file gets its name once it is locked, so no one sees it unlocked.
pub fn own(sandbox: &Path) -> Result<Flock<File>> {
    let claim = sandbox.join("owner.new");
    let file = File::create(&claim).with_context(|| format!("create {}", claim.display()))?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {}", claim.display()))?;
    fs::rename(&claim, sandbox.join(OWNER)).with_context(|| format!("rename {}", claim.display()))?;
    Ok(lock)
}

/// Removes what killed runs left where sandboxes are made, and in `elsewhere`. Says what it removed; a leftover that
/// resists is a warning, for it is not this run's failure.
pub fn sweep(elsewhere: &[&Path]) {
    let temporary = std::env::temp_dir();
    let mut bases = vec![Path::new("/dev/shm"), Path::new("/tmp"), &temporary];
    bases.extend(elsewhere);
    bases.sort_unstable();
    bases.dedup();
    for base in bases {
        for path in entries(base).filter(|path| is_leftover(path)) {
            match remove(&path) {
                Ok(()) => eprintln!("removed {}, left by a run that was killed", path.display()),
                Err(error) => eprintln!("warning: a killed run left something: {error:#}"),
            }
        }
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn is_leftover(path: &Path) -> bool {
    let Some(pid) = path.file_name().and_then(|name| maker(name.to_str()?)) else { return false };
    // A link of that name, or a file, is none of ours.
    if !path.symlink_metadata().is_ok_and(|it| it.is_dir()) {
        return false;
    }
    match File::open(path.join(OWNER)) {
        Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok(),
        Err(error) => error.kind() == ErrorKind::NotFound && kill(pid, None) == Err(nix::errno::Errno::ESRCH),
    }
}

/// The process in a sandbox's name.
fn maker(name: &str) -> Option<Pid> {
    let mut parts = name.strip_prefix(PREFIX)?.rsplitn(3, '-');
    let _number: u32 = parts.next()?.parse().ok()?;
    let pid: i32 = parts.next()?.parse().ok()?;
    let word = parts.next()?;
    (pid > 0 && !word.is_empty() && !word.ends_with('-')).then(|| Pid::from_raw(pid))
}

/// Unmounts, detaches and removes everything under `sandbox`, which ends whatever still uses it.
pub fn remove(sandbox: &Path) -> Result<()> {
    let mounts = || mounts_under(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), sandbox);
    for attempt in 0..50 {
        let mounted = mounts();
        if mounted.is_empty() {
            break;
        }
        if attempt > 0 {
            // A child that outlived its killed parent, most likely.
            end_users(sandbox);
            thread::sleep(Duration::from_millis(100));
        }
        for mount in mounted {
            // Lazily only in the end: a lazy unmount hides whatever still uses the device.
            quietly("umount", if attempt == 49 { &["-l"] } else { &[] }, &mount);
        }
    }
    if let Some(mount) = mounts().first() {
        bail!("{} cannot be unmounted; see what uses it with `fuser -vm {0}`", mount.display());
    }
    for device in loops_under(sandbox) {
        quietly("losetup", &["-d"], &device);
    }
    for attempt in 0.. {
        match fs::remove_dir_all(sandbox) {
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            // Somebody still writes there.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && attempt < 50 => {
                end_users(sandbox);
                thread::sleep(Duration::from_millis(100));
            }
            removed => return removed.with_context(|| format!("remove {}", sandbox.display())),
        }
    }
    Ok(())
}

/// Kills the processes that have something under `sandbox` open or as their working directory, but not this one.
fn end_users(sandbox: &Path) {
    for process in entries(Path::new("/proc")) {
        let pid = process.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok());
        let Some(pid) = pid.filter(|pid| pid.cast_unsigned() != std::process::id()) else { continue };
        let mut links = entries(&process.join("fd")).chain([process.join("cwd")]);
        if links.any(|link| fs::read_link(link).is_ok_and(|target| target.starts_with(sandbox))) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The mount points under `sandbox`, the deepest first.
fn mounts_under(mountinfo: &str, sandbox: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let mut under: Vec<PathBuf> =
        points.map(|point| PathBuf::from(unescape(point))).filter(|point| point.starts_with(sandbox)).collect();
    // A mount over another one stands below it in the list: last mounted, first unmounted.
    under.reverse();
    under.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    under
}

/// The kernel writes spaces and the like in mountinfo as three octal digits.
fn unescape(point: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(point.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Loop devices whose backing file is under `sandbox`.
fn loops_under(sandbox: &Path) -> Vec<PathBuf> {
    entries(Path::new("/sys/block"))
        .filter(|block| {
            let backing = fs::read_to_string(block.join("loop/backing_file"));
            backing.is_ok_and(|backing| Path::new(backing.trim_end()).starts_with(sandbox))
        })
        .filter_map(|block| Some(Path::new("/dev").join(block.file_name()?)))
        .collect()
}

/// Runs a command for its effect: whether it had one is looked up afterwards. Not on the list of children, for this
/// must work in the midst of an interruption.
fn quietly(program: &str, arguments: &[&str], path: &Path) {
    let mut command = Command::new(program);
    command.args(arguments).arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Ok(path) = std::env::join_paths(crate::setup::search_path()) {
        command.env("PATH", path);
    }
    let _ = command.status();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maker_is_read_from_the_name() {
        assert_eq!(maker("reflink-img-xtask-123-0"), Some(Pid::from_raw(123)));
        assert_eq!(maker("reflink-img-test-refresh-7-12"), Some(Pid::from_raw(7)));
        for name in
            ["reflink-img-123-0", "reflink-img-xtask-123", "reflink-img-xtask--1-0", "other-1-0", "reflink-img-"]
        {
            assert_eq!(maker(name), None, "{name}");
        }
    }

    #[test]
    fn the_deepest_mount_comes_first() {
        let mountinfo = "1 2 7:0 / / rw - ext4 /dev/vda rw\n\
                         3 1 7:1 / /s/a\\040b rw - xfs /dev/loop1 rw\n\
                         4 3 7:2 / /s/a\\040b/mnt rw - btrfs /dev/loop2 rw\n\
                         5 1 7:3 / /sibling rw - xfs /dev/loop3 rw\n";
        let expect = [Path::new("/s/a b/mnt"), Path::new("/s/a b")];
        assert_eq!(mounts_under(mountinfo, Path::new("/s")), expect);
    }

    #[test]
    fn a_sandbox_is_a_leftover_once_nobody_holds_its_lock() {
        let outer = crate::sandbox::Sandbox::inside(&std::env::temp_dir()).unwrap();
        let alive = outer.path().join(format!("{PREFIX}test-{}-0", std::process::id()));
        fs::create_dir(&alive).unwrap();
        assert!(!is_leftover(&alive), "its maker lives and has not come to lock it yet");
        let lock = own(&alive).unwrap();
        assert!(!is_leftover(&alive));
        drop(lock);
        // A process that another test starts has it until it is another program.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !is_leftover(&alive) && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        assert!(is_leftover(&alive), "the lock is gone, the process id given out again");
        remove(&alive).unwrap();
        assert!(!alive.exists());
    }

    #[test]
    fn a_dead_maker_without_a_lock_leaves_a_leftover() {
        let outer = crate::sandbox::Sandbox::inside(&std::env::temp_dir()).unwrap();
        let dead = outer.path().join(format!("{PREFIX}test-{}-0", i32::MAX));
        fs::create_dir(&dead).unwrap();
        assert!(is_leftover(&dead));
    }
}
