//! The processes of a job that watches an image.

use std::fs;

use nix::unistd::Pid;

use super::{Job, until};

/// The processes of a job.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub front: Pid,
    pub worker: Pid,
    pub supervisor: Pid,
}

impl Family {
    pub fn of(job: &Job) -> Self {
        Self::behind(job.pid())
    }

    /// Behind the process that was started.
    pub fn behind(front: u32) -> Self {
        let child = |of: Pid| {
            let mut found = None;
            let there = until(|| {
                let path = format!("/proc/{of}/task/{of}/children");
                let children = fs::read_to_string(path).unwrap_or_default();
                found = children.split_whitespace().next().and_then(|p| p.parse().ok());
                found.is_some()
            });
            assert!(there, "{of} has no child");
            Pid::from_raw(found.expect("found"))
        };
        let front = Pid::from_raw(front as i32);
        let worker = child(front);
        Self { front, worker, supervisor: child(worker) }
    }

    pub fn is_gone(self) -> bool {
        let gone = |pid: Pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        gone(self.worker) && gone(self.supervisor)
    }
}
