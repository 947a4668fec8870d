//! Durations and tables for people: numbers with a unit that fits, columns that line up, a row of blocks for a timeline.

use std::time::Duration;

/// The upper end of each block but the last.
const STEPS: [(Duration, &str); 7] = [
    (Duration::from_millis(1), "1ms"),
    (Duration::from_millis(3), "3ms"),
    (Duration::from_millis(10), "10ms"),
    (Duration::from_millis(30), "30ms"),
    (Duration::from_millis(100), "100ms"),
    (Duration::from_millis(300), "0.3s"),
    (Duration::from_secs(1), "1s"),
];

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A duration, short: `0.42 ms`, `17 ms`, `1.3 s`.
pub fn short(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    match ms {
        ..1.0 => format!("{ms:.2} ms"),
        ..10.0 => format!("{ms:.1} ms"),
        ..1000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1e3),
    }
}

/// One character per duration, the taller the longer, on a logarithmic scale.
pub fn blocks(durations: &[Duration]) -> String {
    durations.iter().map(|it| BLOCKS[STEPS.iter().take_while(|(end, _)| it >= end).count()]).collect()
}

/// What the blocks mean.
pub fn legend() -> String {
    let below = STEPS.iter().zip(BLOCKS).map(|((_, end), block)| format!("{block} <{end}"));
    below.chain([format!("{} longer", BLOCKS[7])]).collect::<Vec<_>>().join("  ")
}

/// Rows in columns: the first column to the left, the others to the right. The first row is the heading.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|it| it.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            line += &if column == 0 { format!(" {cell:<width$}") } else { format!("  {cell:>width$}") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_digits_that_matter() {
        let expect =
            [(400_u64, "0.40 ms"), (4_240, "4.2 ms"), (17_300, "17 ms"), (999_000, "999 ms"), (24_000_000, "24.0 s")];
        for (micros, text) in expect {
            assert_eq!(short(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn ten_times_as_long_is_two_blocks_taller() {
        assert_eq!(blocks(&[0, 2, 20, 200, 2000].map(Duration::from_millis)), "▁▂▄▆█");
    }

    #[test]
    fn columns_line_up_in_characters_not_bytes() {
        let rows = [vec!["tool".to_owned(), "ms".to_owned()], vec!["é".to_owned(), "1234".to_owned()]];
        assert_eq!(table(&rows), "  tool    ms\n  é     1234\n");
    }
}
