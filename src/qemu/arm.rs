//! Makes a running QEMU open an image anew.
//!
//! Whether the kernel tells of accesses before they happen is decided when a descriptor is opened. A QEMU that opened
//! its image earlier goes unseen until it opens it again, and it does so when it is told to change `cache.direct`:
//! O_DIRECT on or off needs a new open file. So each node of the image is told to change it, and to change it back.
//! Both times QEMU waits for the guest's requests in flight, holds new ones, opens the file by its name, takes its
//! image locks on it, reads its beginning to learn the alignment (an access like others: who lets accesses wait must
//! answer this one) and closes the old one. With QEMU 7.2, a writer beside it, an iothread and each kind of `aio`: 2 ms
//! in the middle, 27 ms at worst.
//!
//! **Why not `blockdev-reopen`.** It wants every option again, sets those that it is not given to their defaults, and
//! QEMU does not tell them all. With QEMU 7.2 it resets `auto-read-only` without a word, which nothing tells (and
//! `cache.no-flush` and `detect-zeroes`, which can be read); it leaves `discard` alone, against its documentation; and
//! of `aio` and `locking`, which nothing tells either, it says that they "cannot be reset" and does nothing. A node
//! that was given no name, as those of `-drive`, it refuses: "Cannot change the option 'node-name'". The human
//! monitor's `qemu-io NODE "reopen -o cache.direct=on"` keeps all the options that it is not given, works by any name,
//! and changes all or nothing. It is meant for QEMU's own tests, so what it did is read back each time.
//!
//! **What is not put back.** A node of `-drive`, or one written inside its parent's options, took `cache.direct` from
//! its parent; afterwards it has the same value as an option of its own. One sees no difference unless the parent is
//! told to change its cache mode later. While `cache.direct` is off for a moment, `aio=native` submits as if it were
//! not asynchronous. A process that is killed between the two changes leaves the first one: QEMU then goes on with or
//! without O_DIRECT, which is a matter of speed and memory, not of data.
//!
//! **What cannot be armed.** An image that QEMU was given as an open descriptor (`/dev/fdset`): it duplicates that. A
//! process without a human monitor (`qemu-storage-daemon`). One whose path to the image leads to another file by now:
//! it would open that.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::nodes::{FileNode, file_nodes};
use super::qmp::{Fault, Qmp};
use super::wire::{Refusal, excerpt};
use crate::error::{Error, Kind, Result};

/// How long a question may take.
const QUESTION: Duration = Duration::from_secs(10);
/// How long a change may take: QEMU waits for the guest's requests in flight.
const CHANGE: Duration = Duration::from_secs(30);
/// How often it is tried to put an option back, and the pause between.
const PUT_BACK: (u32, Duration) = (3, Duration::from_millis(300));

/// A file, as stat(2) names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inode {
    /// Its device (`st_dev`).
    pub dev: u64,
    /// Its number (`st_ino`).
    pub ino: u64,
}

/// How QEMU's descriptors came to be armed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Armed {
    /// They were.
    Already,
    /// These block nodes were made to open the image anew.
    Reopened(Vec<String>),
}

/// Makes the QEMU at this monitor open the image anew, unless `probe` says that all its descriptors of it are armed.
/// The caller has set what arms a descriptor that is opened.
///
/// # Errors
/// [`Kind::Refused`]: QEMU is as it was. [`Kind::Failed`]: it may not be; the words say what was left and how to put it
/// back. Errors of `probe` as they are; QEMU is as it was then too.
pub fn arm(qmp: &mut Qmp, image: Inode, mut probe: impl FnMut() -> Result<bool>) -> Result<Armed> {
    if probe()? {
        return Ok(Armed::Already);
    }
    let mut arming = Arming::new(qmp, image)?;
    let nodes = arming.nodes()?;
    for node in &nodes {
        arming.open_anew(node)?;
    }
    if probe()? {
        return Ok(Armed::Reopened(nodes.into_iter().map(|node| node.name).collect()));
    }
    let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    let what = format!(
        "QEMU (pid {}) has opened the image anew for its block nodes {} and still has it open by a descriptor that is \
         not armed",
        arming.pid,
        names.join(", ")
    );
    Err(Error::new(Kind::Refused, what, HINT))
}

const HINT: &str =
    "shut the VM down and start it again while 'rclone-img guard' runs: its descriptors are armed from the start";

struct Arming<'a> {
    qmp: &'a mut Qmp,
    pid: u32,
    image: Inode,
}

impl<'a> Arming<'a> {
    fn new(qmp: &'a mut Qmp, image: Inode) -> Result<Self> {
        let shown = qmp.path().display();
        let hint = "give the socket that the QEMU of this image has made: -qmp unix:PATH,server=on,wait=off";
        let told = |e| Error::io(Kind::Refused, format!("cannot tell who listens at '{shown}'"), hint, e);
        let pid = qmp.listener().map_err(told)?;
        let told =
            |e| Error::io(Kind::Refused, format!("cannot look into pid {pid}, which listens at '{shown}'"), hint, e);
        // The file's names are looked up as this process sees them, so it must be the right one.
        if descriptors(pid, image).map_err(told)? == 0 {
            let what = format!("pid {pid}, which listens at '{shown}', does not have the image open");
            return Err(Error::new(Kind::Refused, what, hint));
        }
        Ok(Self { qmp, pid, image })
    }

    /// The nodes whose file is the image.
    fn nodes(&mut self) -> Result<Vec<FileNode>> {
        let all = self
            .query()
            .map_err(|fault| Error { kind: Kind::Refused, ..fault.told(self.qmp.path(), "query-named-block-nodes") })?;
        let (ours, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|node| self.leads_to_image(node));
        if let Some(odd) = ours.iter().find(|node| !node.has_plain_name()) {
            let what = format!("QEMU's block node '{}' has a name that cannot be asked for", excerpt(&odd.name));
            return Err(Error::new(Kind::Refused, what, HINT));
        }
        if ours.is_empty() {
            let passed: Vec<_> = others.iter().filter(|node| node.is_passed()).map(|n| excerpt(&n.name)).collect();
            let why = if passed.is_empty() {
                "no path of its block nodes leads there: it was moved or replaced, or is open for something else".into()
            } else {
                format!("it was given open descriptors (block nodes {}), which it cannot open anew", passed.join(", "))
            };
            let what = format!("QEMU (pid {}) cannot be made to open the image anew: {why}", self.pid);
            return Err(Error::new(Kind::Refused, what, HINT));
        }
        Ok(ours)
    }

    fn query(&mut self) -> std::result::Result<Vec<FileNode>, Fault> {
        // Flat: without each node's backing files inside it, over and over.
        let answer = self.qmp.ask("query-named-block-nodes", json!({"flat": true}), QUESTION)?;
        Ok(file_nodes(&answer))
    }

    /// Whether the node's file's name leads to the image, where QEMU looks from.
    fn leads_to_image(&self, node: &FileNode) -> bool {
        let (place, name) = match node.file.strip_prefix("/") {
            Ok(name) => ("root", name),
            Err(_) => ("cwd", node.file.as_path()),
        };
        !node.is_passed() && is_image(&process(self.pid).join(place).join(name), self.image)
    }

    fn open_anew(&mut self, node: &FileNode) -> Result<()> {
        // Between the first look and this one is the time that the nodes before it took.
        if !self.leads_to_image(node) {
            let what =
                format!("'{}' no longer leads to the image that QEMU (pid {}) has open", node.file.display(), self.pid);
            return Err(Error::new(Kind::Refused, what, HINT));
        }
        let changed = self.set_direct(node, !node.direct);
        if let Err(fault @ Fault::Refused(_)) = changed {
            return Err(self.refusal(node, fault));
        }
        // From here on QEMU is changed, or may be, or will be when it comes to it: whatever happens, it is put back.
        let after = self.put_back(node)?;
        if let Err(fault) = changed {
            return Err(self.refusal(node, fault));
        }
        if after.options != node.options {
            let what = format!("QEMU's block node {} has other options than before", node.name);
            let hint = format!(
                "shut the VM down and start it again, or set them by blockdev-reopen; before: {}; now: {}",
                json!(node.options),
                json!(after.options)
            );
            return Err(Error::new(Kind::Failed, what, hint));
        }
        match descriptors(self.pid, self.image) {
            Ok(1..) => Ok(()),
            _ => {
                let what = format!("QEMU (pid {}) has opened another file at '{}'", self.pid, node.file.display());
                let hint = "somebody replaced it at that moment; stop the VM and see which file has its data";
                Err(Error::new(Kind::Failed, what, hint))
            }
        }
    }

    /// Sets `cache.direct` of a node and nothing else, and looks whether it is set. What QEMU prints may be a warning,
    /// so that only decides what an error says. [`Fault::Refused`] means that nothing was changed.
    fn set_direct(&mut self, node: &FileNode, direct: bool) -> std::result::Result<FileNode, Fault> {
        let line = reopen_line(node, direct);
        let printed = self.qmp.ask("human-monitor-command", json!({"command-line": line}), CHANGE)?;
        let nodes = self.query().map_err(|fault| match fault {
            Fault::Refused(refusal) => Fault::Unanswered(io::Error::other(refusal.to_string())),
            unanswered => unanswered,
        })?;
        let now = nodes.into_iter().find(|now| now.name == node.name && now.direct == direct);
        now.ok_or_else(|| {
            let printed = printed.as_str().map(str::trim).filter(|said| !said.is_empty());
            let desc = printed.unwrap_or("it did nothing, and said nothing").to_owned();
            Fault::Refused(Refusal { class: String::new(), desc })
        })
    }

    /// Gives the node back the `cache.direct` that it had.
    fn put_back(&mut self, node: &FileNode) -> Result<FileNode> {
        let (tries, pause) = PUT_BACK;
        let mut last = None;
        for nth in 0..tries {
            if nth > 0 {
                thread::sleep(pause);
            }
            match self.set_direct(node, node.direct) {
                Ok(now) => return Ok(now),
                Err(fault) => last = Some(fault),
            }
        }
        let said = match last {
            Some(Fault::Refused(refusal)) => refusal.to_string(),
            Some(Fault::Unanswered(e)) => e.to_string(),
            None => String::new(),
        };
        let what = format!(
            "QEMU's block node {} was left with cache.direct={}, or will be; it had {}: {said}",
            node.name,
            on_off(!node.direct),
            on_off(node.direct)
        );
        let hint = format!(
            "the guest's data is safe; put it back in QEMU's human monitor: {}",
            reopen_line(node, node.direct)
        );
        Err(Error::new(Kind::Failed, what, hint))
    }

    /// Nothing was changed, or all was put back.
    fn refusal(&self, node: &FileNode, fault: Fault) -> Error {
        let what = format!("QEMU (pid {}) does not open its block node {} anew", self.pid, node.name);
        match fault {
            Fault::Refused(refusal) => Error::new(Kind::Refused, format!("{what}: {refusal}"), HINT),
            Fault::Unanswered(e) => Error::io(Kind::Refused, what, HINT, e),
        }
    }
}

/// For the human monitor.
fn reopen_line(node: &FileNode, direct: bool) -> String {
    format!("qemu-io {} \"reopen -o cache.direct={}\"", node.name, on_off(direct))
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// How many descriptors of the image the process has.
fn descriptors(pid: u32, image: Inode) -> io::Result<usize> {
    let process = process(pid);
    let ours = |entry: io::Result<fs::DirEntry>| {
        let Ok(name) = entry.map(|e| e.file_name()) else { return false };
        // stat(2) on a hung network file system never returns: the inode number (Linux 5.14) is looked at first.
        let info = fs::read_to_string(process.join("fdinfo").join(&name)).unwrap_or_default();
        let ino = info.lines().find_map(|line| line.strip_prefix("ino:")?.trim().parse::<u64>().ok());
        ino.is_none_or(|ino| ino == image.ino) && is_image(&process.join("fd").join(&name), image)
    };
    Ok(fs::read_dir(process.join("fd"))?.map(ours).filter(|ours| *ours).count())
}

fn is_image(path: &Path, image: Inode) -> bool {
    fs::metadata(path).is_ok_and(|found| Inode { dev: found.dev(), ino: found.ino() } == image)
}

fn process(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}
