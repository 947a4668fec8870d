//! The job's end of what it and a server have to say to each other.

use std::fs::DirBuilder;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::geteuid;

use super::wire::{Lines, ToJob, ToServer, VERSION, line};
use crate::range::ByteRange;

/// How long an answer may take that nobody's write is waited for.
pub const AT_ONCE: Duration = Duration::from_secs(5);

/// Where the servers of this user listen for jobs.
pub fn directory() -> Option<PathBuf> {
    if geteuid().is_root() {
        return Some("/run/rclone-img".into());
    }
    std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(|dir| Path::new(&dir).join("rclone-img"))
}

/// Makes the directory where the servers of this user listen, if it is not there.
///
/// # Errors
/// The kernel's; NotFound where there is no place for it.
pub fn make_directory() -> io::Result<()> {
    let dir = directory().ok_or(ErrorKind::NotFound)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// The socket of the server of an image, by its device and inode.
pub fn socket(dev: u64, ino: u64) -> Option<PathBuf> {
    Some(directory()?.join(format!("serve-{dev:x}-{ino:x}")))
}

/// A file beside that socket, with this at the end of its name.
pub fn beside(dev: u64, ino: u64, ending: &str) -> Option<PathBuf> {
    let socket = socket(dev, ino)?;
    let name = [socket.file_name()?.to_str()?, ending].concat();
    Some(socket.with_file_name(name))
}

/// A server that serves an image.
pub struct Link {
    stream: UnixStream,
    lines: Lines,
    /// The server's process.
    pub pid: u32,
    /// Whether its clients may write.
    pub writes: bool,
    /// What somebody waits for.
    wanted: Option<ByteRange>,
    broken: Option<String>,
}

impl Link {
    /// The server of an image of this device and inode; `None` where nobody serves it.
    ///
    /// # Errors
    /// Where somebody answers at its socket, but not as a server of that image does.
    pub fn find(dev: u64, ino: u64) -> io::Result<Option<Self>> {
        let Some(path) = socket(dev, ino) else { return Ok(None) };
        let stream = match UnixStream::connect(path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
            other => other?,
        };
        let mut link = Self { stream, lines: Lines::default(), pid: 0, writes: true, wanted: None, broken: None };
        match link.ask(&ToServer::Hello { version: VERSION }, AT_ONCE)? {
            ToJob::Image { version: VERSION, pid, dev: its, ino: it, writes } if (its, it) == (dev, ino) => {
                // From a container its number is another one here than it knows.
                let seen = getsockopt(&link.stream, PeerCredentials).ok().and_then(|it| u32::try_from(it.pid()).ok());
                (link.pid, link.writes) = (seen.filter(|pid| *pid > 0).unwrap_or(pid), writes);
                Ok(Some(link))
            }
            ToJob::Image { version, .. } if version != VERSION => {
                Err(io::Error::other("the server that has it is of another version of this program: start it anew"))
            }
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }

    /// Says something that is not answered.
    ///
    /// # Errors
    /// Where the server is gone.
    pub fn say(&mut self, message: &ToServer) -> io::Result<()> {
        self.stream.write_all(&line(message)?)
    }

    /// Says something and waits for the answer; what comes before that is kept.
    ///
    /// # Errors
    /// TimedOut; where the server is gone.
    pub fn ask(&mut self, message: &ToServer, limit: Duration) -> io::Result<ToJob> {
        self.say(message)?;
        let until = Instant::now() + limit;
        loop {
            match self.hear(until.saturating_duration_since(Instant::now()))? {
                Some(message) => {
                    if let Some(answer) = self.kept(message) {
                        return Ok(answer);
                    }
                }
                None if Instant::now() >= until => return Err(ErrorKind::TimedOut.into()),
                None => {}
            }
        }
    }

    /// Takes in what has come.
    ///
    /// # Errors
    /// Where the server is gone, or answers without having been asked.
    pub fn listen(&mut self) -> io::Result<()> {
        while let Some(message) = self.hear(Duration::ZERO)? {
            if self.kept(message).is_some() {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        Ok(())
    }

    /// Whether something has come that nobody has taken.
    pub fn has_news(&self) -> bool {
        self.wanted.is_some() || self.broken.is_some()
    }

    /// What somebody waits for, once.
    pub fn wanted(&mut self) -> Option<ByteRange> {
        self.wanted.take()
    }

    /// Why the snapshot is lost, where the server says so.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// What is no answer is kept.
    fn kept(&mut self, message: ToJob) -> Option<ToJob> {
        match message {
            ToJob::Wanted { start, end } => self.wanted = ByteRange::new(start, end),
            ToJob::Broken { why } => self.broken = Some(why),
            answer => return Some(answer),
        }
        None
    }

    /// The next message; none where none comes in time.
    fn hear(&mut self, limit: Duration) -> io::Result<Option<ToJob>> {
        loop {
            if let Some(message) = self.lines.message()? {
                return Ok(Some(message));
            }
            if !wait(&[self.as_fd()], limit) {
                return Ok(None);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(got) => self.lines.feed(&bytes[..got]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Waits until one of these can be read; false where none can in time, or a signal came.
pub fn wait(fds: &[BorrowedFd<'_>], limit: Duration) -> bool {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    // Rounded up: a limit that is not nothing must not become a look without a wait.
    let millis = limit.as_micros().div_ceil(1000);
    let limit = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    poll(&mut fds, limit).is_ok_and(|ready| ready > 0)
}
