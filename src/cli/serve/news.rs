//! What the server's threads have to tell, until somebody does: they never wait for that.

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::serve::server::Event;

/// The most that is kept; what comes after it is lost, and was too much to be read.
const MOST: usize = 1000;

/// The events that nobody has told yet.
pub struct News {
    events: Mutex<VecDeque<Event>>,
    /// Wakes who tells them.
    rope: UnixStream,
}

impl News {
    /// None yet. A byte on `rope`, which must not block, wakes who tells.
    pub fn new(rope: UnixStream) -> Self {
        Self { events: Mutex::default(), rope }
    }

    /// An event.
    pub fn add(&self, event: Event) {
        let mut events = self.events();
        if events.len() < MOST {
            events.push_back(event);
        }
        drop(events);
        // Where there is no room the bell is ringing already.
        let _ = (&self.rope).write(&[0]);
    }

    /// All that there are.
    pub fn take(&self) -> VecDeque<Event> {
        std::mem::take(&mut *self.events())
    }

    fn events(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_who_tells_and_what_is_too_much_is_lost() {
        let (rope, _bell) = UnixStream::pair().expect("two sockets");
        rope.set_nonblocking(true).expect("a socket");
        let news = News::new(rope);
        (0..MOST * 10).for_each(|n| news.add(Event::Came(n)));
        let taken = news.take();
        assert_eq!(taken.len(), MOST);
        assert!(matches!(taken[0], Event::Came(0)) && news.take().is_empty());
    }
}
