//! Who opens a served image for writing past its server, writes and is gone: nobody would find him afterwards.
//!
//! inotify(7) tells, to everybody who may read the file, when one that was open for writing is closed; the server itself closes none while
//! it runs. Who is still there is found by a look at /proc.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Watches one image.
pub struct Strangers(Inotify);

impl Strangers {
    /// Of an image that is open.
    ///
    /// # Errors
    /// What inotify(7) says: too many are in use (`fs.inotify`).
    pub fn of(image: &impl AsFd) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // The file itself, whatever its name is by now.
        let path = format!("/proc/self/fd/{}", image.as_fd().as_raw_fd());
        inotify.add_watch(path.as_str(), AddWatchFlags::IN_CLOSE_WRITE)?;
        Ok(Self(inotify))
    }

    /// Whether somebody came and went since the last look; also where that cannot be told.
    pub fn came(&self) -> bool {
        // Whatever is told is either that, or that more was told than could be kept.
        !matches!(self.0.read_events(), Err(Errno::EAGAIN))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn who_writes_and_goes_is_told_of_and_who_reads_is_not() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let strangers = Strangers::of(file.as_file()).expect("a watch");
        drop(File::open(file.path()).expect("the file"));
        assert!(!strangers.came());
        let writer = File::options().write(true).open(file.path()).expect("the file");
        assert!(!strangers.came(), "he is still there");
        drop(writer);
        assert!(strangers.came() && !strangers.came());
    }
}
