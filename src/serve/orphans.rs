//! Points in time of an earlier server of the image: their jobs still run, and come to this one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::gate::{Gate, News, OnError, Watch};
use crate::cbw::{Clusters, STATES_MAX};
use crate::disk::process;
use crate::hold::filter::handover::{self, Handover};
use crate::range::PowerOfTwo;

/// What an earlier server has left, and what this one leaves.
#[derive(Default)]
pub struct Orphans {
    /// By the jobs' names. Writes wait for them.
    watches: Mutex<BTreeMap<String, Watch>>,
    leaving: Arc<AtomicBool>,
}

impl Orphans {
    /// Takes up what an earlier server of an image of this device, inode and size has left: from now on writes wait for those jobs, each for
    /// its deadline. What jobs have left that are gone is removed.
    pub fn adopt(gate: &Arc<Gate>, dev: u64, ino: u64, size: u64) -> Self {
        let adopted = Self::default();
        // Where nothing can be found out nothing was kept either: it is in the directory of the socket, which is about to be made there.
        for (path, left) in handover::all(dev, ino).unwrap_or_default() {
            let watch =
                left.filter(|it| it.size == size).and_then(|it| Some((adopted.watch(gate, &it, &path)?, it.job)));
            match watch {
                Some((watch, job)) => drop(adopted.watches().insert(job, watch)),
                None => drop(handover::take(&path)),
            }
        }
        adopted
    }

    /// The watch of a job that has come back.
    pub fn take(&self, job: &str) -> Option<Watch> {
        self.watches().remove(job)
    }

    /// Nobody writes any more, and this server goes: what it keeps, its successor takes up.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Whether [`Orphans::leave`] was said.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    fn watches(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes wait from now on for a job that is still there.
    fn watch(&self, gate: &Arc<Gate>, left: &Handover, path: &std::path::Path) -> Option<Watch> {
        let cluster = PowerOfTwo::new(left.cluster).filter(|unit| Clusters::memory(left.size, *unit) <= STATES_MAX)?;
        if !process::is_alive(left.pid, left.pid_start).unwrap_or(true) {
            return None;
        }
        let (path, leaving) = (path.to_owned(), Arc::clone(&self.leaving));
        // Of a write that waits for too long: the job is to find that it has gone on. The end of a server to which nobody writes is no such thing.
        let tell = Box::new(move |news| {
            if matches!(news, News::Broken(_)) && !leaving.load(Ordering::Acquire) {
                handover::take(&path);
            }
        });
        let watch = gate.watch(left.deadline(), OnError::BreakSnapshot, tell).ok()?;
        watch.gather(left.size, cluster).ok().map(|()| watch)
    }
}
