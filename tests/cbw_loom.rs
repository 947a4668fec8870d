//! The cluster states that the cloning thread and the answering one share, under every interleaving (loom).

use std::sync::Arc;
use std::time::Duration;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

    fn set(&self, bits: u64) {
        self.0.fetch_or(bits, Ordering::AcqRel);
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
