//! Other programs, for the tests that need somebody else to have a file open.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

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

/// Another program that has a file open and does with it what it is told: `xfs_io`, which can map files as well.
pub struct XfsIo {
    child: Child,
    commands: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl XfsIo {
    /// Opens the file for reading and writing.
    pub fn open(path: &Path) -> Self {
        Self::start(&[path.as_os_str()])
    }

    pub fn open_to_read(path: &Path) -> Self {
        Self::start(&["-r".as_ref(), path.as_os_str()])
    }

    fn start(args: &[&OsStr]) -> Self {
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "xfs_io"]).args(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("spawn");
        let commands = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut program = Self { child, commands, lines };
        program.tell("file");
        program
    }

    /// Has it do something and waits until it is done.
    pub fn tell(&mut self, command: &str) {
        // The second command is done after the first, and says something that no other does.
        writeln!(self.commands, "{command}\nhelp quit").expect("it runs");
        let done = self.lines.by_ref().map_while(Result::ok).any(|line| line.contains("exit the program"));
        assert!(done, "xfs_io has ended at {command:?}");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for XfsIo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The writing end of a pipe that takes no byte more, and the reading one, which keeps it open.
pub fn full_pipe() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETFL(flags)).expect("F_SETFL");
    while nix::unistd::write(&write, &[0; 4096]).is_ok() {}
    nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).expect("F_SETFL");
    (write, read)
}
