//! A part of the image that turns out to be as in the base at any moment of its being kept: nobody may take what is kept of it for the point in time.

use std::fs::File;
use std::sync::OnceLock;

use super::*;
use crate::serve::fleece::areas::Areas;
use crate::serve::fleece::format::Header;
use crate::serve::fleece::format::tests::header;
use crate::serve::view::tests::{CLUSTER, COUNT, Memory as Image, cluster};

/// A sidecar on a file system that cannot clone, of an image with something that is done when it is read.
fn sidecar(durable: bool, read: impl Fn() + Send + Sync + 'static) -> (tempfile::TempDir, Sidecar) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut header = Header { size: CLUSTER * COUNT, ..header() };
    (header.terms.cluster, header.terms.durable) = (CLUSTER, durable);
    let map = Map::create(&dir.path().join("map"), None, header).expect("a map");
    let file = |name| File::options().read(true).write(true).create(true).truncate(true).open(dir.path().join(name));
    let of = Of {
        image: Image::full_of(7, move |_| read()),
        // Nothing can be cloned from what has nothing.
        map: Arc::new(RealFile::from(file("image").expect("a file"))),
        geometry: Geometry { size: CLUSTER * COUNT, block: PowerOfTwo::new(CLUSTER).expect("one") },
    };
    let data = file("data").expect("a file");
    data.set_len(CLUSTER * COUNT).expect("its size");
    (dir, Sidecar::new(data, of, Arc::new(map)).expect("a sidecar"))
}

fn state(sidecar: &Sidecar, index: usize) -> Option<State> {
    let mut found = None;
    sidecar.map.states(|_, states| found = State::of(states[index])).expect("read");
    found
}

#[test]
fn what_is_as_in_the_base_is_not_taken_for_kept_whenever_that_is_found() {
    let unit = PowerOfTwo::new(CLUSTER).expect("one");
    for durable in [false, true] {
        let areas = Arc::new(Areas::new(CLUSTER * COUNT, unit, true));
        let shared: Arc<OnceLock<Arc<Sidecar>>> = Arc::default();
        let (seen, denied) = (Arc::clone(&shared), Arc::clone(&areas));
        // In the moment in which it is read, the guest is let go on: what is read after that is his.
        let (_dir, made) = sidecar(durable, move || {
            let sidecar = seen.get().expect("it is there");
            sidecar.deny(&[cluster(0)], &|range| denied.deny(range)).expect("said");
        });
        let sidecar = Arc::new(made);
        assert!(shared.set(Arc::clone(&sidecar)).is_ok());
        let wanted = |range| areas.is_wanted(range);
        let keep =
            |index| sidecar.keep(cluster(index), Duration::ZERO, &|call| call(), &wanted).expect("kept, or not wanted");
        let settle = |index: u64| match durable {
            true => sidecar.commit(&[cluster(index)], &wanted).expect("synced"),
            false => sidecar.settle(index * CLUSTER, CLUSTER).expect("settled"),
        };
        keep(0);
        settle(0);
        assert_eq!((state(&sidecar, 0), sidecar.memory.at(0).is_none()), (Some(State::Denied), true), "{durable}");
        // Before that it was kept already, or is on the disk since.
        keep(1);
        sidecar.deny(&[cluster(1)], &|range| areas.deny(range)).expect("said");
        settle(1);
        assert_eq!(
            (state(&sidecar, 1), sidecar.memory.at(CLUSTER).is_none()),
            (Some(State::Denied), true),
            "{durable}"
        );
        // And what has changed is kept.
        keep(2);
        settle(2);
        assert_eq!(state(&sidecar, 2), Some(State::Kept), "{durable}");
    }
}
