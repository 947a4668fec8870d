//! What the demonstration looks like: a table, a timeline, a few sentences; or JSON.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Scene, Turn};
use crate::chart;
use crate::sandbox::MIB;

/// Characters in the longest timeline.
const WIDTH: usize = 72;

/// A scene for people.
pub fn text(scene: &Scene) -> String {
    let mut text = format!("\n{}: an image of {} MiB", scene.file_system, scene.bytes / MIB);
    if let Some(extents) = scene.extents {
        text += &format!(" in {extents} extents");
    }
    text += "\n\n";
    let heading = ["", "time", "longest read", "p99.9 read", "longest write", "result equal?"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(scene.turns.iter().map(row));
    text += &chart::table(&rows);
    text += "\nWorst read at each moment, left to right, all to one scale:\n\n";
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
        "\nHow to read this: a VM whose disk this image were would have waited as long as the longest read. The kernel clones\n\
         one extent at a time with the file locked, so `cp` keeps others waiting the longer the more extents there are\n\
         (on XFS since Linux 6.7 reads pass until somebody writes to the image). rclone-img takes the lock for a short\n\
         time only, again and again; the price is in the `time` column.\n\nNext:\n",
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
