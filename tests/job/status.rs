//! `status` of a job that runs: how much is done, how the guest fares, for one image and for several; the job is not disturbed.

use crate::support;
use crate::support::{Armed, Guest, Other, Sandbox, fragmented, has, on_both, roomy, skipped, slowly, until};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn status(s: &Sandbox, name: &str) -> Value {
    let out = s.run(&["status", "--json", name]);
    serde_json::from_slice(&out.stdout).unwrap_or(Value::Null)
}

fn number(live: &Value, name: &str) -> u64 {
    live[name].as_u64().unwrap_or_else(|| panic!("no {name} in {live}"))
}

#[test]
fn a_job_under_watch_tells_what_is_done_and_how_the_guests_fare() {
    on_both(|s| {
        let _armed = Armed::directory(&s.dir());
        roomy(&s.path("a.img"), 64 * MIB);
        roomy(&s.path("b.img"), 64 * MIB);
        let guests = [Guest::start(&s.path("a.img")), Guest::start(&s.path("b.img"))];
        let args = slowly(&["snapshot", "--consistency", "guard", "a.img=a.snap", "b.img=b.snap"]);
        let mut job = s.start(&args);
        assert!(job.wait_for("started"), "{:?}: {}", s.fs, job.end().stderr);
        let mut seen = Value::Null;
        let told = until(|| {
            seen = status(s, "b.snap");
            assert_eq!(seen["state"], "running", "{:?}: it ended too early for a test: {seen}", s.fs);
            let live = &seen["live"];
            // Its figures are told one by one, and whoever looks in between sees some of the next telling.
            live.is_object()
                && number(live, "promoted") > 0
                && live["left_ms"].is_number()
                && number(live, "done_bytes") == number(live, "clusters_done") * 4096
                && number(live, "clusters_done") >= number(live, "promoted")
                && number(live, "accesses") >= number(live, "waited")
        });
        assert!(told, "{:?}: {seen}", s.fs);
        let live = &seen["live"];
        assert_eq!((&live["watching"], &live["taken_over"]), (&true.into(), &false.into()), "{live}");
        assert_eq!((number(live, "bytes"), number(live, "clusters")), (128 * MIB, 128 * MIB / 4096), "{live}");
        assert!(number(live, "waited") > 0, "{live}");
        assert!(live["longest_wait_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{live}");

        let text = String::from_utf8_lossy(&s.run(&["status", "a.snap"]).stdout).into_owned();
        for words in [
            "running (pid ",
            " % of 128.0 MiB of all its images",
            "had to wait",
            "now; the longest",
            "one job with",
            "b.snap",
        ] {
            assert!(text.contains(words), "{:?}: no {words:?} in {text}", s.fs);
        }
        if has("setpriv") {
            let mut other = std::process::Command::new("setpriv");
            other.args(["--bounding-set=-sys_ptrace,-sys_admin", support::PROGRAM, "status", "a.snap"]);
            let out = other.current_dir(s.dir()).output().expect("setpriv");
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(text.contains("run as root to see how it stands"), "{:?}: {text}", s.fs);
        } else {
            skipped("setpriv is not installed");
        }
        job.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(job.end().code, Some(6), "a point in time of a watch ends with it");
        for guest in guests {
            let felt = guest.stop();
            assert!(felt.errors.is_empty() && felt.accesses > 0, "{felt:?}");
        }
    });
}

#[test]
fn a_job_that_nobody_waits_for_tells_what_its_journal_has() {
    on_both(|s| {
        roomy(&s.path("a.img"), 2048 * MIB);
        let mut job = s.start(&slowly(&["snapshot", "--consistency", "frozen", "a.img", "a.snap"]));
        assert!(job.wait_for("progress"));
        let told = status(s, "a.snap");
        assert_eq!((&told["state"], &told["live"]), (&"running".into(), &Value::Null), "{told}");
        assert_eq!(told["bytes"], 2048 * MIB);
        let text = String::from_utf8_lossy(&s.run(&["status", "a.snap"]).stdout).into_owned();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(" done") && text.contains("running (pid "), "{text}");
        drop(job);
    });
}

/// The objects that `check` of the directory has, by the image's name.
fn checked(s: &Sandbox, code: i32) -> Vec<(String, Value)> {
    let name = |v: &Value| v["src"].as_str().and_then(|p| p.rsplit('/').next()).unwrap_or_default().to_owned();
    s.exits(code, &["check", "--json", "."]).into_iter().map(|v| (name(&v), v)).collect()
}

#[test]
fn check_of_a_directory_lists_who_uses_its_images_unarmed() {
    on_both(|s| {
        for image in ["armed.img", "unarmed.img", "both.img", "unused.img", "few.img"] {
            fragmented(&s.path(image), if image == "few.img" { 1 } else { 2000 });
        }
        std::fs::create_dir(s.path("dir")).expect("a directory");
        std::os::unix::fs::symlink("armed.img", s.path("link")).expect("a link");
        std::fs::hard_link(s.path("armed.img"), s.path("name two")).expect("a link");
        assert!(checked(s, 0).is_empty());
        let text = String::from_utf8_lossy(&s.run(&["check", "."]).stdout).into_owned();
        assert!(text.contains("nobody was found"), "{text}");

        let (old, few) = (Other::opens("<>", &s.path("unarmed.img")), Other::opens("<>", &s.path("few.img")));
        let both = Other::opens(">>", &s.path("both.img"));
        let _reader = Other::opens("<", &s.path("unused.img"));
        let _armed = Armed::directory(&s.dir());
        let new = Other::opens("<>", &s.path("armed.img"));
        let also = Other::opens("<>", &s.path("both.img"));
        let before = s.listing();
        let all = checked(s, 3);
        assert_eq!(s.listing(), before);
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["armed.img", "both.img", "few.img", "unarmed.img"], "{:?}", s.fs);
        let expect = [(true, Some("guard")), (false, None), (false, Some("atomic")), (false, None)];
        for ((name, told), (armed, hold)) in all.iter().zip(expect) {
            assert_eq!(
                (told["armed"].as_bool(), told["hold"].as_str()),
                (Some(armed), hold),
                "{:?} {name}: {told}",
                s.fs
            );
            assert_eq!(told["point_in_time"], hold.is_some(), "{told}");
            // As `check` of the image alone says.
            s.exits(if hold.is_some() { 0 } else { 3 }, &["check", name]);
        }
        let holders = |index: usize| all[index].1["holders"].as_array().expect("a list").clone();
        assert_eq!(holders(0).len(), 1);
        assert_eq!((&holders(0)[0]["pid"], &holders(0)[0]["armed"]), (&new.0.id().into(), &true.into()));
        let who: Vec<_> = holders(1).iter().map(|h| (h["pid"].as_u64(), h["armed"].as_bool())).collect();
        assert!(who.contains(&(Some(u64::from(both.0.id())), Some(false))), "{who:?}");
        assert!(who.contains(&(Some(u64::from(also.0.id())), Some(true))), "{who:?}");
        assert!(all[3].1["hint"].as_str().is_some_and(|h| h.contains("and start it again")), "{}", all[3].1);

        let text = String::from_utf8_lossy(&s.run(&["check", "."]).stdout).into_owned();
        let unarmed = format!("NOT ARMED  ./unarmed.img: pid {} (sh)", old.0.id());
        for words in
            [unarmed.as_str(), "armed      ./armed.img: pid", "and start it again", "4 images in use; 2 of which"]
        {
            assert!(text.contains(words), "{:?}: no {words:?} in {text}", s.fs);
        }
        drop((old, both, few));
        assert_eq!(checked(s, 0).len(), 2, "{:?}", s.fs);
    });
}
