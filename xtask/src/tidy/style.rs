//! Lengths, imports and names.

use super::source::{Source, mentions};

/// Words that name nothing.
const EMPTY_WORDS: [&str; 4] = ["Manager", "Handler", "Utils", "Helper"];

/// Names are imported one by one; `use super::*` in tests is the exception.
pub fn no_glob_imports(source: &Source) -> Vec<String> {
    let glob = |code: &str| code.contains("::*;") || code.contains("::*,") || code.contains("::*}");
    let listed = |code: &str| code.contains("{*") || code.contains(", *}") || code.contains(", *,");
    let imports = source.lines().filter(|line| mentions(&line.code, "use") && (glob(&line.code) || listed(&line.code)));
    let bad = imports.filter(|line| !(line.test && line.code.trim() == "use super::*;"));
    bad.map(|line| source.at(line, "a glob import: name what is used")).collect()
}

/// A file is read in one sitting: 400 lines, 500 of tests.
pub fn files_are_short(source: &Source) -> Vec<String> {
    let most = if source.path.starts_with("tests/") { 500 } else { 400 };
    let length = source.text.lines().count();
    let long = (length > most).then(|| format!("{}: {length} lines, more than {most}: split it", source.path));
    long.into_iter().collect()
}

/// Types and modules are called by what they are.
pub fn names_say_something(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for line in source.lines() {
        let mut words =
            line.code.split(|char: char| !char.is_alphanumeric() && char != '_').filter(|it| !it.is_empty());
        while let Some(word) = words.next() {
            if !matches!(word, "struct" | "enum" | "trait" | "type" | "union" | "mod") {
                continue;
            }
            let Some(name) = words.next() else { break };
            let empty = |bad: &&&str| name.contains(**bad) || name == bad.to_lowercase();
            if let Some(bad) = EMPTY_WORDS.iter().find(empty) {
                wrong.push(source.at(line, &format!("`{name}`: {bad} says nothing; what is it?")));
            }
        }
    }
    wrong
}

/// Variables and metrics that begin with rclone's name are rclone's.
pub fn names_are_our_own(source: &Source) -> Vec<String> {
    let variable = concat!("RCLONE", "_");
    let metric = concat!("rclone", "_");
    let mut wrong = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        // The crate is called that, and nothing else is.
        let rest = line.replace(concat!("rclone", "_img"), "");
        if rest.contains(variable) || rest.contains(metric) {
            wrong.push(format!("{}:{}: a name of rclone's, which we are not related to", source.path, index + 1));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::Check;

    fn count(check: Check, path: &str, text: &str) -> usize {
        check(&Source::new(path, text)).len()
    }

    #[test]
    fn globs_are_for_tests_of_the_same_file() {
        let check = |text| count(no_glob_imports, "src/a.rs", text);
        assert_eq!(check("use std::io::*;"), 1);
        assert_eq!(check("pub use crate::a::{b, c::*};"), 1);
        assert_eq!(check("use super::*;"), 1);
        assert_eq!(check("#[cfg(test)]\nmod tests {\n    use super::*;\n    use proptest::prelude::*;\n}"), 1);
        assert_eq!(check("let a = b * c;"), 0);
    }

    #[test]
    fn tests_may_be_a_little_longer() {
        assert_eq!(count(files_are_short, "src/a.rs", &"\n".repeat(401)), 1);
        assert_eq!(count(files_are_short, "src/a.rs", &"\n".repeat(400)), 0);
        assert_eq!(count(files_are_short, "tests/a.rs", &"\n".repeat(500)), 0);
        assert_eq!(count(files_are_short, "tests/a.rs", &"\n".repeat(501)), 1);
    }

    #[test]
    fn empty_names_are_refused_where_they_are_given() {
        let check = |text| count(names_say_something, "src/a.rs", text);
        assert_eq!(check("pub struct LeaseManager {"), 1);
        assert_eq!(check("mod utils;"), 1);
        assert_eq!(check("let handler = SigHandler::SigDfl;"), 0);
        assert_eq!(check("struct Lease; // no Manager"), 0);
    }

    #[test]
    fn the_crate_may_have_its_name() {
        let check = |text: &str| count(names_are_our_own, "src/a.rs", text);
        assert_eq!(check("use rclone_img::range;"), 0);
        assert_eq!(check(concat!("rclone", "_jobs_total")), 1);
        assert_eq!(check(concat!("env(\"RCLONE", "_CHUNK\")")), 1);
    }
}
