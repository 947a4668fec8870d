//! Where clients connect: a socket of our own, or the one that systemd hands over.

use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{self as net, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};

use crate::cli::words;
use crate::disk::inherited;
use crate::error::{Error, Kind, Result};

/// How long another server that looks at the same directory may take, and how often it is looked whether it has.
const PATIENCE: Duration = Duration::from_secs(2);
const MOMENT: Duration = Duration::from_millis(10);

/// A socket that listens. What we have made is removed in the end.
pub struct Socket {
    listener: UnixListener,
    made: Option<Made>,
}

struct Made {
    path: PathBuf,
    /// Which file it was: another one of that name is somebody else's.
    is: (u64, u64),
}

/// Where there is to be one.
pub enum Place<'a> {
    /// At this path.
    At(&'a Path),
    /// It is there already: systemd's.
    Handed(Socket),
}

impl<'a> Place<'a> {
    /// At this path, or without one where systemd has one.
    ///
    /// # Errors
    /// Usage where there is neither.
    pub fn of(path: Option<&'a Path>) -> Result<Self> {
        path.map_or_else(|| Socket::inherit().map(Self::Handed), |path| Ok(Self::At(path)))
    }

    /// The socket.
    ///
    /// # Errors
    /// Refused where something is at the path that is no socket, or one that is listened to, and where none can be made there.
    pub fn listen(self) -> Result<Socket> {
        match self {
            Self::At(path) => Socket::make(path),
            Self::Handed(socket) => Ok(socket),
        }
    }
}

impl Socket {
    /// Who takes the clients.
    ///
    /// # Errors
    /// Failed without a descriptor for it.
    pub fn listener(&self) -> Result<UnixListener> {
        let none = |e| Error::io(Kind::Failed, "the socket cannot be shared", "see ulimit -n", e);
        self.listener.try_clone().map_err(none)
    }

    /// Where it is, if it has a name.
    pub fn path(&self) -> Option<PathBuf> {
        self.listener.local_addr().ok()?.as_pathname().map(Path::to_owned)
    }

    fn inherit() -> Result<Self> {
        let wrong =
            |what: &str| Error::new(Kind::Usage, what, "give --socket PATH, or a systemd socket unit with one stream");
        let handed = sd_notify::listen_fds().map_err(|_| wrong("what systemd says of its sockets cannot be read"))?;
        let handed: Vec<_> = handed.collect();
        match handed[..] {
            [] => Err(wrong("there is no socket to listen at")),
            [number] => match inherited::listener(number) {
                Ok(listener) => Ok(Self { listener, made: None }),
                Err(_) => Err(wrong("what systemd has handed over is no Unix socket that listens")),
            },
            _ => Err(wrong("systemd has handed over more than one socket")),
        }
    }

    /// A new one at this path.
    ///
    /// # Errors
    /// Refused where something is at the path that is no socket, or one that is listened to, and where none can be made there.
    pub fn make(path: &Path) -> Result<Self> {
        let name = words::name(path);
        let cannot = |e: io::Error| {
            let hint = "its directory must exist and be writable, and a socket's path has at most 107 bytes";
            Error::io(Kind::Refused, format!("cannot listen at {name}"), hint, e)
        };
        let path = std::path::absolute(path).map_err(cannot)?;
        // Two that find the same dead socket must not each remove the other's new one.
        let dir = path.parent().and_then(|dir| File::open(dir).ok());
        if let Some(dir) = &dir {
            lock(dir).map_err(|()| {
                let what = format!("somebody keeps the directory of {name} locked");
                Error::new(Kind::Refused, what, "see who has it (lslocks), or choose another directory")
            })?;
        }
        let listener = match bind(&path) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {
                remove_dead(&path)?;
                bind(&path)
            }
            other => other,
        };
        let listener = listener.map_err(cannot)?;
        let meta = fs::symlink_metadata(&path).map_err(cannot)?;
        Ok(Self { listener, made: Some(Made { path, is: (meta.dev(), meta.ino()) }) })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(Made { path, is }) = &self.made
            && fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == *is)
        {
            // One that stays is found dead by the next.
            let _ = fs::remove_file(path);
        }
    }
}

/// The kernel gives the file the mode that the socket has before it is bound (unix(7) leaves it out; unix_bind in Linux): nobody can connect
/// before the mode is right, and the process's umask, which its threads share, stays as it is.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let address = UnixAddr::new(path)?;
    let socket = net::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    net::bind(socket.as_raw_fd(), &address)?;
    net::listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

/// Removes a socket that nobody listens to any more.
fn remove_dead(path: &Path) -> Result<()> {
    let name = words::name(path);
    let refused = |what: String, hint: &str| Err(Error::new(Kind::Refused, what, hint));
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if !is_socket {
        return refused(format!("{name} exists and is no socket"), "choose another name");
    }
    match is_dead(path) {
        Ok(true) => fs::remove_file(path).map_err(|e| {
            Error::io(
                Kind::Refused,
                format!("cannot remove the dead socket {name}"),
                "remove it, or choose another name",
                e,
            )
        }),
        _ => refused(format!("somebody listens at {name} already"), "stop that server, or choose another name"),
    }
}

/// Whether nobody listens; one that takes no more at the moment does.
fn is_dead(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = net::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    Ok(net::connect(socket.as_raw_fd(), &UnixAddr::new(path)?) == Err(Errno::ECONNREFUSED))
}

/// Locks a directory, which whoever may read it can do as well: not for ever.
fn lock(dir: &File) -> std::result::Result<(), ()> {
    let until = Instant::now() + PATIENCE;
    loop {
        match dir.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(MOMENT),
            Err(TryLockError::WouldBlock) => return Err(()),
            // Where there are no locks there is no such care.
            _ => return Ok(()),
        }
    }
}

/// The URI of an export at this socket; the empty name is that of the image.
pub fn uri(export: &str, path: &Path) -> String {
    let plain = |text: &[u8]| {
        text.iter().fold(String::new(), |mut uri, byte| {
            let plain = byte.is_ascii_alphanumeric() || b"/-_.~".contains(byte);
            let _ = if plain { write!(uri, "{}", char::from(*byte)) } else { write!(uri, "%{byte:02X}") };
            uri
        })
    };
    format!("nbd+unix:///{}?socket={}", plain(export.as_bytes()), plain(path.as_os_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_safe_in_a_shell_and_in_an_option_of_qemu() {
        assert_eq!(uri("", Path::new("/run/vm-1.sock")), "nbd+unix:///?socket=/run/vm-1.sock");
        assert_eq!(uri("", Path::new("/a b,'c%\n")), "nbd+unix:///?socket=/a%20b%2C%27c%25%0A");
    }

    #[test]
    fn a_dead_socket_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).expect("a socket"));
        let live = Socket::make(&path).expect("the dead one's place");
        assert_eq!(fs::metadata(&path).expect("a socket").mode() & 0o777, 0o600);
        let error = Socket::make(&path).err().expect("somebody listens");
        assert!(error.to_string().contains("somebody listens"), "{error}");
        drop(live);
        assert!(!path.exists());
        fs::write(&path, "mine").expect("a file");
        let error = Socket::make(&path).err().expect("no socket");
        assert!(error.to_string().contains("no socket") && path.exists(), "{error}");
    }

    #[test]
    fn what_another_has_put_in_its_place_stays() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("s");
        let ours = Socket::make(&path).expect("a socket");
        fs::remove_file(&path).expect("removed");
        fs::write(&path, "mine").expect("a file");
        drop(ours);
        assert!(path.exists());
    }
}
