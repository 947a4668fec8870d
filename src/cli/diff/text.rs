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
