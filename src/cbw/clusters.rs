//! Which clusters of an image the snapshot has: two bits a cluster, so that memory does not grow with the extent count.
//!
//! Guarantees: a cluster only goes forward, pending to cloning to done, whoever moves it. One thread clones and moves the
//! states, others look at them: who sees a cluster done sees everything that was before (its clone has returned). Pure.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::range::{ByteRange, PowerOfTwo};

/// A word of states; the standard library's, and in the tests loom's.
pub trait Word: Default {
    /// The bits; what was before they were set is seen as well (acquire).
    fn bits(&self) -> u64;
    /// Sets bits, after everything before (release); what was set before.
    fn set(&self, bits: u64) -> u64;
}

impl Word for AtomicU64 {
    fn bits(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn set(&self, bits: u64) -> u64 {
        self.fetch_or(bits, Ordering::AcqRel)
    }
}

/// The bits of a cluster: neither is pending, the first alone cloning, both done. Setting them can only move it forward.
const CLONING: u64 = 1;
const DONE: u64 = 3;
const ALL_DONE: u64 = u64::MAX;

/// The first bit of each cluster of a word.
const FIRSTS: u64 = ALL_DONE / DONE;

/// The state of one cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cluster {
    /// Not in the snapshot: must stay as it was at T0.
    Pending,
    /// A clone of it was begun: its bytes in the snapshot are unknown until it has ended.
    Cloning,
    /// In the snapshot.
    Done,
}

/// The states of all clusters of an image.
pub struct Clusters<W = AtomicU64> {
    /// 32 clusters a word, two bits each.
    words: Vec<W>,
    count: u64,
    size: u64,
    cluster: PowerOfTwo,
    /// Each cluster's once, whoever has finished it; may be read late.
    done_bytes: AtomicU64,
}

/// The most memory that the states of an image's clusters may take, in bytes: 64 TiB with clusters of 64 KiB.
pub const STATES_MAX: u64 = 256 << 20;

impl Clusters {
    /// Bytes of memory that the states of an image of `size` bytes take.
    pub fn memory(size: u64, cluster: PowerOfTwo) -> u64 {
        size.div_ceil(cluster.get()).div_ceil(32) * 8
    }
}

impl<W: Word> Clusters<W> {
    /// All clusters of an image of `size` bytes, pending. Allocates [`Clusters::memory`] bytes, which the caller has found
    /// small enough.
    pub fn new(size: u64, cluster: PowerOfTwo) -> Self {
        let count = size.div_ceil(cluster.get());
        let words = usize::try_from(count.div_ceil(32)).expect("an image's cluster states fit the address space");
        let words = std::iter::repeat_with(W::default).take(words).collect();
        Self { words, count, size, cluster, done_bytes: AtomicU64::new(0) }
    }

    /// The state of the cluster that has the byte at `offset`.
    pub fn at(&self, offset: u64) -> Cluster {
        match self.get(offset / self.cluster.get()) {
            0 => Cluster::Pending,
            DONE => Cluster::Done,
            _ => Cluster::Cloning,
        }
    }

    /// Marks every pending cluster that the range touches as being cloned.
    pub fn begin(&self, range: ByteRange) {
        for index in self.touched(range) {
            self.set(index, CLONING);
        }
    }

    /// Marks as done the clusters that lie whole in the range (the last may be cut by the end of the image): a word of them at a time, of
    /// which an image has millions. Several threads may do so at once.
    pub fn finish(&self, range: ByteRange) {
        let mut index = range.start().div_ceil(self.cluster.get());
        let last = if range.end() >= self.size { self.count } else { range.end() / self.cluster.get() };
        while index < last {
            let end = ((index / 32 + 1) * 32).min(last);
            let (word, all) =
                (&self.words[(index / 32) as usize], ALL_DONE >> (64 - (end - index) * 2) << (index % 32 * 2));
            if word.bits() & all != all {
                let before = word.set(all);
                let open = all & !(before & before >> 1) & FIRSTS;
                self.done_bytes.fetch_add(self.bytes_of(index / 32 * 32, open), Ordering::Relaxed);
            }
            index = end;
        }
    }

    /// The first range from `from` on that is not done, whole clusters, at most `limit` bytes but one cluster at least.
    pub fn next_open(&self, from: u64, limit: u64) -> Option<ByteRange> {
        let first = self.first_open(from.div_ceil(self.cluster.get())..self.count)?;
        let most = (limit / self.cluster.get()).max(1);
        let last = (first + 1..(first + most).min(self.count)).find(|&i| self.get(i) == DONE);
        let end = last.unwrap_or((first + most).min(self.count));
        ByteRange::new(first * self.cluster.get(), (end * self.cluster.get()).min(self.size))
    }

    /// The first part of `range`, which lies within the image, whose clusters are all done, or all not; and whether they are.
    pub fn run(&self, range: ByteRange) -> (ByteRange, bool) {
        let touched = self.touched(range);
        let (first, last) = (touched.start, touched.end);
        let done = self.get(first) == DONE;
        let end = match done {
            true => self.first_open(touched),
            false => (first + 1..last).find(|&i| self.get(i) == DONE),
        };
        let end = end.map_or(range.end(), |index| (index * self.cluster.get()).min(range.end()));
        (ByteRange::new(range.start(), end).expect("at least its first cluster's part"), done)
    }

    /// A range in such parts.
    pub fn runs(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, bool)> {
        let mut rest = Some(range);
        std::iter::from_fn(move || {
            let left = rest?;
            let (run, done) = self.run(left);
            rest = left.split(run.end()).1;
            Some((run, done))
        })
    }

    /// The first part of `range` whose clusters are not done; begins where the range does if that lies within a cluster that
    /// is not done.
    pub fn open_part(&self, range: ByteRange) -> Option<ByteRange> {
        let cluster = self.cluster.get();
        let touched = self.touched(range);
        let last = touched.end;
        let first = self.first_open(touched)?;
        let end = (first + 1..last).find(|&i| self.get(i) == DONE).unwrap_or(last);
        ByteRange::new(first * cluster, end * cluster)?.intersect(range)
    }

    /// What is not done of the aligned `unit` that `asked` lies in, as far as it hangs together with `asked`: whole clusters, none of which
    /// is done, as those of `asked` are. `asked` alone where it is in more than one unit, so that there is never more than a unit of it.
    pub fn open_around(&self, asked: ByteRange, unit: PowerOfTwo) -> ByteRange {
        if unit.align_up(asked.end()) - unit.align_down(asked.start()) > unit.get() {
            return asked;
        }
        let index = |offset: u64| offset / self.cluster.get();
        let (lowest, end) = (index(unit.align_down(asked.start())), unit.align_up(asked.end()).min(self.size));
        let first = (lowest..index(asked.start())).rev().take_while(|&i| self.get(i) != DONE).last();
        let last =
            (index(asked.end() - 1) + 1..end.div_ceil(self.cluster.get())).take_while(|&i| self.get(i) != DONE).last();
        let start = first.map_or(asked.start(), |i| self.bytes(i).start());
        let end = last.map_or(asked.end(), |i| self.bytes(i).end());
        ByteRange::new(start, end).expect("not less than what was asked for")
    }

    /// How large a cluster is.
    pub fn cluster(&self) -> PowerOfTwo {
        self.cluster
    }

    /// Bytes of the image that are done.
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many clusters the image has.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many of them are done.
    pub fn done(&self) -> u64 {
        // Only the last one can be smaller than the others.
        self.done_bytes().div_ceil(self.cluster.get())
    }

    /// Whether everything is done.
    pub fn all_done(&self) -> bool {
        self.done_bytes() == self.size
    }

    /// Looks at these clusters and no others: it is asked for each access of a guest, of an image that is all but done.
    fn first_open(&self, clusters: Range<u64>) -> Option<u64> {
        let mut index = clusters.start;
        while index < clusters.end {
            if index.is_multiple_of(32) && self.words[(index / 32) as usize].bits() == ALL_DONE {
                index += 32;
            } else if self.get(index) == DONE {
                index += 1;
            } else {
                return Some(index);
            }
        }
        None
    }

    fn bytes(&self, index: u64) -> ByteRange {
        let start = index * self.cluster.get();
        ByteRange::new(start, (start + self.cluster.get()).min(self.size)).expect("a cluster has bytes")
    }

    /// Bytes of the clusters of the word that begins with this one whose first bits are set.
    fn bytes_of(&self, first: u64, bits: u64) -> u64 {
        let all = u64::from(bits.count_ones()) * self.cluster.get();
        // The last one may be cut by the end of the image.
        let last = self.count - 1;
        let has_last = last >= first && last - first < 32 && bits >> ((last - first) * 2) & 1 == 1;
        if has_last { all - (self.cluster.get() - self.bytes(last).len()) } else { all }
    }

    fn touched(&self, range: ByteRange) -> Range<u64> {
        range.start() / self.cluster.get()..range.end().min(self.size).div_ceil(self.cluster.get())
    }

    fn get(&self, index: u64) -> u64 {
        self.words[(index / 32) as usize].bits() >> (index % 32 * 2) & 3
    }

    fn set(&self, index: u64, state: u64) {
        self.words[(index / 32) as usize].set(state << (index % 32 * 2));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).expect("not empty")
    }

    fn clusters(size: u64) -> Clusters {
        Clusters::new(size, PowerOfTwo::new(4096).expect("a power of two"))
    }

    #[test]
    fn only_whole_clusters_are_done_and_the_last_may_be_short() {
        let c = clusters(4096 * 3 + 10);
        c.begin(range(100, 5000));
        assert_eq!((c.at(0), c.at(4096), c.at(8192)), (Cluster::Cloning, Cluster::Cloning, Cluster::Pending));
        c.finish(range(100, 8192));
        assert_eq!((c.at(0), c.at(4096)), (Cluster::Cloning, Cluster::Done));
        c.finish(range(8192, 4096 * 3 + 10));
        assert_eq!(c.done_bytes(), 4096 * 2 + 10);
        assert!(!c.all_done());
        c.finish(range(0, 4096));
        assert!(c.all_done());
    }

    #[test]
    fn next_open_finds_gaps_and_honours_the_limit() {
        let c = clusters(4096 * 100);
        assert_eq!(c.next_open(0, 8192), Some(range(0, 8192)));
        assert_eq!(c.next_open(0, 1), Some(range(0, 4096)));
        c.finish(range(0, 4096 * 70));
        c.finish(range(4096 * 72, 4096 * 99));
        assert_eq!(c.next_open(0, u64::MAX / 2), Some(range(4096 * 70, 4096 * 72)));
        assert_eq!(c.next_open(4096 * 72, 1 << 30), Some(range(4096 * 99, 4096 * 100)));
        c.finish(range(4096 * 99, 4096 * 100));
        assert_eq!(c.next_open(4096 * 72, 1 << 30), None);
    }

    #[test]
    fn open_part_skips_what_is_done_and_keeps_odd_ends() {
        let c = clusters(4096 * 10);
        assert_eq!(c.open_part(range(100, 9000)), Some(range(100, 9000)));
        c.finish(range(0, 4096));
        assert_eq!(c.open_part(range(100, 9000)), Some(range(4096, 9000)));
        c.finish(range(8192, 12288));
        assert_eq!(c.open_part(range(100, 9000)), Some(range(4096, 8192)));
        assert_eq!(c.open_part(range(5000, 20000)), Some(range(5000, 8192)));
        assert_eq!(c.open_part(range(8192, 12288)), None);
        assert_eq!(c.open_part(range(8192, 12289)), Some(range(12288, 12289)));
    }

    #[test]
    fn a_run_is_all_done_or_all_not() {
        let c = clusters(4096 * 100 + 10);
        c.finish(range(4096 * 2, 4096 * 90));
        assert_eq!(c.run(range(5, 4096 * 100)), (range(5, 4096 * 2), false));
        assert_eq!(c.run(range(4096 * 2 + 1, 4096 * 100 + 10)), (range(4096 * 2 + 1, 4096 * 90), true));
        assert_eq!(c.run(range(4096 * 3, 4096 * 3 + 1)), (range(4096 * 3, 4096 * 3 + 1), true));
        assert_eq!(c.run(range(4096 * 95, 4096 * 100 + 10)), (range(4096 * 95, 4096 * 100 + 10), false));
    }

    /// Counts how often this thread looks at a word.
    #[derive(Default)]
    struct Counted(AtomicU64);

    thread_local!(static LOOKS: Cell<u64> = const { Cell::new(0) });

    impl Word for Counted {
        fn bits(&self) -> u64 {
            LOOKS.set(LOOKS.get() + 1);
            self.0.bits()
        }

        fn set(&self, bits: u64) -> u64 {
            LOOKS.set(LOOKS.get() + 1);
            self.0.set(bits)
        }
    }

    /// What a job says to a new server is hundreds of millions of clusters long, and the guest waits for it.
    #[test]
    fn clusters_are_finished_a_word_at_a_time_and_each_is_counted_once() {
        let c = Clusters::<Counted>::new(4096 * 32 * 1000 + 10, PowerOfTwo::new(4096).expect("a power of two"));
        c.begin(range(4096 * 32 * 2, 4096 * 32 * 3));
        c.finish(range(4096 * 3, 4096 * 5));
        c.finish(range(4096 * 31, 4096 * 33));
        assert_eq!(c.done_bytes(), 4096 * 4);
        LOOKS.set(0);
        c.finish(range(4096, 4096 * 32 * 1000));
        assert!(LOOKS.get() <= 2 * 1000, "{} looks", LOOKS.get());
        assert_eq!(c.done_bytes(), 4096 * (32 * 1000 - 1));
        assert_eq!(
            (c.at(0), c.at(4096), c.next_open(4096, 1)),
            (Cluster::Pending, Cluster::Done, Some(range(4096 * 32 * 1000, 4096 * 32 * 1000 + 10)))
        );
        c.finish(range(0, 4096 * 32 * 1000 + 10));
        assert!(c.all_done());
    }

    #[test]
    fn what_two_threads_finish_at_once_is_counted_once() {
        let c: Clusters = Clusters::new(4096 * 32 * 100_000, PowerOfTwo::new(4096).expect("a power of two"));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| c.finish(range(0, 4096 * 32 * 100_000)));
            }
        });
        assert!(c.all_done());
    }

    #[test]
    fn whether_a_range_is_done_is_seen_from_its_own_clusters() {
        let c = Clusters::<Counted>::new(4096 * 32 * 1000, PowerOfTwo::new(4096).expect("a power of two"));
        c.finish(range(0, 4096 * 32 * 999));
        LOOKS.set(0);
        assert_eq!(c.open_part(range(0, 4096)), None);
        assert_eq!(c.open_part(range(4096 * 32, 4096 * 64)), None);
        assert!((1..=4).contains(&LOOKS.get()), "{} looks", LOOKS.get());
    }

    #[test]
    fn open_around_is_what_hangs_together_within_the_unit() {
        let c = clusters(4096 * 20 + 10);
        let (asked, unit) = (range(4096 * 5, 4096 * 6), |clusters: u64| PowerOfTwo::at_most(4096 * clusters));
        assert_eq!(c.open_around(asked, unit(8)), range(0, 4096 * 8));
        assert_eq!(c.open_around(asked, unit(2)), range(4096 * 4, 4096 * 6));
        assert_eq!(c.open_around(asked, PowerOfTwo::at_most(512)), asked);
        let in_two = range(4096 * 7, 4096 * 9);
        assert_eq!((c.open_around(in_two, unit(8)), c.open_around(in_two, unit(16))), (in_two, range(0, 4096 * 16)));
        c.begin(range(4096 * 6, 4096 * 7));
        c.finish(range(4096 * 2, 4096 * 3));
        c.finish(range(4096 * 7, 4096 * 8));
        assert_eq!(c.open_around(asked, unit(8)), range(4096 * 3, 4096 * 7));
        let to_the_end = range(4096 * 20, 4096 * 20 + 10);
        assert_eq!(c.open_around(to_the_end, unit(4)), to_the_end);
        assert_eq!(c.open_around(range(4096 * 17, 4096 * 18), unit(64)), range(4096 * 8, 4096 * 20 + 10));
    }

    #[test]
    fn done_never_goes_back() {
        let c = clusters(8192);
        c.finish(range(0, 8192));
        c.begin(range(0, 8192));
        assert!(c.all_done());
        assert_eq!(c.at(0), Cluster::Done);
    }
}
