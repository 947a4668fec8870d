//! The cluster states that the cloning thread and the answering one share, under every interleaving (loom).

use std::sync::Arc;
use std::time::Duration;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::thread;
use rclone_img::cbw::clusters::Word;
use rclone_img::cbw::{Accesses, Clusters, Limits};
use rclone_img::range::{ByteRange, PowerOfTwo};

const LIMITS: Limits = Limits { waiting: 8, deadline: Duration::from_secs(1) };
const CLUSTER: u64 = 4096;

#[derive(Default)]
struct LoomWord(AtomicU64);

impl Word for LoomWord {
    fn bits(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, bits: u64) -> u64 {
        self.0.fetch_or(bits, Ordering::AcqRel)
    }
}

fn cluster(index: u64) -> ByteRange {
    ByteRange::at(index * CLUSTER, CLUSTER).expect("not empty")
}

/// The clone of cluster 0 has to be seen by whoever is let go on in it, and nobody is left waiting.
#[test]
fn an_access_goes_on_only_after_its_clone_and_is_never_forgotten() {
    loom::model(|| {
        let clusters =
            Arc::new(Clusters::<LoomWord>::new(2 * CLUSTER, PowerOfTwo::new(CLUSTER).expect("a power of two")));
        let mut machine = Accesses::<u32, LoomWord>::new(LIMITS);
        machine.gather();
        machine.watch(vec![Arc::clone(&clusters)], vec![]);
        let machine = loom::sync::Arc::new(Mutex::new(machine));
        // What the kernel does in a clone call, seen without any order of its own.
        let cloned = loom::sync::Arc::new(AtomicBool::new(false));
        let responder = {
            let (machine, cloned) = (machine.clone(), cloned.clone());
            thread::spawn(move || {
                let answered = machine.lock().expect("lock").arrive(1, 0, cluster(0), Duration::ZERO);
                if answered.is_some() {
                    assert!(cloned.load(Ordering::Relaxed), "let go before its clone");
                }
            })
        };
        clusters.begin(cluster(0));
        cloned.store(true, Ordering::Relaxed);
        clusters.finish(cluster(0));
        for access in machine.lock().expect("lock").ready(Duration::ZERO) {
            assert_eq!(access, 1);
        }
        responder.join().expect("the responder");
        // The cloning thread's last look: what came in between is found.
        machine.lock().expect("lock").ready(Duration::ZERO);
        assert_eq!(machine.lock().expect("lock").waiting(), 0, "forgotten");
    });
}

/// Two clusters in one word, one being moved while the other is looked at: neither loses its state.
#[test]
fn neighbours_in_one_word_keep_their_states() {
    loom::model(|| {
        let clusters =
            Arc::new(Clusters::<LoomWord>::new(2 * CLUSTER, PowerOfTwo::new(CLUSTER).expect("a power of two")));
        let other = Arc::clone(&clusters);
        let background = thread::spawn(move || {
            other.begin(cluster(1));
            other.finish(cluster(1));
        });
        clusters.begin(cluster(0));
        clusters.finish(cluster(0));
        assert!(clusters.open_part(cluster(0)).is_none());
        background.join().expect("the background");
        assert!(clusters.open_part(cluster(1)).is_none());
    });
}

/// A reader of a point in time, the one who keeps it, and the guest that overwrites a cluster once it is kept: whatever the reader reads is what
/// was there at T0. The kernel's copies are seen without any order of their own.
#[test]
fn who_reads_without_a_lock_reads_what_was_there_at_t0() {
    const THEN: u64 = 1;
    const LATER: u64 = 9;
    loom::model(|| {
        let clusters = Arc::new(Clusters::<LoomWord>::new(CLUSTER, PowerOfTwo::new(CLUSTER).expect("a power of two")));
        let image = loom::sync::Arc::new(AtomicU64::new(THEN));
        let kept = loom::sync::Arc::new(AtomicU64::new(0));
        let guest = {
            let (clusters, image) = (Arc::clone(&clusters), image.clone());
            thread::spawn(move || {
                // A write that comes before waits; here it is not made at all.
                if clusters.open_part(cluster(0)).is_none() {
                    // As `serve::gate` does it.
                    fence(Ordering::SeqCst);
                    image.store(LATER, Ordering::Relaxed);
                }
            })
        };
        let reader = {
            let (clusters, image, kept) = (Arc::clone(&clusters), image.clone(), kept.clone());
            thread::spawn(move || {
                let read = |from: &AtomicU64| from.load(Ordering::Relaxed);
                let pending = clusters.run(cluster(0)).1;
                let first = read(if pending { &kept } else { &image });
                // As `serve::view` does it.
                fence(Ordering::SeqCst);
                let now = clusters.run(cluster(0)).1;
                assert_eq!(if now { read(&kept) } else { first }, THEN);
            })
        };
        kept.store(image.load(Ordering::Relaxed), Ordering::Relaxed);
        clusters.finish(cluster(0));
        guest.join().expect("the guest");
        reader.join().expect("the reader");
    });
}
