//! The threads of a connection, under a scheduler that takes their turns away where it likes: each question has exactly one whole answer,
//! what an answer promises is so, and nobody waits for ever, whenever the client goes.

mod client;
mod disk;
mod wire;

use std::sync::Arc;

use client::{Client, End};
use disk::{Disk, One};
use reflink_img_interleavings::serve::buffers::Buffers;
use reflink_img_interleavings::serve::session;
use reflink_img_interleavings::trial;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;
use wire::Wire;

/// More than the threads of a connection.
const QUESTIONS: u64 = 24;

/// How often each is tried with either scheduler.
const TIMES: usize = 60;

/// A client that ends like this: how many answers it has had.
fn connection(end: End) -> usize {
    let mut dice = thread_rng();
    let wire = Wire::new(1 << dice.gen_range(9..20));
    let disk = Arc::new(Disk::default());
    let client = Client::new(&wire, &disk, dice.gen_bool(0.5), dice.gen_range(1..=QUESTIONS as usize));
    let (shelf, buffers) = (One(Arc::clone(&disk)), Buffers::default());
    thread::scope(|scope| {
        // How it ends is for the log.
        scope.spawn(|| drop(session::serve(&wire, &shelf, &buffers)));
        scope.spawn(|| client.ask(QUESTIONS, end));
        scope.spawn(|| client.listen(end)).join().expect("the client")
    })
}

#[test]
fn each_question_has_one_whole_answer() {
    trial::run(TIMES, || assert_eq!(connection(End::Disconnect), QUESTIONS as usize));
}

#[test]
fn one_who_says_nothing_more_still_hears_the_answers() {
    trial::run(TIMES, || assert_eq!(connection(End::Silence), QUESTIONS as usize));
}

#[test]
fn one_who_vanishes_leaves_nobody_waiting() {
    trial::run(TIMES, || {
        let mut dice = thread_rng();
        let (asked, answered) = (dice.gen_range(1..=QUESTIONS), dice.gen_range(1..=QUESTIONS as usize));
        connection(End::Gone { asked, answered });
    });
}
