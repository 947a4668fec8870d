//! Where the hold guard cannot be had (no right to it, a container that hides who uses the image, a file system without the
//! events) it is refused in words, and `auto` goes on to the next hold and says why. On real XFS and Btrfs.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support;
use crate::support::{Armed, Other, PROGRAM, Sandbox, assert_same, events, fragmented, has, must, on_both, skipped};

/// What takes the guard away, and what is told of it.
const WITHOUT: [(&[&str], &str, &str); 2] = [
    (&["setpriv", "--bounding-set=-sys_admin"], "may not watch accesses", "CAP_SYS_ADMIN"),
    (
        &["unshare", "--pid", "--fork", "--mount-proc"],
        "not all processes that may have the image open can be seen",
        "on the host",
    ),
];

fn run(s: &Sandbox, wrapper: &[&str], args: &[&str]) -> Output {
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(PROGRAM).args(args).current_dir(s.dir());
    command.output().expect("it starts")
}

/// The program in circumstances of this kind; exit code, standard output and standard error.
fn told(s: &Sandbox, wrapper: &[&str], args: &[&str]) -> (Option<i32>, String, String) {
    let out = run(s, wrapper, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

fn writer(s: &Sandbox, image: &Path) -> (Armed, Other) {
    (Armed::directory(&s.dir()), Other::opens("<>", image))
}

#[test]
fn without_the_guard_auto_takes_the_next_hold_and_says_why() {
    on_both(|s| {
        fragmented(&s.path("many.img"), 2000);
        fragmented(&s.path("few.img"), 3);
        let _many = writer(s, &s.path("many.img"));
        let _few = writer(s, &s.path("few.img"));
        for (wrapper, why, hint) in WITHOUT {
            if !has(wrapper[0]) {
                skipped(&format!("{} is not installed", wrapper[0]));
                continue;
            }
            let before = s.listing();
            for image in ["many.img", "few.img"] {
                let (code, _, stderr) = told(s, wrapper, &["snapshot", "--consistency", "guard", image, "x.snap"]);
                assert_eq!(code, Some(3), "{:?} {wrapper:?}: {stderr}", s.fs);
                assert!(stderr.contains(why) && stderr.contains(hint), "{:?} {wrapper:?}: {stderr}", s.fs);
            }
            let (code, _, stderr) = told(s, wrapper, &["snapshot", "many.img", "x.snap"]);
            assert_eq!(code, Some(3), "{:?} {wrapper:?}: {stderr}", s.fs);
            for words in [why, "frozen: ", "guard: ", "atomic: ", hint] {
                assert!(stderr.contains(words), "{:?} {wrapper:?}: no {words:?} in {stderr}", s.fs);
            }
            assert_eq!(s.listing(), before);

            let (code, stdout, _) = told(s, wrapper, &["check", "--json", "few.img"]);
            let object = events(&stdout).pop().expect("an object");
            assert_eq!((code, &object["hold"]), (Some(0), &"atomic".into()), "{object}");
            let (code, _, stderr) = told(s, wrapper, &["snapshot", "few.img", "few.snap"]);
            assert_eq!(code, Some(0), "{:?} {wrapper:?}: {stderr}", s.fs);
            let started = stderr.lines().find(|line| line.contains("hold atomic (")).unwrap_or_default();
            for words in ["a single call", "not frozen: ", "not guard: ", why] {
                assert!(started.contains(words), "{:?} {wrapper:?}: no {words:?} in {stderr}", s.fs);
            }
            assert_same(&s.path("few.img"), &s.path("few.snap"));
            fs::remove_file(s.path("few.snap")).expect("removed");

            // Who uses the images may be told, and that nobody can say whether they are armed.
            let (code, stdout, _) = told(s, wrapper, &["check", "."]);
            assert_eq!(code, Some(3), "{:?} {wrapper:?}: {stdout}", s.fs);
            assert!(stdout.contains(why) && !stdout.contains("NOT ARMED"), "{:?} {wrapper:?}: {stdout}", s.fs);
        }
    });
}

#[test]
fn an_image_that_nobody_writes_to_needs_no_guard() {
    on_both(|s| {
        fragmented(&s.path("vm.img"), 2000);
        for (wrapper, ..) in WITHOUT {
            if !has(wrapper[0]) {
                skipped(&format!("{} is not installed", wrapper[0]));
                continue;
            }
            let (code, stdout, stderr) = told(s, wrapper, &["snapshot", "--json", "vm.img", "vm.snap"]);
            assert_eq!(code, Some(0), "{:?} {wrapper:?}: {stderr}", s.fs);
            assert_eq!(events(&stdout).last().expect("an end")["hold"], "frozen");
            assert_same(&s.path("vm.img"), &s.path("vm.snap"));
            fs::remove_file(s.path("vm.snap")).expect("removed");
        }
    });
}

#[test]
fn a_file_system_without_the_events_is_told() {
    let Some(s) = Sandbox::new(support::Fs::Xfs) else { return };
    fs::create_dir(s.path("tmpfs")).expect("a directory");
    must("mount", &[&"-t", &"tmpfs", &"tmpfs", &s.path("tmpfs")]);
    fs::write(s.path("tmpfs/vm.img"), vec![1; 1 << 20]).expect("written");
    let _writer = Other::opens("<>", &s.path("tmpfs/vm.img"));
    let object = s.run(&["check", "--json", "tmpfs/vm.img"]);
    let told = String::from_utf8_lossy(&object.stdout).into_owned();
    assert!(told.contains("file system sends no pre-content events"), "{told}");
}

/// Who clones and answers raises itself, or there is no such job: at cron's priority a guest would wait for whoever else wants the CPU.
#[test]
fn without_the_right_to_raise_itself_it_refuses() {
    on_both(|s| {
        fragmented(&s.path("vm.img"), 2000);
        let _writer = writer(s, &s.path("vm.img"));
        let before = s.listing();
        let wrapper = ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice", "nice", "-n", "19"];
        let (code, _, stderr) = told(s, &wrapper, &["snapshot", "--consistency", "guard", "vm.img", "x.snap"]);
        assert_eq!(code, Some(3), "{:?}: {stderr}", s.fs);
        assert!(stderr.contains("high priority") && stderr.contains("CAP_SYS_NICE"), "{:?}: {stderr}", s.fs);
        assert_eq!(s.listing(), before, "{:?}", s.fs);
    });
}
