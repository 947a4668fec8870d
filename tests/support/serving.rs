//! `rclone-img serve` of an image `a.img` in a sandbox, those that write to it, and what its clients read.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use reflink_img_guest::fill::fill;

use super::{Disk, Job, QemuIo, Sandbox};

/// The image's size: 4096 extents, one a block.
pub const SERVED: u64 = 16 << 20;

/// Flags by which a job lasts.
pub const LASTS: [&str; 2] = ["--latency", "1ms"];

/// The same for one that is to be met in the midst of it.
pub const LASTS_LONG: [&str; 4] = ["--latency", "1ms", "--chunk", "4K"];

/// Makes the image anew.
pub fn image(s: &Sandbox, seed: u64) -> PathBuf {
    let path = s.path("a.img");
    let _ = fs::remove_file(&path);
    fill(&path, SERVED, true, seed).expect("filled");
    path
}

/// The server's socket.
pub fn socket(s: &Sandbox) -> PathBuf {
    s.outside("a.sock")
}

/// The URI of an export.
pub fn uri(s: &Sandbox, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket(s).display())
}

/// Starts the server.
pub fn serve(s: &Sandbox, cache: &str) -> Job {
    let socket = socket(s).display().to_string();
    let mut job = s.start(&["serve", "a.img", "--socket", &socket, "--cache", cache]);
    assert!(job.wait_for("started"), "{:?}", job.events);
    job
}

/// Starts one of an image `vm.img`, which is moved there from `a.img`, at a socket beside it.
pub fn serve_at(s: &Sandbox, socket: &str, cache: &str) -> Job {
    fs::rename(s.path("a.img"), s.path("vm.img")).expect("moved");
    let mut job = s.start(&["serve", "vm.img", "--socket", socket, "--cache", cache]);
    assert!(job.wait_for("started"), "{:?}", job.events);
    job
}

/// A client that has chosen the default export, by EXPORT_NAME and without the zeroes behind its answer.
pub fn client(socket: &Path) -> UnixStream {
    let mut client = UnixStream::connect(socket).expect("a connection");
    let choose = [&3_u32.to_be_bytes()[..], b"IHAVEOPT", &1_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat();
    client.write_all(&choose).expect("sent");
    client.read_exact(&mut [0; 28]).expect("the greeting, and the export");
    client
}

/// A request for the beginning of the export.
pub fn request(command: u16, length: u32) -> Vec<u8> {
    let numbers = [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0], &command.to_be_bytes(), &9_u64.to_be_bytes()];
    [&numbers.concat()[..], &0_u64.to_be_bytes(), &length.to_be_bytes()].concat()
}

/// Who asks for much and reads none of it.
pub fn stalled(socket: &Path) -> UnixStream {
    let mut client = client(socket);
    client.write_all(&request(0, 1 << 20).repeat(64)).expect("sent");
    client
}

/// Ends it.
pub fn stop(job: Job) {
    job.signal(Signal::SIGTERM);
    let ended = job.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// So many connections, each with a write under way.
pub fn clients(s: &Sandbox, count: usize) -> Vec<Box<dyn Disk>> {
    (0..count).map(|_| Box::new(QemuIo::nbd(&socket(s))) as Box<dyn Disk>).collect()
}

/// Copies an export by nbdcopy, with several connections; why not, where that fails.
pub fn copied(s: &Sandbox, export: &str, to: &str) -> Result<PathBuf, String> {
    let to = s.outside(to);
    let _ = fs::remove_file(&to);
    let ran = Command::new("nbdcopy").arg(uri(s, export)).arg(&to).output().expect("nbdcopy");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    if ran.status.success() { Ok(to) } else { Err(said) }
}

/// What `nbdinfo --map` says of a context of an export: where each extent begins, how long it is, and its flags.
pub fn map(s: &Sandbox, export: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let said = super::must("nbdinfo", &[&"--json", &format!("--map={context}"), &uri(s, export)]);
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let number = |it: &serde_json::Value, name: &str| it[name].as_u64().expect("a number");
    said.as_array()
        .expect("extents")
        .iter()
        .map(|it| (number(it, "offset"), number(it, "length"), number(it, "type")))
        .collect()
}
