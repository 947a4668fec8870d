//! What a job that another process runs shows of itself: its table, found among that process's descriptors.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::table::{Glance, NAME, Shown};
use crate::sys::process;

/// How many descriptors are looked at: a worker has few, and others decide how many theirs are.
const MOST: usize = 1 << 16;

/// What the job of this process shows; `None` where it has no table, since it is of a hold that makes nobody wait, or has not
/// come to its point in time (`filter`) or so far as to watch for it (`guard`). `start` tells the process from another of its number.
///
/// # Errors
/// `NotFound` where the process is gone; what keeps us from looking into it.
pub fn of(pid: u32, start: u64) -> io::Result<Option<Shown>> {
    let shown = find(pid)?.map(|glance| glance.look());
    // Whatever was found is that of the job only if the process is, all the time.
    if process::start_ticks(pid)? == start { Ok(shown) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn find(pid: u32) -> io::Result<Option<Glance>> {
    let name = [b"/memfd:", NAME.to_bytes(), b" (deleted)"].concat();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.take(MOST) {
        let path = entry?.path();
        let link = match fs::read_link(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue, // It was closed meanwhile.
            link => link?,
        };
        if link.as_os_str() == OsStr::from_bytes(&name) {
            // A name proves nothing: what has another size or form is passed over.
            if let Some(glance) = open(&path).ok().and_then(|file| Glance::of(file.into()).ok()) {
                return Ok(Some(glance));
            }
        }
    }
    Ok(None)
}

/// Without waiting: by now it may be something else.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::super::table::{Figures, NAME, Table, alone};
    use super::of;
    use crate::sys::process::start_ticks;

    #[test]
    fn a_table_is_found_by_its_form_and_of_the_process_that_was_meant() {
        let _alone = alone();
        let me = std::process::id();
        let start = start_ticks(me).expect("running");
        let _foreign = memfd_create(NAME, MFdFlags::MFD_CLOEXEC).expect("memfd");
        assert_eq!(of(me, start).expect("may look at itself"), None);
        let table = Table::create(Duration::from_secs(1), 100).expect("shared memory");
        table.tell(&Figures { bytes: 7, ..Figures::default() });
        let shown = of(me, start).expect("may look at itself").expect("a table");
        assert_eq!(shown.figures.bytes, 7);
        of(me, start + 1).expect_err("another process");
        of(u32::MAX, start).expect_err("no process");
    }
}
