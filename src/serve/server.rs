//! Those who connect: a thread each, a bounded number of them.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::fleece::all::Told;
use super::session::Stream;

/// The time before the next connection is taken where one could not be: most likely there are no descriptors left.
const RECOVERY: Duration = Duration::from_millis(100);

/// Why there is no client where somebody was about to come.
const PASSES: [ErrorKind; 3] = [ErrorKind::Interrupted, ErrorKind::ConnectionAborted, ErrorKind::WouldBlock];

/// What happens, for a log.
#[derive(Debug)]
pub enum Event {
    /// A client came; how many there are with it.
    Came(usize),
    /// One went; how many are left, and why where it did not go in peace.
    Went(usize, Option<io::Error>),
    /// One more than there may be was sent away.
    SentAway,
    /// What clients have written is lost, and every flush fails from now on.
    Lost(io::Error),
    /// What became of a fleece.
    Fleece(Told),
    /// A connection could not be taken.
    Failed(io::Error),
}

/// Who is told what happens; by the thread to which it happens, so it must not wait.
pub type Tell = Box<dyn Fn(Event) + Send + Sync>;

/// A server on a socket.
pub struct Server<S> {
    listener: UnixListener,
    /// Serves one who came until he goes.
    serve: S,
    /// The most connections at a time.
    most: usize,
    tell: Tell,
    open: Mutex<BTreeMap<u64, Arc<UnixStream>>>,
    stopping: AtomicBool,
    /// Wakes who waits for a client. The socket itself may be somebody else's as well, and goes on then.
    stop: EventFd,
}

impl<S: Fn(&UnixStream) -> io::Result<()> + Sync> Server<S> {
    /// Not running yet. `serve` is called in a thread for each who comes.
    ///
    /// # Errors
    /// Where there is no descriptor left.
    pub fn new(listener: UnixListener, serve: S, most: usize, tell: Tell) -> io::Result<Self> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        // Who is told that somebody waits must not wait in vain for one that has gone since.
        listener.set_nonblocking(true)?;
        Ok(Self { listener, serve, most, tell, open: Mutex::default(), stopping: AtomicBool::new(false), stop })
    }

    /// Serves until [`Server::stop`], and until all have gone then.
    pub fn run(&self) {
        thread::scope(|scope| {
            let mut failing = false;
            for id in 0.. {
                self.wait();
                if self.is_stopping() {
                    break;
                }
                let taken = match self.listener.accept() {
                    Ok((stream, _)) => self.admit(id, Arc::new(stream)),
                    Err(e) if PASSES.contains(&e.kind()) => Ok(None),
                    Err(e) => Err(e),
                };
                let started = taken.and_then(|stream| {
                    let Some(stream) = stream else { return Ok(()) };
                    let serve = move || self.serve(id, &stream);
                    let started = thread::Builder::new().name("client".into()).spawn_scoped(scope, serve);
                    started.map(drop).inspect_err(|_| self.dismiss(id, None))
                });
                match started {
                    Ok(()) => failing = false,
                    Err(e) => {
                        // Once, however often it is tried.
                        if !std::mem::replace(&mut failing, true) {
                            (self.tell)(Event::Failed(e));
                        }
                        thread::sleep(RECOVERY);
                    }
                }
            }
        });
    }

    /// Takes no more connections and no more requests; those that were taken are answered, by who reads the answers.
    pub fn stop(&self) {
        let open = self.open();
        self.stopping.store(true, Ordering::Release);
        let _ = self.stop.write(1);
        open.values().for_each(|stream| drop(stream.shutdown(std::net::Shutdown::Read)));
    }

    /// Hangs up on those who are still there; how many.
    pub fn hang_up(&self) -> usize {
        let open = self.open();
        open.values().for_each(|stream| stream.close());
        open.len()
    }

    /// Sleeps until somebody comes, or it is the end.
    fn wait(&self) {
        let [client, stop] = [self.listener.as_fd(), self.stop.as_fd()];
        // An error is a signal.
        let _ = poll(&mut [client, stop].map(|fd| PollFd::new(fd, PollFlags::POLLIN)), PollTimeout::NONE);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<UnixStream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is let in is given back. It is told with the lock held: who comes and who goes is told in that order.
    fn admit(&self, id: u64, stream: Arc<UnixStream>) -> io::Result<Option<Arc<UnixStream>>> {
        let mut open = self.open();
        if self.is_stopping() {
            return Ok(None);
        }
        if open.len() >= self.most {
            (self.tell)(Event::SentAway);
            return Ok(None);
        }
        open.insert(id, Arc::clone(&stream));
        (self.tell)(Event::Came(open.len()));
        Ok(Some(stream))
    }

    fn dismiss(&self, id: u64, why: Option<io::Error>) {
        let mut open = self.open();
        if let Some(stream) = open.remove(&id) {
            stream.close();
        }
        (self.tell)(Event::Went(open.len(), why));
    }

    fn serve(&self, id: u64, stream: &UnixStream) {
        let ended = (self.serve)(stream);
        self.dismiss(id, ended.err());
    }
}
