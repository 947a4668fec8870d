//! The data of a fleece on a disk that may not answer: an NFS server that is gone, a FUSE file system that hangs.
//!
//! Of one that an earlier server has left: nobody is served until it is taken up, since what was written before that would not be kept, so it
//! is not waited for for longer than a guest can bear. Nor is it when the server goes: the next one is to have the image.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::Fleece;
use super::all::{Refusal, words};
use super::files::{is_known, open_data};
use super::format::Header;

/// How long the disks of all fleeces together may take to find the files, and to have on them what an earlier server kept: that is `--ram` at
/// most of each.
pub const ANSWERS: Duration = Duration::from_secs(5);

/// How often it is looked whether the server is to end, while a disk is waited for.
pub const MOMENT: Duration = Duration::from_millis(100);

/// And the disk of one whose turn comes after that.
const AT_LEAST: Duration = Duration::from_millis(100);

/// The file with the data of a fleece, all of it on its disk, with its lock; nobody is served since that moment.
///
/// # Errors
/// Why not, in words; also where nothing is heard in time.
pub fn data(header: &Header, since: Instant) -> Refusal<File> {
    let header = header.clone();
    let found = within(ANSWERS.saturating_sub(since.elapsed()).max(AT_LEAST), move || {
        let (_, data) = open_data(&header).map_err(words("open its sidecar"))?;
        is_known(&header, &data)
            .map_err(|_| "its sidecar's file system was mounted anew, and has no generations of files")?;
        // An earlier server's kernel may have lost some of it when nobody asked.
        data.sync_all().map_err(words("put what was kept on the disk"))?;
        Ok(data)
    });
    found.unwrap_or_else(|| Err(silent(ANSWERS)))
}

/// What is said of a disk of which nothing is heard.
pub fn silent(waited: Duration) -> String {
    format!("its sidecar's disk has not answered for {} s", waited.as_secs())
}

/// What this work says, if it says it in time.
pub fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Refusal<T> + Send + 'static,
) -> Option<Refusal<T>> {
    asked(work).recv_timeout(limit).ok()
}

/// What this work says, when it does. It is done by a thread of its own, which nobody can end where the kernel does not, and of which
/// nobody may hear after that.
pub fn asked<T: Send + 'static>(work: impl FnOnce() -> Refusal<T> + Send + 'static) -> Receiver<Refusal<T>> {
    let (tell, told) = mpsc::channel();
    let (said, no_thread) = (tell.clone(), tell);
    let work = move || drop(said.send(work()));
    if let Err(e) = thread::Builder::new().name("reach".into()).spawn(work) {
        let _ = no_thread.send(Err(words("start a thread")(e)));
    }
    told
}

/// Does this work on all of these at once, each in a thread of its own: those of whom it is done by then, and those of whom it is not.
pub fn all(
    fleeces: Vec<Arc<Fleece>>,
    until: Instant,
    work: impl Fn(&Fleece) + Clone + Send + 'static,
) -> (Vec<Arc<Fleece>>, Vec<Arc<Fleece>>) {
    let ask = |it: Arc<Fleece>| {
        let (its, work) = (Arc::clone(&it), work.clone());
        let told = asked(move || {
            work(&its);
            Ok(())
        });
        (it, told)
    };
    let asked: Vec<_> = fleeces.into_iter().map(ask).collect();
    let in_time = |told: &Receiver<Refusal<()>>| {
        let limit = until.saturating_duration_since(Instant::now()).max(AT_LEAST);
        matches!(told.recv_timeout(limit), Ok(Ok(())))
    };
    let (done, late): (Vec<_>, Vec<_>) = asked.into_iter().partition(|(_, told)| in_time(told));
    let fleeces = |all: Vec<(Arc<Fleece>, _)>| all.into_iter().map(|it| it.0).collect();
    (fleeces(done), fleeces(late))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_too_late_is_not_waited_for() {
        let (go, wait) = mpsc::channel::<()>();
        let late = within(Duration::from_millis(20), move || Ok(wait.recv().is_ok()));
        assert_eq!(late, None);
        assert!(go.send(()).is_ok(), "it still works");
        assert_eq!(within(Duration::from_secs(60), || Ok(1)), Some(Ok(1)));
        assert_eq!(within(Duration::from_secs(60), || Err::<u8, _>("no".into())), Some(Err("no".into())));
    }
}
