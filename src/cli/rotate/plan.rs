//! What a run would do.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};

use jiff::Timestamp;

use super::args::{RotateArgs, shown};
use super::found::Found;
use super::prune::CLOCK;
use super::{Result, Rotated, json, when, with_path, words};
use crate::cli::args::Consistency;
use crate::rotate::remove;

impl Rotated {
    /// What a run would do.
    pub(super) fn say_plan(&self, args: &RotateArgs, now: Timestamp) -> Result<()> {
        let Found { own: found, future, others, strangers } = self.found()?;
        // What is asked not to be of one instant takes the place of nothing.
        let whole = !matches!(args.take.consistency, Consistency::Hold(kind) if !kind.point_in_time());
        let new = (!args.prune_only).then_some((OsString::from(&self.new), (now, whole)));
        let all: Vec<(OsString, (Timestamp, bool))> =
            new.iter().cloned().chain(found.iter().map(|it| (it.name.clone(), when(it)))).collect();
        let reasons = self.reasons(args, all.iter().map(|it| it.1));
        let begun = self.plan_of_what_was_begun(args)?;
        let mut out = io::BufWriter::new(io::stdout().lock());
        let recycled = if args.recycle { self.surplus(args)? } else { None };
        let others_found = found.iter().zip(&reasons[usize::from(new.is_some())..]);
        let mut others_found = others_found.filter(|(it, _)| recycled.as_ref() != Some(&it.name));
        let next = if args.recycle { self.to_recycle(&mut others_found) } else { None };
        let tell = |out: &mut dyn Write, what: &str, name: &OsStr, t0: Option<Timestamp>, reasons: &[String]| {
            if args.job.output.json {
                let mut object = with_path(self.object("plan"), "dst", &self.pattern.dir.join(name));
                (object["what"], object["t0"], object["reasons"]) =
                    (what.into(), t0.map(|it| it.to_string()).into(), reasons.into());
                return json::write_line(out, &object);
            }
            writeln!(out, "{what:<8}{}  {}", shown(&self.pattern.dir, name), reasons.join(", "))
        };
        let mut say = || -> io::Result<()> {
            for (what, name) in &begun {
                tell(&mut out, what, name, None, &["left-by-an-earlier-run".into()])?;
            }
            for (index, ((name, (t0, _)), reasons)) in all.iter().zip(&reasons).enumerate() {
                let mut names: Vec<String> = reasons.iter().map(|it| it.name()).collect();
                let what = match (index == 0, new.is_some(), reasons.is_empty()) {
                    (true, true, _) => "take",
                    (_, _, true) if recycled.as_ref() == Some(name) => "recycle",
                    (_, _, true) if next.as_ref() == Some(name) => {
                        names.push("recycle-next".into());
                        "keep"
                    }
                    (false, _, true) if remove::is_in_use(&self.disk, name).unwrap_or(false) => {
                        names.push("in-use".into());
                        "keep"
                    }
                    (false, _, true) => "remove",
                    _ => "keep",
                };
                tell(&mut out, what, name, Some(*t0), &names)?;
            }
            for snapshot in &future {
                tell(&mut out, "keep", &snapshot.name, Some(snapshot.record.t0), &["of-the-future".into()])?;
            }
            if args.job.output.json {
                return out.flush();
            }
            if !future.is_empty() {
                writeln!(out, "{} with a time in the future: {CLOCK}", words::count(future.len() as u64, "snapshot"))?;
            }
            if all.is_empty() && future.is_empty() && strangers == 0 {
                writeln!(out, "{}: no snapshot there has a name of the pattern", self.name())?;
            }
            if others > 0 {
                writeln!(out, "{} of other images left alone", words::count(others as u64, "snapshot"))?;
            }
            if strangers > 0 {
                writeln!(out, "{} of other users left alone", words::count(strangers as u64, "snapshot"))?;
            }
            out.flush()
        };
        crate::cli::written(say())
    }
}
