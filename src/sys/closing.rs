//! Letting go of all descriptors at the end of a process that a thread in the kernel may keep from ending.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;

/// Puts `/dev/null` in the place of every descriptor but those of standard input, output and error: what a thread waits for in the kernel (a disk
/// that does not answer) keeps its process, which keeps its table of descriptors, and so its locks, until that comes, even after SIGKILL. For
/// a process that ends at once: whoever has a descriptor reads nothing from it and writes to nowhere from now on.
///
/// # Errors
/// What listing /proc or opening /dev/null says; nothing is let go then.
pub fn let_go_of_all() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let numbers: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > libc::STDERR_FILENO && *number != null.as_raw_fd())
        .collect();
    for number in numbers {
        // SAFETY: dup3 takes three integers and touches no memory of ours. The number stays taken, so that its owner closes nothing but this copy
        // of `null`, and no file that is opened meanwhile can have it.
        let copied = unsafe { libc::dup3(null.as_raw_fd(), number, libc::O_CLOEXEC) };
        // EBUSY: somebody is about to open it, and it is none that is to be let go.
        let _ = Errno::result(copied);
    }
    Ok(())
}
