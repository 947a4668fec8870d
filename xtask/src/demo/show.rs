//! What the demonstration looks like: a table, a timeline, a few sentences; or JSON.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Scene, Turn};
use crate::chart;
use crate::sandbox::{Kind, MIB};

/// Characters in the longest timeline.
const WIDTH: usize = 72;

/// Why there is little to be seen on XFS.
const ON_XFS: &str = "
  On XFS a clone hardly touches other files, and lets reads of the image pass as long as nobody writes to it: it is the
  image's own users, a guest that writes, who wait for a whole call. Nobody writes to the image here.
";

/// A scene for people.
pub fn text(scene: &Scene) -> String {
    let mut text = format!("\n{}: an image of {} MiB", scene.file_system, scene.bytes / MIB);
    if let Some(extents) = scene.extents {
        text += &format!(" in {extents} extents");
    }
    text += "\n\n";
    let heading = [
        ["", "", "longest read", "p99.9 read", "longest write", "result"],
        ["", "time", "of the image", "of the image", "to another file", "equal?"],
    ];
    let mut rows: Vec<_> = heading.iter().map(|line| line.map(str::to_owned).to_vec()).collect();
    rows.extend(scene.turns.iter().map(row));
    text += &chart::table(&rows);
    if !scene.file_system.starts_with(Kind::Btrfs.name()) {
        text += ON_XFS;
    }
    text += "\nWorst read of the image at each moment, left to right; a line is as long as its turn took:\n\n";
    text += &timeline(&scene.turns);
    text += &format!("\n  {}\n\n{}\n", chart::legend(), killed(scene));
    text
}

fn row(turn: &Turn) -> Vec<String> {
    let equal = turn.equal.map_or("-", |equal| if equal { "yes" } else { "NO" });
    vec![
        turn.tool.to_owned(),
        turn.took.map_or("-".to_owned(), chart::short),
        chart::short(turn.felt.reads.longest()),
        chart::short(turn.felt.reads.p999()),
        chart::short(turn.felt.writes.longest()),
        equal.to_owned(),
    ]
}

/// One line per turn; the longest turn fills the width, and the others are shorter as they took less time.
fn timeline(turns: &[Turn]) -> String {
    let longest = turns.iter().map(|turn| turn.end - turn.start).max().unwrap_or_default();
    let rows: Vec<Vec<String>> = turns
        .iter()
        .map(|turn| {
            let share = (turn.end - turn.start).as_secs_f64() / longest.as_secs_f64().max(1e-9);
            let slots = ((share * WIDTH as f64).round() as usize).max(1);
            let blocks = chart::blocks(&turn.felt.reads.worst(turn.start, turn.end, slots));
            // The table sets its later columns to the right; a timeline begins at the left.
            vec![turn.tool.to_owned(), format!("{blocks:<WIDTH$}")]
        })
        .collect();
    chart::table(&rows)
}

fn killed(scene: &Scene) -> String {
    let killed = &scene.killed;
    let Some(equal) = killed.equal else {
        return "  Each job was done before it could be killed; try a larger --size.".to_owned();
    };
    format!(
        "  A job killed with SIGKILL at {:.0} % (after {}) was resumed and done {} later; the result is {}.",
        killed.at * 100.0,
        chart::short(killed.after),
        chart::short(killed.resumed),
        if equal { "equal to the image" } else { "NOT EQUAL to the image" }
    )
}

/// How to read it, and what to do next.
pub fn farewell(own: bool) -> String {
    let mut text = String::from(
        "\nHow to read this: a VM whose disk this image were would have waited at least as long as the longest read. The kernel\n\
         clones one extent at a time with the file locked, so `cp` keeps others waiting the longer the more extents there are\n\
         (on XFS since Linux 6.7 reads pass until somebody writes to the image). rclone-img takes the lock for a short\n\
         time only, again and again; the price is in the `time` column. Where another program uses the disk or the\n\
         processor, a single run says little about seconds.\n\nNext:\n",
    );
    if own {
        text += "  cargo xtask demo --dir PATH     the same on your own XFS or Btrfs, without root\n";
    }
    text += "  rclone-img map vm.img           how fragmented your image is, and how long its clone takes here\n  \
             rclone-img snapshot vm.img vm.snap\n";
    text
}

/// A scene for programs. Times are in milliseconds.
pub fn json(scene: &Scene) -> Value {
    let ms = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    let turn = |turn: &Turn| {
        let slots = turn.felt.reads.worst(turn.start, turn.end, WIDTH);
        json!({
            "tool": turn.tool.trim(),
            "time_ms": turn.took.map(ms),
            "longest_read_ms": ms(turn.felt.reads.longest()),
            "p999_read_ms": ms(turn.felt.reads.p999()),
            "longest_write_ms": ms(turn.felt.writes.longest()),
            "p999_write_ms": ms(turn.felt.writes.p999()),
            "equal": turn.equal,
            "worst_reads_ms": slots.into_iter().map(ms).collect::<Vec<_>>(),
        })
    };
    let killed = &scene.killed;
    json!({
        "file_system": scene.file_system,
        "bytes": scene.bytes,
        "extents": scene.extents,
        "turns": scene.turns.iter().map(turn).collect::<Vec<_>>(),
        "killed": {
            "killed_at": killed.at,
            "killed_after_ms": ms(killed.after),
            "resumed_ms": ms(killed.resumed),
            "equal": killed.equal,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{Duration, Scene, Turn, text};
    use crate::demo::killed::Killed;
    use crate::probe::{Access, Accesses, Felt};

    fn scene(file_system: &str) -> Scene {
        let access = |ms| Accesses(vec![Access { at: Duration::ZERO, took: Duration::from_millis(ms) }]);
        let turn = Turn {
            tool: "cp",
            took: Some(Duration::from_secs(6)),
            felt: Felt { reads: access(43), writes: access(56) },
            start: Duration::ZERO,
            end: Duration::from_secs(6),
            equal: Some(true),
        };
        let killed = Killed { at: 0.0, after: Duration::ZERO, resumed: Duration::ZERO, equal: None };
        Scene { file_system: file_system.into(), bytes: 512 << 20, extents: Some(7), turns: vec![turn], killed }
    }

    #[test]
    fn the_table_says_which_file_and_on_xfs_why_there_is_little_to_see() {
        let xfs = text(&scene("XFS, loop-mounted"));
        let table = "
         longest read    p99.9 read    longest write  result
    time  of the image  of the image  to another file  equal?
  cp  6.0 s         43 ms         43 ms            56 ms     yes

  On XFS a clone hardly touches other files";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed(&xfs).contains(&squeezed(table)), "{xfs}");
        assert!(!text(&scene("Btrfs, loop-mounted")).contains("On XFS"));
    }
}
