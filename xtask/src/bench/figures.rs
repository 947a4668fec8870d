//! Figures beside their goals.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::chart;

/// What is measured: a name, the unit, and the most it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// The whole job, of the time of `cp` followed by `sync`.
    WholeJob,
    /// The longest of a hundred calls when 5 ms were asked for.
    LongestCall,
    /// A refresh after 1 % was rewritten, of the time of `cp`.
    Refresh,
    /// How long somebody waits who opens the image for writing in the middle of a job.
    Writer,
    /// Peak memory with a million extents.
    PeakMemory,
    /// Peak memory with 65 thousand extents.
    PeakMemorySmall,
    /// `map`, of the time of `filefrag`.
    Map,
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Self::WholeJob => "snapshot / (cp + sync)",
            Self::LongestCall => "p99 call at --latency 5ms",
            Self::Refresh => "refresh of 1 % / (cp + sync)",
            Self::Writer => "a writer waits to open",
            Self::PeakMemory => "peak memory",
            Self::PeakMemorySmall => "peak memory, 65k extents",
            Self::Map => "map / filefrag",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::WholeJob | Self::Refresh | Self::Map => "x",
            Self::LongestCall | Self::Writer => "ms",
            Self::PeakMemory | Self::PeakMemorySmall => "MiB",
        }
    }

    /// The most it may be, on the file system of that name.
    fn goal(self, file_system: &str) -> f64 {
        match self {
            Self::WholeJob => 1.2,
            Self::LongestCall => 10.0,
            Self::Writer => 1000.0,
            Self::Refresh if file_system == "XFS" => 0.35,
            Self::Refresh => 0.6,
            Self::PeakMemory | Self::PeakMemorySmall => 32.0,
            Self::Map => 1.5,
        }
    }
}

/// What was measured on one file system.
pub struct Figures {
    /// The file system's name.
    pub file_system: &'static str,
    /// Bytes of the image.
    pub bytes: u64,
    /// Extents of the image, where filefrag could tell.
    pub extents: Option<u64>,
    /// Runs that began before the file system had calmed down.
    pub unquiet: u32,
    values: BTreeMap<Measure, Vec<f64>>,
    seconds: BTreeMap<&'static str, Vec<f64>>,
}

impl Figures {
    /// Nothing yet.
    pub fn new(file_system: &'static str, bytes: u64) -> Self {
        Self { file_system, bytes, extents: None, unquiet: 0, values: BTreeMap::new(), seconds: BTreeMap::new() }
    }

    /// Adds a value.
    pub fn add(&mut self, measure: Measure, value: f64) {
        self.values.entry(measure).or_default().push(value);
    }

    /// Adds how long a command took, which the ratios come from.
    pub fn add_seconds(&mut self, command: &'static str, seconds: f64) {
        self.seconds.entry(command).or_default().push(seconds);
    }

    /// How many goals are missed.
    pub fn missed(&self) -> usize {
        self.values.iter().filter(|(measure, values)| !self.met(**measure, values)).count()
    }

    fn met(&self, measure: Measure, values: &[f64]) -> bool {
        Spread::of(values).median <= measure.goal(self.file_system)
    }

    /// The table.
    pub fn text(&self) -> String {
        let extents = self.extents.map(|it| format!(" in {it} extents")).unwrap_or_default();
        let mut text = format!("\n{}: an image of {} MiB{extents}\n\n", self.file_system, self.bytes >> 20);
        let heading = ["", "goal", "median", "min", "max", "runs", ""];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for (measure, values) in &self.values {
            let goal = measure.goal(self.file_system);
            let spread = Spread::of(values);
            let show = |value: f64| format!("{value:.2} {}", measure.unit());
            let verdict = if self.met(*measure, values) { "met" } else { "MISSED" };
            rows.push(vec![
                measure.name().to_owned(),
                format!("<= {}", show(goal)),
                show(spread.median),
                show(spread.min),
                show(spread.max),
                values.len().to_string(),
                verdict.to_owned(),
            ]);
        }
        text += &chart::table(&rows);
        let heading = ["seconds", "median", "min", "max"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for (command, values) in &self.seconds {
            let spread = Spread::of(values);
            let cells = [spread.median, spread.min, spread.max].map(|value| format!("{value:.3}"));
            rows.push([(*command).to_owned()].into_iter().chain(cells).collect());
        }
        text += &format!("\n{}", chart::table(&rows));
        if self.unquiet > 0 {
            text += &format!("\n  {} runs began before the file system had calmed down.\n", self.unquiet);
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let measures: Vec<Value> = self
            .values
            .iter()
            .map(|(measure, values)| {
                let (spread, goal) = (Spread::of(values), measure.goal(self.file_system));
                json!({
                    "measure": measure.name(), "unit": measure.unit(), "goal": goal, "met": self.met(*measure, values),
                    "median": spread.median, "min": spread.min, "max": spread.max, "values": values,
                })
            })
            .collect();
        json!({
            "file_system": self.file_system, "bytes": self.bytes, "extents": self.extents, "unquiet": self.unquiet,
            "measures": measures, "seconds": self.seconds,
        })
    }
}

/// The least, the middle and the most of some values; all zero if there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The middle one, or between the middle two.
    pub median: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of these.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else { return Self::default() };
        let middle = sorted.len() / 2;
        let even = sorted.len().is_multiple_of(2);
        let median = if even { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] };
        Self { min: *min, median, max: *max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Spread { min: 1.0, median: 2.5, max: 4.0 });
        assert_eq!(Spread::of(&[]), Spread::default());
    }

    #[test]
    fn a_goal_is_met_by_the_median_and_differs_by_file_system() {
        for (file_system, met) in [("XFS", false), ("Btrfs", true)] {
            let mut figures = Figures::new(file_system, 1 << 30);
            for value in [0.5, 0.4, 0.9] {
                figures.add(Measure::Refresh, value);
            }
            assert_eq!(figures.json()["measures"][0]["met"], met);
            assert_eq!((figures.text().contains("MISSED"), figures.missed()), (!met, usize::from(!met)));
        }
    }
}
