//! Every torn length and every flipped bit: a journal never says more than was written to it.

use std::mem::offset_of;

use super::*;
use crate::journal::group::Member;

fn header(state: State) -> Header {
    Header {
        job: *b"0123456789abcdef",
        epoch: 3,
        state,
        hold: HoldKind::Frozen,
        replace: true,
        writable: false,
        refreshes: true,
        t0: Timestamp::new(1_700_000_000, 5).expect("in range"),
        image: Image { dev: 1, ino: 2, generation: 3, subvolume: 4, size: 1 << 30, ctime_ns: -5 },
        fs: [9; 16],
        boot: [8; 16],
        mount_instance: 77,
        cluster: 65536,
        chunk: 64 << 20,
        partial_ino: 99,
        old_mode: 0o444,
        pid: 4242,
        pid_start: 17,
        image_path: b"/a/\xff image\n.img".to_vec(),
        reason: "a reason".into(),
        old_record: b"{}".to_vec(),
        group: Group(vec![
            Member { job: [5; 16], fs: [8; 16], dst: b"/a".to_vec() },
            Member { job: [6; 16], fs: [9; 16], dst: b"/b".to_vec() },
        ]),
    }
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("not empty")
}

/// A journal whose slots agree, with claims of two epochs.
fn journal(state: State) -> Vec<u8> {
    let header = header(state);
    let mut bytes = encode_slot(&header, 10);
    bytes.extend(encode_slot(&header, 11));
    bytes.extend(encode_claim(&Header { epoch: 2, ..header.clone() }, range(0, 1 << 20)));
    for n in 0..4 {
        bytes.extend(encode_claim(&header, range(n << 16, (n + 1) << 16)));
    }
    bytes
}

#[test]
fn what_was_written_is_read() {
    for (state, _) in State::ALL {
        let loaded = load(&journal(state)).expect("valid");
        assert_eq!((loaded.header, loaded.generation), (header(state), 11));
        assert_eq!(loaded.claims, (0..4).map(|n| range(n << 16, (n + 1) << 16)).collect::<Vec<_>>());
        assert_eq!(loaded.log_end, (LOG + 5 * CLAIM) as u64);
    }
}

#[test]
fn torn_at_every_byte_it_claims_less_or_is_refused_and_never_regresses() {
    let whole = journal(State::Broken);
    let all = load(&whole).expect("valid").claims;
    for length in 0..whole.len() {
        match load(&whole[..length]) {
            Ok(loaded) => {
                assert_eq!(loaded.header, header(State::Broken), "torn at {length}");
                assert!(all.starts_with(&loaded.claims), "torn at {length}");
            }
            Err(error) => {
                let never_begun = if length <= MAGIC.len() { FormatError::NeverBegun } else { FormatError::Damaged };
                assert_eq!(error, never_begun, "torn at {length}");
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_survived_or_refused() {
    let whole = journal(State::Broken);
    let all = load(&whole).expect("valid").claims;
    for byte in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[byte] ^= 1 << bit;
            let loaded = load(&flipped).expect("the other slot is whole");
            assert_eq!(loaded.header, header(State::Broken), "bit {bit} of byte {byte}");
            assert!(all.starts_with(&loaded.claims), "bit {bit} of byte {byte}");
        }
        // With the other slot gone as well, damage to the one that is left is never believed.
        let mut alone = whole.clone();
        alone[SLOT..LOG].fill(0xA5);
        alone[byte] ^= 1;
        if byte < SLOT {
            load(&alone).expect_err("nothing valid is left");
        }
    }
}

#[test]
fn a_torn_header_update_leaves_the_state_before_it() {
    let old = journal(State::Running);
    let new = encode_slot(&header(State::Broken), 12);
    for cut in 0..SLOT {
        let mut torn = old.clone();
        torn[..cut].copy_from_slice(&new[..cut]);
        let state = load(&torn).expect("one slot is whole").header.state;
        let identical = new[cut..] == old[cut..SLOT];
        assert_eq!(state, if identical { State::Broken } else { State::Running }, "torn at {cut}");
    }
}

#[test]
fn strangers_are_refused_by_name() {
    let check = |bytes: &[u8], expect| assert_eq!(load(bytes).expect_err("refused"), expect);
    check(b"", FormatError::NeverBegun);
    check(&vec![0; LOG], FormatError::Foreign);
    check(&[0; 8], FormatError::NeverBegun);
    check(b"RF\0\0\0\0\0\0", FormatError::NeverBegun);
    check(b"#!/bin/sh\n", FormatError::Foreign);
    check(&vec![7; LOG + 100], FormatError::Foreign);
    let mut future = journal(State::Running);
    for at in [0, SLOT] {
        future[at + 8] = 3;
    }
    check(&future, FormatError::Version(3));
    let mut damaged = journal(State::Running);
    damaged[100] ^= 1;
    damaged[SLOT + 100] ^= 1;
    check(&damaged, FormatError::Damaged);
}

#[test]
fn what_is_too_long_is_cut_at_a_character_and_times_before_1970_survive() {
    let odd = Header {
        t0: Timestamp::new(-1, -500_000_000).expect("in range"),
        reason: "\u{e9}".repeat(REASON_MAX),
        ..header(State::Interrupted)
    };
    let mut bytes = encode_slot(&odd, 1);
    bytes.extend(encode_slot(&odd, 2));
    let read = load(&bytes).expect("valid").header;
    assert_eq!(read.t0, odd.t0);
    assert_eq!(read.reason, "\u{e9}".repeat(REASON_MAX / 2));
}

#[test]
fn the_specification_has_the_offsets_of_the_code() {
    let page = include_str!("../../docs/FORMAT.md");
    let check = |offset: usize, bytes: usize, what: &str| {
        let row = format!("| {offset} | {bytes} | {what}");
        assert!(page.contains(&row), "docs/FORMAT.md has no row '{row}'");
    };
    check(offset_of!(Fixed, magic), 8, "magic");
    check(offset_of!(Fixed, version), 4, "format version");
    check(offset_of!(Fixed, crc), 4, "CRC");
    check(offset_of!(Fixed, generation), 8, "generation");
    check(offset_of!(Fixed, job), 16, "job id");
    check(offset_of!(Fixed, epoch), 8, "epoch");
    check(offset_of!(Fixed, state), 1, "state");
    let mut holds: Vec<_> = HoldKind::ALL.map(|kind| (kind.code(), kind.name())).into();
    holds.sort_unstable();
    let holds: Vec<_> = holds.iter().map(|(code, name)| format!("{code} {name}")).collect();
    check(offset_of!(Fixed, hold), 1, &format!("hold: {} |", holds.join(", ")));
    check(offset_of!(Fixed, flags), 1, "flags");
    check(offset_of!(Fixed, t0_seconds), 8, "T0, seconds");
    check(offset_of!(Fixed, t0_nanos), 4, "T0, nanoseconds");
    check(offset_of!(Fixed, old_mode), 4, "permission bits");
    check(offset_of!(Fixed, dev), 8, "image: device");
    check(offset_of!(Fixed, ino), 8, "image: inode number");
    check(offset_of!(Fixed, subvolume), 8, "image: Btrfs subvolume");
    check(offset_of!(Fixed, inode_generation), 4, "image: inode generation");
    check(offset_of!(Fixed, pid), 4, "process");
    check(offset_of!(Fixed, size), 8, "image: size");
    check(offset_of!(Fixed, ctime_ns), 16, "image: change time");
    check(offset_of!(Fixed, fs), 16, "UUID");
    check(offset_of!(Fixed, boot), 16, "boot id");
    check(offset_of!(Fixed, mount_instance), 8, "mount instance");
    check(offset_of!(Fixed, cluster), 8, "bytes of a cluster");
    check(offset_of!(Fixed, chunk), 8, "bytes of a chunk");
    check(offset_of!(Fixed, partial_ino), 8, "inode number of the partial file");
    check(offset_of!(Fixed, pid_start), 8, "start of the process");
    check(offset_of!(Fixed, path_len), 2, "length of the image's path");
    check(offset_of!(Fixed, reason_len), 2, "length of the reason");
    check(offset_of!(Fixed, record_len), 2, "length of the old record");
    check(offset_of!(Fixed, group_len), 2, "length of the group");
    check(offset_of!(Claim, epoch), 8, "epoch");
    check(offset_of!(Claim, start), 8, "start of the range");
    check(offset_of!(Claim, end), 8, "end of the range");
    check(offset_of!(Claim, job), 8, "the first half of the job id");
}

#[test]
fn claims_of_another_job_and_past_the_image_do_not_count() {
    let ours = header(State::Running);
    let stranger = Header { job: [1; 16], ..ours.clone() };
    let mut bytes = encode_slot(&ours, 1);
    bytes.extend(encode_slot(&ours, 2));
    bytes.extend(encode_claim(&ours, range((1 << 30) - 4096, (1 << 30) + 4096)));
    bytes.extend(encode_claim(&ours, range(0, 4096)));
    bytes.extend(encode_claim(&stranger, range(4096, 8192)));
    bytes.extend(encode_claim(&ours, range(8192, 12288)));
    assert_eq!(load(&bytes).expect("valid").claims, [range(0, 4096)]);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_loader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..3 * SLOT)) {
        let _ = load(&bytes);
    }
}
