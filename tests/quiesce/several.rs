//! Several guests that are frozen for one T0: none of them pays for another one's agent. On real XFS and Btrfs.

use std::fs;
use std::sync::Arc;

use crate::support::agent::{Agent, Does, ends_well, is_thawed, running, start, text, with};
use crate::support::{Fs, Sandbox, on_both, until};

/// A guest does not stay frozen for as long as the agent of another one is tried to be reached.
#[test]
fn a_guest_is_thawed_whatever_the_agent_of_another_does() {
    let one = Arc::new(Agent::new(|_, _| Does::Well));
    let first = Arc::clone(&one);
    // This one comes back when the other guest is thawed, which was frozen before it and is thawed after it.
    let hangs = move |name: &str, _| if name == "thaw" && !is_thawed(&first) { Does::Nothing } else { Does::Well };
    thawed_together(&one, &Agent::new(hangs), "10s", Some(0));
    let one = Arc::new(Agent::new(|_, _| Does::Well));
    let first = Arc::clone(&one);
    let hangs = move |name: &str, _| {
        let waits = name == "freeze" || name == "thaw" && !is_thawed(&first);
        if waits { Does::Nothing } else { Does::Well }
    };
    thawed_together(&one, &Agent::new(hangs), "3s", Some(3));
}

fn thawed_together(one: &Agent, other: &Agent, limit: &str, code: Option<i32>) {
    let Some(s) = Sandbox::new(Fs::Xfs) else { return };
    let (_armed, guest) = running(&s);
    let more = ["--qga", &text(&other.path()), "--require-freeze", "--freeze-timeout", limit];
    let job = start(&s, one, &more);
    assert!(until(|| other.read().contains(&"thaw")));
    let ended = job.end();
    assert_eq!(ended.code, code, "{}", ended.stderr);
    assert!(is_thawed(one) && is_thawed(other), "{:?} {:?}", one.read(), other.read());
    ends_well(guest);
}

/// What became of one guest says nothing of another.
#[test]
fn a_guest_that_stays_frozen_is_told_whatever_another_ones_agent_says() {
    on_both(|s| {
        let (_armed, guest) = running(s);
        for (required, code) in [(false, 0), (true, 6)] {
            let refuses =
                |what: &'static str| move |name: &str, _| if name == what { Does::Refuses } else { Does::Well };
            let (one, other) = (Agent::new(refuses("thaw")), Agent::new(refuses("freeze")));
            let mut args = with(&one, &["--qga", &text(&other.path())]);
            args.extend(required.then(|| "--require-freeze".into()));
            let out = s.run(&args);
            let told = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(code), "{:?}: {told}", s.fs);
            assert!(told.contains("may still be FROZEN"), "{:?}: {told}", s.fs);
            assert!(one.guest(|guest| guest.frozen) && is_thawed(&other), "{:?}", s.fs);
            let _ = fs::remove_file(s.path("vm.snap"));
        }
        // An agent that is not there is known of before anybody is frozen.
        let one = Agent::new(|_, _| Does::Well);
        s.exits(3, &with(&one, &["--require-freeze", "--freeze-timeout", "1s", "--qga", &text(&s.outside("nobody"))]));
        assert_eq!(one.read(), ["status"], "{:?}", s.fs);
        ends_well(guest);
    });
}
