//! A monitor that does not behave: the client keeps its bounds, and what was changed is put back or told.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::support::BOUND;
use rclone_img::error::{Error, Kind};
use rclone_img::qemu::arm::{Armed, Inode, arm};
use rclone_img::qemu::qmp::{Fault, Qmp};
use rclone_img::qemu::wire::LONGEST_LINE;
use serde_json::{Value, json};

/// What a monitor does with a command.
enum Does {
    Returns(Value),
    Refuses(&'static str),
    /// Sends these bytes, which may be anything.
    Says(Vec<u8>),
    Hangs,
    HangsUp,
}

/// A monitor in a thread, for one client at a time. What it was asked comes out of `asked`.
struct Monitor {
    dir: tempfile::TempDir,
    asked: Receiver<String>,
}

impl Monitor {
    fn new(does: impl FnMut(&str, &Value) -> Does + Send + 'static) -> Self {
        Self::greeting(b"{\"QMP\": {}}\n", does)
    }

    fn greeting(greeting: &'static [u8], mut does: impl FnMut(&str, &Value) -> Does + Send + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("monitor")).expect("a socket");
        let (tell, asked) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away ends its session, and no more.
                let _ = serve(&stream.expect("a client"), greeting, &mut |command| {
                    let name = command["execute"].as_str().unwrap_or_default();
                    let line = command["arguments"]["command-line"].as_str();
                    // The test has ended where nobody listens.
                    let _ = tell.send(line.unwrap_or(name).to_owned());
                    does(name, &command["arguments"])
                });
            }
        });
        Self { dir, asked }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("monitor")
    }

    fn connect(&self) -> Result<Qmp, Error> {
        Qmp::connect(&self.path(), BOUND)
    }

    /// What it was asked so far.
    fn asked(&self) -> Vec<String> {
        self.asked.try_iter().collect()
    }
}

fn serve(stream: &UnixStream, greeting: &[u8], does: &mut dyn FnMut(&Value) -> Does) -> std::io::Result<()> {
    let mut writer = stream;
    writer.write_all(greeting)?;
    for line in BufReader::new(stream).lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let mut answer = match does(&command) {
            _ if command["execute"] == "qmp_capabilities" => json!({"return": {}}),
            Does::Returns(value) => json!({"return": value}),
            Does::Refuses(desc) => json!({"error": {"class": "GenericError", "desc": desc}}),
            Does::Says(bytes) => {
                writer.write_all(&bytes)?;
                continue;
            }
            Does::Hangs => continue,
            Does::HangsUp => return Ok(()),
        };
        answer["id"] = command["id"].clone();
        writer.write_all(format!("{}\n{answer}\n", json!({"event": "RTC_CHANGE", "data": {}})).as_bytes())?;
    }
    Ok(())
}

fn ask(qmp: &mut Qmp, limit: Duration) -> Result<Value, Fault> {
    qmp.ask("query-status", json!({}), limit)
}

#[test]
fn events_and_late_answers_are_skipped() {
    let mut nth = 0;
    let monitor = Monitor::new(move |name, _| {
        nth += u32::from(name == "query-status");
        match nth {
            1 => Does::Hangs,
            2 => Does::Says(b"{\"return\": \"of the first\", \"id\": 1}\n{\"return\": \"mine\", \"id\": 2}\n".to_vec()),
            _ => Does::Refuses("not now\n"),
        }
    });
    let mut qmp = monitor.connect().expect("it greets");
    let late = ask(&mut qmp, Duration::from_millis(50)).expect_err("it hangs");
    assert!(matches!(&late, Fault::Unanswered(e) if e.kind() == std::io::ErrorKind::TimedOut), "{late:?}");
    assert_eq!(ask(&mut qmp, BOUND).expect("an answer"), json!("mine"));
    let error = qmp.execute("query-status", json!({}), BOUND).expect_err("refused");
    assert!(error.to_string().ends_with("refuses query-status: not now"), "{error}");
}

#[test]
fn a_connection_that_broke_is_made_anew() {
    let endless = || Does::Says(vec![b'['; 2 * LONGEST_LINE]);
    for spoil in [|| Does::HangsUp, endless, || Does::Says(b"no json\n".to_vec())] {
        let mut spoilt = false;
        let monitor = Monitor::new(move |name, _| {
            if name == "query-status" && !std::mem::replace(&mut spoilt, true) {
                return spoil();
            }
            Does::Returns(json!(7))
        });
        let mut qmp = monitor.connect().expect("it greets");
        assert!(matches!(ask(&mut qmp, BOUND), Err(Fault::Unanswered(_))));
        assert_eq!(ask(&mut qmp, BOUND).expect("an answer"), json!(7));
    }
}

#[test]
fn what_is_no_monitor_is_refused() {
    for greeting in [&b"{\"hello\": 1}\n"[..], b"220 mail ready\n", b"\xff\xfe\n"] {
        let monitor = Monitor::greeting(greeting, |_, _| Does::Hangs);
        let error = monitor.connect().expect_err("no greeting");
        assert_eq!(error.kind, Kind::Refused);
        assert!(error.to_string().contains("cannot talk to a monitor"), "{error}");
    }
}

/// An image that this process has open, as the QEMU that it plays would, and a monitor with one node of it.
struct Disk {
    monitor: Monitor,
    image: Inode,
    _open: File,
    _dir: tempfile::TempDir,
}

impl Disk {
    /// What happens to the nth change of `cache.direct` (from 1), after it was done or not.
    fn new(mut change: impl FnMut(u32) -> (bool, Does) + Send + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.img");
        let open = File::create(&path).expect("an image");
        let found = fs::metadata(&path).expect("an image");
        let (mut direct, mut nth) = (true, 0);
        let node = move |direct: bool| {
            let cache = json!({"direct": direct, "no-flush": false, "writeback": true});
            json!([{"node-name": "file0", "drv": "file", "file": path, "ro": false, "cache": cache}])
        };
        let monitor = Monitor::new(move |name, arguments| match name {
            "query-named-block-nodes" => Does::Returns(node(direct)),
            "human-monitor-command" => {
                nth += 1;
                let (done, does) = change(nth);
                if done {
                    direct = arguments["command-line"].as_str().is_some_and(|line| line.contains("cache.direct=on"));
                }
                does
            }
            _ => Does::Hangs,
        });
        Self { monitor, image: Inode { dev: found.dev(), ino: found.ino() }, _open: open, _dir: dir }
    }

    fn arm(&self) -> Result<Armed, Error> {
        let mut probes = 0;
        let probe = || {
            probes += 1;
            Ok(probes > 1)
        };
        arm(&mut self.monitor.connect().expect("it greets"), self.image, probe)
    }

    /// The changes that were asked for, in order.
    fn changes(&self) -> Vec<String> {
        let line = |asked: String| Some(asked.strip_prefix("qemu-io file0 \"reopen -o cache.direct=")?.to_owned());
        self.monitor.asked().into_iter().filter_map(line).collect()
    }
}

fn silently() -> Does {
    Does::Returns(json!(""))
}

#[test]
fn an_option_is_changed_and_put_back() {
    let disk = Disk::new(|_| (true, silently()));
    assert_eq!(disk.arm().expect("armed"), Armed::Reopened(vec!["file0".into()]));
    assert_eq!(disk.changes(), ["off\"", "on\""]);
    // A warning is no failure.
    let disk = Disk::new(|_| (true, Does::Returns(json!("warning: slow\r\n"))));
    disk.arm().expect("armed");
}

#[test]
fn nothing_is_put_back_where_nothing_was_changed() {
    type Reply = fn() -> Does;
    let cannot: Reply = || Does::Returns(json!("Could not open '/x': No such file\r\n"));
    let unknown: Reply = || Does::Refuses("unknown command");
    for (does, needle) in
        [(cannot, "Could not open '/x': No such file"), (silently, "said nothing"), (unknown, "unknown command")]
    {
        let disk = Disk::new(move |_| (false, does()));
        let error = disk.arm().expect_err("refused");
        assert_eq!(error.kind, Kind::Refused, "{error}");
        assert!(error.to_string().ends_with(needle), "{error}");
        assert_eq!(disk.changes(), ["off\""]);
    }
}

#[test]
fn a_change_whose_answer_is_lost_is_put_back() {
    // Whether it was done cannot be known; it is put back either way.
    for done in [true, false] {
        let disk = Disk::new(move |nth| if nth == 1 { (done, Does::HangsUp) } else { (true, silently()) });
        let error = disk.arm().expect_err("refused");
        assert_eq!(error.kind, Kind::Refused, "{error}");
        assert_eq!(disk.changes(), ["off\"", "on\""], "done: {done}");
    }
}

#[test]
fn putting_back_is_tried_again_and_what_is_left_is_told() {
    let disk = Disk::new(|nth| match nth {
        1 => (true, silently()),
        2 => (false, Does::HangsUp),
        3 => (false, Does::Returns(json!("busy"))),
        _ => (true, silently()),
    });
    disk.arm().expect("put back in the end");
    assert_eq!(disk.changes(), ["off\"", "on\"", "on\"", "on\""]);

    let disk =
        Disk::new(|nth| if nth == 1 { (true, silently()) } else { (false, Does::Returns(json!("no\x1b[2J memory"))) });
    let error = disk.arm().expect_err("left");
    assert_eq!(error.kind, Kind::Failed);
    let expect = "QEMU's block node file0 was left with cache.direct=off, or will be; it had on: no\\u{1b}[2J memory";
    assert_eq!(error.to_string(), expect);
    assert!(error.hint.ends_with("qemu-io file0 \"reopen -o cache.direct=on\""), "{}", error.hint);
}
