//! Naming a process for good: this boot's id, a pid's start time, and pidfds.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::signal::Signal;
use uuid::Uuid;

/// This boot's id (`/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// What reading says; `InvalidData` where it is no UUID.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = Uuid::try_parse(text.trim()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok(id.into_bytes())
}

/// When a process started, in clock ticks since boot (field 22 of `/proc/PID/stat`): with the pid and the boot id it names
/// the process for good.
///
/// # Errors
/// `NotFound` where there is no such process; `InvalidData` where the field is not there.
pub fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    parse_start(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a stat file without a start time"))
}

/// A descriptor that stands for the process, whatever becomes of its pid (pidfd_open(2)).
///
/// # Errors
/// ESRCH where there is no such process.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor (with O_CLOEXEC) and nobody else has it; it fits an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Sends a signal to the process that the descriptor stands for (pidfd_send_signal(2)); `None` only asks whether one could.
///
/// # Errors
/// ESRCH where it has ended, EPERM.
pub fn signal(process: BorrowedFd<'_>, signal: Option<Signal>) -> io::Result<()> {
    let number = signal.map_or(0, |s| s as libc::c_int);
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: with a null siginfo the kernel fills in its own, as for kill(2); nothing of ours is read or written.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), number, info, 0) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A duplicate of another process's descriptor (pidfd_getfd(2)): the same open file.
///
/// # Errors
/// EBADF where it has none of that number; EPERM without the right to trace it; ESRCH where it has ended.
pub fn descriptor(process: BorrowedFd<'_>, number: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes three integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor (with O_CLOEXEC) and nobody else has it; it fits an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// `KCMP_FILES` of `linux/kcmp.h`.
const KCMP_FILES: libc::c_int = 2;

/// Whether two threads have the same table of descriptors (kcmp(2)), so that looking at one is looking at both.
///
/// # Errors
/// ESRCH where one has ended; EPERM without the right to trace both; ENOSYS on a kernel without it.
pub fn same_descriptors(one: u32, other: u32) -> io::Result<bool> {
    // SAFETY: kcmp takes five integers, of which KCMP_FILES looks at two, and touches no memory of ours.
    let order =
        unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0 as libc::c_ulong, 0 as libc::c_ulong) };
    if order < 0 { Err(io::Error::last_os_error()) } else { Ok(order == 0) }
}

/// The command's name is in brackets and may hold anything, brackets and spaces too: fields count from the last one.
fn parse_start(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|b| *b == b')')?;
    let fields = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    // The first field here is the third of the file.
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::{boot_id, open, parse_start, signal, start_ticks};

    #[test]
    fn a_command_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = b"7 (a) b) (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 100\n";
        assert_eq!(parse_start(stat), Some(4711));
        assert_eq!(parse_start(b"7 no brackets"), None);
    }

    #[test]
    fn this_process_has_a_start_a_boot_and_a_pidfd() {
        let me = std::process::id();
        assert_eq!(start_ticks(me).expect("running"), start_ticks(me).expect("running"));
        assert_ne!(boot_id().expect("Linux has one"), [0; 16]);
        signal(open(me).expect("running").as_fd(), None).expect("may signal itself");
    }
}
