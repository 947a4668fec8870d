//! Other programs, for the tests that need somebody else to have a file open.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Another program that is ended with the test: a writer, a reader, a mapping's owner.
pub struct Other(pub Child);

impl Other {
    /// Starts one and waits for the line of its output that has `said` in it.
    pub fn start(command: &mut Command, said: &str) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("spawn");
        let mut other = Self(child);
        let lines = BufReader::new(other.0.stdout.take().expect("piped")).lines();
        let told = lines.map_while(Result::ok).any(|line| line.contains(said));
        assert!(told, "the child ended without a word");
        other
    }

    /// A shell that has the file open as descriptor 9, in the shell's words for the mode.
    pub fn opens(mode: &str, path: &Path) -> Self {
        let script = format!("exec 9{mode}\"$1\"; echo ready; read wait");
        Self::start(Command::new("sh").args(["-c", &script, "sh"]).arg(path), "ready")
    }

    /// Its pid, as a holder has it.
    pub fn pid(&self) -> Option<u32> {
        Some(self.0.id())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It has ended already where its test failed; there is nobody to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
