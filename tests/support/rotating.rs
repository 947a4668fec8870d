//! An image `a.img` in a sandbox, whose snapshots are in `snaps`.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use jiff::{Timestamp, ToSpan};
use rclone_img::record::Record;
use serde_json::Value;

use super::{Sandbox, noise};

pub const MIB: u64 = 1 << 20;

/// A name for each moment.
pub const PATTERN: &str = "a.img=snaps/a-%Y%m%dT%H%M%S%.9f%z.snap";

pub fn snaps(s: &Sandbox) -> BTreeSet<String> {
    let entries = fs::read_dir(s.path("snaps")).expect("the directory").flatten();
    entries.map(|it| it.file_name().into_string().expect("text")).collect()
}

pub fn newest(s: &Sandbox) -> String {
    snaps(s).into_iter().next_back().expect("a snapshot")
}

pub fn begin(s: &Sandbox) {
    fs::create_dir(s.path("snaps")).expect("a directory");
    noise(&s.path("a.img"), 4 * MIB);
}

pub fn rotate(s: &Sandbox, code: i32, more: &[&str]) -> Vec<Value> {
    s.exits(code, &[&["rotate", "--json", PATTERN], more].concat())
}

/// The record of a snapshot.
pub fn record(s: &Sandbox, name: &str) -> Record {
    let bytes = xattr::get(s.path("snaps").join(name), "user.reflink-img").expect("read").expect("there");
    Record::from_bytes(&bytes).expect("ours")
}

/// The record's T0, moved to another day.
pub fn age(s: &Sandbox, name: &str, days: i64) {
    set_t0(s, name, Timestamp::now().checked_sub((days * 24).hours()).expect("in range"));
}

/// The record's T0, moved to this instant.
pub fn set_t0(s: &Sandbox, name: &str, t0: Timestamp) {
    let record = Record { t0, ..record(s, name) };
    xattr::set(s.path("snaps").join(name), "user.reflink-img", &record.to_bytes()).expect("root may");
}

/// The processes of snapshots in the sandbox.
pub fn running(s: &Sandbox) -> Vec<String> {
    let found = Command::new("pgrep").args(["-f", "rclone-img .*snaps/a-"]).output().expect("pgrep");
    let here = |pid: &str| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == s.dir());
    String::from_utf8_lossy(&found.stdout).lines().filter(|pid| here(pid)).map(str::to_owned).collect()
}
