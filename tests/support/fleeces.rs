//! A fleece `f` of the served image `a.img` in a sandbox.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Sandbox, there, until};

/// The export of the fleece `f`.
pub const EXPORT: &str = "snapshot/f";

/// Whether there is what its readers need.
pub fn have() -> bool {
    ["qemu-io", "nbdcopy", "nbdinfo", "nbdsh"].iter().all(|tool| there(tool))
}

/// Begins one of `a.img`, called `f`.
pub fn start(s: &Sandbox, flags: &[&str]) {
    s.exits(0, &[&["fleece", "start", "a.img", "--name", "f", "--json"], flags].concat());
}

/// Ends it.
pub fn end(s: &Sandbox) {
    s.exits(0, &["fleece", "stop", "a.img", "--name", "f", "--json"]);
    assert_eq!(files(s), Vec::<PathBuf>::new(), "{:?}", s.fs);
}

/// Ends one that is lost.
pub fn end_lost(s: &Sandbox) {
    let out = s.run(&["fleece", "stop", "a.img", "--name", "f"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(6) && said.contains("it was lost: "), "{said}");
    assert_eq!(files(s), Vec::<PathBuf>::new(), "{:?}", s.fs);
}

/// The files of fleeces, beside the image and outside.
pub fn files(s: &Sandbox) -> Vec<PathBuf> {
    let of = |dir: &Path| {
        fs::read_dir(dir).map(|it| it.flatten().map(|it| it.path()).collect::<Vec<_>>()).unwrap_or_default()
    };
    let all = [of(&s.dir()), of(&s.outside("side"))].concat();
    all.into_iter().filter(|path| path.to_string_lossy().contains(".fleece")).collect()
}

/// A directory on another file system.
pub fn elsewhere(s: &Sandbox) -> String {
    let dir = s.outside("side");
    let _ = fs::create_dir(&dir);
    dir.display().to_string()
}

/// What is said of the one fleece that a server has.
pub fn listed(s: &Sandbox) -> serde_json::Value {
    let out = s.run(&["fleece", "list", "a.img", "--json"]);
    let all: Vec<serde_json::Value> =
        serde_json::Deserializer::from_slice(&out.stdout).into_iter().collect::<Result<_, _>>().expect("objects");
    let lost = all.iter().any(|it| !it["lost"].is_null());
    assert_eq!(out.status.code(), Some(if lost { 6 } else { 0 }), "{all:?}");
    all.into_iter().find(|it| it["name"] == "f").expect("a fleece")
}

/// Waits until the server has looked who else writes, from now on: killed then, what was written until now is the guest's for sure. By the mark,
/// which says until when it was looked; a slow disk may keep that back for longer than a next server allows.
pub fn looks(s: &Sandbox) {
    let now = jiff::Timestamp::now().as_nanosecond();
    let looked = || fs::read_to_string(mark(s)).ok()?.split(' ').next()?.parse::<i128>().ok();
    assert!(until(|| looked() > Some(now)), "{:?}: {:?}", s.fs, looked());
}

/// Its mark in the runtime directory, there or not.
pub fn mark(s: &Sandbox) -> PathBuf {
    let map = fs::read(s.path("a.img.f.fleece")).expect("its map");
    let map = String::from_utf8_lossy(&map);
    let (_, id) = map.split_once("\"id\":\"").expect("its id");
    Path::new("/run/rclone-img").join(["fleece-", &id[..36]].concat())
}
