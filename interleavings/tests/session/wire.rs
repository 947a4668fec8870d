//! A connection with little room, whose two ends are threads of the scheduler.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use reflink_img_interleavings::serve::session::Stream;
use reflink_img_interleavings::threads::{Condvar, Mutex};
use shuttle::rand::{Rng, thread_rng};

/// What is on its way in one direction.
#[derive(Default)]
struct Bytes {
    there: VecDeque<u8>,
    /// Nothing more is sent.
    ended: bool,
    /// Nobody hears or says anything any more.
    closed: bool,
}

/// One direction.
pub struct Pipe {
    bytes: Mutex<Bytes>,
    changed: Condvar,
    room: usize,
}

impl Pipe {
    fn new(room: usize) -> Self {
        Self { bytes: Mutex::default(), changed: Condvar::new(), room }
    }

    pub fn send(&self, mut rest: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.lock().expect("the bytes");
        while !rest.is_empty() {
            if bytes.closed || bytes.ended {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let fits = rest.len().min(self.room - bytes.there.len());
            if fits == 0 {
                bytes = self.changed.wait(bytes).expect("the bytes");
                continue;
            }
            bytes.there.extend(&rest[..fits]);
            rest = &rest[fits..];
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Some of what is there; nothing at the end.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.bytes.lock().expect("the bytes");
        while bytes.there.is_empty() && !bytes.ended && !bytes.closed {
            bytes = self.changed.wait(bytes).expect("the bytes");
        }
        if bytes.closed {
            return Ok(0);
        }
        let there = into.len().min(bytes.there.len());
        let some = if there > 1 && thread_rng().gen_ratio(1, 4) { thread_rng().gen_range(1..there) } else { there };
        into[..some].iter_mut().zip(bytes.there.drain(..some)).for_each(|(to, byte)| *to = byte);
        self.changed.notify_all();
        Ok(some)
    }

    /// Nothing more is sent; what is on its way arrives.
    pub fn end(&self) {
        self.bytes.lock().expect("the bytes").ended = true;
        self.changed.notify_all();
    }

    fn close(&self) {
        self.bytes.lock().expect("the bytes").closed = true;
        self.changed.notify_all();
    }
}

/// Both, as the server has them.
pub struct Wire {
    pub to_server: Pipe,
    pub to_client: Pipe,
}

impl Wire {
    /// With room for so many bytes each way.
    pub fn new(room: usize) -> Self {
        Self { to_server: Pipe::new(room), to_client: Pipe::new(room) }
    }
}

impl Stream for Wire {
    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.to_server.receive(bytes)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.to_client.send(bytes)
    }

    fn patience(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn close(&self) {
        self.to_server.close();
        // What was sent arrives, as with a socket.
        self.to_client.end();
    }
}

/// The client is gone, and hears nothing more.
pub fn vanish(wire: &Wire) {
    wire.to_server.close();
    wire.to_client.close();
}
