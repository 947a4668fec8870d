//! The journal's loader on arbitrary bytes: it never panics, and what it accepts it writes back as it read it.
//!
//! A CRC keeps a fuzzer out, so every input is tried twice: as it is, and with its CRCs made right.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rclone_img::journal::format::{CLAIM, LOG, Loaded, SLOT, encode_claim, encode_slot, load};

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&with_crcs(bytes));
});

fn check(bytes: &[u8]) {
    let Ok(loaded) = load(bytes) else { return };
    assert!(loaded.header.cluster.is_power_of_two());
    assert!(loaded.log_end >= LOG as u64 && (loaded.log_end - LOG as u64).is_multiple_of(CLAIM as u64));
    assert!(loaded.claims.iter().all(|claim| claim.end() <= loaded.header.image.size));
    let again = load(&written(&loaded)).expect("what was written loads");
    assert_eq!(again.header, loaded.header);
    assert_eq!(again.claims, loaded.claims);
    assert_eq!(again.generation, loaded.generation);
}

/// A journal that says the same.
fn written(loaded: &Loaded) -> Vec<u8> {
    let slot = encode_slot(&loaded.header, loaded.generation);
    let mut bytes = [slot.as_slice(), slot.as_slice()].concat();
    bytes.extend(loaded.claims.iter().flat_map(|&claim| encode_claim(&loaded.header, claim)));
    bytes
}

/// The input with the CRCs that its slots and claims should have (`docs/FORMAT.md`: slots at bytes 12 to 16, claims at 4 to 8).
fn with_crcs(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let end = bytes.len().min(LOG);
    let (slots, log) = bytes.split_at_mut(end);
    slots.chunks_exact_mut(SLOT).for_each(|slot| sign(slot, 12));
    log.chunks_exact_mut(CLAIM).for_each(|claim| sign(claim, 4));
    bytes
}

fn sign(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}
