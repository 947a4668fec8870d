//! For people: the first ranges, the sums, and where in the file they are.

use std::io::{self, Write};

use super::args::DiffArgs;
use super::{Sums, Teller, kind, names, words};
use crate::changes::Span;
use crate::cli::map::strip;

/// The most ranges that are listed: more than a screen says less.
const LISTED: u64 = 24;

/// The width of the picture.
const COLUMNS: usize = 64;

pub struct Text {
    size: u64,
    listed: u64,
    columns: [u64; COLUMNS],
}

impl Text {
    /// Of a file of this size.
    pub fn new(size: u64) -> Self {
        Self { size, listed: 0, columns: [0; COLUMNS] }
    }

    /// Adds what has changed to the columns that it is in.
    fn draw(&mut self, span: &Span) {
        let at = |column: usize| (u128::from(self.size) * column as u128 / COLUMNS as u128) as u64;
        let column = |offset: u64| (u128::from(offset) * COLUMNS as u128 / u128::from(self.size.max(1))) as usize;
        let (first, last) = (column(span.range.start()), column(span.range.end() - 1).min(COLUMNS - 1));
        for nth in first..=last {
            let (from, to) = (at(nth).max(span.range.start()), at(nth + 1).min(span.range.end()));
            // A column of less than a byte.
            self.columns[nth] += to.saturating_sub(from).max(1);
        }
    }
}

impl Teller for Text {
    fn span(&mut self, span: &Span, out: &mut dyn Write) -> io::Result<()> {
        if span.what.equal {
            return Ok(());
        }
        self.draw(span);
        self.listed += 1;
        match self.listed {
            1 => writeln!(out, "{:>20}{:>20}  what", "offset", "length")?,
            n if n > LISTED => return Ok(()),
            _ => {}
        }
        writeln!(out, "{:>20}{:>20}  {}", span.range.start(), span.range.len(), kind(span))
    }

    fn end(&mut self, args: &DiffArgs, sums: &Sums, out: &mut dyn Write) -> io::Result<()> {
        if self.listed > LISTED {
            writeln!(out, "{:>20} more; --json tells all of them", self.listed - LISTED)?;
        }
        let [old, new] = sums.sizes;
        if !sums.differ() {
            let how = if sums.content { "" } else { ", by their block maps" };
            return writeln!(out, "{}: nothing has changed{how}; {} are equal", names(args), words::bytes(sums.equal));
        }
        if self.listed > 0 {
            writeln!(out)?;
        }
        writeln!(out, "{}", names(args))?;
        let (data, zero) = (words::bytes(sums.data), words::bytes(sums.zero));
        let all = words::bytes(sums.data + sums.zero);
        writeln!(out, "  changed  {all} in {}: {data} of data, {zero} of zeros", words::count(sums.ranges, "range"))?;
        writeln!(out, "  equal    {}", words::bytes(sums.equal))?;
        if old != new {
            writeln!(out, "  size     {} bytes, was {old}", new)?;
        }
        if !sums.content {
            writeln!(out, "  by their block maps: --content leaves out what has the same bytes in other blocks")?;
        }
        if self.listed == 0 {
            return Ok(());
        }
        writeln!(out, "\n  where, from the file's start to its end (blank: nothing)")?;
        writeln!(out, "  |{}|", strip(&self.columns))
    }
}

#[cfg(test)]
mod tests {
    use snapbox::IntoData;

    use super::*;
    use crate::extent::delta::{Relation, Run};
    use crate::range::ByteRange;

    const EQUAL: Relation = Relation { equal: true, zero: false };
    const DATA: Relation = Relation { equal: false, zero: false };
    const ZERO: Relation = Relation { equal: false, zero: true };

    /// What is told of a file that had so many bytes before: spans as (end, what), without gaps, to its end.
    fn told(was: u64, content: bool, spans: &[(u64, Relation)]) -> String {
        let size = spans.last().map_or(0, |it| it.0);
        let args = DiffArgs {
            old: "a.snap".into(),
            new: "a\n.img".into(),
            content,
            exit_code: false,
            json: false,
            format: None,
            quiet: false,
        };
        let (mut text, mut out) = (Text::new(size), Vec::new());
        let mut sums = Sums { sizes: [was, size], comparable: true, content, ..Sums::default() };
        let mut start = 0;
        for &(end, what) in spans {
            let span = Run { range: ByteRange::new(start, end).expect("not empty"), what };
            sums.add(&span);
            text.span(&span, &mut out).expect("told");
            start = end;
        }
        text.end(&args, &sums, &mut out).expect("told");
        String::from_utf8(out).expect("UTF-8")
    }

    /// What stands between the bars of the last line.
    fn picture(told: &str) -> Vec<char> {
        let line = told.lines().last().expect("a line");
        line.strip_prefix("  |").and_then(|it| it.strip_suffix('|')).expect("a picture").chars().collect()
    }

    #[test]
    fn ranges_sums_and_where() {
        let spans = [(4096, DATA), (8192, EQUAL), (10_240, ZERO), (260_096, EQUAL), (262_144, DATA)];
        snapbox::assert_data_eq!(
            told(131_072, false, &spans),
            snapbox::str![[r#"
              offset              length  what
                   0                4096  data
                8192                2048  zero
              260096                2048  data

a\n.img since a.snap
  changed  8.0 KiB in 3 ranges: 6.0 KiB of data, 2.0 KiB of zeros
  equal    248.0 KiB
  size     262144 bytes, was 131072
  by their block maps: --content leaves out what has the same bytes in other blocks

  where, from the file's start to its end (blank: nothing)
  |█ ▄                                                            ▄|

"#]]
            .raw()
        );
    }

    #[test]
    fn of_many_ranges_the_first_are_listed_and_all_are_counted() {
        // One in every second column.
        let spans = (0..30_u64).flat_map(|nth| [((2 * nth + 1) << 20, DATA), ((2 * nth + 2) << 20, EQUAL)]);
        let spans: Vec<(u64, Relation)> = spans.chain([(64 << 20, EQUAL)]).collect();
        let told = told(64 << 20, true, &spans);
        let lines: Vec<&str> = told.lines().collect();
        let listed: Vec<&str> = lines.iter().copied().filter(|line| line.ends_with("  data")).collect();
        assert_eq!(listed.len() as u64, LISTED, "{told}");
        assert_eq!(listed[23].split_whitespace().collect::<Vec<_>>(), ["48234496", "1048576", "data"]);
        assert_eq!(lines[25].trim_start(), "6 more; --json tells all of them");
        assert!(told.contains("  changed  30.0 MiB in 30 ranges: 30.0 MiB of data, 0 B of zeros\n"), "{told}");
        assert!(told.contains("  equal    34.0 MiB\n") && !told.contains("  size ") && !told.contains("--content"));
        let picture = picture(&told);
        assert_eq!(picture.len(), COLUMNS);
        assert!(picture.iter().enumerate().all(|(nth, it)| (*it != ' ') == (nth < 60 && nth % 2 == 0)), "{told}");
    }

    #[test]
    fn the_picture_is_as_wide_for_files_of_any_size() {
        for size in [1, 3, 63, 64, 65, u64::MAX] {
            let all = picture(&told(size, true, &[(size, DATA)]));
            assert!(all.len() == COLUMNS && all[0] != ' ', "{size}: {all:?}");
        }
    }

    #[test]
    fn what_has_not_changed_is_said_in_a_line() {
        let same = [(4096, EQUAL)];
        let by_maps = "a\\n.img since a.snap: nothing has changed, by their block maps; 4.0 KiB are equal\n";
        assert_eq!(told(4096, false, &same), by_maps);
        assert_eq!(told(4096, true, &same), by_maps.replace(", by their block maps", ""));
        // Another size is a change, and nowhere.
        let other = told(8192, true, &same);
        assert!(other.ends_with("  equal    4.0 KiB\n  size     4096 bytes, was 8192\n"), "{other}");
    }
}
