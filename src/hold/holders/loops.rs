//! Loop devices on files.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Files, Holder, Holding};
use crate::sys::loopdev;

/// Adds the writable loop devices on the files. A device that cannot be asked is judged by the path that sysfs gives.
pub fn find(files: &Files, add: &mut impl FnMut(usize, Holder)) {
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
        let file = match told {
            Ok(backing) => backing.filter(|b| !b.read_only).and_then(|b| files.find(b.dev, b.ino)),
            Err(_) => {
                let read_only = fs::read_to_string(entry.path().join("ro")).is_ok_and(|ro| ro.trim() == "1");
                let file = files.at(Path::new(path.trim_end_matches('\n'))).unwrap_or(None);
                file.filter(|_| !read_only)
            }
        };
        if let Some(file) = file {
            add(file, Holder { pid: None, comm: String::new(), what: Holding::LoopDevice(device) });
        }
    }
}
