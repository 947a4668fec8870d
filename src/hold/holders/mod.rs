//! Who has an image open for writing.
//!
//! The kernel's answer to "does anybody?" is a read lease ([`crate::sys::lease`]); this module finds names for the refusal.
//! It looks at every process's descriptors and shared mappings, at io_uring's registered files, at loop devices, and at the
//! lock byte that QEMU holds while it may write; one pass is enough for any number of files. It can miss somebody: processes
//! we may not look into (counted), a descriptor in flight in a socket, an io_uring without a descriptor, other users inside
//! the kernel (an NFS or iSCSI server, a swap file). **Finding nobody proves nothing**; [`Holders::insist`] puts that into
//! words.

mod fdinfo;
mod files;
mod loops;
mod process;

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::stat::fstat;

use super::image_lock;
use crate::sys::ofd::{self, Lock};

pub use files::Files;
pub(super) use process::comm;

/// init, which some kernels let nobody look into, and which has no images open.
const FIRST_PROCESS: u32 = 1;

/// The inode of the first process namespace (`PROC_PID_INIT_INO` of `linux/proc_ns.h`): in any other one processes that have
/// the image open may be out of sight.
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What is to be said where [`all_are_seen`] says no, and nothing but such a search tells who writes.
pub const NOT_ALL_SEEN: &str = "not all processes of this host can be looked into (root on the host itself can): nobody who cannot be seen may have \
     the image open for writing past its server";

/// Whether all processes of the host are listed to a process, "self" or a number.
pub fn all_are_listed(process: &str) -> bool {
    fs::metadata(format!("/proc/{process}/ns/pid")).is_ok_and(|ns| ns.ino() == FIRST_NAMESPACE)
}

/// Whether it may look into all of them as well, as root's may.
pub fn all_are_seen(process: &str) -> bool {
    all_are_listed(process) && fs::metadata(format!("/proc/{process}")).is_ok_and(|it| it.uid() == 0)
}

/// Those of the processes that could not be looked into that may have an image open.
pub fn that_count(hidden: &[u32]) -> Vec<u32> {
    hidden.iter().copied().filter(|pid| *pid != FIRST_PROCESS).collect()
}

/// For how long it is looked again where a process could not be looked into, and the time between: less than the rings of one that is at work are
/// asked again in one look.
const PATIENCE: Duration = Duration::from_millis(300);
const AGAIN: Duration = Duration::from_millis(20);

/// How many of many are named; a busy host may have more.
pub(super) const NAMED: usize = 5;

/// Some of these holders in words, and how many more there are.
pub fn named(found: &[Holder]) -> String {
    let mut words: Vec<String> = found.iter().take(NAMED).map(ToString::to_string).collect();
    if found.len() > NAMED {
        words.push(format!("and {} more", found.len() - NAMED));
    }
    words.join("; ")
}

/// How somebody holds an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holding {
    /// A descriptor open for writing, by its number.
    Descriptor(u32),
    /// The same of a thread that has descriptors of its own: the thread, and the number.
    OfThread(u32, u32),
    /// A shared mapping of a descriptor that was open for writing; the descriptor itself may be closed.
    Mapping,
    /// A file registered with the io_uring of this descriptor; whether for writing cannot be told.
    IoUring(u32),
    /// A loop device that can be written.
    LoopDevice(PathBuf),
    /// QEMU's image lock: somebody has permission to write.
    QemuLock,
    /// The kernel refused a lease, and nobody was found.
    Unknown,
    /// It could not be looked into, which it should have let this process do.
    Busy,
}

/// Somebody who has the image open for writing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The process, where it is one that can be named.
    pub pid: Option<u32>,
    /// Its command's name, empty where unknown.
    pub comm: String,
    /// How it holds the image.
    pub what: Holding,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) if self.comm.is_empty() => write!(f, "pid {pid} ")?,
            Some(pid) => write!(f, "pid {pid} ({}) ", self.comm.escape_debug())?,
            None => {}
        }
        let subject = if self.pid.is_some() { "" } else { "somebody " };
        match &self.what {
            Holding::Descriptor(number) => write!(f, "{subject}has it open for writing as descriptor {number}"),
            Holding::OfThread(thread, number) => {
                write!(f, "{subject}has it open for writing as descriptor {number} of its thread {thread} alone")
            }
            Holding::Mapping => write!(f, "{subject}has it mapped shared and may write to the mapping"),
            Holding::IoUring(number) => {
                write!(f, "{subject}has it registered with the io_uring of descriptor {number} and may write")
            }
            Holding::LoopDevice(path) => write!(f, "loop device {} is backed by it and can be written", path.display()),
            Holding::QemuLock => write!(f, "{subject}holds QEMU's image lock with permission to write"),
            Holding::Unknown => write!(f, "somebody who cannot be named has it open for writing"),
            Holding::Busy => write!(f, "{subject}could not be looked into, and may have it open for writing"),
        }
    }
}

/// What a search found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holders {
    /// Who has the image open for writing; a process can be here more than once.
    pub found: Vec<Holder>,
    /// Processes that could not be looked into: for want of permission, or because one of their io_urings was never at rest.
    pub hidden: Vec<u32>,
    /// Those of them that there is the right to look into.
    pub busy: Vec<u32>,
}

impl Holders {
    /// The same with somebody unknown in it if it is empty: for when the kernel says that there is a writer.
    #[must_use]
    pub fn insist(mut self) -> Self {
        if self.found.is_empty() {
            self.found.push(Holder { pid: None, comm: String::new(), what: Holding::Unknown });
        }
        self
    }
}

/// Who has some files open for writing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Search {
    /// The holders of each file, in the order of [`Files`].
    pub found: Vec<Vec<Holder>>,
    /// As [`Holders::hidden`].
    pub hidden: Vec<u32>,
    /// As [`Holders::busy`].
    pub busy: Vec<u32>,
}

/// Looks for everybody but this process who has one of the files open for writing, in one pass over all processes. Those
/// that vanish meanwhile are no error.
///
/// # Errors
/// What listing /proc says.
pub fn search(files: &Files) -> io::Result<Search> {
    let mut search = Search { found: vec![Vec::new(); files.len()], ..Search::default() };
    let mut add = |file: usize, holder: Holder| {
        // A thread with descriptors of its own has a copy of those of its process, as a rule.
        if !search.found[file].contains(&holder) {
            search.found[file].push(holder);
        }
    };
    let myself = std::process::id();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = number(&entry?) else { continue };
        if pid == myself {
            continue;
        }
        if let Err(e) = process::look_into(pid, files, &mut add) {
            search.hidden.push(pid);
            search.busy.extend((e.kind() != io::ErrorKind::PermissionDenied).then_some(pid));
        }
    }
    loops::find(files, &mut add);
    Ok(search)
}

/// Looks for shared mappings of the files, that may be written, in these processes alone.
pub fn mappings(files: &Files, pids: impl IntoIterator<Item = u32>) -> Search {
    let mut search = Search { found: vec![Vec::new(); files.len()], ..Search::default() };
    for pid in pids {
        if process::look_for_mappings(pid, files, &mut |file, holder| search.found[file].push(holder)).is_err() {
            search.hidden.push(pid);
        }
    }
    search
}

/// Looks for everybody but this process who has the file open for writing.
///
/// # Errors
/// What fstat(2), F_OFD_GETLK or listing /proc says.
pub fn holders(image: BorrowedFd<'_>) -> io::Result<Holders> {
    let stat = fstat(image)?;
    let Search { mut found, hidden, busy } = search(&Files::new([(stat.st_dev, stat.st_ino)]))?;
    let mut found = found.swap_remove(0);
    found.extend(qemu_lock(image)?);
    Ok(Holders { found, hidden, busy })
}

/// Somebody other than this process who has an image open for writing, of an image that this process serves.
///
/// # Errors
/// As [`holders`].
pub fn past(image: BorrowedFd<'_>, server: u32) -> io::Result<Option<Holder>> {
    // The lock is the server's: it could not have it if anybody else had.
    let other = |it: &Holder| it.pid != Some(server) && it.what != Holding::QemuLock;
    let stat = fstat(image)?;
    let may_write = |pid: &u32| {
        let uid = fs::metadata(format!("/proc/{pid}")).map_or(0, |it| it.uid());
        uid == 0 || uid == stat.st_uid || stat.st_mode & 0o022 != 0
    };
    let until = Instant::now() + PATIENCE;
    loop {
        let Holders { found, busy, .. } = holders(image)?;
        let found = found.into_iter().find(other);
        // For want of descriptors, say, for a moment; who could have it and cannot be looked into for longer has to be taken for somebody.
        let busy = busy.into_iter().find(|pid| *pid != server && may_write(pid));
        match (found, busy) {
            (None, Some(pid)) if Instant::now() >= until => {
                return Ok(Some(Holder { pid: Some(pid), comm: process::comm(pid), what: Holding::Busy }));
            }
            (None, Some(_)) => std::thread::sleep(AGAIN),
            (found, _) => return Ok(found),
        }
    }
}

/// Whoever holds QEMU's image lock with permission to write.
///
/// # Errors
/// What F_OFD_GETLK says.
pub fn qemu_lock(image: BorrowedFd<'_>) -> io::Result<Option<Holder>> {
    let byte = image_lock::byte(image_lock::WRITES);
    let conflict = ofd::conflict(image, byte, Lock::Write)?;
    Ok(conflict.map(|conflict| {
        let comm = conflict.pid.map(process::comm).unwrap_or_default();
        Holder { pid: conflict.pid, comm, what: Holding::QemuLock }
    }))
}

/// The entry's name as a number: a process in /proc, a thread in its task, a descriptor in its fd.
fn number(entry: &fs::DirEntry) -> Option<u32> {
    entry.file_name().to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Holder, Holders, Holding};

    #[test]
    fn a_sysadmin_reads_who_and_how() {
        let check = |pid, comm: &str, what, expect: &str| {
            assert_eq!(Holder { pid, comm: comm.to_owned(), what }.to_string(), expect);
        };
        let qemu = "qemu-system-x86";
        check(
            Some(7),
            qemu,
            Holding::Descriptor(12),
            "pid 7 (qemu-system-x86) has it open for writing as descriptor 12",
        );
        let of_thread = "pid 7 has it open for writing as descriptor 12 of its thread 8 alone";
        check(Some(7), "", Holding::OfThread(8, 12), of_thread);
        check(Some(7), "", Holding::Mapping, "pid 7 has it mapped shared and may write to the mapping");
        let device = Holding::LoopDevice(PathBuf::from("/dev/loop3"));
        check(None, "", device, "loop device /dev/loop3 is backed by it and can be written");
        check(None, "", Holding::QemuLock, "somebody holds QEMU's image lock with permission to write");
        let unknown = Holders::default().insist().found;
        assert_eq!(unknown[0].to_string(), "somebody who cannot be named has it open for writing");
    }
}
