//! A child that runs beside the verb: it says when it is ready, and is told when to end.

use std::io::{BufRead, BufReader};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};

use super::{Running, words};

/// How long a child may take to say what it is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The child. Dropped, it is killed; it is killed as well when this process dies without a word.
pub struct Background {
    running: Running,
    lines: Receiver<String>,
    stdin: Option<ChildStdin>,
    words: String,
}

impl Background {
    /// Starts a command. What it complains of goes where this process's complaints go.
    pub fn start(command: &Command) -> Result<Self> {
        // setpriv (util-linux) has the kernel kill the child when its parent is gone: nobody else would end it then.
        let mut mortal = Command::new("setpriv");
        mortal.args(["--pdeathsig", "KILL"]).arg(command.get_program()).args(command.get_args());
        mortal.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running::start(&mut mortal)?;
        let out = running.child.stdout.take().context("a child without an output")?;
        let stdin = running.child.stdin.take();
        let (sender, lines) = channel();
        thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { running, lines, stdin, words: words(command) })
    }

    /// Waits for a line that has `what` in it.
    pub fn wait_for(&self, what: &str) -> Result<String> {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(what) => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("{} does not say `{what}`", self.words),
                Err(RecvTimeoutError::Disconnected) => bail!("{} ended without saying `{what}`", self.words),
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.running.pid.as_raw()
    }

    /// Asks it to end, by SIGTERM and by the end of its standard input, and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        drop(self.stdin.take());
        let _ = kill(self.running.pid, Signal::SIGTERM);
        self.running.ended()?;
        let status = self.running.reap()?;
        if !status.success() {
            bail!("{} failed ({status})", self.words);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_says_something_and_ends_when_it_is_told_to() {
        let mut command = Command::new("sh");
        let child = Background::start(command.args(["-c", "echo one; echo ready; read line; exit 0"])).unwrap();
        assert_eq!(child.wait_for("ready").unwrap(), "ready");
        // The end of its input is enough; whether the signal is faster is chance.
        let ended = child.stop();
        assert!(ended.is_ok() || ended.unwrap_err().to_string().contains("signal"));
        let child = Background::start(Command::new("sleep").arg("60")).unwrap();
        assert!(child.stop().is_err());
    }
}
