//! Who has closed an image that he had open for writing, as far as that can be told.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rclone_img::disk::real::RealFile;
use rclone_img::hold::guard::closings::Closings;
use rclone_img::hold::guard::exempt;
use rclone_img::sys::process;

use crate::support::{Other, must, on_both};

/// A copy of a descriptor outlives the one that it is of where that is closed in this moment: the kernel tells then of whoever had the copy.
#[test]
fn what_a_copy_outlives_was_closed_by_its_owner() {
    on_both(|s| {
        let path = s.path("vm.img");
        must("truncate", &[&"-s", &"1M", &path]);
        let ours = exempt(&RealFile::from(File::open(&path).expect("open")), &path).expect("exempt");
        let images = [(Arc::new(ours), path.clone())];
        let copied_and_closed = |is_known: bool| {
            let owner = Other::opens("<>", &path);
            let pid = owner.pid().expect("a process");
            let known = BTreeSet::from_iter(is_known.then_some(pid));
            let closings = Closings::of(&images, &[known]).expect("told of");
            let of = process::open(pid).expect("it runs");
            let copy = process::descriptor(of.as_fd(), 9).expect("a copy");
            drop(owner);
            let copied = BTreeSet::from([pid]);
            assert_eq!(closings.lost(&images, &copied), None, "{:?}: nothing is closed yet", s.fs);
            drop(copy);
            (pid, closings.lost(&images, &copied))
        };
        // What another test starts in this moment has the copy as well, and may be the last to close it.
        assert!((0..20).any(|_| copied_and_closed(true).1.is_none()), "{:?}", s.fs);
        let told_of_the_owner = || {
            let (pid, why) = copied_and_closed(false);
            why.is_some_and(|why| why.contains(&format!("pid {pid} has closed")))
        };
        assert!((0..20).any(|_| told_of_the_owner()), "{:?}", s.fs);
    });
}
