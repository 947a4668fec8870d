//! Freezing and thawing by a guest agent that behaves, and by some that do not. Whatever a freeze does, a thaw comes
//! after it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support;
use crate::support::BOUND;
use crate::support::agent::{Agent, Does};
use rclone_img::error::{Error, Kind};
use rclone_img::quiesce::{Freeze, Method};

/// For a freeze that is not answered: long enough for the answers before it.
const NOT_LONG: Duration = Duration::from_secs(3);

/// The freeze fails, and the guest is thawed by then.
fn fails(agent: &Agent, limit: Duration, needle: &str) {
    let error = Freeze::begin(&agent.method(), limit, BOUND).expect_err("no freeze").error;
    told(&error, Kind::Failed, needle);
    assert_eq!(agent.read().last(), Some(&"thaw"));
    assert!(agent.guest(|guest| !guest.frozen && !guest.later));
}

fn told(error: &Error, kind: Kind, needle: &str) {
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.to_string().contains(needle), "no {needle:?} in: {error}");
    assert!(!error.hint.is_empty());
}

fn well(_: &str, _: usize) -> Does {
    Does::Well
}

/// Behaves but for the freeze.
fn freezing(how: Does) -> impl FnMut(&str, usize) -> Does + Send + 'static {
    move |name, _| if name == "freeze" { how } else { Does::Well }
}

#[test]
fn a_guest_is_frozen_and_thawed() {
    let agent = Agent::new(well);
    let method = agent.method();
    let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
    assert!(agent.guest(|guest| guest.frozen));
    assert!(freeze.end().expect("thawed").was_frozen);
    assert!(agent.guest(|guest| !guest.frozen));
    assert_eq!(agent.read(), ["status", "freeze", "thaw"]);
    // Thawing once more does nothing, and says that nothing was frozen.
    assert!(!method.thaw(BOUND).expect("thawed").was_frozen);
}

#[test]
fn a_freeze_that_is_dropped_is_thawed() {
    let agent = Agent::new(well);
    let method = agent.method();
    drop(Freeze::begin(&method, BOUND, BOUND).expect("frozen"));
    assert_eq!(agent.read(), ["status", "freeze", "thaw"]);
}

#[test]
fn answers_to_earlier_clients_are_skipped() {
    let stale =
        b"{\"return\": 3}\n{\"ret\xff{\"return\": 12345}\n\xffhalf\n{\"error\": {\"desc\": \"not yours\"}}\n\xff{\"re";
    let agent = Agent::saying(stale, well);
    let method = agent.method();
    let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
    assert!(freeze.end().expect("thawed").was_frozen);
}

#[test]
fn a_freeze_that_is_not_answered_is_thawed_also_when_it_comes_later() {
    fails(&Agent::new(freezing(Does::Nothing)), NOT_LONG, "did not freeze the guest");
    fails(&Agent::new(freezing(Does::Later)), NOT_LONG, "did not freeze the guest");
}

#[test]
fn a_freeze_that_fails_is_thawed() {
    fails(&Agent::new(freezing(Does::Refuses)), BOUND, "did not freeze the guest: no, thanks");
    fails(&Agent::new(freezing(Does::HangsUp)), BOUND, "did not freeze the guest: the other side closed");
    fails(&Agent::new(freezing(Does::Rambles)), BOUND, "did not freeze the guest: a line of more than");
    fails(&Agent::new(freezing(Does::Raves)), BOUND, "did not freeze the guest: not JSON");
    let empty = Agent::new(well);
    empty.guest(|guest| guest.mounts = 0);
    fails(&empty, BOUND, "found no file system to freeze");
}

#[test]
fn a_dead_agent_is_not_asked_to_freeze() {
    let agent = Agent::new(|_, _| Does::Nothing);
    let method = agent.method();
    let limit = Duration::from_millis(300);
    let error = Freeze::begin(&method, limit, limit).expect_err("no answer").error;
    told(&error, Kind::Refused, "does not answer within 0.3 s");
    assert_eq!(agent.read(), Vec::<&str>::new(), "nothing that it would find when it wakes");
    // It is told to thaw all the same where somebody wants that, and it is said that it did not answer.
    let error = method.thaw(Duration::from_secs(1)).expect_err("no answer");
    told(&error, Kind::Failed, "did not thaw");
    assert!(support::until(|| agent.read().contains(&"thaw")));
    assert!(agent.read().iter().all(|read| *read == "thaw"));
}

#[test]
fn a_guest_that_somebody_else_froze_is_left_frozen() {
    let agent = Agent::new(well);
    agent.guest(|guest| guest.frozen = true);
    let error = Freeze::begin(&agent.method(), BOUND, BOUND).expect_err("frozen").error;
    told(&error, Kind::Refused, "is frozen already");
    assert_eq!(agent.read(), ["status"]);
    assert!(agent.guest(|guest| guest.frozen));
}

#[test]
fn thawing_is_asked_again_until_it_is_answered() {
    for how in [Does::Nothing, Does::HangsUp, Does::Refuses, Does::Raves, Does::Rambles] {
        let agent = Agent::new(move |name, nth| if name == "thaw" && nth < 3 { how } else { Does::Well });
        let method = agent.method();
        let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
        let ended = freeze.end().expect("thawed");
        assert!(agent.guest(|guest| !guest.frozen && guest.read.len() == 5), "{how:?}: {:?}", agent.read());
        // Where an earlier request had thawed it, nobody can say until when it was frozen.
        assert_eq!(ended.was_frozen, matches!(how, Does::Nothing | Does::Refuses), "{how:?}");
    }
}

#[test]
fn an_agent_that_refuses_to_thaw_is_believed_in_the_end() {
    let agent = Agent::new(|name, _| if name == "thaw" { Does::Refuses } else { Does::Well });
    let method = agent.method();
    let freeze = Freeze::begin(&method, BOUND, BOUND).expect("frozen");
    told(&freeze.end().expect_err("still frozen"), Kind::Failed, "did not thaw: no, thanks");
    // A freeze that failed, and cannot be thawed either: both are told.
    let agent = Agent::new(|name, _| if name == "status" { Does::Well } else { Does::Refuses });
    agent.guest(|guest| guest.read.clear());
    let error = Freeze::begin(&agent.method(), NOT_LONG, NOT_LONG).expect_err("not even greeted").error;
    told(&error, Kind::Refused, "does not answer");
    let refuses = |name: &str, _| if matches!(name, "freeze" | "thaw") { Does::Refuses } else { Does::Well };
    let error = Freeze::begin(&Agent::new(refuses).method(), BOUND, BOUND).expect_err("neither").error;
    told(&error, Kind::Failed, "did not thaw: no, thanks, after the guest agent at");
}

#[test]
fn without_a_socket_nothing_is_begun() {
    let method = Method::Agent(Path::new("/nowhere/agent").into());
    told(&method.freeze(BOUND).expect_err("nobody"), Kind::Refused, "cannot talk to a guest agent at '/nowhere/agent'");
    let error = method.thaw(Duration::from_millis(200)).expect_err("nobody");
    told(&error, Kind::Failed, "did not thaw: ");
    let long = Method::Agent(PathBuf::from("/x".repeat(200)));
    told(&long.freeze(BOUND).expect_err("too long"), Kind::Refused, "cannot talk");
}
