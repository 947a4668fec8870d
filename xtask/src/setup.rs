//! What the verbs need from the distribution: which tools, in which Debian packages, and how they are installed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// A program, and the Debian package that brings it.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// The program's file name.
    pub name: &'static str,
    /// The Debian package.
    pub package: &'static str,
}

/// The packages of QEMU's programs.
const QEMU: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

const fn tool(name: &'static str, package: &'static str) -> Tool {
    Tool { name, package }
}

/// Loop-mounted file systems, and images fragmented by fio.
pub const LOOP: &[Tool] = &[
    tool("mkfs.xfs", "xfsprogs"),
    tool("mkfs.btrfs", "btrfs-progs"),
    tool("mount", "mount"),
    tool("losetup", "mount"),
    tool("fio", "fio"),
    tool("filefrag", "e2fsprogs"),
];

/// All of the above, and what the tests call beside it.
pub const ALL: &[Tool] = &[
    tool("mkfs.xfs", "xfsprogs"),
    tool("xfs_io", "xfsprogs"),
    tool("mkfs.btrfs", "btrfs-progs"),
    tool("btrfs", "btrfs-progs"),
    tool("mount", "mount"),
    tool("losetup", "mount"),
    tool("flock", "util-linux"),
    tool("script", "bsdutils"),
    tool("pgrep", "procps"),
    tool("fio", "fio"),
    tool("filefrag", "e2fsprogs"),
    tool("chattr", "e2fsprogs"),
    tool("mkfs.ext4", "e2fsprogs"),
    tool("e2fsck", "e2fsprogs"),
    tool("setpriv", "util-linux"),
    tool("setfattr", "attr"),
    tool("qemu-system-x86_64", "qemu-system-x86"),
    tool("qemu-storage-daemon", "qemu-system-x86"),
    tool("qemu-img", "qemu-utils"),
    tool("qemu-io", "qemu-utils"),
    tool("nbdkit", "nbdkit"),
    tool("nbdinfo", "libnbd-bin"),
    tool("nbdcopy", "libnbd-bin"),
    tool("nbdsh", "python3-libnbd"),
    tool("restic", "restic"),
    tool("rbd", "ceph-common"),
    tool("setquota", "quota"),
    tool("strace", "strace"),
];

/// Where programs are looked for: PATH, and the system folders that it lacks for most users on Debian.
pub fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for folder in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
        if !folders.iter().any(|known| known == Path::new(folder)) {
            folders.push(folder.into());
        }
    }
    folders
}

/// Whether a program is there.
pub fn has(name: &str) -> bool {
    search_path().iter().any(|folder| folder.join(name).is_file())
}

/// Whether this process may mount.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Makes sure that `tools` are there: installs what is missing if `setup`, else says what to install.
pub fn ensure(tools: &[Tool], setup: bool, verb: &str) -> Result<()> {
    if setup {
        return install(tools);
    }
    let (missing, packages) = missing(tools, has);
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "not installed: {}. On Debian: apt-get install {}; or let `cargo xtask {verb} --setup` do it",
        missing.join(", "),
        packages.join(" ")
    )
}

/// Installs the packages of those `tools` that are missing, through apt-get, and says what it does.
pub fn install(tools: &[Tool]) -> Result<()> {
    let (missing_tools, packages) = missing(tools, has);
    if missing_tools.is_empty() {
        eprintln!("setup: nothing is missing");
        return Ok(());
    }
    if !has("apt-get") {
        bail!(
            "not installed: {}, and there is no apt-get here; install what your distribution calls {}",
            missing_tools.join(", "),
            packages.join(", ")
        );
    }
    let apt = |arguments: &[&str]| -> Result<()> {
        let mut command = if is_root() {
            Command::new("env")
        } else if has("sudo") {
            let mut sudo = Command::new("sudo");
            sudo.arg("env");
            sudo
        } else {
            bail!("installing {} needs root: there is no sudo here", packages.join(" "))
        };
        command.arg("DEBIAN_FRONTEND=noninteractive").arg("apt-get").args(arguments);
        eprintln!("setup: {}", run::words(&command));
        let status = command.status().with_context(|| format!("run {}", run::words(&command)))?;
        if !status.success() {
            bail!("{}: {status}", run::words(&command));
        }
        Ok(())
    };
    apt(&["update", "-q"])?;
    let mut arguments = vec!["install", "-q", "-y", "--no-install-recommends"];
    arguments.extend(&packages);
    apt(&arguments)?;
    let (still, _) = missing(tools, has);
    if !still.is_empty() {
        bail!("apt-get succeeded, and {} is still not there", still.join(", "));
    }
    Ok(())
}

/// The names and the packages of the tools that `has` does not find.
fn missing(tools: &[Tool], has: impl Fn(&str) -> bool) -> (Vec<&'static str>, Vec<&'static str>) {
    let gone: Vec<&Tool> = tools.iter().filter(|tool| !has(tool.name)).collect();
    let mut packages: BTreeSet<&str> = gone.iter().map(|tool| tool.package).collect();
    // Debian moves programs between QEMU's packages, which then have to be of one version: whoever lacks one gets all anew.
    if QEMU.iter().any(|package| packages.contains(package)) {
        packages.extend(QEMU);
    }
    (gone.iter().map(|tool| tool.name).collect(), packages.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_named_once_for_two_missing_tools() {
        let (tools, packages) = missing(ALL, |name| !["mkfs.xfs", "mkfs.btrfs", "btrfs"].contains(&name));
        assert_eq!(tools, ["mkfs.xfs", "mkfs.btrfs", "btrfs"]);
        assert_eq!(packages, ["btrfs-progs", "xfsprogs"]);
    }

    #[test]
    fn the_packages_of_qemu_are_installed_together() {
        for name in ["qemu-io", "qemu-system-x86_64", "qemu-storage-daemon"] {
            let (tools, packages) = missing(ALL, |it| it != name);
            assert_eq!((tools, packages), (vec![name], vec!["qemu-system-x86", "qemu-utils"]));
        }
    }

    #[test]
    fn nothing_missing_names_nothing() {
        assert_eq!(missing(ALL, |_| true), (vec![], vec![]));
    }
}
