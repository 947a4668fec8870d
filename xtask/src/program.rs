//! The program under demonstration or measurement: how it is built, called, and what it says about a job.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run;

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    // Set by cargo when this crate is compiled; the folder above it is the workspace's.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The cargo that runs this.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// An rclone-img to call.
pub struct Program {
    path: PathBuf,
}

impl Program {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The one at `path`, else the workspace's own, built for release.
    pub fn at_or_built(path: Option<&Path>) -> Result<Self> {
        if let Some(path) = path {
            let path = path.canonicalize().with_context(|| format!("find the program {}", path.display()))?;
            return Ok(Self { path });
        }
        Ok(Self { path: built("rclone-img", "rclone-img")? })
    }

    /// `rclone-img guard --json PATH`.
    pub fn guard(&self, path: &Path) -> Command {
        let mut command = self.verb("guard");
        command.arg("--json").arg(path);
        command
    }

    /// `rclone-img serve --json SRC --socket SOCKET --cache CACHE`.
    pub fn serve(&self, source: &Path, socket: &Path, cache: &str) -> Command {
        let mut command = self.verb("serve");
        command.arg("--json").arg(source).arg("--socket").arg(socket).args(["--cache", cache]);
        command
    }

    /// `rclone-img fleece start SRC --name bench`, or `stop`.
    pub fn fleece(&self, what: &str, source: &Path) -> Command {
        let mut command = self.verb("fleece");
        command.arg(what).arg(source).args(["--name", "bench", "--quiet"]);
        command
    }

    /// `rclone-img snapshot --json EXTRA SRC DST`.
    pub fn snapshot(&self, source: &Path, target: &Path, extra: &[&str]) -> Command {
        let mut command = self.verb("snapshot");
        command.arg("--json").args(extra).args([source, target]);
        command
    }

    /// `rclone-img resume --json DST`.
    pub fn resume(&self, target: &Path) -> Command {
        let mut command = self.verb("resume");
        command.arg("--json").arg(target);
        command
    }

    /// `rclone-img map FILE`.
    pub fn map(&self, file: &Path) -> Command {
        let mut command = self.verb("map");
        command.arg(file);
        command
    }

    /// `rclone-img VERB`.
    pub fn verb(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.path);
        command.arg(verb);
        command
    }
}

/// A program of the workspace, built for release.
pub fn built(package: &str, name: &str) -> Result<PathBuf> {
    eprintln!("building {name} (release); the first time this takes some minutes");
    let status = run::attached(cargo().args(["build", "--quiet", "--release", "--package", package, "--bin", name]))?;
    if !status.success() {
        bail!("{name} does not build ({status}); see above");
    }
    let metadata = run::checked(cargo().args(["metadata", "--format-version=1", "--no-deps", "--offline"]))?;
    let metadata: Value = serde_json::from_str(&metadata.stdout).context("read cargo metadata")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(Path::new(target).join("release").join(name))
}

/// The `finished` object that a job printed last.
pub fn finished(stdout: &str) -> Result<Value> {
    let line = stdout.lines().rfind(|line| !line.trim().is_empty()).context("the job printed nothing on stdout")?;
    let last: Value = serde_json::from_str(line).with_context(|| format!("the job's last line is no JSON: {line}"))?;
    if last["event"] != "finished" {
        bail!("the job's last event is not `finished`: {line}");
    }
    Ok(last)
}

/// The file in which a job for `target` makes its snapshot, or keeps its journal: `DST.partial`, `DST.journal`.
pub fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// How much of the image a job's partial file has, of 1; nothing before the job has a journal to be resumed from.
pub fn share_done(source: &Path, target: &Path) -> Option<f64> {
    std::fs::metadata(beside(target, ".journal")).ok()?;
    let partial = std::fs::metadata(beside(target, ".partial")).ok()?;
    let source = std::fs::metadata(source).ok()?;
    Some(partial.blocks() as f64 / source.blocks().max(1) as f64)
}

/// Removes a snapshot, and whatever a broken-off job left of it.
pub fn remove(target: &Path) -> Result<()> {
    for path in [target.to_owned(), beside(target, ".partial"), beside(target, ".journal")] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_event_counts() {
        let stdout = "{\"event\":\"started\"}\n{\"event\":\"finished\",\"calls\":3}\n\n";
        assert_eq!(finished(stdout).unwrap()["calls"], 3);
        assert!(finished("{\"event\":\"failed\",\"error\":\"x\"}\n").is_err());
        assert!(finished("").is_err());
    }
}
