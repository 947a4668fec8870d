//! Loop devices, those of mounts among them. Who wants one asks for the number of a free one and then takes it; where another
//! has been faster, `losetup` closes the image and opens it anew, which a job that watches it must count as a writer that came
//! and went. So the tests take turns.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use super::must;

/// A loop device, detached on drop.
pub struct LoopDevice(pub PathBuf);

impl LoopDevice {
    pub fn on(path: &Path, read_only: bool) -> Self {
        Self::in_turn(&turn(), path, read_only)
    }

    /// The same by who has taken the [`turn`] before, and so does not wait for it now.
    pub fn in_turn(_: &Turn, path: &Path, read_only: bool) -> Self {
        let find = if read_only { "-rf" } else { "-f" };
        Self(PathBuf::from(must("losetup", &[&find, &"--show", &path]).trim()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// Nobody else of these tests, in this process or in another, takes a loop device until this is dropped.
pub struct Turn(#[expect(dead_code, reason = "held")] Option<Flock<File>>);

/// Waits for one's turn. Where this machine has no loop devices there are none; whoever asks for one says so.
pub fn turn() -> Turn {
    let control = File::open("/dev/loop-control").ok();
    Turn(control.map(|control| Flock::lock(control, FlockArg::LockExclusive).expect("a lock")))
}
