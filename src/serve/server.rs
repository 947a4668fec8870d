//! Those who connect: a thread each, a bounded number of them.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::session::{self, Shelf, Stream};

/// The time before the next connection is taken where one could not be: most likely there are no descriptors left.
const RECOVERY: Duration = Duration::from_millis(100);

/// What happens, for a log.
#[derive(Debug)]
pub enum Event {
    /// A client came; how many there are with it.
    Came(usize),
    /// One went; how many are left, and why where it did not go in peace.
    Went(usize, Option<io::Error>),
    /// One more than there may be was sent away.
    SentAway,
    /// A connection could not be taken.
    Failed(io::Error),
}

/// Who is told what happens; by the thread to which it happens, so it must not wait.
pub type Tell = Box<dyn Fn(Event) + Send + Sync>;

/// A server on a socket.
pub struct Server<S> {
    listener: UnixListener,
    shelf: S,
    /// The most connections at a time.
    most: usize,
    tell: Tell,
    open: Mutex<BTreeMap<u64, Arc<UnixStream>>>,
    stopping: AtomicBool,
}

impl<S: Shelf + Sync> Server<S> {
    /// Not running yet.
    pub fn new(listener: UnixListener, shelf: S, most: usize, tell: Tell) -> Self {
        Self { listener, shelf, most, tell, open: Mutex::default(), stopping: AtomicBool::new(false) }
    }

    /// Serves until [`Server::stop`], and until all have gone then.
    pub fn run(&self) {
        thread::scope(|scope| {
            for id in 0.. {
                let stream = match self.listener.accept() {
                    Ok((stream, _)) => Arc::new(stream),
                    Err(_) if self.is_stopping() => break,
                    Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => continue,
                    Err(e) => {
                        (self.tell)(Event::Failed(e));
                        thread::sleep(RECOVERY);
                        continue;
                    }
                };
                if !self.admit(id, &stream) {
                    stream.close();
                    continue;
                }
                let serve = move || self.serve(id, &stream);
                if let Err(e) = thread::Builder::new().name("client".into()).spawn_scoped(scope, serve) {
                    self.dismiss(id);
                    (self.tell)(Event::Failed(e));
                }
            }
        });
    }

    /// Takes no more connections and no more requests; those that were taken are answered.
    pub fn stop(&self) {
        let open = self.open();
        self.stopping.store(true, Ordering::Release);
        // Whoever waits in accept(2) comes back with an error.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        open.values().for_each(|stream| drop(stream.shutdown(std::net::Shutdown::Read)));
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<UnixStream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, id: u64, stream: &Arc<UnixStream>) -> bool {
        let mut open = self.open();
        if self.is_stopping() {
            return false;
        }
        let room = open.len() < self.most;
        let event = if room {
            open.insert(id, Arc::clone(stream));
            Event::Came(open.len())
        } else {
            Event::SentAway
        };
        drop(open);
        (self.tell)(event);
        room
    }

    fn dismiss(&self, id: u64) -> usize {
        let mut open = self.open();
        if let Some(stream) = open.remove(&id) {
            stream.close();
        }
        open.len()
    }

    fn serve(&self, id: u64, stream: &UnixStream) {
        let ended = session::serve(stream, &self.shelf);
        let left = self.dismiss(id);
        (self.tell)(Event::Went(left, ended.err()));
    }
}
