//! Headers in bytes.

use super::*;

pub(in super::super) fn place(boot: u128, mounts: Option<&str>) -> Place {
    Place { boot: Uuid::from_u128(boot), mounts: mounts.map(str::to_owned) }
}

pub(in super::super) fn header() -> Header {
    Header {
        name: "nightly".into(),
        id: Uuid::from_u128(4),
        generation: 1,
        map_file: ImageId { ino: 7, generation: 8, subvolume: 0 },
        image: ImageId { ino: 5, generation: 6, subvolume: 0 },
        fs: Uuid::nil(),
        size: 1 << 30,
        path: hex(b"/a\xff"),
        data: hex(b"/b"),
        data_file: ImageId::default(),
        terms: FleeceTerms {
            cluster: 65536,
            deadline_us: 1_000_000,
            break_guest_write: false,
            max_sidecar: u64::MAX,
            ram: 1 << 24,
            min_free: (5, 0),
            durable: true,
        },
        t0: Timestamp::UNIX_EPOCH,
        base: Some("old.snap".into()),
        place: place(3, Some("1 1 2")),
        seen: Timestamp::UNIX_EPOCH,
        left: None,
        broken: None,
    }
}

#[test]
fn a_header_comes_back_and_a_damaged_one_does_not() {
    let bytes = header().to_bytes();
    assert_eq!((bytes.len() as u64, Header::from_bytes(&bytes)), (SLOT, Some(header())));
    for at in [0, 9, 13, 16, 40] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert_eq!(Header::from_bytes(&bytes), None, "{at}");
    }
    assert_eq!((Header::from_bytes(b""), Header::from_bytes(&bytes[..20])), (None, None));
    assert_eq!(Header::from_bytes(&[&MAGIC[..], &[0xFF; 8]].concat()), None);
}

#[test]
fn a_write_that_is_cut_off_leaves_the_header_before_it() {
    let [old, new] = [4, 5].map(|generation| Header { generation, ..header() });
    assert_eq!((old.slot(), new.slot()), (0, SLOT));
    let bytes = [old.to_bytes(), new.to_bytes()].concat();
    assert_eq!(Header::newest(&bytes), Some(new.clone()));
    for cut in [0, 8, 20, 100] {
        // The next one is written over the older.
        let mut torn = bytes.clone();
        torn[..cut].copy_from_slice(&Header { generation: 6, ..header() }.to_bytes()[..cut]);
        torn[cut..cut + 200].fill(0xFF);
        assert_eq!((Header::newest(&torn), is_ours(&torn)), (Some(new.clone()), true), "{cut}");
    }
    let mut torn = bytes;
    torn[SLOT as usize + 30] ^= 1;
    assert_eq!(Header::newest(&torn), Some(old));
    torn[30] ^= 1;
    assert_eq!((Header::newest(&torn), is_ours(&torn)), (None, true));
    assert_eq!([&b""[..], b"RIMGFLC2 and more", b"somebody's"].map(is_ours), [true, true, false]);
}

#[test]
fn a_copy_of_a_map_is_told_from_it() {
    let (header, id) = (header(), header().map_file);
    let check = |path: &str, id, expect| assert_eq!(header.is_of(Path::new(path), id), expect, "{path}");
    check("/x/a.img.nightly.fleece", id, true);
    check("/x/a.img.nightly.fleece", ImageId { ino: 9, ..id }, false);
    check("/x/a.img.g.fleece", id, false);
}

#[test]
fn only_where_nothing_was_mounted_anew_is_everything_still_there() {
    let left_for = |here| place(3, Some("1 1 2")).left_for(&here);
    assert_eq!(left_for(place(3, Some("1 1 2"))), None);
    assert_eq!(left_for(place(4, Some("1 1 2"))), Some("the host was started again"));
    assert_eq!(left_for(place(3, Some("1 1 3"))), Some("the file system was mounted anew"));
    assert_eq!(left_for(place(3, None)), Some("a file system may have been mounted anew"));
    assert_eq!(place(3, None).left_for(&place(3, None)), Some("a file system may have been mounted anew"));
}

#[test]
fn the_longest_header_fits() {
    let path = hex(&[0xFF; 4096]);
    let broken = Some("ä".repeat(5000));
    let longest = Header { path: hex(&[0xFF; 1024]), data: path, name: "n".repeat(64), broken, ..header() };
    let read = Header::from_bytes(&longest.to_bytes()).expect("it fits");
    assert_eq!((read.data, read.broken.map(|why| why.len())), (longest.data, Some(1000)));
}

#[test]
fn paths_come_back() {
    assert_eq!(unhex(&hex(b"/a\x00\xff")), Some(b"/a\x00\xff".to_vec()));
    assert_eq!((unhex("0"), unhex("zz")), (None, None));
    assert_eq!(
        [0, 1, 2, 3, 4, 5].map(|it| State::of(it).map(|it| it as u8)),
        [Some(0), Some(1), Some(2), Some(3), Some(4), None]
    );
}
