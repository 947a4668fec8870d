//! A fuzzer that is blind (no coverage guides it, so that any compiler will do): the seeds of `fuzz/`, cut, joined and changed by chance. For a
//! minute in CI, for two seconds elsewhere; `REFLINK_IMG_FUZZ_SECONDS` says otherwise, `REFLINK_IMG_SEED` replays.

#[path = "../fuzz/checks/nbd.rs"]
mod nbd;
#[path = "../fuzz/checks/stream.rs"]
mod stream;
mod support;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use support::Random;

/// Numbers at which lengths and offsets turn.
const EDGES: [u64; 12] = [
    0,
    1,
    255,
    4095,
    4096,
    1 << 20,
    (1 << 25) + 1,
    i32::MAX as u64,
    u32::MAX as u64,
    1 << 63,
    u64::MAX - 4095,
    u64::MAX,
];

fn seconds() -> Duration {
    let told = std::env::var("REFLINK_IMG_FUZZ_SECONDS").ok().and_then(|it| it.parse().ok());
    let in_ci = std::env::var_os("CI").is_some_and(|it| it == "true");
    Duration::from_secs(told.unwrap_or(if in_ci { 60 } else { 2 }))
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> = fs::read_dir(dir).expect("seeds").map(|it| it.expect("a seed").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a seed")).collect()
}

/// A seed, changed a few times.
fn changed(random: &Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let any = |of: &[Vec<u8>]| of[random.below(of.len() as u64) as usize].clone();
    let mut bytes = any(seeds);
    for _ in 0..1 + random.below(6) {
        let at = |random: &Random, bytes: &[u8]| random.below(bytes.len() as u64 + 1) as usize;
        let place = at(random, &bytes);
        match random.below(7) {
            0 => bytes.truncate(place),
            1 => bytes.splice(place..place, random.bytes(1 + random.below(16) as usize)).for_each(drop),
            2 => {
                let end = (place + 1 + random.below(8) as usize).min(bytes.len());
                bytes.drain(place.min(end)..end);
            }
            3 | 4 => {
                // A number of two, four or eight bytes, big endian as NBD has it, or little as a stream.
                let width = 2 << random.below(3);
                let mut number = EDGES[random.below(EDGES.len() as u64) as usize].to_be_bytes();
                let number = &mut number[8 - width..];
                if random.below(2) == 0 {
                    number.reverse();
                }
                for (to, from) in bytes.iter_mut().skip(place).zip(number) {
                    *to = *from;
                }
            }
            5 => {
                let other = any(seeds);
                let from = at(random, &other);
                bytes.truncate(place);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => bytes.iter_mut().skip(place).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
        }
    }
    bytes
}

#[test]
fn what_nbd_clients_say_is_taken_for_what_it_is() {
    fuzz("what_nbd_clients_say_is_taken_for_what_it_is", "nbd", nbd::check);
}

#[test]
fn what_a_stream_says_is_taken_for_what_it_is() {
    fuzz("what_a_stream_says_is_taken_for_what_it_is", "stream", stream::check);
}

fn fuzz(test: &str, target: &str, check: fn(&[u8])) {
    let random = Random::seeded(test);
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| check(seed));
    let until = Instant::now() + seconds();
    let mut count = 0_u64;
    while Instant::now() < until {
        for _ in 0..1000 {
            let bytes = changed(&random, &seeds);
            if let Err(panic) = catch_unwind(|| check(&bytes)) {
                eprintln!("these {} bytes do it: {bytes:02x?}", bytes.len());
                std::panic::resume_unwind(panic);
            }
            count += 1;
        }
    }
    println!("{count} inputs");
    assert!(count > 0);
}
