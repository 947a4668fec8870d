//! Looking into one process: its descriptors, what its io_urings have, and its mappings.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::fdinfo::{FdInfo, is_ring};
use super::{Files, Holder, Holding, number};
use crate::sys::process;

/// Lines of a maps file looked at in one process: a bound for what others decide.
const MOST_LINES: usize = 1 << 20;

/// How long the io_urings of a process that are at work are asked again, and the time between. A submission has its ring's lock
/// for as long as it waits, and under a watch each may wait for a clone: a busy guest's ring rests for moments only.
const RINGS_PATIENCE: Duration = Duration::from_secs(2);
const RING_WAIT: Duration = Duration::from_micros(250);

/// How often mappings are looked at anew that change meanwhile.
const MAPS_TRIES: u32 = 3;

/// Adds what the process holds. One that has ended holds nothing.
///
/// # Errors
/// What keeps us from looking at some of it; the rest has been looked at. `WouldBlock` where one of its io_urings was never
/// at rest.
pub fn look_into(pid: u32, files: &Files, add: &mut impl FnMut(usize, Holder)) -> io::Result<()> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let mut add = |file, what| add(file, Holder { pid: Some(pid), comm: comm(pid), what });
    let mut looked = unless_gone(descriptors(&process, &process, files, &mut add));
    let apart = unless_gone(threads_apart(&process, pid));
    for thread in apart.as_deref().unwrap_or_default() {
        let of_thread = &mut |file, holding| match holding {
            Holding::Descriptor(number) => add(file, Holding::OfThread(*thread, number)),
            other => add(file, other),
        };
        let task = process.join("task").join(thread.to_string());
        looked = looked.and(unless_gone(descriptors(&process, &task, files, of_thread)));
    }
    let mapped = unless_gone(mappings(&process, files, &mut add));
    looked.and(apart.map(drop)).and(mapped)
}

/// Adds what the process has mapped, and nothing else.
///
/// # Errors
/// What keeps us from looking.
pub fn look_for_mappings(pid: u32, files: &Files, add: &mut impl FnMut(usize, Holder)) -> io::Result<()> {
    let mut add = |file, what| add(file, Holder { pid: Some(pid), comm: comm(pid), what });
    unless_gone(mappings(&PathBuf::from(format!("/proc/{pid}")), files, &mut add))
}

/// The command's name.
pub fn comm(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned()
}

/// What is gone holds nothing; everything else that keeps us from looking is told.
fn unless_gone<T: Default>(looked: io::Result<T>) -> io::Result<T> {
    match looked {
        Err(e) if is_gone(&e) => Ok(T::default()),
        other => other,
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// The threads of the process that do not share the descriptors of the first one: that is a rare thing to do, or the first
/// one has ended.
fn threads_apart(process: &Path, pid: u32) -> io::Result<Vec<u32>> {
    let mut apart = Vec::new();
    for entry in fs::read_dir(process.join("task"))? {
        let Some(thread) = number(&entry?).filter(|thread| *thread != pid) else { continue };
        // A kernel that cannot compare them (CONFIG_KCMP) has us look at all.
        match process::same_descriptors(pid, thread) {
            Ok(true) => {}
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            Ok(false) | Err(_) => apart.push(thread),
        }
    }
    Ok(apart)
}

/// Adds what the descriptors of a process, or of one of its threads, have.
fn descriptors(process: &Path, task: &Path, files: &Files, add: &mut impl FnMut(usize, Holding)) -> io::Result<()> {
    let mut looked = Ok(());
    let mut until = None;
    for entry in fs::read_dir(task.join("fd"))? {
        let entry = entry?;
        let Some(descriptor) = number(&entry) else { continue };
        let info = match unless_gone(look_at(task, &entry.file_name(), &mut until).map(Some)) {
            Ok(Some(info)) => info,
            Ok(None) => continue,
            Err(e) => {
                looked = Err(e);
                continue;
            }
        };
        // stat(2) on a hung network file system never returns; the inode number, which Linux 5.14 and later tell, keeps
        // us from asking.
        if info.writable && info.ino.is_none_or(|ino| files.has_inode(ino)) {
            // What cannot be followed is gone, or no file at all.
            if let Some(file) = files.at(&entry.path()).unwrap_or(None) {
                add(file, Holding::Descriptor(descriptor));
            }
        }
        for file in info.registered.iter().filter_map(|path| seen_from(process, path, files)) {
            add(file, Holding::IoUring(descriptor));
        }
    }
    looked
}

/// What there is to know of a descriptor. The kernel tells nothing of an io_uring whose lock it cannot have at once; `until` is
/// when the patience with all of the process's ends, once one was met.
fn look_at(task: &Path, name: &OsString, until: &mut Option<Instant>) -> io::Result<FdInfo> {
    let (file, link) = (task.join("fdinfo").join(name), task.join("fd").join(name));
    loop {
        let info = FdInfo::parse(&fs::read(&file)?);
        // All rings are open for writing.
        let silent = info.writable && !info.ring && fs::read_link(&link).is_ok_and(|link| is_ring(link.as_os_str()));
        if !silent {
            return Ok(info);
        }
        if Instant::now() > *until.get_or_insert_with(|| Instant::now() + RINGS_PATIENCE) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        thread::sleep(RING_WAIT);
    }
}

/// Which file a path is that the kernel tells of a process: it may be of another mount namespace.
fn seen_from(process: &Path, path: &Path, files: &Files) -> Option<usize> {
    let theirs = || files.at(&process.join("root").join(path.strip_prefix("/").ok()?)).unwrap_or(None);
    files.at(path).unwrap_or(None).or_else(theirs)
}

/// Adds one holding for each file that the process has in a shared mapping that is, or may be made, writable.
///
/// Not smaps, which says so in words (`sh` with `mw`), because it walks the page tables of the whole guest. `s` in maps is
/// the first, the mode of the link in map_files, which shows how the file was opened, is the second.
fn mappings(process: &Path, files: &Files, add: &mut impl FnMut(usize, Holding)) -> io::Result<()> {
    let mut held = Vec::new();
    for tries in 1.. {
        let mut changed = false;
        for line in maps(process)?.split(|b| *b == b'\n').take(MOST_LINES) {
            let line = String::from_utf8_lossy(line);
            let Some((addresses, path)) = shared_mapping(&line, files) else { continue };
            match mapped(process, addresses, path, files) {
                Ok(file) => held.extend(file),
                // It was split or joined since; one that is only gone is not in the list the next time.
                Err(e) if is_gone(&e) && tries < MAPS_TRIES => changed = true,
                // Not to be had, so judged by its name.
                Err(_) => held.extend(seen_from(process, Path::new(path), files)),
            }
        }
        if !changed {
            break;
        }
    }
    held.sort_unstable();
    held.dedup();
    held.into_iter().for_each(|file| add(file, Holding::Mapping));
    Ok(())
}

/// The list of mappings: of another thread where the first one has ended.
fn maps(process: &Path) -> io::Result<Vec<u8>> {
    let first = fs::read(process.join("maps"))?;
    if !first.is_empty() {
        return Ok(first);
    }
    for entry in fs::read_dir(process.join("task"))? {
        let other = unless_gone(fs::read(entry?.path().join("maps")))?;
        if !other.is_empty() {
            return Ok(other);
        }
    }
    Ok(Vec::new())
}

/// Which file a mapping has, if it may be written.
fn mapped(process: &Path, addresses: &str, path: &str, files: &Files) -> io::Result<Option<usize>> {
    let link = process.join("map_files").join(addresses);
    if fs::symlink_metadata(&link)?.mode() & 0o200 == 0 {
        return Ok(None);
    }
    // The device in maps is not st_dev on Btrfs. Following the link needs CAP_SYS_ADMIN; without it the name must do.
    match files.at(&link) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(seen_from(process, Path::new(path), files)),
        other => other,
    }
}

/// The addresses, as map_files names them, and the path of a line of a maps file, if it is a shared mapping of an inode that
/// has the number of one of the files.
fn shared_mapping<'a>(line: &'a str, files: &Files) -> Option<(&'a str, &'a str)> {
    let mut fields = line.splitn(6, ' ');
    let addresses = fields.next()?;
    let shared = fields.next()?.ends_with('s');
    let inode = fields.nth(2)?.parse().ok()?;
    let path = fields.next().unwrap_or_default().trim_start();
    (shared && files.has_inode(inode)).then_some((addresses, path))
}

#[cfg(test)]
mod tests {
    use super::{Files, shared_mapping};

    #[test]
    fn only_shared_mappings_of_the_inodes_count() {
        let line = |mode| format!("7f0bfe362000-7f0bfe364000 {mode} 00000000 00:29 257                    /vm/a b.img");
        let of = |ino| Files::new([(7, 1), (7, ino)]);
        let shared = line("r--s");
        let found = shared_mapping(&shared, &of(257));
        assert_eq!(found, Some(("7f0bfe362000-7f0bfe364000", "/vm/a b.img")));
        assert_eq!(shared_mapping(&shared, &of(25)), None);
        assert_eq!(shared_mapping(&line("rw-p"), &of(257)), None);
    }
}
