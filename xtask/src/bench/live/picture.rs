//! The picture: the longest access of the guest at each moment, for each contender, on a logarithmic scale.

use std::fmt::Write as _;

use super::contender::Who;
use super::felt::SLOT;
use super::goals::Figures;
use super::stage::{Run, Scene};

/// Who is drawn, with the class of its colour.
const DRAWN: [(Who, &str); 4] = [(Who::Idle, "idle"), (Who::Cp, "cp"), (Who::Loop, "loop"), (Who::Snapshot, "ours")];

const WIDTH: f64 = 900.0;
/// A panel: its height, with the space for its title and its time axis.
const PANEL: f64 = 300.0;
const TOP: f64 = 96.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const TITLE: f64 = 30.0;
const AXIS: f64 = 46.0;

/// The scale, in ns: 0.1 ms to 100 s.
const SCALE: (f64, f64) = (1e5, 1e11);

/// The lines of the scale.
const MARKS: [(f64, &str); 6] =
    [(1e5, "0.1 ms"), (1e6, "1 ms"), (1e7, "10 ms"), (1e8, "0.1 s"), (1e9, "1 s"), (1e10, "10 s")];

/// Its own background, so that it can be read wherever it is shown; the colours follow the reader's. No CSS variables: not every
/// program that draws SVG knows them.
const STYLE: &str = "
  text { font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #1f2328; }
  .title { font-size: 17px; font-weight: 600; } .panel { font-size: 15px; font-weight: 600; } .faint { fill: #59636e; }
  .paper { fill: #ffffff; } .grid { stroke: #d1d9e0; stroke-width: 1; }
  .idle, .cp, .loop, .ours { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
  .idle { stroke: #8c959f; stroke-width: 1.2; } .cp { stroke: #cf222e; } .loop { stroke: #9a6700; stroke-dasharray: 6 3; }
  .ours { stroke: #0550ae; stroke-width: 1.4; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .faint { fill: #9198a1; } .paper { fill: #0d1117; } .grid { stroke: #3d444d; }
    .idle { stroke: #868e97; } .cp { stroke: #ff7b72; } .loop { stroke: #e3b341; } .ours { stroke: #79c0ff; }
  }
";

/// Draws the runs whose longest access is in the middle.
pub fn draw(all: &[Figures]) -> String {
    let height = TOP + PANEL * all.len() as f64 + 8.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>The longest access of a running guest while its image is copied</title>\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n\
         <text class=\"title\" x=\"20\" y=\"30\">How long a running guest waits for its disk while the image is copied</text>\n"
    );
    svg += "<text class=\"faint\" x=\"20\" y=\"52\">Longest read, write or flush under way at each moment, to the end of fsync and rename</text>\n";
    for (index, (who, class)) in DRAWN.iter().enumerate() {
        let x = 20.0 + [0.0, 150.0, 340.0, 550.0][index];
        let _ = writeln!(
            svg,
            "<path class=\"{class}\" d=\"M{x} 72h26\"/><text x=\"{}\" y=\"77\">{}</text>",
            x + 32.0,
            who.name()
        );
    }
    for (index, figures) in all.iter().enumerate() {
        panel(&mut svg, figures, TOP + PANEL * index as f64);
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, figures: &Figures, top: f64) {
    let drawn: Vec<(Who, &str, &Run)> = DRAWN
        .iter()
        .filter_map(|(who, class)| Some((*who, *class, typical(figures.runs(Scene::Plain, *who))?)))
        .collect();
    let slots = drawn.iter().map(|(.., run)| run.felt.slots.len()).max().unwrap_or(1).max(1);
    let seconds = slots as f64 * SLOT as f64 / 1e9;
    let (upper, lower) = (top + TITLE, top + PANEL - AXIS);
    let x = |seconds_in: f64| LEFT + (WIDTH - LEFT - RIGHT) * seconds_in / seconds;
    let y = |ns: f64| {
        let share = (ns.clamp(SCALE.0, SCALE.1) / SCALE.0).ln() / (SCALE.1 / SCALE.0).ln();
        lower - (lower - upper) * share
    };
    let size = match figures.extents {
        Some(extents) => format!("{} MiB in {extents} extents", figures.bytes >> 20),
        None => format!("{} MiB", figures.bytes >> 20),
    };
    let longest = drawn.iter().map(|(who, _, run)| format!("{} {}", brief(*who), told(run.felt.longest_ms())));
    let longest = longest.collect::<Vec<_>>().join(", ");
    let y_title = top + 16.0;
    let _ = writeln!(svg, "<text class=\"panel\" x=\"20\" y=\"{y_title}\">{}</text>", figures.file_system);
    let _ = writeln!(svg, "<text class=\"faint\" x=\"{LEFT}\" y=\"{y_title}\">{size}; the longest: {longest}</text>");
    for (ns, text) in MARKS {
        let at = y(ns);
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{}\"/>", WIDTH - RIGHT);
        let _ = writeln!(
            svg,
            "<text class=\"faint\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT - 8.0,
            at + 4.5
        );
    }
    let step = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0].into_iter().find(|step| seconds / step <= 12.0).unwrap_or(300.0);
    let mut mark = 0.0;
    while mark <= seconds {
        let _ = writeln!(
            svg,
            "<text class=\"faint\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{mark} s</text>",
            x(mark),
            lower + 18.0
        );
        mark += step;
    }
    // The one that matters is drawn last, over the others.
    for (who, class, run) in &drawn {
        let mut path = String::new();
        for (slot, ns) in run.felt.slots.iter().enumerate() {
            let (from, to) = (slot as f64 * SLOT as f64 / 1e9, (slot + 1) as f64 * SLOT as f64 / 1e9);
            let command = if slot == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}H{:.1}", x(from), y(*ns as f64), x(to));
        }
        let _ = writeln!(svg, "<path class=\"{class}\" d=\"{path}\"><title>{}</title></path>", who.name());
    }
    let _ = writeln!(
        svg,
        "<text class=\"faint\" x=\"{LEFT}\" y=\"{}\">since the start; a line ends where the copy is in place, synced and renamed</text>",
        lower + 36.0,
    );
}

/// The class in words, where there is little room.
fn brief(who: Who) -> &'static str {
    match who {
        Who::Idle => "nobody",
        Who::Cp => "cp",
        Who::Loop => "loop",
        _ => "rclone-img",
    }
}

fn told(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.0} ms") } else { format!("{:.1} s", ms / 1e3) }
}

/// The run whose longest access is the middle one.
fn typical(runs: &[Run]) -> Option<&Run> {
    let mut sorted: Vec<&Run> = runs.iter().collect();
    sorted.sort_by(|a, b| a.felt.longest_ms().total_cmp(&b.felt.longest_ms()));
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::live::felt::Felt;

    #[test]
    fn each_contender_has_a_line_as_long_as_it_took() {
        let mut figures = Figures::new("XFS", 1 << 30);
        for (who, slots) in [(Who::Idle, 10), (Who::Cp, 40)] {
            let felt = Felt { slots: vec![1_000_000_000; slots], ..Felt::default() };
            figures.add(
                Scene::Plain,
                who,
                Run { took: Duration::ZERO, window: None, parts: None, felt, stolen: Duration::ZERO, report: None },
            );
        }
        let svg = draw(&[figures]);
        let line = |class: &str| {
            svg.lines().rfind(|it| it.starts_with(&format!("<path class=\"{class}\""))).unwrap().to_owned()
        };
        assert_eq!(line("cp").matches('H').count(), 40);
        assert!(line("cp").contains(&format!("H{:.1}", WIDTH - RIGHT)));
        assert_eq!(line("idle").matches('H').count(), 10);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
