//! A map file in a directory.

use super::super::format::SLOT;
use super::super::format::tests::{header, place};
use super::super::mark::Moment;
use super::whole::nanoseconds;
use super::*;
use crate::disk::real::RealFile;

fn create(dir: &Path, header: Header) -> Map {
    Map::create(&dir.join("a.img.nightly.fleece"), Some(Mark::at(dir.join("mark"))), header).expect("a map")
}

fn here() -> Place {
    place(3, Some("1 1 2"))
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
        assert!(map.begun(here(), Timestamp::now()).is_err() && !dir.path().join("mark").exists());
        let Content::Map(read) = again(&map) else { panic!("a map") };
        assert_eq!(read.broken.as_deref(), Some("not begun"));
        map.remove();
    }
}

#[test]
fn what_is_lost_is_so_in_both_slots() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = create(dir.path(), header());
    map.begun(here(), Timestamp::now()).expect("begun");
    map.lost("too late").expect("said");
    map.write_lost("too late").expect("written");
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
    let map = create(dir.path(), header());
    *map.unsynced.lock().expect("nobody has it") = Some(libc::EIO);
    fs::hard_link(&map.path, dir.path().join("another")).expect("another name");
    let why = map.lost("too late").expect_err("neither");
    assert!(why.contains("remove ") && why.contains("a.img.nightly.fleece"), "{why}");
}

/// Neither what has its name since, nor the map where it was moved to, is what is said to be gone.
#[test]
fn what_has_the_name_of_a_map_that_was_moved_away_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = create(dir.path(), header());
    fs::rename(&map.path, dir.path().join("moved")).expect("moved");
    *map.unsynced.lock().expect("nobody has it") = Some(libc::EIO);
    assert!(map.lost("too late").is_err(), "it may come back");
    fs::write(&map.path, "somebody's").expect("written");
    assert!(map.lost("too late").is_err());
    map.remove();
    assert_eq!(fs::read(&map.path).expect("it is there"), b"somebody's");
}

#[test]
fn of_what_is_lost_there_is_not_even_for_a_moment_a_mark() {
    let dir = tempfile::tempdir().expect("a directory");
    let marks = dir.path().join("marks");
    fs::create_dir(&marks).expect("a directory");
    let map = Map::create(&dir.path().join("a.img.nightly.fleece"), Some(Mark::at(marks.join("mark"))), header())
        .expect("a map");
    map.lost("too late").expect("said");
    let changed = || fs::metadata(&marks).and_then(|it| it.modified()).expect("a time");
    let before = changed();
    // Longer than the kernel's clock needs to go on.
    std::thread::sleep(Duration::from_millis(20));
    assert!(map.taken(here()).is_err());
    assert_eq!(changed(), before);
}

#[test]
fn where_the_clock_was_set_back_nobody_can_tell_who_wrote() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = create(dir.path(), header());
    map.begun(here(), Timestamp::now()).expect("begun");
    map.is_whole(&here(), 0).expect("it is");
    let clock_was = |ahead: Duration| {
        let Moment { wall, uptime } = Moment::now().expect("now");
        let ago = nanoseconds(Duration::from_secs(60));
        let text = format!("{:020} {:020}\n", wall + nanoseconds(ahead) - ago, uptime - ago);
        fs::write(dir.path().join("mark"), text).expect("written");
        map.is_whole(&here(), 0)
    };
    clock_was(Duration::ZERO).expect("a minute went by");
    for ahead in [1, 3600].map(Duration::from_secs) {
        assert!(clock_was(ahead).expect_err("it cannot be told").contains("set back"), "{ahead:?}");
    }
    // And after another boot, by the clock that people set alone.
    map.is_whole(&place(4, None), 0).expect("it is durable");
    map.header().seen = Timestamp::now() + Duration::from_secs(3600);
    assert!(map.is_whole(&place(4, None), 0).expect_err("it cannot be told").contains("set back"));
}

/// A server that is killed in the middle of a long look has not found who wrote since the one before.
#[test]
fn what_was_written_while_it_was_looked_who_writes_is_not_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = create(dir.path(), header());
    let before = Moment::now().expect("a clock");
    map.looked(before);
    map.begun(here(), Timestamp::now()).expect("begun");
    map.is_whole(&here(), before.wall + nanoseconds(SLACK)).expect("the server's own");
    map.looking();
    map.is_whole(&here(), before.wall).expect("it was looked after that");
    assert!(map.is_whole(&here(), before.wall + 1).expect_err("who knows").contains("written to"));
    map.looked(Moment::now().expect("a clock"));
    map.is_whole(&here(), before.wall + 1).expect("nobody was found");
}

#[test]
fn what_may_have_been_written_unseen_is_not_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    for durable in [false, true] {
        let mut header = header();
        header.terms.durable = durable;
        let map = create(dir.path(), header);
        let looked = Moment::now().expect("a clock");
        map.begun(here(), Timestamp::now()).expect("begun");
        // Whenever the disk has taken it.
        map.looked(looked);
        let now = looked.wall;
        let check = |here: Place, changed, whole| {
            assert_eq!(map.is_whole(&here, changed).is_ok(), whole, "{durable} {here:?} {changed}");
        };
        // Its server was killed.
        let elsewhere = [place(3, Some("1 1 3")), place(3, None), place(4, Some("1 1 2"))];
        check(here(), now, true);
        check(here(), now + nanoseconds(SLACK), true);
        check(here(), now + nanoseconds(SLACK) + 1, false);
        elsewhere.iter().for_each(|here| check(here.clone(), now, durable));
        // It was told to stop.
        map.left(now).expect("said");
        check(here(), now, true);
        check(here(), now + 1, false);
        elsewhere.iter().for_each(|here| check(here.clone(), now, false));
        map.remove();
    }
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
