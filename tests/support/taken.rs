//! Snapshots that are taken while somebody writes: what the job says of them, T0 by the clock of the writer's log.

use std::ops::RangeInclusive;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use reflink_img_guest::clock;
use reflink_img_guest::verify::Verdict;
use serde_json::Value;

use super::{ANY_TIME, Job, PROGRAM, Sandbox, Writers, assert_one_instant, judged};

/// The clocks are read one after the other, and their distance may change by what a time server says.
const SLACK: i128 = 1_000_000;

/// Starts the service that arms what is opened in the file system's top directory from now on. Dropped, it is killed; it ends
/// with a test that is killed as well.
pub fn guard(s: &Sandbox) -> Job {
    let mut command = with_us(PROGRAM);
    let mut job = Job::spawn(command.args(["guard", ".", "--json"]).current_dir(s.dir()).stdin(Stdio::null()));
    assert!(job.wait_for("started"), "{:?}: no guard: {}", s.fs, job.end().stderr);
    job
}

/// A command that is ended when the thread that starts it ends, whatever ends that.
pub fn with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// What a job says of what it has made.
pub struct Taken {
    /// The event `finished` of each snapshot.
    pub finished: Vec<Value>,
    /// The instant that it says its snapshots are of, in nanoseconds of the log's clock.
    pub t0: RangeInclusive<u64>,
}

impl Taken {
    /// Runs `snapshot` with these arguments, which must succeed.
    pub fn by(s: &Sandbox, args: &[&str]) -> Self {
        let before = distance();
        let events = s.exits(0, &[&["snapshot", "--json"], args].concat());
        let after = distance();
        let finished: Vec<Value> = events.into_iter().filter(|e| e["event"] == "finished").collect();
        let t0: Vec<&str> = finished.iter().map(|e| e["t0"].as_str().expect("T0")).collect();
        assert!(!t0.is_empty() && t0.iter().all(|t| *t == t0[0]), "{:?} {args:?}: not of one T0: {t0:?}", s.fs);
        let t0 = t0[0].parse::<Timestamp>().expect("RFC 3339").as_nanosecond();
        let by_the_log = |distance: i128| u64::try_from(t0 - distance).expect("after the boot");
        let t0 = by_the_log(before.max(after) + SLACK)..=by_the_log(before.min(after) - SLACK);
        Self { finished, t0 }
    }

    /// Takes a snapshot `a.snap` of `a.img`, as these flags say, under this hold and while its writers write, and judges it.
    pub fn while_they_write(s: &Sandbox, what: &str, flags: &[&str], hold: &str, writers: &Writers) {
        let met = |again: bool| {
            if again && !flags.contains(&"--refresh") {
                std::fs::remove_file(s.path("a.snap")).expect("the snapshot");
            }
            let taken = Self::by(s, &[flags, &["a.img", "a.snap"]].concat());
            writers.goes_on(20);
            let verdict = assert_one_instant(&[&s.path("a.snap")], &s.outside("log"), taken.t0.clone());
            println!("{what} {flags:?}: {} and {}", taken.finished[0], verdict.json());
            assert_eq!(taken.finished[0]["hold"], hold, "{what}");
            assert_eq!(verdict.prefix.is_some(), verdict.dependent, "{what}");
            taken.number("promoted") > 0
        };
        is_met(what, met);
    }

    /// Takes one without a hold of `a.img` while its writers write: whether it is of one instant, which it may be by chance.
    pub fn without_a_hold(s: &Sandbox, writers: &Writers) -> Verdict {
        let flags = ["--force", "--consistency", "none", "--chunk", "64K", "--latency", "1ms"];
        Self::by(s, &[&flags[..], &["a.img", "a.snap"]].concat());
        writers.goes_on(20);
        let verdict = judged(&[&s.path("a.snap")], &s.outside("log"), ANY_TIME);
        println!("{:?}: {}", s.fs, verdict.json());
        verdict
    }

    /// A number that the first snapshot's report has.
    pub fn number(&self, name: &str) -> u64 {
        self.finished[0][name].as_u64().unwrap_or_else(|| panic!("no {name} in {}", self.finished[0]))
    }
}

/// Has a job made until it has met an access, which `met` says: a short one may have met none, and proves nothing then. It is told whether it is
/// made again.
pub fn is_met(what: &str, met: impl FnMut(bool) -> bool) {
    assert!([false, true, true, true, true].into_iter().any(met), "{what}: five times nobody was met");
}

/// How far the time of day is ahead of the log's clock, in nanoseconds.
fn distance() -> i128 {
    Timestamp::now().as_nanosecond() - i128::from(clock::now())
}
