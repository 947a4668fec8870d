//! Who opens a served image for writing past its server, writes and is gone: nobody would find him afterwards.
//!
//! inotify(7) tells, to everybody who may read the file, when one that was open for writing is closed; the server itself closes none while
//! it runs. Who is still there is found by a look at /proc. When a server ends, its own descriptors are closed as well, and the kernel tells
//! several closings as one: so it is noted who opens the image, whom only a server's end could hide.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Watches one image.
pub struct Strangers {
    inotify: Inotify,
    /// Somebody has opened it, to read or to write.
    opened: bool,
    /// And after that somebody has closed it.
    closed: bool,
}

impl Strangers {
    /// Of an image that is open.
    ///
    /// # Errors
    /// What inotify(7) says: too many are in use (`fs.inotify`).
    pub fn of(image: &impl AsFd) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // The file itself, whatever its name is by now.
        let path = format!("/proc/self/fd/{}", image.as_fd().as_raw_fd());
        inotify.add_watch(path.as_str(), AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_OPEN)?;
        Ok(Self { inotify, opened: false, closed: false })
    }

    /// Whether somebody closed it who had it open for writing, since the last look; also where that cannot be told.
    pub fn came(&mut self) -> bool {
        let mut came = false;
        loop {
            match self.inotify.read_events() {
                Err(Errno::EAGAIN) => return came,
                Err(Errno::EINTR) => {}
                Err(_) => return true,
                Ok(events) => {
                    for event in events {
                        // What is told else is that more happened than could be kept.
                        let opened = event.mask == AddWatchFlags::IN_OPEN;
                        self.opened |= opened;
                        self.closed |= self.opened && !opened;
                        came |= !opened;
                    }
                }
            }
        }
    }

    /// Whether somebody has opened it since the last time that this was asked.
    pub fn has_opened(&mut self) -> bool {
        std::mem::take(&mut self.opened)
    }

    /// The server has ended, and has closed the image: whether somebody else may have as well. The next server opens it after that.
    pub fn came_with_its_end(&mut self) -> bool {
        self.came();
        self.closed
    }

    /// A server has opened the image since the last one's end, and nobody else has closed it. False where somebody has. Who has opened it
    /// until now is forgotten: whoever may have is to be looked for after this, and it is to be asked once more whether he came.
    pub fn server_came(&mut self) -> bool {
        let came = self.came();
        (self.opened, self.closed) = (false, false);
        !came
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn who_writes_and_goes_is_told_of_and_who_reads_is_not() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut strangers = Strangers::of(file.as_file()).expect("a watch");
        drop(File::open(file.path()).expect("the file"));
        assert!(!strangers.came());
        let writer = File::options().write(true).open(file.path()).expect("the file");
        assert!(!strangers.came(), "he is still there");
        drop(writer);
        assert!(strangers.came() && !strangers.came());
    }

    #[test]
    fn a_servers_end_hides_nobody() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = || File::options().write(true).open(file.path()).expect("the file");
        let server = open();
        let mut strangers = Strangers::of(file.as_file()).expect("a watch");
        drop(server);
        assert!(!strangers.came_with_its_end());
        let next = open();
        assert!(!strangers.came() && !strangers.came_with_its_end() && strangers.server_came());
        let other = open();
        assert!(!strangers.came());
        drop((next, other));
        assert!(strangers.came_with_its_end());
    }
}
