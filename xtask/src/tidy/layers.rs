//! Who may use whom, and who may touch the world.

use super::source::{Source, mentions};

/// Files and folders that do no I/O and know no clock, thread or chance.
const PURE: [&str; 13] = [
    "src/range.rs",
    "src/extent/",
    "src/extent.rs",
    "src/plan/",
    "src/plan.rs",
    "src/cbw/",
    "src/cbw.rs",
    "src/journal/format",
    "src/record.rs",
    "src/qemu/nodes.rs",
    "src/quiesce/bytes.rs",
    "src/stream/format",
    "src/rotate/policy",
];

/// Those of the guest.
const GUEST_PURE: &[&str] = &[
    "guest/src/sector.rs",
    "guest/src/log/format",
    "guest/src/latency/access.rs",
    "guest/src/latency/summary.rs",
    "guest/src/verify/claims.rs",
    "guest/src/verify/sweep.rs",
    "guest/src/verify/verdict.rs",
];

/// What a pure module does not mention.
const IMPURE: [&str; 9] = [
    "std::fs",
    "std::net",
    "std::thread",
    "time::Instant",
    "Instant::now",
    "SystemTime",
    "rand::",
    "crate::sys",
    "crate::disk",
];

/// The modules from the bottom to the top; one uses those of its own layer and below. What is not here, `error` for one,
/// is for all.
const LAYERS: [&[&str]; 5] = [
    &["range"],
    &["extent"],
    &["hold", "qemu", "quiesce", "cbw", "plan", "journal", "record", "disk", "sys"],
    &["engine", "serve", "stream", "changes", "rotate"],
    &["cli"],
];

/// `unsafe` is nowhere but in the `sys` of the program and of the guest.
pub fn unsafe_is_in_sys(source: &Source) -> Vec<String> {
    let package = source.path.strip_prefix("guest/").unwrap_or(source.path);
    if package.starts_with("src/sys/") || package == "src/sys.rs" {
        return Vec::new();
    }
    let bad = source.lines().filter(|line| mentions(&line.code, "unsafe"));
    bad.map(|line| source.at(line, "`unsafe` outside src/sys and guest/src/sys: put a safe function there")).collect()
}

/// Pure modules do no I/O and know no clock, thread or chance.
pub fn pure_modules_are_pure(source: &Source) -> Vec<String> {
    if !PURE.iter().chain(GUEST_PURE).any(|pure| source.path.starts_with(pure)) {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    for line in source.program() {
        for word in IMPURE.iter().filter(|word| mentions(&line.code, word)) {
            wrong.push(source.at(line, &format!("`{word}` in a pure module: the caller brings it")));
        }
    }
    wrong
}

/// Nobody uses a layer above his own, and only `hold` and `disk` use `sys`.
pub fn layers_point_downwards(source: &Source) -> Vec<String> {
    let Some(own) = module(source.path) else { return Vec::new() };
    let mut wrong = Vec::new();
    for line in source.program() {
        for (height, used) in LAYERS.iter().enumerate().flat_map(|(n, layer)| layer.iter().map(move |it| (n, it))) {
            if *used == own || !uses(&line.code, used) {
                continue;
            }
            if own == "sys" && height > 1 {
                wrong
                    .push(source.at(line, &format!("`sys` uses `{used}`: it serves, and knows nobody above `extent`")));
            } else if *used == "sys" && !matches!(own, "hold" | "disk") {
                wrong.push(source.at(line, &format!("`{own}` uses `sys`: only `hold` and `disk` do")));
            } else if layer(own).is_some_and(|mine| mine < height) {
                wrong.push(source.at(line, &format!("`{own}` uses `{used}`, which is above it")));
            }
        }
    }
    wrong
}

/// The top-level module a file of the library belongs to.
fn module(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    let first = rest.split('/').next()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (name != "lib").then_some(name)
}

fn layer(module: &str) -> Option<usize> {
    if module == "main" {
        return Some(LAYERS.len());
    }
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Whether a line names a top-level module: `crate::sys`, `rclone_img::sys`, or in a list, `use crate::{disk, sys::clone}`.
fn uses(code: &str, module: &str) -> bool {
    ["crate::", "rclone_img::"].iter().any(|root| {
        let listed = || {
            let list = code.split(&format!("{root}{{")[..]).nth(1)?;
            Some(mentions(&top_level(list), module))
        };
        mentions(code, &format!("{root}{module}")) || listed().unwrap_or(false)
    })
}

/// The first names in a list of imports: of `disk::{File, sys}, plan}` that is `disk`, `plan`.
fn top_level(list: &str) -> String {
    let mut depth = 0;
    let mut names = String::new();
    let mut rest = false;
    for char in list.chars() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => rest = false,
            ':' if depth == 0 => rest = true,
            _ => {}
        }
        if depth == 0 && (!rest || char == ',') {
            names.push(char);
        }
        if depth < 0 {
            break;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::Check;

    /// How many complaints a check has about a text.
    fn count(check: Check, path: &str, text: &str) -> usize {
        check(&Source::new(path, text)).len()
    }

    #[test]
    fn unsafe_belongs_to_sys() {
        assert_eq!(count(unsafe_is_in_sys, "src/sys/clone.rs", "unsafe { f() }"), 0);
        assert_eq!(count(unsafe_is_in_sys, "src/engine/mod.rs", "unsafe { f() }"), 1);
        assert_eq!(count(unsafe_is_in_sys, "tests/a.rs", "unsafe { f() }"), 1);
        assert_eq!(count(unsafe_is_in_sys, "guest/src/sys/aio.rs", "unsafe { f() }"), 0);
        assert_eq!(count(unsafe_is_in_sys, "guest/src/stop.rs", "unsafe { f() }"), 1);
        assert_eq!(count(unsafe_is_in_sys, "src/lib.rs", "//! the only `unsafe`\nconst A: &str = \"unsafe\";"), 0);
    }

    #[test]
    fn pure_modules_have_no_clock_and_no_files() {
        let check = |path, text| count(pure_modules_are_pure, path, text);
        assert_eq!(check("src/plan/pacer.rs", "use std::time::{Duration};"), 0);
        assert_eq!(check("src/plan/pacer.rs", "let now = Instant::now();"), 1);
        assert_eq!(check("src/journal/format/log.rs", "use std::fs::File;"), 1);
        assert_eq!(check("src/journal/file.rs", "use std::fs::File;"), 0);
        assert_eq!(check("src/range.rs", "#[cfg(test)]\nmod tests {\nuse std::fs;\n}"), 0);
    }

    #[test]
    fn layers_use_what_is_below_them() {
        let check = |path, text| count(layers_point_downwards, path, text);
        assert_eq!(check("src/main.rs", "use rclone_img::cli;"), 0);
        assert_eq!(check("src/cli/map.rs", "use crate::engine::Job;"), 0);
        assert_eq!(check("src/cli/map.rs", "use crate::sys::fiemap;"), 1);
        assert_eq!(check("src/cli/map.rs", "use crate::{engine::Job, sys};"), 1);
        assert_eq!(check("src/cli/map.rs", "use crate::{engine::{Job, sys}, plan};"), 0);
        assert_eq!(check("src/disk/real.rs", "use crate::sys::fiemap;"), 0);
        assert_eq!(check("src/disk/real.rs", "use crate::engine::Job;"), 1);
        assert_eq!(check("src/disk/sim.rs", "//! see [`crate::engine`]"), 0);
        assert_eq!(check("src/extent/walk.rs", "use crate::disk::Disk;"), 1);
        assert_eq!(check("src/range.rs", "use crate::error::Error;"), 0);
        assert_eq!(check("src/sys/mod.rs", "use crate::range::Range;"), 0);
        assert_eq!(check("src/sys/mod.rs", "use crate::hold::HoldKind;"), 1);
        assert_eq!(check("src/main.rs", "use rclone_img::sys;"), 1);
        assert_eq!(check("src/lib.rs", "pub use crate::sys;"), 0);
    }
}
