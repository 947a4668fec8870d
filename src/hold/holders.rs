//! Who has an image open for writing.
//!
//! The kernel's answer to "does anybody?" is a read lease ([`crate::sys::lease`]); this module finds names for the refusal.
//! It looks at every process's descriptors and shared mappings, at io_uring's registered files, at loop devices, and at the
//! lock byte that QEMU holds while it may write. It can miss somebody: processes we may not look into (counted), threads
//! with a descriptor table of their own, a descriptor in flight in a socket, other users inside the kernel (an NFS or iSCSI
//! server, a swap file). **Finding nobody proves nothing**; [`Holders::insist`] puts that into words.

use std::fmt;
use std::fs::{self, DirEntry, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;

use crate::range::ByteRange;
use crate::sys::loopdev;
use crate::sys::ofd::{self, Lock};

/// Where QEMU holds a read lock while it has the write permission (`RAW_LOCK_PERM_BASE` + 1, QEMU's `block/file-posix.c`).
pub(super) const QEMU_WRITES: u64 = 101;

/// Lines of a maps file and files of an io_uring looked at in one process: a bound for what others decide.
const MOST_LINES: usize = 1 << 20;

/// How somebody holds an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holding {
    /// A descriptor open for writing, by its number.
    Descriptor(u32),
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
            Holding::Mapping => write!(f, "{subject}has it mapped shared and may write to the mapping"),
            Holding::IoUring(number) => {
                write!(f, "{subject}has it registered with the io_uring of descriptor {number} and may write")
            }
            Holding::LoopDevice(path) => write!(f, "loop device {} is backed by it and can be written", path.display()),
            Holding::QemuLock => write!(f, "{subject}holds QEMU's image lock with permission to write"),
            Holding::Unknown => write!(f, "somebody who cannot be named has it open for writing"),
        }
    }
}

/// What a search found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holders {
    /// Who has the image open for writing; a process can be here more than once.
    pub found: Vec<Holder>,
    /// Processes that could not be looked into for want of permission.
    pub hidden: Vec<u32>,
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

/// Looks for everybody but this process who has the file open for writing. Processes that vanish meanwhile are no error.
///
/// # Errors
/// What fstat(2), F_OFD_GETLK or listing /proc says.
pub fn holders(image: BorrowedFd<'_>) -> io::Result<Holders> {
    let stat = fstat(image)?;
    let image_is = Identity { dev: stat.st_dev, ino: stat.st_ino };
    let mut holders = Holders::default();
    let myself = std::process::id();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = number(&entry?) else { continue };
        if pid != myself && !look_into(pid, image_is, &mut holders.found) {
            holders.hidden.push(pid);
        }
    }
    loop_devices(image_is, &mut holders.found);
    let byte = ByteRange::at(QEMU_WRITES, 1).ok_or(io::ErrorKind::InvalidInput)?;
    if let Some(conflict) = ofd::conflict(image, byte, Lock::Write)? {
        let comm = conflict.pid.map(comm).unwrap_or_default();
        holders.found.push(Holder { pid: conflict.pid, comm, what: Holding::QemuLock });
    }
    Ok(holders)
}

/// A file by device and inode, as stat(2) tells them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    dev: u64,
    ino: u64,
}

impl Identity {
    /// Whether the path leads to this file; never waits for it, for nothing is opened.
    fn is_at(self, path: &Path) -> io::Result<bool> {
        let found = fs::metadata(path)?;
        Ok(self == Self { dev: found.dev(), ino: found.ino() })
    }
}

/// Adds what the process holds; false where we may not look.
fn look_into(pid: u32, image: Identity, found: &mut Vec<Holder>) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let mut add = |what| found.push(Holder { pid: Some(pid), comm: comm(pid), what });
    let seen = descriptors(&proc, image, &mut add).and_then(|()| mappings(&proc, image, &mut add));
    !seen.is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

fn descriptors(proc: &Path, image: Identity, add: &mut impl FnMut(Holding)) -> io::Result<()> {
    for entry in fs::read_dir(proc.join("fd"))? {
        let entry = entry?;
        let Some(descriptor) = number(&entry) else { continue };
        let Ok(info) = fs::read_to_string(proc.join("fdinfo").join(entry.file_name())) else { continue };
        let info = FdInfo::parse(&info);
        // stat(2) on a hung network file system never returns; the inode number, which Linux 5.14 and later tell, keeps
        // us from asking.
        if info.writable && info.ino.is_none_or(|ino| ino == image.ino) && image.is_at(&entry.path()).unwrap_or(false) {
            add(Holding::Descriptor(descriptor));
        }
        if info.registered.iter().any(|path| image.is_at(path).unwrap_or(false)) {
            add(Holding::IoUring(descriptor));
        }
    }
    Ok(())
}

/// What `/proc/PID/fdinfo/N` says.
#[derive(PartialEq, Eq, Debug, Default)]
struct FdInfo {
    writable: bool,
    ino: Option<u64>,
    /// Paths of an io_uring's registered files.
    registered: Vec<PathBuf>,
}

impl FdInfo {
    fn parse(text: &str) -> Self {
        let mut info = Self::default();
        let mut uring = false;
        for line in text.lines().take(MOST_LINES) {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key {
                "flags" => {
                    let flags = libc::c_int::from_str_radix(value, 8).unwrap_or(0);
                    let mode = flags & libc::O_ACCMODE;
                    info.writable = flags & libc::O_PATH == 0 && (mode == libc::O_WRONLY || mode == libc::O_RDWR);
                }
                "ino" => info.ino = value.parse().ok(),
                "UserFiles" => uring = true,
                "UserBufs" => uring = false,
                slot if uring && value.starts_with('/') && slot.trim().parse::<u32>().is_ok() => {
                    info.registered.push(PathBuf::from(value));
                }
                _ => {}
            }
        }
        info
    }
}

/// Adds one holding if the process has the file in a shared mapping that is, or may be made, writable.
///
/// Not smaps, which says so in words (`sh` with `mw`), because it walks the page tables of the whole guest. `s` in maps is
/// the first, the mode of the link in map_files, which shows how the file was opened, is the second.
fn mappings(proc: &Path, image: Identity, add: &mut impl FnMut(Holding)) -> io::Result<()> {
    let maps = fs::read(proc.join("maps"))?;
    for line in maps.split(|b| *b == b'\n').take(MOST_LINES) {
        let line = String::from_utf8_lossy(line);
        let Some((addresses, path)) = shared_mapping_of(&line, image.ino) else { continue };
        let link = proc.join("map_files").join(addresses);
        let Ok(how) = fs::symlink_metadata(&link) else { continue };
        if how.mode() & 0o200 == 0 {
            continue;
        }
        // The device in maps is not st_dev on Btrfs. Following the link needs CAP_SYS_ADMIN; without it the name must do.
        let same = match image.is_at(&link) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => image.is_at(Path::new(path)).unwrap_or(false),
            other => other.unwrap_or(false),
        };
        if same {
            add(Holding::Mapping);
            break;
        }
    }
    Ok(())
}

/// The addresses, as map_files names them, and the path of a line of a maps file, if it is a shared mapping of that inode.
fn shared_mapping_of(line: &str, ino: u64) -> Option<(&str, &str)> {
    let mut fields = line.splitn(6, ' ');
    let addresses = fields.next()?;
    let shared = fields.next()?.ends_with('s');
    let inode = fields.nth(2)?;
    let path = fields.next().unwrap_or_default().trim_start();
    (shared && inode.parse() == Ok(ino)).then_some((addresses, path))
}

/// Adds the writable loop devices on the file. A device that cannot be asked is judged by the path that sysfs gives.
fn loop_devices(image: Identity, found: &mut Vec<Holder>) {
    let Ok(entries) = fs::read_dir("/sys/block") else { return };
    for entry in entries.flatten() {
        // Only devices that are set up have this.
        let Ok(path) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        let device = Path::new("/dev").join(entry.file_name());
        let told = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&device)
            .and_then(|device| loopdev::backing(device.as_fd()));
        let holds = match told {
            Ok(backing) => backing.is_some_and(|b| !b.read_only && image == Identity { dev: b.dev, ino: b.ino }),
            Err(_) => {
                let read_only = fs::read_to_string(entry.path().join("ro")).is_ok_and(|ro| ro.trim() == "1");
                !read_only && image.is_at(Path::new(path.trim_end_matches('\n'))).unwrap_or(false)
            }
        };
        if holds {
            found.push(Holder { pid: None, comm: String::new(), what: Holding::LoopDevice(device) });
        }
    }
}

fn comm(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned()
}

/// The entry's name as a number: a process in /proc, a descriptor in its fd.
fn number(entry: &DirEntry) -> Option<u32> {
    entry.file_name().to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{FdInfo, Holder, Holders, Holding, shared_mapping_of};

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
        check(Some(7), "", Holding::Mapping, "pid 7 has it mapped shared and may write to the mapping");
        let device = Holding::LoopDevice(PathBuf::from("/dev/loop3"));
        check(None, "", device, "loop device /dev/loop3 is backed by it and can be written");
        check(None, "", Holding::QemuLock, "somebody holds QEMU's image lock with permission to write");
        let unknown = Holders::default().insist().found;
        assert_eq!(unknown[0].to_string(), "somebody who cannot be named has it open for writing");
    }

    #[test]
    fn access_mode_inode_and_registered_files_are_read_from_fdinfo() {
        let info = FdInfo::parse("pos:\t0\nflags:\t02100002\nmnt_id:\t29\nino:\t257\n");
        assert_eq!(info, FdInfo { writable: true, ino: Some(257), registered: vec![] });
        assert!(!FdInfo::parse("flags:\t0100000\n").writable);
        assert!(!FdInfo::parse("flags:\t010000002\n").writable, "O_PATH writes nothing");
        let uring =
            FdInfo::parse("SqThread:\t-1\nUserFiles:\t2\n    0: /vm/a.img\n    1: <none>\nUserBufs:\t1\n    0: /x\n");
        assert_eq!(uring.registered, [PathBuf::from("/vm/a.img")]);
    }

    #[test]
    fn only_shared_mappings_of_the_inode_count() {
        let line = |mode| format!("7f0bfe362000-7f0bfe364000 {mode} 00000000 00:29 257                    /vm/a b.img");
        let found = shared_mapping_of(&line("r--s"), 257).map(|(a, p)| (a.to_owned(), p.to_owned()));
        assert_eq!(found, Some(("7f0bfe362000-7f0bfe364000".to_owned(), "/vm/a b.img".to_owned())));
        assert_eq!(shared_mapping_of(&line("r--s"), 25), None);
        assert_eq!(shared_mapping_of(&line("rw-p"), 257), None);
    }
}
