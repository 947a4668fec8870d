//! Every rule of the judge, on logs and snapshots made by hand: an image of eight sectors, and instants that one can follow.

use super::claims::{Found, Shot};
use super::verdict::{Bad, Verdict, judge};
use crate::bits::Bits;
use crate::log::format::State;
use crate::log::{History, Kind, Record, Subject};

const SECTORS: u64 = 8;

/// An operation on sectors `first..last` of image 0, from one instant to another.
fn operation(kind: Kind, (first, last): (u64, u64), (start, end): (u64, u64)) -> Record {
    let (offset, length) = (first * 512, (last - first) * 512);
    Record { kind, state: State::Done, image: 0, writer: 1, offset, length, start, end }
}

fn write(sectors: (u64, u64), times: (u64, u64)) -> Record {
    operation(Kind::Write, sectors, times)
}

fn punch(sectors: (u64, u64), times: (u64, u64)) -> Record {
    operation(Kind::Punch, sectors, times)
}

fn unended(record: Record) -> Record {
    Record { state: State::Begun, end: 0, ..record }
}

fn failed(record: Record) -> Record {
    Record { state: State::Failed, ..record }
}

/// A log of one image that was stamped throughout; the operations are generations 1, 2 and so on.
fn history(operations: &[Record]) -> History {
    let mut stamped = Bits::new(SECTORS);
    (0..SECTORS).for_each(|sector| stamped.set(sector));
    let subject = Subject { size: SECTORS * 512, device: 1, inode: 2 };
    let records = [Record::NOTHING].iter().chain(operations).copied().collect();
    History { images: vec![(subject, stamped)], dependent: false, records }
}

/// The same of an image that was zeros throughout.
fn sparse(operations: &[Record]) -> History {
    let mut history = history(operations);
    history.images[0].1 = Bits::new(SECTORS);
    history
}

/// A snapshot, sector by sector: a digit is a generation, `z` zeros, `t` torn, `m` another's stamp, `-` missing.
fn shot(text: &str) -> Shot {
    let found = text.chars().map(|char| match char {
        'z' => Found::ZEROS,
        't' => Found::TORN,
        'm' => Found::MISPLACED,
        '-' => Found::MISSING,
        digit => Found::generation(u64::from(digit.to_digit(10).expect("a digit"))),
    });
    Shot { found: found.collect() }
}

fn verdict(history: &History, text: &str) -> Verdict {
    judge(history, &[shot(text)], 0..=u64::MAX)
}

#[track_caller]
fn good(history: &History, text: &str, (from, to): (u64, u64)) {
    let verdict = verdict(history, text);
    assert!(verdict.good && verdict.bad == 0, "{text}: {verdict:?}");
    assert_eq!(verdict.t0, from..=to, "{text}");
}

#[track_caller]
fn bad(history: &History, text: &str, count: u64) -> Verdict {
    let verdict = verdict(history, text);
    assert_eq!((verdict.good, verdict.bad), (false, count), "{text}: {verdict:?}");
    verdict
}

const END: u64 = u64::MAX;

#[test]
fn an_image_that_nobody_wrote_to_is_good_at_any_time() {
    good(&history(&[]), "00000000", (0, END));
    good(&sparse(&[]), "zzzzzzzz", (0, END));
}

#[test]
fn a_write_that_is_seen_had_begun_and_one_that_is_not_had_not_ended() {
    let log = history(&[write((0, 2), (10, 20))]);
    good(&log, "11000000", (10, END));
    good(&log, "00000000", (0, 20));
}

#[test]
fn a_write_under_way_may_be_seen_in_part() {
    let log = history(&[write((0, 4), (10, 20))]);
    good(&log, "11000000", (10, 20));
    good(&log, "01010000", (10, 20));
    assert_eq!(verdict(&log, "01010000").in_flight, 1);
    assert_eq!(verdict(&log, "11110000").in_flight, 1, "at the first instant, the start");
    assert_eq!(verdict(&log, "00000000").in_flight, 0);
}

#[test]
fn a_copy_that_is_not_of_one_instant_is_bad() {
    // The first half was copied before write 1, the second half after write 2, which began when 1 had ended.
    let log = history(&[write((0, 2), (10, 20)), write((6, 8), (30, 40))]);
    let verdict = bad(&log, "00000022", 2);
    assert_eq!(verdict.unknown, 0);
    good(&log, "11000022", (30, END));
    good(&log, "11000000", (10, 40));
}

#[test]
fn writes_that_overlap_in_time_may_be_seen_in_either_order() {
    let log = history(&[write((0, 2), (10, 30)), write((6, 8), (20, 40))]);
    good(&log, "00000022", (20, 30));
    good(&log, "11000000", (10, 40));
}

#[test]
fn instants_that_touch_are_enough() {
    let log = history(&[write((0, 1), (10, 20)), write((1, 2), (20, 30))]);
    good(&log, "02000000", (20, 20));
    let log = history(&[write((0, 1), (10, 20)), write((1, 2), (21, 30))]);
    bad(&log, "02000000", 1);
}

#[test]
fn a_generation_between_is_seen_until_the_next_one_has_ended() {
    let log = history(&[write((0, 1), (10, 20)), write((0, 1), (30, 40)), write((0, 1), (50, 60))]);
    good(&log, "00000000", (0, 20));
    good(&log, "10000000", (10, 40));
    good(&log, "20000000", (30, 60));
    good(&log, "30000000", (50, END));
}

#[test]
fn the_t0_with_the_fewest_bad_sectors_is_told_with_what_is_wrong() {
    let log = history(&[write((0, 1), (10, 20)), write((2, 8), (30, 40))]);
    let verdict = bad(&log, "00222222", 1);
    assert_eq!(verdict.t0, 30..=END);
    let first = Bad { image: 0, offset: 0, found: Found::generation(0), expected: vec![1] };
    assert_eq!(verdict.first, [first]);
}

#[test]
fn what_is_expected_includes_what_was_under_way() {
    let log = history(&[write((0, 1), (1, 2)), write((0, 1), (10, 50)), write((1, 8), (30, 40))]);
    let verdict = bad(&log, "03333333", 1);
    assert_eq!(verdict.first[0].expected, [1, 2]);
}

#[test]
fn torn_unknown_misplaced_and_missing_sectors_are_bad_at_once() {
    let log = history(&[write((0, 2), (10, 20))]);
    let verdict = bad(&log, "t1000000", 1);
    assert_eq!((verdict.torn, verdict.unknown), (1, 0));
    // Generation 1 was never written to sector 5; there is no generation 2.
    assert_eq!(bad(&log, "11000100", 1).unknown, 1);
    assert_eq!(bad(&log, "11002000", 1).unknown, 1);
    assert_eq!(bad(&log, "1100m000", 1).misplaced, 1);
    assert_eq!(bad(&log, "1100000-", 1).missing, 1);
    // Beyond the image's end.
    assert_eq!(bad(&log, "11000000--", 2).missing, 2);
    // Zeros where there was a stamp, and the other way round.
    assert_eq!(bad(&log, "110z0000", 1).unknown, 1);
    assert_eq!(bad(&sparse(&[]), "zz0zzzzz", 1).unknown, 1);
}

#[test]
fn a_hole_is_seen_from_its_punch_to_the_next_write() {
    let log = history(&[punch((0, 2), (10, 20)), write((0, 1), (30, 40))]);
    good(&log, "zz000000", (10, 40));
    good(&log, "2z000000", (30, END));
    good(&log, "00000000", (0, 20));
    good(&log, "z0000000", (10, 20));
    bad(&log, "20000000", 1);
}

#[test]
fn zeros_fit_every_time_at_which_there_were_zeros() {
    let operations =
        [write((0, 1), (10, 20)), punch((0, 1), (30, 40)), write((0, 1), (50, 60)), write((1, 2), (70, 80))];
    let log = sparse(&operations);
    // Before the first write.
    good(&log, "zzzzzzzz", (0, 20));
    // Sector 1 rules everything before 70 out, and sector 0 was zeros for the last time at 60.
    bad(&log, "z4zzzzzz", 1);
    let punched_again = [&operations[..], &[punch((0, 1), (90, 95))]].concat();
    good(&sparse(&punched_again), "z4zzzzzz", (90, END));
    // Two punches in a row are one time of zeros.
    let twice = [punch((0, 1), (10, 20)), punch((0, 1), (30, 40)), write((1, 2), (25, 26))];
    good(&history(&twice), "z3000000", (25, END));
}

#[test]
fn what_has_not_ended_or_failed_may_be_seen_and_never_must() {
    for maybe in [unended(write((0, 2), (10, 20))), failed(write((0, 2), (10, 20)))] {
        let log = history(&[maybe, write((4, 5), (100, 110))]);
        good(&log, "00002000", (100, END));
        good(&log, "10002000", (100, END));
        good(&log, "10000000", (10, 110));
        // Once something later is there for sure, it must not be seen any more.
        let log = history(&[maybe, write((0, 2), (200, 210)), write((4, 5), (300, 310))]);
        bad(&log, "12003000", 1);
        good(&log, "22003000", (300, END));
    }
    let log = history(&[failed(punch((0, 2), (10, 20)))]);
    good(&log, "z0000000", (10, END));
    good(&log, "00000000", (0, END));
}

#[test]
fn t0_is_looked_for_where_it_is_told_to_be() {
    let log = history(&[write((0, 2), (10, 20))]);
    let within = |text, range| judge(&log, &[shot(text)], range);
    assert!(within("11000000", 15..=30).good);
    assert_eq!(within("11000000", 15..=30).t0, 15..=30);
    // A snapshot of too early an instant: both sectors are wrong for the range.
    assert_eq!((within("00000000", 25..=30).good, within("00000000", 25..=30).bad), (false, 2));
    assert_eq!(within("11000000", 0..=5).bad, 2);
}

#[test]
fn several_images_have_one_t0() {
    let other = |record: Record| Record { image: 1, ..record };
    let mut log = history(&[write((0, 1), (10, 20)), other(write((0, 1), (30, 40)))]);
    log.images.push(log.images[0].clone());
    let verdict = |a, b| judge(&log, &[shot(a), shot(b)], 0..=u64::MAX);
    assert!(verdict("10000000", "20000000").good);
    assert!(verdict("10000000", "00000000").good);
    assert!(verdict("00000000", "00000000").good);
    let apart = verdict("00000000", "20000000");
    assert_eq!((apart.good, apart.bad, apart.sectors), (false, 1, 16));
    // What was written to one image is not in the log of the other.
    assert_eq!(verdict("20000000", "00000000").unknown, 1);
}

#[test]
fn of_writes_that_depend_on_each_other_a_prefix_is_seen() {
    let other = |record: Record| Record { image: 1, ..record };
    // The clock stands still, so only the order tells.
    let mut log = history(&[write((0, 1), (5, 5)), other(write((0, 1), (5, 5))), write((1, 2), (5, 5))]);
    log.images.push(log.images[0].clone());
    let judged = |log: &History, a, b| judge(log, &[shot(a), shot(b)], 0..=u64::MAX);
    assert!(judged(&log, "03000000", "00000000").good, "independent writes of one instant");
    log.dependent = true;
    for (a, b, prefix) in [
        ("00000000", "00000000", Some(0)),
        ("10000000", "00000000", Some(1)),
        ("10000000", "20000000", Some(2)),
        ("13000000", "20000000", Some(3)),
        ("03000000", "20000000", None),
        ("13000000", "00000000", None),
        ("00000000", "20000000", None),
    ] {
        let verdict = judged(&log, a, b);
        assert_eq!((verdict.good, verdict.prefix), (prefix.is_some(), prefix), "{a} {b}");
    }
}

#[test]
fn the_json_has_what_is_promised() {
    let log = history(&[write((0, 2), (10, 20))]);
    let json = verdict(&log, "11000000").json();
    let expect = "{\"good\":true,\"bad\":0,\"torn\":0,\"unknown\":0,\"misplaced\":0,\"missing\":0,\"t0_lo\":10,\"t0_hi\":null,\
                  \"sectors\":8,\"in_flight\":1,\"first\":[]}";
    assert_eq!(json, expect);
    let json = verdict(&log, "t1000000").json();
    assert!(json.contains("\"first\":[{\"image\":0,\"offset\":0,\"found\":\"torn\",\"expected\":[0, 1]}]"), "{json}");
}

/// All small histories of one sector beside another that tells the time, against the rule itself, tried instant by instant.
#[test]
fn the_sweep_agrees_with_trying_every_instant() {
    let mut random = crate::random::Random::new(1);
    for _ in 0..3000 {
        let mut operations = Vec::new();
        let mut free = [1, 1, 1];
        for _ in 0..1 + random.below(6) {
            let sector = random.below(3);
            let start = free[sector as usize] + random.below(6);
            let end = start + random.below(6);
            free[sector as usize] = end + 1;
            let kind = if random.below(3) == 0 { Kind::Punch } else { Kind::Write };
            operations.push(operation(kind, (sector, sector + 1), (start, end)));
        }
        // Generations are in order for each sector, which is all that counts.
        let log = history(&operations);
        let text: String = (0..3)
            .map(|sector| {
                let writes =
                    (1..).zip(&operations).filter(|(_, it)| it.offset == sector * 512 && it.kind == Kind::Write);
                let choices: Vec<u32> = [0].into_iter().chain(writes.map(|(number, _)| number)).collect();
                let choice = random.below(choices.len() as u64 + 1) as usize;
                choices.get(choice).map_or('z', |it| char::from_digit(*it, 10).expect("a digit"))
            })
            .chain("00000".chars())
            .collect();
        let counts = (0..100).map(|t0| (0..SECTORS).filter(|sector| !allowed(&operations, &text, *sector, t0)).count());
        let verdict = verdict(&log, &text);
        assert_eq!(Some(verdict.bad as usize), counts.min(), "{text} {operations:?}");
    }
}

/// The rule as it is written down.
fn allowed(operations: &[Record], text: &str, sector: u64, t0: u64) -> bool {
    let here: Vec<(u32, &Record)> = (1..).zip(operations).filter(|(_, it)| it.offset == sector * 512).collect();
    let found = text.as_bytes()[sector as usize];
    let fits = |index: usize| {
        let (begun, later) = if index == 0 { (0, &here[..]) } else { (here[index - 1].1.start, &here[index..]) };
        t0 >= begun && later.iter().all(|(_, it)| t0 <= it.end)
    };
    (0..=here.len()).any(|index| {
        let shows = match index.checked_sub(1).map(|index| here[index]) {
            None => found == b'0',
            Some((_, it)) if it.kind == Kind::Punch => found == b'z',
            Some((number, _)) => u32::from(found) == u32::from(b'0') + number,
        };
        shows && fits(index)
    })
}
