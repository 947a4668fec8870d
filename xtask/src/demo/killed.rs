//! The part of the demonstration in which a job dies halfway.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};

use crate::program::{self, Program};
use crate::{image, run};

/// How a job that was killed went on.
pub struct Killed {
    /// How much of the image the partial file had, of 1, when the job was killed.
    pub at: f64,
    /// How long the job had run.
    pub after: Duration,
    /// How long the resumed job took.
    pub resumed: Duration,
    /// Whether the result has the image's bytes; nothing if every job was over before it could be killed.
    pub equal: Option<bool>,
}

/// Kills a job with SIGKILL as soon as its partial file has half of the image, and resumes it. A job that is done sooner than
/// one can look is tried again, to be killed earlier.
pub fn kill_and_resume(program: &Program, source: &Path, target: &Path) -> Result<Killed> {
    for share in [0.5, 0.25, 0.05] {
        let mut seen = 0.0;
        let mut job = program.snapshot(source, target, &["--latency", "5ms"]);
        let outcome = run::watched(&mut job, |pid| {
            let Some(done) = program::share_done(source, target).filter(|done| *done >= share) else {
                return ControlFlow::Continue(());
            };
            if kill(pid, Signal::SIGKILL).is_ok() {
                seen = done;
            }
            ControlFlow::Break(())
        })?;
        if outcome.status.success() {
            program::remove(target)?;
            continue;
        }
        if seen == 0.0 {
            run::require_success(&job, outcome)?;
            bail!("the job ended before it was killed");
        }
        if target.exists() {
            bail!("{} is there although its job was killed", target.display());
        }
        let mut resume = program.resume(target);
        let resumed = run::checked(&mut resume)?;
        program::finished(&resumed.stdout)?;
        let equal = image::require_equal(source, target).inspect_err(|error| eprintln!("{error:#}")).is_ok();
        program::remove(target)?;
        return Ok(Killed { at: seen, after: outcome.took, resumed: resumed.took, equal: Some(equal) });
    }
    Ok(Killed { at: 0.0, after: Duration::ZERO, resumed: Duration::ZERO, equal: None })
}
