//! The figures of one file system beside their goals.

use std::time::Duration;

use serde_json::{Value, json};

use super::armed::Armed;
use super::contender::Who;
use super::felt::Felt;
use super::stage::{Run, Scene};
use super::{Runs, armed};
use crate::bench::figures::Spread;
use crate::chart;

/// How much longer than an idle guest's longest access the longest beside a job may be, in ms.
const LONGER: f64 = 50.0;

/// What 99 and 99.9 in a hundred accesses may take beside a job, in ms.
const P99: f64 = 2.0;
const P999: f64 = 5.0;

/// The window, of the time of a quiet `cp`, at the default budget and at 50 ms.
const WINDOW: f64 = 2.5;
const WINDOW_RELAXED: f64 = 1.3;

/// What an access that goes on at once may cost more with the responder busy, in us.
const WATCHED: f64 = 10.0;

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
    /// Jobs that ended without a snapshot, and were made again.
    pub again: u32,
    /// What an access costs more.
    pub armed: Option<Armed>,
    runs: Runs,
    /// `cp` with nobody there: the scene, the seconds of `cp`, the seconds to its copy in place.
    quiet: Vec<(Scene, f64, f64)>,
}

/// A figure and the most it may be.
struct Goal {
    what: String,
    unit: &'static str,
    value: f64,
    goal: f64,
}

impl Goal {
    fn met(&self) -> bool {
        self.value <= self.goal
    }
}

impl Figures {
    /// Nothing yet.
    pub fn new(file_system: &'static str, bytes: u64) -> Self {
        let (runs, quiet) = (Runs::new(), Vec::new());
        Self { file_system, bytes, extents: None, unquiet: 0, again: 0, armed: None, runs, quiet }
    }

    /// Adds a run and says what it was like.
    pub fn add(&mut self, scene: Scene, who: Who, run: Run) {
        let Felt { kinds, .. } = &run.felt;
        let [reads, writes, flushes] = kinds.map(|kind| super::felt::ms(kind.longest));
        eprintln!(
            "  {}, {}: {:.2} s{}; longest read {reads:.1}, write {writes:.1}, flush {flushes:.1} ms{}; p99.9 {:.2}, p99 {:.2} ms{}",
            scene.name(),
            who.name(),
            run.took.as_secs_f64(),
            run.window.map(|it| format!(", window {:.2} s", it.as_secs_f64())).unwrap_or_default(),
            run.parts
                .map(|it| format!(" (before T0 {:.0}, in the window {:.0}, after it {:.0})", it[0], it[1], it[2]))
                .unwrap_or_default(),
            run.felt.p999_ms(),
            run.felt.p99_ms(),
            if run.stolen.is_zero() {
                String::new()
            } else {
                format!("; the hypervisor kept {} ms of CPU time", run.stolen.as_millis())
            },
        );
        self.runs.entry((scene, who)).or_default().push(run);
    }

    /// Adds the time of a quiet `cp`, alone and to the copy in place.
    pub fn quiet(&mut self, scene: Scene, alone: Duration, whole: Duration) {
        eprintln!(
            "  {}, a quiet cp: {:.2} s, {:.2} s with sync and rename",
            scene.name(),
            alone.as_secs_f64(),
            whole.as_secs_f64()
        );
        self.quiet.push((scene, alone.as_secs_f64(), whole.as_secs_f64()));
    }

    /// How long the last quiet `cp` of that image took.
    pub fn last_quiet(&self, scene: Scene) -> Duration {
        let last = self.quiet.iter().rfind(|(of, ..)| *of == same_image(scene));
        last.map_or(Duration::ZERO, |(_, alone, _)| Duration::from_secs_f64(*alone))
    }

    /// The runs of a contender.
    pub fn runs(&self, scene: Scene, who: Who) -> &[Run] {
        self.runs.get(&(scene, who)).map_or(&[], Vec::as_slice)
    }

    fn median(&self, scene: Scene, who: Who, of: impl Fn(&Run) -> f64) -> Option<f64> {
        let values: Vec<f64> = self.runs(scene, who).iter().map(of).collect();
        (!values.is_empty()).then(|| Spread::of(&values).median)
    }

    /// The window's time of that of a quiet `cp`, run by run.
    fn window(&self, scene: Scene, who: Who) -> Option<f64> {
        let quiet: Vec<f64> =
            self.quiet.iter().filter(|(of, ..)| *of == same_image(scene)).map(|(_, alone, _)| *alone).collect();
        let windows = self.runs(scene, who).iter().filter_map(|run| run.window);
        let ratios: Vec<f64> = windows.zip(&quiet).map(|(window, quiet)| window.as_secs_f64() / quiet).collect();
        (!ratios.is_empty()).then(|| Spread::of(&ratios).median)
    }

    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let mut goal = |what: String, unit, value: Option<f64>, goal| {
            goals.extend(value.map(|value| Goal { what, unit, value, goal }));
        };
        for scene in [Scene::Plain, Scene::Dirty, Scene::Busy] {
            let name = scene.name();
            let felt = |of: fn(&Felt) -> f64| self.median(scene, Who::Snapshot, |run| of(&run.felt));
            let idle = self.median(scene, Who::Idle, |run| run.felt.longest_ms()).unwrap_or(0.0);
            goal(format!("{name}: longest access"), "ms", felt(Felt::longest_ms), idle + LONGER);
            goal(format!("{name}: p99.9"), "ms", felt(Felt::p999_ms), P999);
            goal(format!("{name}: p99"), "ms", felt(Felt::p99_ms), P99);
            goal(format!("{name}: window / quiet cp"), "x", self.window(scene, Who::Snapshot), WINDOW);
            goal(format!("{name}: the same at 50 ms"), "x", self.window(scene, Who::Relaxed), WINDOW_RELAXED);
        }
        let watched = self.armed.map(|it| more(it.busy));
        goal("a watched access costs more, responder busy".to_owned(), "us", watched, WATCHED);
        let beyond = self.armed.map(|it| more(it.busy) - it.busy.handed_over / 1e3);
        goal("the same less a byte to a thread and back".to_owned(), "us", beyond, WATCHED);
        goals
    }

    /// How many goals are missed.
    pub fn missed(&self) -> usize {
        self.goals().iter().filter(|goal| !goal.met()).count()
    }

    /// The tables.
    pub fn text(&self) -> String {
        let extents = self.extents.map(|it| format!(" in {it} extents")).unwrap_or_default();
        let mut text = format!("\n{}: an image of {} MiB{extents}\n\n", self.file_system, self.bytes >> 20);
        let mut rows = vec![["", "goal", "median", ""].map(str::to_owned).to_vec()];
        rows.extend(self.goals().iter().map(|it| {
            let verdict = if it.met() { "met" } else { "MISSED" };
            let show = |value: f64| format!("{value:.2} {}", it.unit);
            vec![it.what.clone(), format!("<= {}", show(it.goal)), show(it.value), verdict.to_owned()]
        }));
        text += &format!("{}\n", chart::table(&rows));
        let heading = [
            "median of the runs",
            "runs",
            "time",
            "window",
            "longest",
            "read",
            "write",
            "flush",
            "p99.9",
            "p99",
            "p99.9 of one a ms",
            "stolen CPU time",
        ];
        for scene in [Scene::Plain, Scene::Dirty, Scene::Busy] {
            let mut rows = vec![heading.map(str::to_owned).to_vec()];
            rows.extend(self.runs.iter().filter(|((of, _), _)| *of == scene).map(|((_, who), runs)| row(*who, runs)));
            text += &format!("{}, ms but for the times\n{}\n", scene.name(), chart::table(&rows));
        }
        if let Some(armed) = self.armed {
            text += &told(armed);
        }
        for scene in [Scene::Plain, Scene::Busy] {
            let of = |which: fn(&(Scene, f64, f64)) -> f64| {
                Spread::of(&self.quiet.iter().filter(|it| it.0 == scene).map(which).collect::<Vec<_>>()).median
            };
            text += &format!(
                "quiet cp, {}: {:.2} s, {:.2} s with sync and rename\n",
                scene.name(),
                of(|it| it.1),
                of(|it| it.2)
            );
        }
        if self.unquiet > 0 {
            text += &format!("{} runs began before the file system had calmed down.\n", self.unquiet);
        }
        if self.again > 0 {
            text += &format!("{} jobs ended without a snapshot and were made again.\n", self.again);
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let goals = self
            .goals()
            .into_iter()
            .map(|it| json!({"what": it.what, "unit": it.unit, "value": it.value, "goal": it.goal, "met": it.met()}));
        let runs = self.runs.iter().flat_map(|((scene, who), runs)| {
            runs.iter().map(|run| {
                json!({
                    "scene": scene.name(), "who": who.name(), "seconds": run.took.as_secs_f64(),
                    "window_seconds": run.window.map(|it| it.as_secs_f64()), "longest_before_within_after_ms": run.parts,
                    "felt": run.felt.json(), "stolen_ms": run.stolen.as_secs_f64() * 1e3, "report": run.report,
                })
            })
        });
        let quiet = self
            .quiet
            .iter()
            .map(|(scene, alone, whole)| json!({"scene": scene.name(), "cp": alone, "cp_sync_rename": whole}));
        json!({
            "file_system": self.file_system, "bytes": self.bytes, "extents": self.extents, "unquiet": self.unquiet, "made_again": self.again,
            "goals": goals.collect::<Vec<_>>(), "runs": runs.collect::<Vec<_>>(), "quiet_cp_seconds": quiet.collect::<Vec<_>>(),
            "watched_ns": self.armed.map(|it| json!({
                "busy": {"unarmed": it.busy.unarmed, "armed": it.busy.armed, "handed_over": it.busy.handed_over},
                "asleep": {"unarmed": it.asleep.unarmed, "armed": it.asleep.armed, "handed_over": it.asleep.handed_over},
            })),
        })
    }
}

/// A dirty image is the same one.
fn same_image(scene: Scene) -> Scene {
    if scene == Scene::Dirty { Scene::Plain } else { scene }
}

fn row(who: Who, runs: &[Run]) -> Vec<String> {
    let median = |of: &dyn Fn(&Run) -> f64| Spread::of(&runs.iter().map(of).collect::<Vec<_>>()).median;
    let ms = |of: &dyn Fn(&Run) -> f64| format!("{:.2}", median(of));
    let longest = |kind: usize| ms(&|run| super::felt::ms(run.felt.kinds[kind].longest));
    let window = runs[0].window.map(|_| median(&|run| run.window.map_or(0.0, |it| it.as_secs_f64())));
    vec![
        who.name().to_owned(),
        runs.len().to_string(),
        format!("{:.2} s", median(&|run| run.took.as_secs_f64())),
        window.map_or("-".to_owned(), |it| format!("{it:.2} s")),
        ms(&|run| run.felt.longest_ms()),
        longest(0),
        longest(1),
        longest(2),
        ms(&|run| run.felt.p999_ms()),
        ms(&|run| run.felt.p99_ms()),
        ms(&|run| run.felt.every_ms_p999_ms()),
        ms(&|run| run.stolen.as_secs_f64() * 1e3),
    ]
}

/// What an access costs more, in us.
fn more(cost: armed::Cost) -> f64 {
    (cost.armed - cost.unarmed) / 1e3
}

/// What an access costs more, in words.
pub fn told(armed: Armed) -> String {
    let part = |what, cost: armed::Cost| {
        let [armed, unarmed, handed_over] = [cost.armed, cost.unarmed, cost.handed_over].map(|ns| ns / 1e3);
        format!(
            "{what} {:.1} us more ({armed:.1} instead of {unarmed:.1}; a byte to a thread and back {handed_over:.1})",
            more(cost)
        )
    };
    format!(
        "a watched access costs, median: {}, {}\n",
        part("responder busy", armed.busy),
        part("asleep", armed.asleep)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(longest_ms: u64, window: Option<u64>) -> Run {
        let mut felt = Felt::default();
        felt.kinds[1].longest = longest_ms * 1_000_000;
        let window = window.map(Duration::from_secs);
        Run { took: Duration::from_secs(9), window, parts: None, felt, stolen: Duration::ZERO, report: None }
    }

    #[test]
    fn a_goal_is_held_to_the_median_and_to_what_an_idle_guest_felt() {
        let mut figures = Figures::new("XFS", 1 << 30);
        figures.quiet(Scene::Plain, Duration::from_secs(2), Duration::from_secs(3));
        for (idle, job) in [(10, 20), (30, 79), (900, 900)] {
            figures.add(Scene::Plain, Who::Idle, run(idle, None));
            figures.add(Scene::Plain, Who::Snapshot, run(job, Some(6)));
        }
        let met: Vec<bool> = figures.json()["goals"].as_array().unwrap().iter().map(|it| it["met"] == true).collect();
        assert_eq!(met, [true, true, true, false]);
        assert!(figures.text().contains("MISSED") && figures.missed() == 1);
    }
}
