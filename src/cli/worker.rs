//! The process that guests wait for, and the one that the user has started and that waits for it.
//!
//! A job that watches a running VM's image has a process of its own, the worker, in a session of its own: Ctrl-Z, a signal to
//! the user's process group or a shell that goes away do not stop what a guest waits for. What the user has started only
//! hands signals on and tells how the worker ended, which one that was killed cannot tell itself. It inherits what a worker that
//! was killed leaves behind, and sees to it that the guest goes on and is thawed.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getppid, setsid};

use super::args::{Consistency, SnapshotArgs};
use super::signals::Stop;
use super::{place, snapshot};
use crate::children;
use crate::engine::inspect::{Condition, inspect};
use crate::engine::report::{Event, Observer};
use crate::error::{Error, Kind, Result};
use crate::hold::choose;
use crate::hold::guard::supervisor::{self, Outlived};
use crate::hold::quiesced::still_frozen;
use crate::quiesce::heir;
use crate::record::Verdict;

/// The verb, not for users, that makes this program a worker; what follows is as for `snapshot`.
pub const WORKER: &str = "__worker";

/// A supervisor has this part of the deadline to end after its worker.
const OUTLIVES: u32 = 2;

/// How often a wait for a signal is renewed.
const LONG: Duration = Duration::from_secs(3600);

/// Which of the processes of a job that may make guests wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Process {
    /// The one that the user has started.
    Front,
    /// The one that guests wait for.
    Worker,
}

/// Begins this process anew, with the arguments that it was started with: it will find that a worker is needed. What it had opened and
/// locked is closed, and `--wait` begins anew as well. Returns only where that fails, or where the job was told to stop.
pub fn begin_anew(stop: &Stop) -> Error {
    if stop.asked() {
        return Error::told_to_stop();
    }
    let mut args = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    let error = command.args(args).exec();
    let what = "somebody has opened the image for writing meanwhile, and the job's process cannot be started";
    Error::io(Kind::Refused, what, "run the same command again", error)
}

/// Whether the job may make guests wait.
pub fn is_needed(args: &SnapshotArgs) -> bool {
    match args.take.consistency {
        Consistency::Hold(kind) => kind.wants_a_worker(),
        // Where nobody writes to it nobody waits; what cannot be opened is refused in this process.
        Consistency::Auto => args.pairs.iter().any(|(src, _)| {
            let image = place::open_image(src);
            image.is_ok_and(|image| !choose::frozen(&[image.held()]).applies && image.exempt)
        }),
    }
}

/// Runs `snapshot` in a worker.
///
/// # Errors
/// Broken where the worker was killed; its other errors it has told itself.
pub fn run(args: &SnapshotArgs) -> Result<u8> {
    let (began, since) = (Instant::now(), Timestamp::now());
    let cannot = |e| Error::io(Kind::Refused, "cannot start the job's process", "check the limit of processes", e);
    let stop = Stop::on_signals()?;
    children::inherit().map_err(cannot)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(WORKER).args(std::env::args_os().skip(2)).stdin(Stdio::null());
    let mut worker = children::spawn(&mut command).map_err(cannot)?;
    let has_ended = hand_on_signals(&worker, stop);
    // Its number is its own until it is waited for.
    let _ = waitid(Id::Pid(Pid::from_raw(worker.id() as i32)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    *has_ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
    let status = worker.wait().map_err(cannot)?;
    match status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code <= Kind::HIGHEST) {
        Some(code) => Ok(code),
        None => {
            let supervisor = supervisor::outlived(args.take.guest_deadline / OUTLIVES);
            let thawed = heir::see_to_the_thaw(&snapshot::order(args));
            snapshot::under_watch(&args.job, &snapshot::names(args), began, |_, reporter, _| {
                thawed.into_iter().for_each(|thawed| reporter.on(told(thawed)));
                Err(killed(status, supervisor, is_complete(args, since)))
            })
        }
    }
}

/// What became of a freeze whose process was gone as well.
fn told(thawed: Result<()>) -> Event {
    match thawed {
        Ok(()) => Event::Warning(
            "the process that freezes and thaws the guest was ended as well; the guest was thawed all the same".into(),
        ),
        Err(error) => Event::StillFrozen(still_frozen(&error)),
    }
}

/// Hands signals on to a process, until what this returns is set.
pub(super) fn hand_on_signals(worker: &Child, stop: Stop) -> Arc<Mutex<bool>> {
    let worker = Pid::from_raw(worker.id() as i32);
    let has_ended = Arc::new(Mutex::new(false));
    let ended = Arc::clone(&has_ended);
    let hand_on = move || {
        while !stop.wait(LONG) {}
        let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
        if !*ended {
            let _ = kill(worker, Signal::SIGTERM);
        }
    };
    if thread::Builder::new().name("signals on".into()).spawn(hand_on).is_err() {
        // A job that nobody could stop any more.
        let _ = kill(worker, Signal::SIGTERM);
    }
    has_ended
}

/// Whether the snapshots are complete that a job has made since then: killed after that, it could not say so any more.
fn is_complete(args: &SnapshotArgs, since: Timestamp) -> bool {
    let complete = |dst: &Path| {
        let place = place::place(dst).ok()?;
        Some(match inspect(&place.disk, &place.names).ok()? {
            Condition::Snapshot(record, Verdict::Valid) => record.t0 >= since,
            Condition::Complete(job) => job.header.t0 >= since,
            _ => false,
        })
    };
    args.pairs.iter().all(|(_, dst)| complete(dst).unwrap_or(false))
}

fn killed(status: ExitStatus, supervisor: Outlived, complete: bool) -> Error {
    let how = match status.signal().and_then(|s| Signal::try_from(s).ok()) {
        Some(Signal::SIGKILL) => "was killed (its supervisor does that when it leaves a guest waiting)".to_owned(),
        Some(signal) => format!("was ended by {signal}"),
        None => "ended in a way that it should not".to_owned(),
    };
    let again = "run the same command again: it takes a new point in time and keeps the finished work";
    let (became, hint) = match supervisor {
        Outlived::Ended => ("the guest's accesses went on".to_owned(), again.to_owned()),
        Outlived::Killed => (
            "the guest's accesses went on when its supervisor, which did not end in time, was killed".into(),
            again.into(),
        ),
        Outlived::Hangs(pid) => (
            format!("its supervisor, process {pid}, does not end, and the GUEST MAY BE WAITING"),
            format!("see what process {pid} waits for (/proc/{pid}/stack): when it is gone, the guest goes on"),
        ),
    };
    if complete && !matches!(supervisor, Outlived::Hangs(_)) {
        let what = format!("the job's process {how}; {became}, and the snapshot is complete");
        let hint =
            "'rclone-img resume DST' puts it into place where it is not there yet; 'rclone-img status DST' tells of it";
        return Error::new(Kind::Failed, what, hint);
    }
    Error::new(Kind::Broken, format!("the job's process {how}; {became}, and the point in time is lost"), hint)
}

/// Makes this process a worker: the arguments of `snapshot`, from those that it was started with.
pub fn become_worker(args: Vec<OsString>) -> Vec<OsString> {
    let parent = getppid();
    let _ = setsid();
    // Whoever kills the process that the user has started wants the job to end.
    let _ = set_pdeathsig(Signal::SIGTERM);
    if getppid() != parent {
        let _ = kill(Pid::this(), Signal::SIGTERM);
    }
    let mut args = args;
    args[1] = "snapshot".into();
    args
}
