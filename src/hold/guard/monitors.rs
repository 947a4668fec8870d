//! QEMUs that were started before anything armed their images: they are made to open them anew.

use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::sys::stat::fstat;

use super::preflight::{self, Survey};
use super::watch::Watch;
use crate::error::{Error, Kind, Result};
use crate::hold::choose::Image;
use crate::hold::holders::Holding;
use crate::qemu::arm::{self, Inode};
use crate::qemu::qmp::{GREETING, Qmp};

/// Has the QEMU at each monitor open anew what it has open of the images in a way that cannot be watched. The images are
/// under watch already, which arms what is opened.
///
/// # Errors
/// Refused or failed as [`arm::arm`] says.
pub fn arm_all(monitors: &[PathBuf], images: &[Image], watch: &Watch) -> Result<()> {
    for path in monitors {
        let mut monitor = Qmp::connect(path, GREETING)?;
        let hint = "give the socket that the QEMU of this image has made: -qmp unix:PATH,server=on,wait=off";
        let unknown = |e| {
            Error::io(Kind::Refused, format!("cannot tell who listens at the monitor '{}'", path.display()), hint, e)
        };
        let pid = monitor.listener().map_err(unknown)?;
        let mut has_one = false;
        for (image, name) in images {
            let look = || preflight::look(image, watch);
            let first = look()?;
            if !has_open(&first, pid) {
                continue;
            }
            has_one = true;
            let stat = fstat(image.as_fd()).map_err(|e| unknown(e.into()))?;
            let inode = Inode { dev: stat.st_dev, ino: stat.st_ino };
            arm::arm(&mut monitor, inode, || Ok(!escapes(&look()?, pid))).map_err(|error| {
                let what = format!("the QEMU that has '{}' open cannot be armed: {}", name.display(), error.what);
                Error { what, ..error }
            })?;
        }
        if !has_one {
            let what = format!(
                "pid {pid}, which listens at the monitor '{}', does not have the image open for writing",
                path.display()
            );
            return Err(Error::new(Kind::Refused, what, hint));
        }
    }
    Ok(())
}

fn has_open(survey: &Survey, pid: u32) -> bool {
    survey.armed.iter().chain(&survey.escapes).any(|holder| holder.pid == Some(pid))
}

/// Whether it has a descriptor that cannot be watched; what else escapes opening it anew does not mend.
fn escapes(survey: &Survey, pid: u32) -> bool {
    survey.escapes.iter().any(|holder| holder.pid == Some(pid) && matches!(holder.what, Holding::Descriptor(_)))
}
