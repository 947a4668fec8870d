//! Who has an image open for writing, and whether all of them can be watched.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::fstat;

use super::watch::Watch;
use crate::disk::real::RealFile;
use crate::error::{Error, Kind, Result};
use crate::hold::holders::{self, Files, Holder, Holding, Search};
use crate::sys::lease::{self, Lease};
use crate::sys::process;

/// init, whose death would be the host's.
const FIRST_PROCESS: u32 = 1;

/// How many are named in an error.
const NAMED: usize = 5;

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// Descriptors open for writing whose accesses can be watched.
    pub armed: Vec<Holder>,
    /// What escapes a watch.
    pub escapes: Vec<Holder>,
    /// Processes that could not be looked into.
    pub hidden: Vec<u32>,
}

impl Survey {
    /// What keeps the image from being guarded; `None` where nothing does.
    pub fn obstacle(&self) -> Option<Error> {
        if self.escapes.is_empty() && self.hidden.is_empty() {
            return None;
        }
        let mut words: Vec<String> = self.escapes.iter().take(NAMED).map(escape).collect();
        if self.escapes.len() > NAMED {
            words.push(format!("and {} more", self.escapes.len() - NAMED));
        }
        if !self.hidden.is_empty() {
            let pids: Vec<String> = self.hidden.iter().take(NAMED).map(u32::to_string).collect();
            let of = self.hidden.len();
            words.push(format!(
                "{of} process(es) could not be looked into (pid {}), and may have it open",
                pids.join(", ")
            ));
        }
        Some(Error::new(Kind::Refused, words.join("; "), self.remedy()))
    }

    /// What to do about those who escape a watch.
    pub fn remedy(&self) -> String {
        let has = |what: fn(&Holding) -> bool| self.escapes.iter().any(|h| what(&h.what));
        let mut ways = Vec::new();
        if has(|w| matches!(w, Holding::Descriptor(_))) {
            ways.push(
                "'rclone-img guard' must be running when the image is opened: start it, then shut the VM down \
                 and start it again (a reboot inside it opens nothing anew; 'virsh managedsave' and 'virsh start' do), or give \
                 the QMP monitor of a QEMU that runs without libvirt (--qmp)",
            );
        }
        if has(|w| matches!(w, Holding::Mapping)) {
            ways.push("end what has the image mapped: writes to a mapping cannot be seen");
        }
        if has(|w| matches!(w, Holding::IoUring(_))) {
            ways.push("have the program not register its files with io_uring");
        }
        if has(|w| matches!(w, Holding::OfThread(..))) {
            ways.push("end the program: what a thread does not share with its process cannot be watched");
        }
        if has(|w| matches!(w, Holding::LoopDevice(_))) {
            ways.push("detach the loop device (losetup -d)");
        }
        if !self.hidden.is_empty() || has(|w| matches!(w, Holding::Unknown | Holding::QemuLock)) {
            ways.push("run as root in the host's own namespaces; look for swap files and NFS or iSCSI exports");
        }
        ways.join("; ")
    }
}

/// Somebody who escapes a watch, in words.
pub fn escape(holder: &Holder) -> String {
    match holder.what {
        Holding::Descriptor(_) => format!("{holder}, opened before it could be watched"),
        Holding::LoopDevice(_) | Holding::IoUring(_) | Holding::Mapping | Holding::OfThread(..) => {
            format!("{holder}, which cannot be watched")
        }
        _ => holder.to_string(),
    }
}

/// Refuses where holders may be out of sight.
///
/// # Errors
/// Refused in a process namespace of its own.
pub fn everybody_is_seen() -> Result<()> {
    if holders::all_are_listed("self") {
        return Ok(());
    }
    let what = "in this container not all processes that may have the image open can be seen";
    Err(Error::new(Kind::Refused, what, "run it on the host"))
}

fn cannot_search(error: io::Error) -> Error {
    let hint = "check that /proc is mounted, and run as root";
    Error::io(Kind::Refused, "who has the image open for writing cannot be found out", hint, error)
}

/// Looks for all who may write to the image. `probe` says of a descriptor of the image whether it can be watched.
///
/// # Errors
/// Refused where the processes or the image cannot be looked at.
pub fn survey(image: &RealFile, probe: impl Fn(&OwnedFd) -> bool) -> Result<Survey> {
    let found = holders::holders(image.as_fd()).map_err(cannot_search)?;
    // Some kernels let nobody look into the first process; it is not one that has images open.
    let hidden = found.hidden.into_iter().filter(|pid| *pid != FIRST_PROCESS).collect();
    let mut survey = Survey { hidden, ..Survey::default() };
    let mut processes = BTreeMap::new();
    let mut locked = None;
    for holder in found.found {
        match (&holder.what, holder.pid) {
            (Holding::Descriptor(number), Some(pid)) => {
                let process = processes.entry(pid).or_insert_with(|| process::open(pid));
                let copy = process
                    .as_ref()
                    .map_err(|e| e.raw_os_error())
                    .and_then(|process| process::descriptor(process.as_fd(), *number).map_err(|e| e.raw_os_error()));
                match copy {
                    Ok(copy) if probe(&copy) => survey.armed.push(holder),
                    Ok(_) => survey.escapes.push(holder),
                    // It has ended, or closed the descriptor, since.
                    Err(Some(libc::ESRCH | libc::EBADF)) => {}
                    Err(_) => survey.escapes.push(holder),
                }
            }
            (Holding::QemuLock, _) => locked = Some(holder),
            _ => survey.escapes.push(holder),
        }
    }
    // A lock without a descriptor is somebody whom the search has not found.
    let nobody = survey.armed.is_empty() && survey.escapes.is_empty();
    survey.escapes.extend(locked.filter(|_| nobody));
    if nobody && survey.escapes.is_empty() && somebody_writes(image) {
        survey.escapes.push(Holder { pid: None, comm: String::new(), what: Holding::Unknown });
    }
    Ok(survey)
}

/// The kernel's own answer: no read lease where somebody has the file open for writing, in whatever way.
fn somebody_writes(image: &RealFile) -> bool {
    match lease::take(image.as_fd(), Lease::Read) {
        Ok(()) => {
            let _ = lease::release(image.as_fd());
            false
        }
        Err(e) => e.raw_os_error() == Some(libc::EAGAIN),
    }
}

/// Surveys an image under watch, before T0 or after it.
///
/// # Errors
/// As [`survey`].
pub fn look(image: &RealFile, watch: &Watch) -> Result<Survey> {
    survey(image, |descriptor| watch.probe(descriptor))
}

/// Surveys images that nobody else watches for us: each is marked for a moment, and whoever uses it goes on at once.
///
/// # Errors
/// Refused where nothing can be watched here, or not everybody can be seen; as [`survey`].
pub fn of_all(images: &[Arc<RealFile>], deadline: Duration) -> Result<Vec<Survey>> {
    everybody_is_seen()?;
    let watch = Watch::open(images, deadline)?;
    images.iter().map(|image| look(image, &watch)).collect()
}

/// Refuses where one of these processes has an image mapped in a way that may change it.
///
/// # Errors
/// Failed, with the process; as [`survey`].
pub fn nobody_has_mapped(images: &[Arc<RealFile>], pids: impl IntoIterator<Item = u32>) -> Result<()> {
    let stats: std::result::Result<Vec<_>, _> = images.iter().map(|image| fstat(&**image)).collect();
    let stats = stats.map_err(|e| cannot_search(e.into()))?;
    let Search { found, hidden, .. } = holders::mappings(&Files::new(stats.iter().map(|s| (s.st_dev, s.st_ino))), pids);
    let survey = Survey { escapes: found.into_iter().flatten().collect(), hidden, ..Survey::default() };
    let Some(error) = survey.obstacle() else { return Ok(()) };
    let what = format!("the image was mapped while the job was prepared: {}", error.what);
    Err(Error { kind: Kind::Failed, what, ..error })
}
