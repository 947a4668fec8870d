//! What a real ext4 writes to its disk, in the order in which it does, to be written again elsewhere.
//!
//! The disk is a file that QEMU's storage daemon shows by FUSE, with a loop device on it; the daemon logs each request with its
//! data (its driver blklogwrites, in the format of the kernel's dm-log-writes). All of it lives in namespaces of its own, so that
//! nothing stays mounted, attached or running, whatever kills the test.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use super::{has, must, skipped, with_us};

/// "0x6a736677736872": how a log begins.
const MAGIC: u64 = 0x6a_7366_7773_6872;
/// The sector that the log counts in.
const SECTOR: usize = 512;
/// Flags of a request: it is a flush, or one that is followed by a flush of its own, or has no data.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// One request.
pub enum Request {
    /// Bytes, from an offset on.
    Write(u64, Vec<u8>),
    /// All that was written before is on the disk.
    Flush,
}

/// What was recorded.
pub struct Recording {
    /// The disk at first: a new, empty ext4.
    pub disk: Vec<u8>,
    /// What became of it.
    pub requests: Vec<Request>,
}

/// `$1` is a directory, empty but for the disk, `$2` how many files are made. Files are made, synced and renamed, some are
/// removed, and now and then everything is synced: a mail server, in little.
const SCRIPT: &str = r#"
set -eu
cd "$1"
: > log
: > shown
mkdir mnt
mount -t proc proc /proc
qemu-storage-daemon \
    --blockdev driver=file,node-name=disk,filename=disk --blockdev driver=file,node-name=log,filename=log \
    --blockdev driver=blklogwrites,node-name=logged,file=disk,log=log,log-sector-size=512 \
    --export type=fuse,id=shown,node-name=logged,mountpoint=shown,writable=on &
daemon=$!
until grep -q "$1/shown fuse" /proc/self/mounts; do kill -0 $daemon; sleep 0.02; done
mount -t ext4 -o loop shown mnt
mkdir mnt/0 mnt/1 mnt/2 mnt/3
n=0
while [ $n -lt "$2" ]; do
    file=mnt/$((n % 4))/$n
    head -c $((n * 7919 % 30000)) /dev/urandom > $file.new
    [ $((n % 3)) = 0 ] || sync -d $file.new
    mv $file.new $file
    [ $n -ge 20 ] && [ $((n % 2)) = 0 ] && rm mnt/$(((n - 20) % 4))/$((n - 20))
    [ $((n % 16)) = 0 ] && sync -f mnt
    n=$((n + 1))
done
umount mnt
kill $daemon
wait $daemon || true
"#;

impl Recording {
    /// Records in a directory that is not there yet; `None`, loudly, where something for it is missing.
    pub fn make(dir: &Path, bytes: u64, files: u32) -> Option<Self> {
        if let Some(tool) = ["qemu-storage-daemon", "mkfs.ext4", "unshare"].iter().find(|tool| !has(tool)) {
            skipped(&format!("{tool} is not installed"));
            return None;
        }
        let known = fs::read_to_string("/proc/filesystems").expect("/proc");
        if !Path::new("/dev/fuse").exists() || !known.lines().any(|line| line.ends_with("\text4")) {
            // No set-up gives a kernel what it was built without, so this is no failure on CI either.
            eprintln!("SKIPPED: this kernel has no FUSE or no ext4");
            return None;
        }
        fs::create_dir(dir).expect("a directory");
        let disk = dir.join("disk");
        fs::File::create(&disk).and_then(|file| file.set_len(bytes)).expect("a disk");
        must("mkfs.ext4", &[&"-q", &"-b", &"1024", &"-J", &"size=1", &disk]);
        let empty = fs::read(&disk).expect("the disk");
        let mut command = with_us("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SCRIPT, "sh"]);
        let out = command.arg(dir).arg(files.to_string()).stdin(Stdio::null()).output().expect("unshare");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let requests = parse(&fs::read(dir.join("log")).expect("the log"));
        let recording = Self { disk: empty, requests };
        let mut after = recording.disk.clone();
        recording.requests.iter().for_each(|request| request.apply(&mut after));
        assert!(after == fs::read(&disk).expect("the disk"), "the recording is not all that was written");
        fs::remove_dir_all(dir).expect("removed");
        Some(recording)
    }
}

impl Request {
    /// Does it to a disk in memory.
    pub fn apply(&self, disk: &mut [u8]) {
        if let Self::Write(offset, bytes) = self {
            disk[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }
}

/// The requests of a log. What is discarded keeps its data, as a disk may do.
fn parse(log: &[u8]) -> Vec<Request> {
    let word = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!((word(0), word(8)), (MAGIC, 1), "no log of this version");
    let mut requests = Vec::new();
    let mut at = SECTOR;
    for _ in 0..word(16) {
        let (offset, length, flags) = (word(at) * SECTOR as u64, word(at + 8) as usize * SECTOR, word(at + 16));
        at += SECTOR;
        if flags & DISCARD != 0 {
            continue;
        }
        if length > 0 {
            requests.push(Request::Write(offset, log[at..at + length].to_vec()));
            at += length;
        }
        if flags & (FLUSH | FUA) != 0 {
            requests.push(Request::Flush);
        }
    }
    requests
}
