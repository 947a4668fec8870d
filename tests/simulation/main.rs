//! Whole jobs on the simulated disk: killed or cut off at every step, with calls that fail, from seeds.
//!
//! The oracle is the image as it was at T0. What must hold after every step: a file at DST that carries a valid record has
//! the bytes of the T0 that its record names; the image has only what its guest wrote; the same command, run again,
//! comes to an end with a snapshot.
//!
//! A seed that fails is printed with the command that replays it. `REFLINK_IMG_SEED` is the first seed (default: the
//! date), `REFLINK_IMG_SEEDS` how many (default 400, with `REFLINK_IMG_SOAK` set 2000).

mod fleece;
mod greedy;
mod group;
mod guard;
mod harness;
mod restore;

use std::panic::{AssertUnwindSafe, catch_unwind};

use group::GroupWorld;
use harness::{Crash, Scenario};
use rclone_img::disk::sim::Faults;
use rclone_img::error::Kind;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `check` for every seed, and says how to replay one that fails.
fn for_seeds(test: &str, check: impl Fn(u64)) {
    for_seeds_of(test, 1, check);
}

/// The same for a check that takes so many times as long as others.
fn for_seeds_of(test: &str, cost: u64, check: impl Fn(u64)) {
    let soak = std::env::var_os("REFLINK_IMG_SOAK").is_some();
    let count = env("REFLINK_IMG_SEEDS").unwrap_or(if soak { 2000 } else { 400 } / cost);
    let today = jiff::Timestamp::now().as_second().unsigned_abs() / 86_400;
    let first = env("REFLINK_IMG_SEED").unwrap_or(today * 1_000_000);
    println!("{test}: seeds {first}..{}", first + count);
    for seed in first..first + count {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(seed))) {
            eprintln!(
                "seed {seed} failed; replay it with: REFLINK_IMG_SEED={seed} REFLINK_IMG_SEEDS=1 cargo test --test simulation {test}"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

/// Every step of a job is once the last one.
fn every_step(seed: u64, crash: Crash) {
    let scenario = Scenario::new(seed, Faults::shapes(seed));
    let scenario = if crash == Crash::Forgetful { scenario.quiet() } else { scenario };
    let steps = scenario.steps();
    for step in 1..=steps {
        let mut world = scenario.begin();
        world.stop_after(step);
        let ended = world.run();
        assert!(ended.is_err() || step == steps, "step {step} of {steps} did not stop the job");
        world.crash(crash, seed ^ step);
        world.check(&format!("after the crash at step {step} of {steps}"));
        world.guest(seed ^ step);
        world.heal(&format!("step {step} of {steps}"));
    }
}

#[test]
fn killed_at_every_step_nothing_is_lost_and_nothing_is_wrong() {
    for_seeds("killed_at_every_step", |seed| every_step(seed, Crash::Kill));
}

#[test]
fn cut_off_at_every_step_no_unsynced_snapshot_is_ever_in_place() {
    for_seeds("cut_off_at_every_step", |seed| every_step(seed, Crash::Power));
}

#[test]
fn an_image_is_restored_or_as_it_was_or_has_no_name() {
    for_seeds_of("an_image_is_restored", 4, |seed| {
        restore::every_step(seed, Crash::Kill);
        restore::every_step(seed, Crash::Power);
    });
}

#[test]
fn nobody_is_let_in_on_a_mixture() {
    for_seeds("nobody_is_let_in", |seed| {
        restore::who_opens_it_in_the_last_moment_is_found(seed);
        restore::who_opens_it_later_waits(seed);
        restore::a_map_that_cannot_be_read_is_no_broken_job(seed);
        restore::what_is_not_what_was_looked_at_is_left_alone(seed);
        restore::what_is_put_in_the_sources_place_stays(seed);
    });
}

#[test]
fn a_claim_never_outruns_the_sync_that_it_rests_on() {
    for_seeds("a_claim_never_outruns", |seed| every_step(seed, Crash::Forgetful));
}

#[test]
fn calls_that_fail_end_in_words_or_in_the_right_snapshot() {
    for_seeds("calls_that_fail", |seed| {
        let mut world = Scenario::new(seed, Faults::random(seed)).begin();
        for attempt in 0..8 {
            match world.run() {
                Ok(_) => break,
                Err(error) => {
                    assert_ne!(error.kind, Kind::Usage, "{error}");
                    assert!(!error.hint.is_empty(), "nothing is said of what to do: {error}");
                }
            }
            world.check(&format!("after attempt {attempt}"));
            world.guest(seed ^ attempt);
        }
        world.heal("calls that fail");
    });
}

#[test]
fn crashes_and_failing_calls_together() {
    for_seeds("crashes_and_failing_calls", |seed| {
        let mut world = Scenario::new(seed, Faults::random(seed)).begin();
        for attempt in 0..6 {
            let chance = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(attempt as u32 * 7);
            world.stop_after(1 + chance % 60);
            let done = world.run().is_ok() && !world.disk.stopped();
            world.crash([Crash::Kill, Crash::Power][(chance >> 8) as usize % 2], chance);
            world.check(&format!("after attempt {attempt}"));
            if done {
                break;
            }
            world.guest(chance);
        }
        world.heal("crashes and failing calls");
    });
}

#[test]
fn what_was_reported_finished_survives_a_power_cut() {
    for_seeds("what_was_reported_finished", |seed| {
        let mut world = Scenario::new(seed, Faults::shapes(seed)).begin();
        if world.run().is_ok() {
            let before = world.disk.content("snap").expect("the snapshot is there");
            world.crash(Crash::Power, seed);
            assert_eq!(world.disk.content("snap").as_deref(), Some(&before[..]), "the finished snapshot changed");
            world.check("after the power cut");
        }
    });
}

#[test]
fn an_abort_at_any_step_removes_what_the_job_made_and_puts_back_what_it_had_not_touched() {
    for_seeds("an_abort_at_any_step", |seed| {
        let scenario = Scenario::new(seed, Faults::shapes(seed));
        let steps = scenario.steps();
        let step = 1 + seed % steps;
        let mut world = scenario.begin();
        let old = world.disk.content("snap");
        world.stop_after(step);
        let ended = world.run();
        world.crash([Crash::Kill, Crash::Power][(seed / 2 % 2) as usize], seed);
        world.check("before the abort");
        if ended.is_err() {
            world.abort(old.as_deref());
        }
    });
}

/// Every step of a job of several images is once the last one; what goes on after that is stopped once more.
fn every_step_of_a_group(seed: u64, crash: Crash) {
    let faults = Faults::shapes(seed);
    let mut whole = GroupWorld::new(seed, faults);
    let before = whole.disk.steps();
    let _ = whole.run();
    let steps = whole.disk.steps() - before;
    for step in 1..=steps {
        let mut world = GroupWorld::new(seed, faults);
        let when = format!("after the crash at step {step} of {steps}");
        world.disk.stop_after(world.disk.steps() + step);
        let ended = world.run();
        assert!(ended.is_err() || step == steps, "step {step} of {steps} did not stop the job");
        world.crash(crash, seed ^ step);
        world.check(&when);
        world.guest(seed ^ step);
        if (seed ^ step).is_multiple_of(2) {
            let again = 1 + world.chance.below(40);
            world.disk.stop_after(world.disk.steps() + again);
            let _ = world.run();
            let other = if crash == Crash::Kill { Crash::Power } else { Crash::Kill };
            world.crash(other, seed ^ step ^ 1);
            world.check(&format!("{when} and at step {again} of the next run"));
        }
        world.heal(&when);
    }
}

#[test]
fn killed_at_every_step_all_snapshots_of_a_job_are_in_place_or_none() {
    for_seeds_of("killed_at_every_step_all", 20, |seed| every_step_of_a_group(seed, Crash::Kill));
}

#[test]
fn cut_off_at_every_step_all_snapshots_of_a_job_are_in_place_or_none() {
    for_seeds_of("cut_off_at_every_step_all", 20, |seed| every_step_of_a_group(seed, Crash::Power));
}

#[test]
fn calls_that_fail_leave_all_snapshots_of_a_job_in_place_or_none() {
    for_seeds("calls_that_fail_leave_all", |seed| {
        let mut world = GroupWorld::new(seed, Faults::random(seed));
        for attempt in 0..8 {
            match world.run() {
                Ok(_) => break,
                Err(error) => assert!(!error.hint.is_empty(), "nothing is said of what to do: {error}"),
            }
            world.crash(Crash::Kill, seed);
            world.check(&format!("after attempt {attempt}"));
            world.guest(seed ^ attempt);
        }
        world.heal("calls that fail");
    });
}

#[test]
fn a_snapshot_taken_up_again_alone_takes_the_others_along_or_leaves_them() {
    for_seeds("a_snapshot_taken_up_again_alone", |seed| {
        let mut world = GroupWorld::new(seed, Faults::shapes(seed));
        let step = 1 + world.chance.below(200);
        world.disk.stop_after(world.disk.steps() + step);
        let _ = world.run();
        world.crash([Crash::Kill, Crash::Power][(seed % 2) as usize], seed);
        world.check("before");
        world.run_alone();
        world.check("after one was taken up alone");
        world.heal("one was taken up alone");
    });
}

/// Readers, discards, and a sidecar that is full: nobody reads anything but T0.
#[test]
fn a_fleece_shows_t0_or_nothing() {
    let read = std::cell::Cell::new(0);
    for_seeds("a_fleece_shows_t0_or_nothing", |seed| read.set(read.get() + fleece::life(seed)));
    assert!(read.get() > 0, "nobody has read anything");
}
