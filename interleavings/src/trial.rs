//! Runs of a scene, each with other turns.

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

use crate::threads;

/// The variable that `cargo xtask test` sets.
const SEED: &str = "REFLINK_IMG_SEED";

/// The variable for the long counts.
const SOAK: &str = "REFLINK_IMG_SOAK";

/// Turns are lost at this many places that nobody would think of.
const DEPTH: usize = 3;

/// The most places where a turn can be lost in one run; one with more runs for ever.
const STEPS: usize = 1_000_000;

/// Runs a scene so often with turns by chance, and as often with few changes of turn, each from the seed of this test run.
pub fn run(times: usize, scene: impl Fn() + Send + Sync + Copy + 'static) {
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let times = if std::env::var_os(SOAK).is_some() { 50 * times } else { times };
    let config = || {
        let mut config = Config::new();
        config.max_steps = shuttle::MaxSteps::FailAfter(STEPS);
        config.stack_size = 256 << 10;
        config
    };
    let scene = move || {
        threads::begin();
        scene();
    };
    Runner::new(RandomScheduler::new_from_seed(seed, times), config()).run(scene);
    Runner::new(PctScheduler::new_from_seed(seed, DEPTH, times), config()).run(scene);
}
