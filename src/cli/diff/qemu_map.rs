//! As `qemu-img map --output=json` writes it, of an overlay that has what NEW has differently, over OLD.

use std::io::{self, Write};

use super::args::DiffArgs;
use super::{Sums, Teller};
use crate::changes::Span;

#[derive(Default)]
pub struct QemuMap {
    any: bool,
}

impl Teller for QemuMap {
    fn span(&mut self, span: &Span, out: &mut dyn Write) -> io::Result<()> {
        let (start, length, zero) = (span.range.start(), span.range.len(), span.what.zero);
        let before = if self.any { ",\n" } else { "[" };
        self.any = true;
        let depth = u8::from(span.what.equal);
        // Where in its file the data is: both are raw.
        let offset = if zero { String::new() } else { format!(", \"offset\": {start}") };
        write!(
            out,
            "{before}{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": true, \"zero\": {zero}, \
             \"data\": {}, \"compressed\": false{offset}}}",
            !zero
        )
    }

    fn end(&mut self, _: &DiffArgs, _: &Sums, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(if self.any { b"]\n" } else { b"[]\n" })
    }
}
