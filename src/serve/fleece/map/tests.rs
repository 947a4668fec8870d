//! A map file in a directory.

use super::super::format::SLOT;
use super::super::format::tests::header;
use super::*;
use crate::disk::real::RealFile;

fn create(dir: &Path, header: Header) -> Map {
    Map::create(&dir.join("a.img.nightly.fleece"), Some(dir.join("mark")), header).expect("a map")
}

fn again(map: &Map) -> Content {
    read(&File::open(&map.path).expect("the map")).expect("read")
}

#[test]
fn what_is_lost_while_it_is_begun_is_never_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    for durable in [false, true] {
        let mut header = Header { broken: Some("not begun".into()), ..header() };
        header.terms.durable = durable;
        let map = create(dir.path(), header);
        map.lost("too late").expect("said");
        assert!(map.begun(Uuid::nil(), Timestamp::now()).is_err() && !dir.path().join("mark").exists());
        let Content::Map(read) = again(&map) else { panic!("a map") };
        assert_eq!(read.broken.as_deref(), Some("not begun"));
        map.remove();
    }
}

#[test]
fn what_is_lost_is_so_in_both_slots() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = create(dir.path(), header());
    map.begun(Uuid::nil(), Timestamp::now()).expect("begun");
    map.lost("too late").expect("said");
    map.write_lost("too late");
    for slot in [0, SLOT] {
        let mut bytes = fs::read(&map.path).expect("the map");
        bytes[slot as usize + 20] ^= 1;
        assert_eq!(Header::newest(&bytes).and_then(|it| it.broken).as_deref(), Some("too late"), "{slot}");
    }
}

#[test]
fn what_cannot_be_said_of_a_durable_one_is_said_by_its_absence() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = create(dir.path(), header());
    *map.unsynced.lock().expect("nobody has it") = Some(libc::EIO);
    map.lost("too late").expect("removed");
    assert!(!map.path.exists());
    // And where even that cannot be.
    fs::create_dir(&map.path).expect("a directory in its place");
    let why = map.lost("too late").expect_err("neither");
    assert!(why.contains("remove ") && why.contains("a.img.nightly.fleece"), "{why}");
}

#[test]
fn a_map_is_there_whole_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = create(dir.path(), header());
    let Content::Map(header) = again(&map) else { panic!("a map") };
    assert_eq!(header.map_file, RealFile::from(File::open(&map.path).expect("the map")).stat().expect("stat").id());
    let size = fs::metadata(&map.path).expect("the map").len();
    assert_eq!(size, STATES + header.size.div_ceil(header.terms.cluster));
    let twice = Map::create(&map.path, None, *header).err().and_then(|e| e.raw_os_error());
    assert_eq!(twice, Some(libc::EEXIST));
}
