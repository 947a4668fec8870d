//! What a process on whose answers guests wait needs of the kernel: to be run, to have memory and descriptors.

use std::fs::{self, File};
use std::io::{self, Write};
use std::time::Duration;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::{Error, Kind, Result};
use crate::sys::sched;

/// Descriptors that a worker wants at least: as many as the table has slots, and what it needs itself.
const DESCRIPTORS: u64 = super::table::SLOTS as u64 + 1024;

/// The most that is asked for: more would only make the supervisor try more numbers.
const MOST_DESCRIPTORS: u64 = 65_536;

/// The nice value of the thread that clones: a call holds the image's lock for as long as it is not run (KERNEL.md: 1.6 s
/// and 5.2 s under `nice` with two busy processes).
const CLONES: i32 = -20;

/// The slice of both: it is the shortest that the kernel gives, so that none of them waits for somebody else's to end.
const SLICE: Duration = Duration::from_micros(100);

/// Where the kernel takes a longest time to wake a CPU up, an `i32` of microseconds.
const WAKE_UP_REQUESTS: &str = "/dev/cpu_dma_latency";

/// What a CPU may take to wake up: enough for the lightest sleep (C1, C1E), too little for the deep ones, which take 50 to several hundred.
/// An access that waits takes four wake-ups: of the thread that answers, of the one that clones, of the disk's, and the guest's own.
const WAKE_UP_US: i32 = 10;

/// How a kernel idles whose CPUs are a hypervisor's: it says that they wake up in 1 us, and it takes the hypervisor 50 to 80 (measured). They are
/// kept from sleeping at all. That took a guest's p99 from 3.2 to 1.2 ms and its median from 0.28 to 0.07 ms (BENCHMARKS.md).
const IN_A_VM: &str = "haltpoll";

/// How much of all CPUs' time a hypervisor may keep to itself before they may sleep again. On the machine of BENCHMARKS.md it kept up to
/// 40 ms in 15 s beside a job, and 140 ms in the moments in which everything stood still for 70.
const STOLEN: Duration = Duration::from_millis(100);

/// Which idle driver the kernel has.
const IDLE_DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// Makes this process fit to be waited for: memory locked, never chosen by the OOM killer, no core dump that would keep
/// its descriptors open, enough descriptors. Gives the bound of its descriptor numbers.
///
/// # Errors
/// Refused, where the kernel refuses what a guest's safety hangs on.
pub fn process() -> Result<u64> {
    let hint = "run as root, outside of a container that takes CAP_IPC_LOCK and CAP_SYS_RESOURCE away";
    let refused = |what: &str, e: io::Error| Error::io(Kind::Refused, what.to_owned(), hint, e);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)
        .map_err(|e| refused("cannot lock the memory of a process that guests wait for", e.into()))?;
    // Neither is vital: without the first the supervisor answers for a worker that was chosen, without the second it does
    // so while the core is written.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let descriptors = |e: nix::Error| refused("cannot have enough open files", e.into());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(descriptors)?;
    let wanted = hard.clamp(DESCRIPTORS, MOST_DESCRIPTORS).max(soft);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).map_err(descriptors)?;
    Ok(wanted)
}

/// Makes the calling thread one that answers: it runs as soon as it is woken, or nearly so.
///
/// # Errors
/// Refused without the right to leave what `nice` and `chrt` have set.
pub fn answering_thread() -> Result<()> {
    sched::at_once().or_else(|_| sched::ordinary(CLONES, SLICE)).and_then(|()| sched::ordinary_io()).map_err(refused)
}

/// Makes the calling thread one that clones.
///
/// # Errors
/// As [`answering_thread`].
pub fn cloning_thread() -> Result<()> {
    sched::ordinary(CLONES, SLICE).and_then(|()| sched::ordinary_io()).map_err(refused)
}

/// Makes the calling thread, and what it will start, as urgent as any, whatever a job has taken for a guest's sake or was started
/// with: no guest waits for it under the job's deadline, and what it starts is the user's. Without the right to it, it stays as it is.
pub fn as_any() {
    let _ = sched::ordinary(0, Duration::ZERO);
    let _ = fs::write("/proc/self/oom_score_adj", "0");
}

/// Keeps the CPUs from sleeping deeply while it lives, also where this process is killed: the kernel drops the request with the
/// descriptor (`Documentation/power/pm_qos_interface.rst`).
///
/// CPUs that never sleep use up what a hypervisor allows a VM, and then all of it stands still, the guests included: the request is
/// dropped where that is seen.
pub struct Awake {
    request: Option<File>,
    /// Where the CPUs are a hypervisor's: what it had kept to itself when this was asked for.
    stolen: Option<Duration>,
}

impl Awake {
    /// The request; none where the kernel takes none: accesses wait longer then, and nothing else.
    pub fn request() -> Self {
        let driver = fs::read_to_string(IDLE_DRIVER).unwrap_or_default();
        let in_a_vm = driver.trim() == IN_A_VM;
        let ask = || {
            let latency: i32 = if in_a_vm { 0 } else { WAKE_UP_US };
            let mut request = File::options().write(true).open(WAKE_UP_REQUESTS)?;
            request.write_all(&latency.to_ne_bytes())?;
            io::Result::Ok(request)
        };
        Self { request: ask().ok(), stolen: in_a_vm.then(stolen).flatten() }
    }

    /// Gives it up where the hypervisor stops the CPUs; to be called now and then.
    pub fn look(&mut self) {
        if self.request.is_some() && self.stolen.is_some_and(|before| is_too_dear(before, stolen())) {
            self.request = None;
        }
    }
}

/// Whether the hypervisor has kept more to itself than what a moment of its own business takes.
fn is_too_dear(before: Duration, now: Option<Duration>) -> bool {
    now.is_some_and(|now| now.saturating_sub(before) > STOLEN)
}

/// What this machine's hypervisor has kept to itself of all CPUs' time (`steal` of `/proc/stat`, in ticks of 10 ms); `None` where nobody tells.
pub fn stolen() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let ticks = stat.lines().next()?.split_whitespace().nth(8)?.parse().ok()?;
    Some(Duration::from_millis(10).saturating_mul(ticks))
}

fn refused(error: io::Error) -> Error {
    let what = "the hold guard needs root: the process that the guest waits for cannot be given a high priority";
    Error::io(Kind::Refused, what, "run as root (CAP_SYS_ADMIN for the watch, CAP_SYS_NICE for the priority)", error)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// What the kernel has as the shortest of all requests now.
    fn in_force() -> Option<i32> {
        let mut latency = [0; 4];
        File::open(WAKE_UP_REQUESTS).and_then(|mut file| file.read_exact(&mut latency)).ok()?;
        Some(i32::from_ne_bytes(latency))
    }

    #[test]
    fn the_cpus_are_kept_awake_for_as_long_as_that_is_asked_for() {
        let Some(before) = in_force().filter(|&before| before > WAKE_UP_US) else {
            return eprintln!("SKIPPED: no {WAKE_UP_REQUESTS} here, or somebody else keeps the CPUs awake");
        };
        let awake = Awake::request();
        assert!(in_force().is_some_and(|now| now <= WAKE_UP_US));
        drop(awake);
        assert!(in_force().is_some_and(|now| now > WAKE_UP_US), "was {before} before");
    }

    #[test]
    fn they_may_sleep_again_where_the_hypervisor_stops_them() {
        let ms = Duration::from_millis;
        assert!(!is_too_dear(ms(5000), Some(ms(5100))) && is_too_dear(ms(5000), Some(ms(5110))));
        assert!(!is_too_dear(ms(5000), None) && !is_too_dear(ms(5000), Some(ms(0))));
        let given_up = |before| {
            let request = File::open("/dev/null").ok();
            let mut awake = Awake { request, stolen: before };
            awake.look();
            awake.request.is_none()
        };
        assert!(!given_up(None) && !given_up(stolen()), "nothing was stolen since");
        assert_eq!(given_up(Some(ms(0))), stolen().is_some_and(|all| all > STOLEN), "since the start of the machine");
    }
}
