//! Dirty data is written back by a thread that does nothing else: a disk may take its time, and guests wait for the one that
//! clones. The simulation does it in line ([`Inline`]) to have the same order on every run.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::compare;
use crate::disk::DiskFile;
use crate::error::{Error, Kind, Result};
use crate::range::{ByteRange, Geometry};

/// What is to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// What is dirty of the image in this range.
    Range(ByteRange),
    /// Everything that the maps of image and partial file do not show yet.
    Maps(Geometry),
}

/// Who writes dirty data of an image back, one thing after the other.
pub trait Flusher {
    /// Begins.
    fn start(&mut self, what: Flush);

    /// Whether what was begun has come to its end; waits for it for no longer than this.
    ///
    /// # Errors
    /// Broken where data may be lost; failed where a map cannot be read.
    fn finished(&mut self, patience: Duration) -> Result<bool>;
}

/// How the engine gets its [`Flusher`] for an image and its partial file.
pub type MakeFlusher<'a, F> = &'a dyn Fn(Arc<F>, Arc<F>) -> Box<dyn Flusher>;

struct Files<F> {
    image: Arc<F>,
    partial: Arc<F>,
}

impl<F: DiskFile> Files<F> {
    fn flush(&self, what: Flush) -> Result<()> {
        match what {
            Flush::Maps(geometry) => compare::flush(&*self.image, &*self.partial, geometry),
            Flush::Range(range) => self.image.write_back(range).map_err(|e| {
                let hint = "the image's device may have lost data: check the kernel's log before you rely on the image";
                Error::io(Kind::Broken, format!("dirty data of the image in {range} cannot be written"), hint, e)
            }),
        }
    }
}

/// Does everything when it is begun.
pub struct Inline<F> {
    files: Files<F>,
    result: Result<()>,
}

impl<F: DiskFile> Inline<F> {
    /// For an image and its partial file.
    pub fn new(image: Arc<F>, partial: Arc<F>) -> Self {
        Self { files: Files { image, partial }, result: Ok(()) }
    }
}

impl<F: DiskFile> Flusher for Inline<F> {
    fn start(&mut self, what: Flush) {
        self.result = self.files.flush(what);
    }

    fn finished(&mut self, _: Duration) -> Result<bool> {
        std::mem::replace(&mut self.result, Ok(())).map(|()| true)
    }
}

/// Has a thread.
pub struct Threaded {
    wanted: Sender<Flush>,
    done: Receiver<Result<()>>,
}

impl Threaded {
    /// Starts the thread, which ends with this.
    pub fn new<F: DiskFile + Send + Sync + 'static>(image: Arc<F>, partial: Arc<F>) -> Self {
        let files = Files { image, partial };
        let (wanted, wishes) = bounded::<Flush>(1);
        let (end, done) = bounded(1);
        let flush = move || drop(wishes.iter().try_for_each(|what| end.send(files.flush(what))));
        // One that cannot be started is told as one that has ended.
        drop(thread::Builder::new().name("writes back".into()).spawn(flush));
        Self { wanted, done }
    }
}

impl Flusher for Threaded {
    fn start(&mut self, what: Flush) {
        // A thread that is gone is told by `finished`.
        let _ = self.wanted.send(what);
    }

    fn finished(&mut self, patience: Duration) -> Result<bool> {
        match self.done.recv_timeout(patience) {
            Ok(result) => result.map(|()| true),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => {
                let hint = "check the limit of processes, then run the same command again";
                Err(Error::new(Kind::Failed, "there is no thread that writes dirty data back", hint))
            }
        }
    }
}
