//! An image that is written to at the worst moment: after it was looked at and before it is read, or in the midst of that.

use std::fs::File;
use std::sync::Mutex;

use super::*;
use crate::cbw::Clusters;
use crate::range::PowerOfTwo;
use crate::serve::gate::Fate;

pub(in crate::serve) const CLUSTER: u64 = 4096;
pub(in crate::serve) const COUNT: u64 = 8;

type First = Box<dyn Fn(&mut Vec<u8>) + Send + Sync>;

/// A disk in memory, with something that is done before it is looked at.
pub(in crate::serve) struct Memory {
    bytes: Mutex<Vec<u8>>,
    first: First,
}

impl Memory {
    pub(in crate::serve) fn full_of(byte: u8, first: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(vec![byte; (CLUSTER * COUNT) as usize]), first: Box::new(first) })
    }
}

impl Device for Memory {
    fn size(&self) -> u64 {
        CLUSTER * COUNT
    }

    fn read_now(&self, bytes: &mut [u8], offset: u64) -> bool {
        self.read(bytes, offset).is_ok()
    }

    fn write_now(&self, _: &[u8], _: u64) -> bool {
        false
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut all = self.bytes.lock().expect("nobody panics");
        (self.first)(&mut all);
        bytes.copy_from_slice(&all[offset as usize..][..bytes.len()]);
        Ok(())
    }

    fn write(&self, _: &[u8], _: u64) -> io::Result<()> {
        unreachable!("nobody writes here")
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn trim(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: bool, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    /// The flags are the first byte of each cluster.
    fn extents(&self, _: u32, offset: u64, length: u32, _: usize) -> io::Result<Extents> {
        let mut all = self.bytes.lock().expect("nobody panics");
        (self.first)(&mut all);
        let first = offset / CLUSTER;
        let clusters = first..(offset + u64::from(length)).div_ceil(CLUSTER);
        Ok(clusters.map(|it| (CLUSTER as u32, u32::from(all[(it * CLUSTER) as usize]))).collect())
    }
}

pub(in crate::serve) fn cluster(index: u64) -> ByteRange {
    ByteRange::at(index * CLUSTER, CLUSTER).expect("not empty")
}

fn point() -> Point {
    let unit = PowerOfTwo::new(CLUSTER).expect("a power of two");
    Point { clusters: Arc::new(Clusters::new(CLUSTER * COUNT, unit)), fate: Arc::new(Fate::default()) }
}

/// A view whose image is of ones and is kept as twos, with what is done before the image is looked at.
fn view(point: &Point, first: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> View {
    let map = || Arc::new(RealFile::from(File::open("/dev/null").expect("it is there")));
    let making = Making::new(Memory::full_of(1, first), map(), point.clone());
    View::new(Memory::full_of(2, |_| ()), map(), Some(making), Vec::new())
}

/// The first byte of each cluster, by [`View::read`].
fn read(view: &View) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; (CLUSTER * COUNT) as usize];
    view.read(&mut bytes, 0)?;
    Ok(bytes.chunks(CLUSTER as usize).map(|cluster| cluster[0]).collect())
}

/// Overwrites a cluster, as a guest may once it is kept.
fn overwrite(point: &Point, index: u64, all: &mut [u8]) {
    point.clusters.finish(cluster(index));
    all[(index * CLUSTER) as usize..][..CLUSTER as usize].fill(9);
}

#[test]
fn what_is_kept_is_read_there_and_the_rest_from_the_image() {
    let point = point();
    point.clusters.finish(cluster(2));
    point.clusters.finish(cluster(3));
    let view = view(&point, |_| ());
    assert_eq!(read(&view).expect("read"), [1, 1, 2, 2, 1, 1, 1, 1]);
    assert_eq!(view.extents(0, 0, (CLUSTER * COUNT) as u32, 99).expect("extents"), [(8192, 1), (8192, 2), (16384, 1)]);
    assert_eq!(view.extents(0, 0, (CLUSTER * COUNT) as u32, 2).expect("extents"), [(8192, 1), (8192, 2)]);
}

#[test]
fn what_is_overwritten_while_it_is_read_is_read_where_it_is_kept() {
    let point = point();
    let meanwhile = point.clone();
    let view = view(&point, move |all| [1, 5].into_iter().for_each(|index| overwrite(&meanwhile, index, all)));
    assert_eq!(read(&view).expect("read"), [1, 2, 1, 1, 1, 2, 1, 1]);
}

#[test]
fn what_takes_no_waiting_is_not_of_another_moment() {
    let point = point();
    let meanwhile = point.clone();
    let view = view(&point, move |all| overwrite(&meanwhile, 1, all));
    let mut bytes = [0; CLUSTER as usize];
    assert!(!view.read_now(&mut bytes, CLUSTER), "it was overwritten");
    assert!(view.read_now(&mut bytes, CLUSTER) && bytes[0] == 2);
    assert!(view.read_now(&mut bytes, 0) && bytes[0] == 1);
    assert!(!view.read_now(&mut [0; 2], CLUSTER - 1), "in two places");
}

#[test]
fn extents_of_another_moment_are_sought_again() {
    let point = point();
    let meanwhile = point.clone();
    let view = view(&point, move |all| [0, 6].into_iter().for_each(|index| overwrite(&meanwhile, index, all)));
    let extents = view.extents(0, 0, (CLUSTER * COUNT) as u32, 99).expect("extents");
    assert_eq!(extents, [(4096, 2), (20480, 1), (4096, 2), (4096, 1)]);
}

#[test]
fn what_is_lost_is_not_read() {
    let point = point();
    let meanwhile = point.clone();
    let view = view(&point, move |all| {
        // As at the deadline: the write goes on, and nothing of it was kept.
        meanwhile.fate.lose("it took too long");
        all.fill(9);
    });
    let error = read(&view).expect_err("it is lost").to_string();
    assert!(error.contains("it took too long"), "{error}");
    assert!(!view.read_now(&mut [0; 1], 0) && view.extents(0, 0, 1, 1).is_err());
    point.clusters.finish(cluster(0));
    assert!(view.read(&mut [0; 1], 0).is_err() && view.extents(0, 0, 1, 1).is_err(), "nor what is kept of it");
}
