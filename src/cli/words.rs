//! Names, sizes and times as people read them. Pure.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytesize::ByteSize;

/// A name for a message: one line, nothing that moves a terminal's cursor or turns its text around; bytes that are not
/// UTF-8 as `\xNN`.
pub fn name(name: impl AsRef<OsStr>) -> String {
    let mut out = String::new();
    for chunk in name.as_ref().as_bytes().utf8_chunks() {
        out.push_str(&line(chunk.valid()));
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Text for one line of a message: control characters escaped.
pub fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_format(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Line separators, and what turns the direction of text.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A name to be pasted into a shell's command line.
pub fn shell(name: impl AsRef<OsStr>) -> String {
    let bytes = name.as_ref().as_bytes();
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_./-+,:@%=".contains(b);
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && bytes.iter().all(plain) => text.to_owned(),
        Ok(text) if line(text) == text => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let mut out = String::from("$'");
            for &byte in bytes {
                match byte {
                    b'\'' | b'\\' => out.extend(['\\', char::from(byte)]),
                    b' '..=b'~' => out.push(char::from(byte)),
                    _ => drop(write!(out, "\\x{byte:02x}")),
                }
            }
            out + "'"
        }
    }
}

/// Bytes, in powers of 1024.
pub fn bytes(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A time, with the digits that matter.
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match time.as_micros() {
        0 => "0 ms".into(),
        1..1_000 => format!("{} us", time.as_micros()),
        1_000..1_000_000 => format!("{:.1} ms", time.as_secs_f64() * 1000.0),
        1_000_000..60_000_000 => format!("{:.1} s", time.as_secs_f64()),
        60_000_000..3_600_000_000 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// How many of something.
pub fn count(n: u64, one: &str) -> String {
    count_of(n, one, &format!("{one}s"))
}

/// The same of what does not just take an s.
pub fn count_of(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::{Duration, OsStr, OsStrExt, bytes, count, line, name, shell, time};

    #[test]
    fn names_stay_on_their_line() {
        let check = |input: &[u8], expect: &str| assert_eq!(name(OsStr::from_bytes(input)), expect);
        check(b"vm.img", "vm.img");
        check(b"my vm.img", "my vm.img");
        check("\u{fc}ber.img".as_bytes(), "\u{fc}ber.img");
        check(b"a\nb\tc\x1b[2J", "a\\nb\\tc\\u{1b}[2J");
        check(b"a\xff\xfeb", "a\\xff\\xfeb");
        check("a\u{202e}gmi".as_bytes(), "a\\u{202e}gmi");
        assert_eq!(line("one\ntwo"), "one\\ntwo");
    }

    #[test]
    fn a_shell_reads_names_back() {
        let check = |input: &[u8], expect: &str| assert_eq!(shell(OsStr::from_bytes(input)), expect);
        check(b"/vm/a-1_b.img", "/vm/a-1_b.img");
        check(b"", "''");
        check(b"my vm.img", "'my vm.img'");
        check(b"it's", r"'it'\''s'");
        check(b"a\n'\\\xff", r"$'a\x0a\'\\\xff'");
    }

    #[test]
    fn sizes_times_and_counts() {
        assert_eq!((bytes(0), bytes(4096), bytes(4 << 30)), ("0 B".into(), "4.0 KiB".into(), "4.0 GiB".into()));
        let check = |input: Duration, expect: &str| assert_eq!(time(input), expect);
        check(Duration::ZERO, "0 ms");
        check(Duration::from_micros(7), "7 us");
        check(Duration::from_micros(5_130), "5.1 ms");
        check(Duration::from_millis(11_534), "11.5 s");
        check(Duration::from_secs(250), "4 min 10 s");
        check(Duration::from_secs(7_260), "2 h 01 min");
        assert_eq!((count(1, "extent"), count(0, "call")), ("1 extent".into(), "0 calls".into()));
    }
}
