//! Several guests, one after the other, but for one that takes long: the others do not wait for it.

use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

/// How long is waited in all for one to end before the next is begun: a thaw takes a few ms, and a guest must not stay frozen for others'
/// agents.
const PATIENCE: Duration = Duration::from_secs(1);

/// Does something with each, in order, and waits until all is done. Where there can be no thread it waits for each.
pub fn staggered<I: Send, T: Send>(items: Vec<I>, work: impl Fn(I) -> T + Sync) -> Vec<T> {
    let slots: Vec<Mutex<Option<I>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let work = |slot: &Mutex<Option<I>>| {
        let item = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        work(item.expect("each is done once"))
    };
    let Some((last, others)) = slots.split_last() else { return Vec::new() };
    let until = Instant::now() + PATIENCE;
    thread::scope(|scope| {
        let begin = |slot| {
            let (ended, wait) = channel::<()>();
            let thread = Builder::new().spawn_scoped(scope, move || {
                let _ended = ended;
                work(slot)
            });
            let _ = wait.recv_timeout(until.saturating_duration_since(Instant::now()));
            thread.map_err(|_| work(slot))
        };
        let begun: Vec<_> = others.iter().map(begin).collect();
        let last = work(last);
        let done = begun.into_iter().map(|thread| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(done) => done,
        });
        done.collect::<Vec<_>>().into_iter().chain([last]).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::staggered;

    #[test]
    fn each_is_done_in_its_turn() {
        let order = Mutex::new(Vec::new());
        let doubled = staggered(vec![1, 2, 3], |n| {
            order.lock().expect("no panic").push(n);
            n * 2
        });
        assert_eq!((doubled, order.into_inner().expect("no panic")), (vec![2, 4, 6], vec![1, 2, 3]));
        assert!(staggered(Vec::<u8>::new(), |n| n).is_empty());
    }

    #[test]
    fn nobody_waits_for_one_that_hangs() {
        let (last, news) = (Mutex::new(false), Condvar::new());
        let done = staggered(vec![1, 2, 3], |n| {
            let mut last = last.lock().expect("no panic");
            match n {
                3 => {
                    *last = true;
                    news.notify_all();
                }
                // Comes to its end only when the last one has.
                1 => drop(news.wait_while(last, |last| !*last)),
                _ => {}
            }
            n
        });
        assert_eq!(done, [1, 2, 3]);
    }
}
