//! What a run would do.

use std::ffi::OsString;
use std::io::{self, Write};

use jiff::Timestamp;

use super::args::{RotateArgs, shown};
use super::{Result, Rotated, json, when, with_path, words};
use crate::rotate::remove;

impl Rotated {
    /// What a run would do.
    pub(super) fn say_plan(&self, args: &RotateArgs, now: Timestamp) -> Result<()> {
        let (found, others) = self.found()?;
        let new = (!args.prune_only).then_some((OsString::from(&self.new), (now, true)));
        let all: Vec<(OsString, (Timestamp, bool))> =
            new.iter().cloned().chain(found.iter().map(|it| (it.name.clone(), when(it)))).collect();
        let reasons = self.reasons(args, all.iter().map(|it| it.1));
        let mut out = io::BufWriter::new(io::stdout().lock());
        let recycled = if args.recycle { self.surplus(args)? } else { None };
        let mut say = || -> io::Result<()> {
            for (index, ((name, (t0, _)), reasons)) in all.iter().zip(&reasons).enumerate() {
                let mut names: Vec<&str> = reasons.iter().map(|it| it.name()).collect();
                let what = match (index == 0, new.is_some(), reasons.is_empty()) {
                    (true, true, _) => "take",
                    (_, _, true) if recycled.as_ref() == Some(name) => "recycle",
                    (false, _, true) if remove::is_in_use(&self.disk, name).unwrap_or(false) => {
                        names.push("in-use");
                        "keep"
                    }
                    (false, _, true) => "remove",
                    _ => "keep",
                };
                if args.job.output.json {
                    let mut object = with_path(self.object("plan"), "dst", &self.pattern.dir.join(name));
                    (object["what"], object["t0"], object["reasons"]) =
                        (what.into(), t0.to_string().into(), names.into());
                    json::write_line(&mut out, &object)?;
                } else {
                    writeln!(out, "{what:<8}{}  {}", shown(&self.pattern.dir, name), names.join(", "))?;
                }
            }
            if all.is_empty() && !args.job.output.json {
                writeln!(out, "{}: no snapshot there has a name of the pattern", self.name())?;
            }
            if others > 0 && !args.job.output.json {
                writeln!(out, "{} of other images left alone", words::count(others as u64, "snapshot"))?;
            }
            out.flush()
        };
        crate::cli::written(say())
    }
}
