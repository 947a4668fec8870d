//! A fleece over the real machine of accesses, states and areas: a guest that writes and discards, a keeper with a bounded sidecar that is slow and
//! fails, readers that look, read and look again with anything in between, and let go of what they have read. Each event is one step, in any order.
//!
//! What must hold: what a reader gets is what was there at T0, or an error; every access of the guest is answered once, in time; what was not
//! wanted any more is not read; the sidecar never has more than it may.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rclone_img::cbw::{Accesses, Clusters, Limits};
use rclone_img::range::{ByteRange, PowerOfTwo};
use rclone_img::serve::fleece::areas::Areas;

use crate::harness::Chance;

const CLUSTER: u64 = 4096;
const DEADLINE: Duration = Duration::from_millis(100);

/// What a guest's access leaves behind: a write its number, a discard nothing.
struct Access {
    range: ByteRange,
    leaves: u64,
    since: Duration,
}

/// How far a reader has come.
struct Reader {
    range: ByteRange,
    /// What was kept when it looked, cluster by cluster, and what it has read.
    looked: Vec<(u64, bool, Option<u64>)>,
}

struct World {
    chance: Chance,
    count: u64,
    image: Vec<u64>,
    then: Vec<u64>,
    kept: BTreeMap<u64, u64>,
    most: usize,
    guest_write_breaks: bool,
    machine: Accesses<u64>,
    clusters: Arc<Clusters>,
    areas: Areas,
    accesses: BTreeMap<u64, Access>,
    /// Those that may go on and have not been made yet.
    on: Vec<u64>,
    readers: Vec<Reader>,
    answered: u64,
    next: u64,
    now: Duration,
    lost: bool,
    same: Vec<bool>,
    read: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance::from(seed);
        let count = 4 + chance.below(12);
        // The last cluster may be short.
        let size = count * CLUSTER - chance.below(CLUSTER - 1);
        let unit = PowerOfTwo::new(CLUSTER).expect("a power of two");
        let clusters = Arc::new(Clusters::new(size, unit));
        let mut machine = Accesses::new(Limits { waiting: 8, deadline: DEADLINE });
        machine.gather();
        machine.watch(vec![Arc::clone(&clusters)], Vec::new());
        let based = chance.below(2) == 0;
        let areas = Areas::new(size, unit, based);
        let same: Vec<bool> = (0..count).map(|_| based && chance.below(3) == 0).collect();
        let then: Vec<u64> = (0..count).map(|index| 1000 + index).collect();
        let world = Self {
            most: 1 + chance.below(count * 2) as usize,
            guest_write_breaks: chance.below(2) == 0,
            image: then.clone(),
            kept: BTreeMap::new(),
            accesses: BTreeMap::new(),
            on: Vec::new(),
            readers: Vec::new(),
            answered: 0,
            next: 1,
            now: Duration::ZERO,
            lost: false,
            read: 0,
            chance,
            count,
            then,
            machine,
            clusters,
            areas,
            same,
        };
        for index in 0..count {
            if world.same[index as usize] {
                world.areas.deny(world.cluster(index));
                world.clusters.finish(world.cluster(index));
            }
        }
        world
    }

    fn cluster(&self, index: u64) -> ByteRange {
        ByteRange::new(index * CLUSTER, ((index + 1) * CLUSTER).min(self.clusters.size())).expect("a cluster has bytes")
    }

    fn indices(&self, range: ByteRange) -> std::ops::Range<u64> {
        range.start() / CLUSTER..range.end().div_ceil(CLUSTER)
    }

    /// A range of some clusters, whole or not.
    fn any_range(&mut self) -> ByteRange {
        let first = self.chance.below(self.count);
        let last = (first + self.chance.below(4)).min(self.count - 1);
        let (first, last) = (self.cluster(first), self.cluster(last));
        let start = first.start() + if self.chance.below(2) == 0 { 0 } else { first.len() / 2 };
        ByteRange::new(start, last.end()).expect("not empty")
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.chance.below(8));
        match self.chance.below(9) {
            0 | 1 => self.access(),
            2 | 3 => self.keep(),
            4 => self.make(),
            5 => self.begin_to_read(),
            6 | 7 => self.go_on_reading(),
            _ if self.chance.below(6) == 0 => self.let_go(),
            _ => {}
        }
        self.expire();
    }

    /// The guest wants to write, or to discard. It has no two accesses at the same place.
    fn access(&mut self) {
        let range = self.any_range();
        if self.accesses.values().any(|it| it.range.intersect(range).is_some()) {
            return;
        }
        let number = self.next;
        self.next += 1;
        let leaves = if self.chance.below(3) == 0 { 0 } else { number };
        self.accesses.insert(number, Access { range, leaves, since: self.now });
        if self.machine.arrive(number, 0, range, self.now).is_some() {
            self.on.push(number);
        }
        self.settle();
    }

    /// Who may go on does so some time later; what is lost is known before.
    fn settle(&mut self) {
        self.lost |= self.machine.broken().is_some();
        let ready = self.machine.ready(self.now);
        self.on.extend(ready);
    }

    /// The keeper, at what somebody waits for: a cluster, or none for want of room.
    fn keep(&mut self) {
        let Some((_, wanted)) = self.machine.wanted() else { return };
        let index = wanted.start() / CLUSTER;
        let fails = self.kept.len() >= self.most || self.chance.below(40) == 0;
        if fails && self.guest_write_breaks {
            let failed = self.machine.withdraw(0, self.cluster(index));
            failed.into_iter().for_each(|number| self.fail(number));
        } else if fails {
            self.machine.break_off("it is full");
        } else {
            if self.areas.is_wanted(self.cluster(index)) {
                self.kept.insert(index, self.image[index as usize]);
            }
            self.clusters.finish(self.cluster(index));
        }
        self.settle();
    }

    fn fail(&mut self, number: u64) {
        let access = self.accesses.remove(&number).expect("it waits");
        assert!(self.guest_write_breaks && self.now >= access.since);
        self.answered += 1;
    }

    /// A write that may go on is made.
    fn make(&mut self) {
        if self.on.is_empty() {
            return;
        }
        let number = self.on.swap_remove(self.chance.below(self.on.len() as u64) as usize);
        let access = self.accesses.remove(&number).expect("it was let on once");
        for index in self.indices(access.range) {
            self.image[index as usize] = access.leaves;
        }
        self.answered += 1;
    }

    fn expire(&mut self) {
        match self.guest_write_breaks {
            true => {
                let late = self.machine.overdue(self.now);
                late.into_iter().for_each(|number| self.fail(number));
            }
            false => self.machine.expire(self.now),
        }
        self.settle();
        let waiting = self.accesses.iter().filter(|(number, _)| !self.on.contains(number));
        assert!(
            waiting.map(|(_, it)| it.since).all(|since| self.now < since + DEADLINE),
            "somebody waits for too long"
        );
    }

    fn is_readable(&self, range: ByteRange) -> bool {
        self.areas.readable(range) == range.len()
    }

    fn begin_to_read(&mut self) {
        let range = self.any_range();
        if self.is_readable(range) {
            let kept = |index: u64| self.clusters.run(self.cluster(index)).1;
            let looked = self.indices(range).map(|index| (index, kept(index), None)).collect();
            self.readers.push(Reader { range, looked });
        } else {
            let index = self.indices(range).find(|index| !self.is_readable(self.cluster(*index)));
            assert!(index.is_some(), "{range:?} was refused for nothing");
        }
    }

    /// One cluster more of one reader; or its end, where all that it has read from the image is looked at again.
    fn go_on_reading(&mut self) {
        if self.readers.is_empty() {
            return;
        }
        let which = self.chance.below(self.readers.len() as u64) as usize;
        if let Some(place) = self.readers[which].looked.iter().position(|(.., read)| read.is_none()) {
            let (index, kept, _) = self.readers[which].looked[place];
            let read = if kept { self.kept.get(&index).copied().unwrap_or(0) } else { self.image[index as usize] };
            self.readers[which].looked[place].2 = Some(read);
            return;
        }
        let reader = self.readers.swap_remove(which);
        let last_look = |(index, kept, read): (u64, bool, Option<u64>)| {
            let now = self.clusters.run(self.cluster(index)).1;
            let again = now && !kept;
            (index, if again { self.kept.get(&index).copied().unwrap_or(0) } else { read.expect("it was read") })
        };
        let read: Vec<_> = reader.looked.into_iter().map(last_look).collect();
        if self.lost || !self.is_readable(reader.range) {
            return; // An error: whatever was read is not told.
        }
        for (index, value) in read {
            assert_eq!(value, self.then[index as usize], "cluster {index} of {} is not of T0", self.count);
            self.read += 1;
        }
    }

    fn let_go(&mut self) {
        let range = self.any_range();
        let Some(whole) = self.areas.whole(range) else { return };
        self.areas.release(whole);
        for index in self.indices(whole) {
            self.kept.remove(&index);
            // Its place is empty, and nobody else gets it.
        }
        self.clusters.finish(whole);
        self.settle();
    }

    fn end(mut self) -> u64 {
        // Nobody keeps anything any more: the guest goes on all the same.
        self.now += DEADLINE;
        self.expire();
        while !self.on.is_empty() {
            self.make();
        }
        assert_eq!((self.accesses.len(), self.answered), (0, self.next - 1), "each is answered once");
        assert!(self.kept.len() <= self.most);
        self.read
    }
}

/// One life of a fleece; how many clusters were read and found right.
pub fn life(seed: u64) -> u64 {
    let mut world = World::new(seed);
    for _ in 0..400 {
        world.step();
    }
    world.end()
}
