//! The guest of the benchmark: the process that reads, writes and flushes the image, and times each access.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reflink_img_guest::latency::{self, Accesses, Kind};

use crate::run::{self, Background};

/// How long a guest runs before and after what is measured beside it.
const MARGIN: Duration = Duration::from_millis(500);

/// Makes an image of nearly as many extents as blocks. A process of its own, which an interruption can end at once.
pub fn fill(program: &Path, image: &Path, bytes: u64) -> Result<()> {
    let size = format!("{}K", bytes >> 10);
    run::checked(Command::new(program).arg("fill").arg(image).args(["--fragment", "--size", &size])).map(drop)
}

/// A guest at work.
pub struct Guest {
    child: Background,
    log: PathBuf,
}

impl Guest {
    /// Starts one reader, `writers` and one that flushes every 100 ms, past the page cache, as fast as they go. The log is in
    /// `folder`, which should be in memory.
    pub fn start(program: &Path, image: &Path, writers: u32, folder: &Path) -> Result<Self> {
        let log = folder.join("accesses");
        let mut command = Command::new(program);
        command.arg("latency").arg(image).arg("--out").arg(&log).args(["--writers", &writers.to_string()]);
        let child = Background::start(&command)?;
        child.wait_for("ready")?;
        thread::sleep(MARGIN);
        Ok(Self { child, log })
    }

    /// Ends it; all of its accesses. An access that failed is an error: no figure is worth anything then.
    pub fn end(self) -> Result<Accesses> {
        thread::sleep(MARGIN);
        self.child.stop().context("the guest had errors")?;
        let accesses = latency::read(&self.log)?;
        std::fs::remove_file(&self.log).with_context(|| format!("remove {}", self.log.display()))?;
        for kind in Kind::ALL {
            let count = accesses.list.iter().filter(|it| it.kind() == kind).count();
            ensure!(count > 0, "the guest made no {} at all", kind.word());
        }
        Ok(accesses)
    }
}
