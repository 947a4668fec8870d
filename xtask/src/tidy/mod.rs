//! `cargo xtask tidy`: the rules of the design that a compiler does not check, by looking for strings. Each check takes a
//! file's path and text, so that it can be tried on examples. They are few and cheap on purpose: what a lint can say, clippy says.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::program::workspace;

mod layers;
mod source;
mod style;

use source::Source;

/// A rule: what is wrong with a file, one line each.
type Check = fn(&Source) -> Vec<String>;

const CHECKS: [Check; 7] = [
    layers::unsafe_is_in_sys,
    layers::pure_modules_are_pure,
    layers::layers_point_downwards,
    style::no_glob_imports,
    style::files_are_short,
    style::names_say_something,
    style::names_are_our_own,
];

/// Folders whose Rust files are looked at.
const FOLDERS: [&str; 7] =
    ["src", "tests", "guest/src", "interleavings/src", "interleavings/tests", "xtask/src", "fuzz/fuzz_targets"];

/// Checks the workspace and prints what is wrong with it.
pub fn run() -> Result<()> {
    let mut wrong = Vec::new();
    let mut count = 0;
    for folder in FOLDERS {
        for path in rust_files(&workspace().join(folder))? {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let name = path.strip_prefix(workspace()).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            let source = Source::new(&name, &text);
            wrong.extend(CHECKS.iter().flat_map(|check| check(&source)));
            count += 1;
        }
    }
    if wrong.is_empty() {
        eprintln!("tidy: {count} files, nothing to complain of");
        return Ok(());
    }
    wrong.iter().for_each(|line| eprintln!("{line}"));
    bail!("tidy: {} to mend", wrong.len())
}

/// The Rust files under `folder`, in order; none where there is no such folder.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
