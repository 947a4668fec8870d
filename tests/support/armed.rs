//! Whether a descriptor is armed: the kernel is asked by watching its file for a moment.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;

use rclone_img::sys::fanotify::{Group, Mark};

/// Whether an access by this descriptor makes an event in a group that watches its file. Meanwhile, what others open is
/// armed by that group.
pub fn armed(file: &File) -> bool {
    let watch = Group::pre_content().expect("a group");
    watch.mark(file.as_fd(), Mark::PreAccess).expect("mark");
    let (done, ended) = mpsc::channel();
    let reader = file.try_clone().expect("dup");
    thread::spawn(move || done.send(reader.read_at(&mut [], 0)));
    let (mut seen, mut answer) = (false, None);
    let over = super::until(|| {
        while let Some(event) = watch.read().expect("read") {
            seen |= event.pid == std::process::id() as i32;
            watch.allow(event.file.as_raw_fd()).expect("allow");
        }
        answer = ended.try_recv().ok();
        answer.is_some()
    });
    assert!(over, "a read of nothing hung");
    answer.expect("ended").expect("the read");
    seen
}
