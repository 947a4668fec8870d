//! A server that is not root's: who of other users writes to its image it does not see, and says so.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::serving::{image, socket};
use crate::support::{Job, PROGRAM, Sandbox, has, must, on_both, skipped};

fn as_user(s: &Sandbox, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "2000", "--regid", "2000", "--clear-groups", "./program"]).args(args);
    command.current_dir(s.dir()).env("XDG_RUNTIME_DIR", s.dir()).stdin(Stdio::null());
    command
}

#[test]
fn who_cannot_look_into_all_processes_is_warned() {
    if !has("setpriv") {
        return skipped("setpriv is not installed");
    }
    on_both(|s| {
        image(s, 1);
        must("cp", &[&Path::new(PROGRAM), &s.path("program")]);
        ["", "a.img"].iter().for_each(|name| chown(s.path(name), Some(2000), Some(2000)).expect("chown"));
        fs::set_permissions(s.outside(""), Permissions::from_mode(0o711)).expect("chmod");
        let at = s.path("a.sock").display().to_string();
        let mut server = Job::spawn(&mut as_user(s, &["serve", "a.img", "--socket", &at, "--json"]));
        assert!(server.wait_for("started"), "{:?}", server.events);
        let warned = |args: &[&str]| {
            let out = as_user(s, args).output().expect("it starts");
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success(), "{:?} {args:?}: {said}", s.fs);
            said.contains("not all processes of this host can be looked into")
        };
        assert!(warned(&["fleece", "start", "a.img", "--name", "f"]));
        assert!(!warned(&["fleece", "list", "a.img"]));
        assert!(!warned(&["fleece", "stop", "a.img", "--name", "f"]));
        assert!(warned(&["snapshot", "--consistency", "filter", "a.img", "a.snap"]));
        server.signal(Signal::SIGTERM);
        assert_eq!(server.end().code, Some(0));
        // Root's is not.
        s.exits(0, &["snapshot", "-q", "a.img", "b.snap"]);
        let server = crate::support::serving::serve(s, "writeback");
        let out = s.run(&["fleece", "start", "a.img", "--name", "f"]);
        assert!(!String::from_utf8_lossy(&out.stderr).contains("not all processes"), "{out:?}");
        s.exits(0, &["fleece", "stop", "a.img", "--name", "f", "--json"]);
        crate::support::serving::stop(server);
        assert!(!socket(s).exists());
    });
}
