//! fanotify pre-content events: the kernel asks before an access to a file happens, and tells its range (Linux 6.14).
//!
//! Not nix's: that drops the info records, where the range is, and masks FAN_PRE_ACCESS. Constants and structs are those of
//! `linux/fanotify.h`; what the kernel does with them is in `docs/KERNEL.md`.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `FAN_PRE_ACCESS`: newer than the libc crate.
const FAN_PRE_ACCESS: u64 = 0x0010_0000;

/// `FAN_EVENT_INFO_TYPE_RANGE`.
const INFO_RANGE: u8 = 6;

/// `FANOTIFY_METADATA_VERSION`.
const VERSION: u8 = 3;

/// `struct fanotify_event_metadata`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Metadata {
    event_len: u32,
    vers: u8,
    reserved: u8,
    metadata_len: u16,
    mask: u64,
    fd: i32,
    pid: i32,
}

/// `struct fanotify_event_info_header`, with the rest of `struct fanotify_event_info_range`.
#[repr(C)]
#[derive(Clone, Copy)]
struct InfoRange {
    info_type: u8,
    pad: u8,
    len: u16,
    pad2: u32,
    offset: u64,
    count: u64,
}

/// `struct fanotify_response`.
#[repr(C)]
struct Response {
    fd: i32,
    response: u32,
}

const _: () =
    assert!(size_of::<Metadata>() == 24 && offset_of!(Metadata, mask) == 8 && offset_of!(Metadata, pid) == 20);
const _: () = assert!(size_of::<InfoRange>() == 24 && offset_of!(InfoRange, offset) == 8);
const _: () = assert!(size_of::<Response>() == 8);

/// Bytes of one event as a pre-content group delivers it.
pub const EVENT: usize = size_of::<Metadata>() + size_of::<InfoRange>();

/// The same of a group that is only told of events: in more than these there may be two.
const PLAIN_EVENT: usize = size_of::<Metadata>();

/// What a mark is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// Accesses to this file wait for an answer.
    PreAccess,
    /// Openings of this file are told (of a notification group).
    Open,
    /// That it is closed is told, of what was open for writing (of a notification group).
    CloseWrite,
    /// Nothing is told: descriptors of this file that are opened from now on can be watched later.
    ArmFile,
    /// The same for the files in this directory.
    ArmDirectory,
    /// The same for every file on the file system that this file or directory is on.
    ArmFileSystem,
}

/// What is marked.
enum Object<'a> {
    /// What a descriptor is open on.
    Open(BorrowedFd<'a>),
    /// What a path leads to, links followed.
    Path(&'a CStr),
}

/// An event, with the descriptor that came with it; that is open for reading, and exempt from events for life.
#[derive(Debug)]
pub struct Event {
    /// The file.
    pub file: OwnedFd,
    /// The process that does it (its thread group), 0 where it is not to be seen from here.
    pub pid: i32,
    /// The range, as the kernel tells it: first byte and number of bytes, of which 0 means to the end of the file. `None`
    /// where the kernel tells none.
    pub range: Option<(u64, u64)>,
    /// Whether somebody waits for an answer, by the descriptor's number.
    pub asks: bool,
}

/// A fanotify group: marks, and the queue of their events.
#[derive(Debug)]
pub struct Group {
    fd: OwnedFd,
    /// Bytes of an event.
    event: usize,
}

impl Group {
    /// A group of pre-content class: its events wait to be answered. Reading never blocks, the queue has no limit (one that
    /// overflows would let accesses pass unseen).
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN; EMFILE; ENOSYS and EINVAL where the kernel has no fanotify permission events.
    pub fn pre_content() -> io::Result<Self> {
        Self::init(libc::FAN_CLASS_PRE_CONTENT | libc::FAN_UNLIMITED_QUEUE | libc::FAN_UNLIMITED_MARKS, EVENT)
    }

    /// A group that is only told of events: it can keep nobody waiting.
    ///
    /// # Errors
    /// As [`Group::pre_content`].
    pub fn notification() -> io::Result<Self> {
        Self::init(libc::FAN_CLASS_NOTIF, PLAIN_EVENT)
    }

    fn init(flags: libc::c_uint, event: usize) -> io::Result<Self> {
        let flags = flags | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        let event_flags = (libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC) as libc::c_uint;
        // SAFETY: fanotify_init takes two integers and touches no memory of ours.
        let fd = unsafe { libc::fanotify_init(flags, event_flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor and nobody else has it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, event })
    }

    /// Another process's group of pre-content class, received from it.
    pub fn received(fd: OwnedFd) -> Self {
        Self { fd, event: EVENT }
    }

    /// Marks the file or directory that `file` is open on.
    ///
    /// # Errors
    /// What fanotify_mark(2) says: EINVAL where the kernel knows no such events, EOPNOTSUPP where the file system does not
    /// send them.
    pub fn mark(&self, file: BorrowedFd<'_>, mark: Mark) -> io::Result<()> {
        self.change(libc::FAN_MARK_ADD, Object::Open(file), mark)
    }

    /// The same for a descriptor of O_PATH, which fanotify_mark does not take itself. Nothing is opened, so that no lease is
    /// broken and nobody sees a reader.
    ///
    /// # Errors
    /// As [`Group::mark`]; ENOENT without `/proc`.
    pub fn mark_place(&self, place: BorrowedFd<'_>, mark: Mark) -> io::Result<()> {
        let path = CString::new(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
        self.change(libc::FAN_MARK_ADD, Object::Path(&path), mark)
    }

    /// Takes such a mark away.
    ///
    /// # Errors
    /// ENOENT where there is none.
    pub fn unmark(&self, file: BorrowedFd<'_>, mark: Mark) -> io::Result<()> {
        self.change(libc::FAN_MARK_REMOVE, Object::Open(file), mark)
    }

    fn change(&self, verb: libc::c_uint, object: Object<'_>, mark: Mark) -> io::Result<()> {
        let adding = verb == libc::FAN_MARK_ADD;
        // Survives modification: an ignore mark would else be gone with the first write.
        let ignore = libc::FAN_MARK_IGNORE | if adding { libc::FAN_MARK_IGNORED_SURV_MODIFY } else { 0 };
        let (flags, mask) = match mark {
            Mark::PreAccess => (0, FAN_PRE_ACCESS),
            Mark::Open => (0, libc::FAN_OPEN),
            Mark::CloseWrite => (0, libc::FAN_CLOSE_WRITE),
            Mark::ArmFile => (ignore, FAN_PRE_ACCESS),
            Mark::ArmDirectory => (ignore, FAN_PRE_ACCESS | libc::FAN_EVENT_ON_CHILD),
            Mark::ArmFileSystem => (ignore | libc::FAN_MARK_FILESYSTEM, FAN_PRE_ACCESS),
        };
        let (at, path) = match object {
            Object::Open(file) => (file.as_raw_fd(), std::ptr::null()),
            Object::Path(path) => (libc::AT_FDCWD, path.as_ptr()),
        };
        // SAFETY: fanotify_mark marks what the path leads to, a string that ends and lives for the call; with a null path,
        // what the descriptor is open on. All descriptors are borrowed, so they stay open for the call.
        let answer = unsafe { libc::fanotify_mark(self.fd.as_raw_fd(), verb | flags, mask, at, path) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes away all marks on files and directories: from then on no access waits, but for those that do already.
    ///
    /// # Errors
    /// None is known.
    pub fn unmark_all(&self) -> io::Result<()> {
        // SAFETY: FAN_MARK_FLUSH looks at no path and no mask.
        let answer = unsafe {
            libc::fanotify_mark(self.fd.as_raw_fd(), libc::FAN_MARK_FLUSH, 0, libc::AT_FDCWD, std::ptr::null())
        };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Reads one event; `None` where there is none. One at a time, so that every event that was delivered can be in a table
    /// before the next one is.
    ///
    /// # Errors
    /// What read(2) says; EMFILE means that the access was refused to whoever made it. `InvalidData` where the kernel speaks
    /// another version.
    pub fn read(&self) -> io::Result<Option<Event>> {
        // Eight-byte alignment is what the kernel's structs ask for.
        let mut buffer = [0u64; EVENT / 8];
        // SAFETY: the kernel writes at most `event` bytes into the buffer, which has EVENT, the most that `event` can be.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), self.event) };
        if read < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        if (read as usize) < size_of::<Metadata>() {
            return Ok(None);
        }
        // SAFETY: the kernel has written a whole metadata struct, which has no invalid values, at the aligned beginning.
        let metadata = unsafe { buffer.as_ptr().cast::<Metadata>().read() };
        if metadata.fd < 0 {
            let why = if metadata.mask & libc::FAN_Q_OVERFLOW != 0 { "the event queue overflowed" } else { "no file" };
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a fanotify event without a file: {why}")));
        }
        // SAFETY: the kernel has just made this descriptor for this process, and nobody else has it.
        let file = unsafe { OwnedFd::from_raw_fd(metadata.fd) };
        if metadata.vers != VERSION {
            let _ = self.allow(metadata.fd);
            return Err(io::Error::new(io::ErrorKind::InvalidData, "fanotify speaks another version"));
        }
        let asks = metadata.mask & FAN_PRE_ACCESS != 0;
        let mut range = None;
        if read as usize == EVENT && metadata.event_len as usize == EVENT {
            // SAFETY: the kernel has written all of the buffer; the second struct begins at byte 24, which is aligned, and
            // has no invalid values.
            let info = unsafe { buffer.as_ptr().cast::<u8>().add(size_of::<Metadata>()).cast::<InfoRange>().read() };
            range = (info.info_type == INFO_RANGE).then_some((info.offset, info.count));
        }
        Ok(Some(Event { file, pid: metadata.pid, range, asks }))
    }

    /// Lets the access go on whose event had this descriptor number in the process that read it.
    ///
    /// # Errors
    /// ENOENT where no access waits under this number.
    pub fn allow(&self, number: i32) -> io::Result<()> {
        let response = Response { fd: number, response: libc::FAN_ALLOW };
        // SAFETY: the kernel reads one `struct fanotify_response`.
        let written = unsafe { libc::write(self.fd.as_raw_fd(), (&raw const response).cast(), size_of::<Response>()) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A descriptor of the file that is open for reading and never sends an event, whoever marks the file: one that came with
/// an event itself. `open` opens the file once more, by whatever way.
///
/// The group is of the kind that keeps nobody waiting.
///
/// # Errors
/// As [`Group::pre_content`] and [`Group::mark`]; what `open` says; `NotFound` where no event came.
pub fn exempt(file: BorrowedFd<'_>, open: impl FnOnce() -> io::Result<File>) -> io::Result<OwnedFd> {
    let group = Group::notification()?;
    group.mark(file, Mark::Open)?;
    drop(open()?);
    let event = group.read()?;
    event.map(|e| e.file).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "opening the file sent no event"))
}
