//! What a server leaves to its successor: that a job keeps a point in time of the image, so that no write may go on without it.
//!
//! It is a file in the runtime directory, which does not outlive a boot. The server makes it before T0, and removes it before it lets a write
//! go on that the job does not know of. So as long as it is there, nothing was written that the job has not heard of: a server that
//! finds it has the writes wait for the job, and a job whose server is gone goes on (nobody writes then) and removes it itself at its end.
//! Who removes it has decided; there is no other way to take it, and nobody who waits.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::link;

/// What the names have between the socket's and the job's own.
const JOB: &str = ".job-";

/// What is at the end of the name under which one is written: each job has its own.
const NEW: &str = ".new";

/// The most that such a file has, in bytes.
const LONGEST: u64 = 4096;

/// What is known of a job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Handover {
    /// Its name, which no other job has: hexadecimal.
    pub job: String,
    /// Its process.
    pub pid: u32,
    /// When that started, in clock ticks since the boot.
    pub pid_start: u64,
    /// How long a write may wait, in microseconds.
    pub deadline_us: u64,
    /// The image's size, in bytes.
    pub size: u64,
    /// The unit that is cloned before a write goes on, in bytes.
    pub cluster: u64,
}

/// Where that of a job is, for an image of this device and inode.
pub fn path(dev: u64, ino: u64, job: &str) -> Option<PathBuf> {
    let plain = !job.is_empty() && job.len() <= 64 && job.bytes().all(|byte| byte.is_ascii_alphanumeric());
    link::beside(dev, ino, &[JOB, job].concat()).filter(|_| plain)
}

/// All that there are of an image.
///
/// # Errors
/// What readdir(3) says, but that there is no directory.
pub fn all(dev: u64, ino: u64) -> io::Result<Vec<(PathBuf, Option<Handover>)>> {
    let Some(socket) = link::socket(dev, ino) else { return Ok(Vec::new()) };
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name().and_then(|it| it.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = [name, JOB].concat();
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let ours =
        |path: &PathBuf| path.file_name().and_then(|it| it.to_str()).is_some_and(|name| name.starts_with(&prefix));
    let paths = entries.flatten().map(|entry| entry.path()).filter(ours);
    // One that a server was killed over before it had its name says nothing.
    let read = |path: &Path| Handover::read(path).filter(|_| !path.to_string_lossy().ends_with(NEW));
    Ok(paths.map(|path| (path.clone(), read(&path))).collect())
}

/// Takes it away; whether it was there.
pub fn take(path: &Path) -> bool {
    fs::remove_file(path).is_ok()
}

impl Handover {
    /// Writes it down, whole or not at all.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut new = path.as_os_str().to_owned();
        new.push(NEW);
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }

    /// How long a write may wait.
    pub fn deadline(&self) -> Duration {
        Duration::from_micros(self.deadline_us)
    }

    fn read(path: &Path) -> Option<Self> {
        let short = fs::metadata(path).ok()?.len() <= LONGEST;
        serde_json::from_slice(&fs::read(path).ok().filter(|_| short)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn jobs_that_write_theirs_at_once_do_not_meet() {
        let dir = tempfile::tempdir().expect("a directory");
        let job = |job: &str| {
            let at = dir.path().join(["serve-1-2", JOB, job].concat());
            let left = Handover { job: job.into(), pid: 1, pid_start: 2, deadline_us: 3, size: 4 << 20, cluster: 4096 };
            for _ in 0..1000 {
                left.write(&at).expect("written");
                assert_eq!(Handover::read(&at).as_ref(), Some(&left));
            }
        };
        thread::scope(|scope| ["a", "b"].iter().for_each(|name| drop(scope.spawn(|| job(name)))));
    }
}
