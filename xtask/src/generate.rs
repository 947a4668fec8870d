//! `cargo xtask gen`: man pages and shell completions, from the one definition of the command line. The files are
//! committed, for packagers and for whoever has no cargo; `--check` holds them to the definition.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Command};
use clap_complete::Shell;

use crate::program::workspace;

/// The folders that hold generated files and nothing else.
const FOLDERS: [&str; 2] = ["man", "completions"];

/// Arguments of `cargo xtask gen`.
#[derive(Args)]
pub struct Gen {
    /// Write nothing; fail if a file is not what it should be
    #[arg(long)]
    check: bool,
}

impl Gen {
    /// Writes the files, or compares them.
    pub fn run(&self) -> Result<()> {
        let wanted = files(&rclone_img::cli::args::command())?;
        let present = present()?;
        let mut stale = Vec::new();
        for (path, text) in &wanted {
            if present.get(path) != Some(text) {
                stale.push(path);
            }
        }
        stale.extend(present.keys().filter(|path| !wanted.contains_key(*path)));
        if self.check {
            if stale.is_empty() {
                return Ok(());
            }
            let names: Vec<_> = stale.iter().map(|path| path.display().to_string()).collect();
            bail!("not what the command line says: {}; run `cargo xtask gen` and commit them", names.join(", "));
        }
        for path in stale {
            let place = workspace().join(path);
            if let Some(text) = wanted.get(path) {
                place.parent().map_or(Ok(()), fs::create_dir_all)?;
                fs::write(&place, text).with_context(|| format!("write {}", place.display()))?;
                eprintln!("wrote {}", path.display());
            } else {
                fs::remove_file(&place).with_context(|| format!("remove {}", place.display()))?;
                eprintln!("removed {}", path.display());
            }
        }
        Ok(())
    }
}

/// Every file there should be, by its path in the workspace.
fn files(command: &Command) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    // `disable_help_subcommand`: there is no use for a page on `rclone-img help`.
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let name = command.get_name().to_owned();
    let program = format!("{name} {}", command.get_version().unwrap_or_default());
    let shown = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    let with_parts = |verb: &Command| {
        let own = verb.get_name().to_owned();
        let parts: Vec<_> = verb.get_subcommands().map(|part| format!("{own}-{}", part.get_name())).collect();
        std::iter::once(own).chain(parts)
    };
    let verbs: Vec<_> = shown.flat_map(with_parts).collect();
    page(&command, &name, &program, &verbs, &mut files)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let name = format!("{name}-{}", verb.get_name());
        page(verb, &name, &program, &verbs, &mut files)?;
        for part in verb.get_subcommands() {
            page(part, &format!("{name}-{}", part.get_name()), &program, &verbs, &mut files)?;
        }
    }
    for (shell, file) in
        [(Shell::Bash, format!("{name}.bash")), (Shell::Zsh, format!("_{name}")), (Shell::Fish, format!("{name}.fish"))]
    {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), &name, &mut script);
        files.insert(PathBuf::from("completions").join(file), script);
    }
    Ok(files)
}

fn page(
    command: &Command,
    title: &str,
    program: &str,
    verbs: &[String],
    files: &mut BTreeMap<PathBuf, Vec<u8>>,
) -> Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(title)
        .section(section(command.get_name()))
        .source(program.trim_end())
        .render(&mut page)
        .with_context(|| format!("write the page of {title}"))?;
    let page = headings(&synopsis(&String::from_utf8(page)?, command))
        .replace("rclone\\-img\\-guard(1)", &format!("rclone\\-img\\-guard({})", section("guard")))
        + &ending(title, command.get_name(), verbs);
    files.insert(PathBuf::from("man").join(format!("{title}.{}", section(command.get_name()))), page.into_bytes());
    Ok(())
}

/// The page with the usage that the help has: clap_mangen's has no values and no dots.
fn synopsis(page: &str, command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    let Some((before, rest)) = page.split_once(".SH SYNOPSIS\n") else { return page.to_owned() };
    // Its own has as many lines as the help's, and another heading follows.
    let after = rest.find(".SH ").map_or("", |at| &rest[at..]);
    let lines = usage.trim_start_matches("Usage:").lines().map(|line| line.trim().replace('-', "\\-"));
    format!("{before}.SH SYNOPSIS\n{}\n{after}", lines.collect::<Vec<_>>().join("\n.br\n"))
}

/// The manual's section of a verb: a service is for administrators.
fn section(verb: &str) -> &'static str {
    if verb == "guard" { "8" } else { "1" }
}

/// The headings of manual pages for what clap_mangen puts under EXTRA: whatever stands below the options in the help.
fn headings(page: &str) -> String {
    let Some((options, extra)) = page.split_once(".SH EXTRA\n") else { return page.to_owned() };
    let mut lines = vec![".SH NOTES"];
    let mut in_holds = false;
    lines.extend(extra.lines().map(|line| match line {
        "Exit codes:" => ".SH \"EXIT STATUS\"",
        "Example:" | "Examples:" => ".SH EXAMPLES",
        "Holds, the ways to keep the point in time:" => {
            in_holds = true;
            ".SH HOLDS"
        }
        "" if std::mem::take(&mut in_holds) => ".SH NOTES",
        other => other,
    }));
    if lines.get(1).is_some_and(|line| line.starts_with(".SH ")) {
        lines.remove(0);
    }
    format!("{options}{}\n", lines.join("\n"))
}

/// What no help has room for: `verbs` are all there are.
fn ending(title: &str, verb: &str, verbs: &[String]) -> String {
    let file = |path: &str, what: &str| format!(".TP\n\\fI{path}\\fR\n{what}\n");
    let (partial, journal) = (
        file("DST.partial", "The work in progress."),
        file("DST.journal", "What is done of it, and the point in time: see docs/FORMAT.md."),
    );
    let conf = file("/etc/rclone\\-img/guard.conf", "What the service rclone\\-img\\-guard arms.");
    let files = match verb {
        "snapshot" | "resume" | "status" | "abort" => partial + &journal,
        "guard" => conf,
        "restore" => {
            file(
                "IMG.restoring",
                "The image, from the first change until all of it is rolled back: until then there is no IMG.",
            ) + &file(
                "IMG.restore, IMG.restored",
                "What is being done: rclone\\-img resume IMG, or abort IMG, reads it. See docs/FORMAT.md.",
            ) + &file("IMG.restore\\-source", "The snapshot by another name, until the end.")
        }
        "rotate" => {
            partial + &journal + &file("X.removing", "A snapshot that was about to be removed; the next run does it.")
        }
        "fleece" | "start" | "stop" => {
            file(
                "*.fleece",
                "The map of a fleece: which clusters it has kept. rclone\\-img status shows it, rclone\\-img abort removes one that no server has.",
            ) + &file("*.fleece\\-data", "What it has kept, in its place; a sparse file.")
        }
        _ if verb == title => partial + &journal + &conf,
        _ => String::new(),
    };
    let files = if files.is_empty() { files } else { format!(".SH FILES\n{files}") };
    let others = verbs
        .iter()
        .filter(|other| title != format!("rclone-img-{other}"))
        .map(|other| format!("\\fBrclone\\-img\\-{}\\fR({})", other.replace('-', "\\-"), section(other)));
    let (status, whole) = match verb == title {
        true => ("", None),
        false => (
            ".SH \"EXIT STATUS\"\n0 done, 1 failed, 2 usage, 3 refused, 4 interrupted, 5 busy, 6 broken, 7 differs: see \\fBrclone\\-img\\fR(1).\n",
            Some("\\fBrclone\\-img\\fR(1)".to_owned()),
        ),
    };
    let also: Vec<String> = whole.into_iter().chain(others).collect();
    format!("{status}{files}.SH \"SEE ALSO\"\n{}\n", also.join(",\n"))
}

/// Every file there is.
fn present() -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for folder in FOLDERS {
        let entries = match fs::read_dir(workspace().join(folder)) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.with_context(|| format!("list {folder}"))?,
        };
        for entry in entries {
            let entry = entry?;
            let text = fs::read(entry.path()).with_context(|| format!("read {}", entry.path().display()))?;
            files.insert(PathBuf::from(folder).join(entry.file_name()), text);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_that_is_shown_has_a_page() {
        let verbs = [Command::new("snapshot"), Command::new("secret").hide(true)];
        let files = files(&Command::new("demo").subcommands(verbs)).unwrap();
        let names: Vec<_> = files.keys().map(|path| path.display().to_string()).collect();
        let expect = [
            "completions/_demo",
            "completions/demo.bash",
            "completions/demo.fish",
            "man/demo-snapshot.1",
            "man/demo.1",
        ];
        assert_eq!(names, expect);
    }

    #[test]
    fn what_stands_below_the_options_has_a_heading_of_its_own() {
        let check = |page: &str, expect: &str| assert_eq!(headings(page), expect);
        check(".SH NAME\nx\n", ".SH NAME\nx\n");
        check("a\n.SH EXTRA\nMore.\n\nExample:\n  x y\n", "a\n.SH NOTES\nMore.\n\n.SH EXAMPLES\n  x y\n");
        let page = "a\n.SH EXTRA\nHolds, the ways to keep the point in time:\n  none  x\n\nMore.\n";
        check(page, "a\n.SH HOLDS\n  none  x\n.SH NOTES\nMore.\n");
        let page = "a\n.SH EXTRA\nExit codes:\n  0  done\n.SH VERSION\nv1\n";
        check(page, "a\n.SH \"EXIT STATUS\"\n  0  done\n.SH VERSION\nv1\n");
    }
}
