//! How far a long read or write has come, on standard error: a bar on a terminal, a line now and then elsewhere, nothing where nobody wants it.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::progress::Pace;
use super::words;

/// How often a thread that waits for others tells how far they are.
pub const LOOK: Duration = Duration::from_millis(100);

/// A meter of bytes.
pub struct Meter {
    what: String,
    total: Option<u64>,
    began: Instant,
    form: Form,
}

enum Form {
    Bar(ProgressBar),
    Lines(Pace),
    None,
}

impl Meter {
    /// Says what is done, of so many bytes, or of nobody knows how many.
    pub fn new(what: impl Into<String>, total: Option<u64>, quiet: bool) -> Self {
        let form = if quiet {
            Form::None
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            let template = match total {
                Some(_) => {
                    "{bar:20} {percent:>3} % {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {wide_msg}"
                }
                None => "{spinner} {binary_bytes} {binary_bytes_per_sec} {wide_msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            Form::Bar(bar)
        } else {
            Form::Lines(Pace::new())
        };
        let what = what.into();
        if let Form::Bar(bar) = &form {
            bar.set_message(what.clone());
        }
        Self { what, total, began: Instant::now(), form }
    }

    /// So many bytes are done.
    pub fn at(&mut self, done: u64) {
        match &mut self.form {
            Form::Bar(bar) => bar.set_position(done),
            Form::Lines(pace) => {
                if pace.due(self.began.elapsed()) {
                    let of = self.total.map(|total| format!(" of {}", words::bytes(total))).unwrap_or_default();
                    // A reader that went away ends the telling and nothing else.
                    let _ = writeln!(std::io::stderr(), "{}: {}{of}", self.what, words::bytes(done));
                }
            }
            Form::None => {}
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }
}
