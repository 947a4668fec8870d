//! `--metrics FILE`: a Prometheus text file about the last job, for node_exporter's textfile collector, renamed into place.
//!
//! FILE is replaced only if it begins with our own first line, so that a slip of the hand costs nobody a file. What a
//! failed job cannot know (bytes, calls and so on) is left out; the time of the last success is kept from the old file.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::words;
use crate::disk::real::directory_of;
use crate::engine::report::Finished;
use crate::error::{Error, Kind, Result};

/// What every file of ours begins with.
const HEADER: &str = "# rclone-img metrics; replaced by every run\n";
/// Our files are smaller than that: the labels are two paths of at most 4 KiB, a dozen times.
const LARGEST: u64 = 256 << 10;

const LAST_SUCCESS: &str = "last_success_timestamp_seconds";
const LAST_T0: &str = "last_success_t0_timestamp_seconds";
const THAW_FAILED: &str = "thaw_failed";

/// A job that is over.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// The image.
    pub src: PathBuf,
    /// The snapshot; of `rotate` the directory of its snapshots ([`place_of`]).
    pub dst: PathBuf,
    /// The wall clock at its end.
    pub at: Timestamp,
    /// How long it ran.
    pub elapsed: Duration,
    /// The exit code.
    pub exit: u8,
    /// What it did, if it made a snapshot.
    pub finished: Option<&'a Finished>,
    /// Whether a guest may have been left frozen; none where it is what the old file says.
    pub still_frozen: Option<bool>,
}

/// What `rotate` has as the label of a snapshot: each run's has a name of its own, by which nothing could be kept.
pub fn place_of(dst: &Path) -> PathBuf {
    directory_of(dst).to_owned()
}

/// Refuses a file that is not ours to replace: to be asked before a job starts. One that is not there is fine, if its
/// directory is.
///
/// # Errors
/// Refused, with what was found.
pub fn refuse_foreign(path: &Path) -> Result<()> {
    read_ours(path).map(drop)
}

/// Writes the file, with a run for each image of the job. Looks again whether it is ours.
///
/// # Errors
/// Refused as [`refuse_foreign`] does; failed where the file cannot be written.
pub fn write(path: &Path, runs: &[Run<'_>]) -> Result<()> {
    let old = read_ours(path)?;
    let failed = |error| {
        let what = format!("cannot write the metrics to {}", words::name(path));
        Error::io(Kind::Failed, what, "the job itself is not affected; see its exit code and status", error)
    };
    replace(path, &render(runs, &old)).map_err(failed)
}

/// The content of our file, empty where there is none.
fn read_ours(path: &Path) -> Result<String> {
    const HINT: &str = "give --metrics a file that does not exist, or one that it made";
    let refused = |why: &str| Error::new(Kind::Refused, format!("--metrics {}: {why}", words::name(path)), HINT);
    let unreadable = |e| Error::io(Kind::Refused, format!("--metrics {}", words::name(path)), HINT, e);
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => return Err(refused("exists and is not a regular file")),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match fs::metadata(directory_of(path)).map_err(unreadable)?.is_dir() && path.file_name().is_some() {
                true => Ok(String::new()),
                false => Err(refused("is not a file in a directory")),
            };
        }
        Err(error) => return Err(unreadable(error)),
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).map_err(unreadable)?;
    if !bytes.starts_with(HEADER.as_bytes()) {
        return Err(refused("exists and was not made by --metrics"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Synced before the rename: an empty file after a crash would be refused as somebody else's.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut prefix = OsString::from(".");
    prefix.push(name.to_string_lossy().chars().take(40).collect::<String>());
    let mut file = tempfile::Builder::new().prefix(&prefix).suffix(".tmp").tempfile_in(directory_of(path))?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    let file: File = file.persist(path).map_err(|e| e.error)?;
    drop(file);
    Ok(())
}

fn render(runs: &[Run<'_>], old: &str) -> String {
    let seconds = |time: Timestamp| format!("{:.3}", time.as_millisecond() as f64 / 1000.0);
    let mut out = String::from(HEADER);
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(&Run<'_>) -> Option<String>| {
        // Two lines of the same labels would be no Prometheus file.
        let is_first = |(index, run): &(usize, &Run<'_>)| {
            !runs[..*index].iter().any(|it| (&it.src, &it.dst) == (&run.src, &run.dst))
        };
        let lines = runs.iter().enumerate().filter(is_first).filter_map(|(_, run)| {
            let labels = format!("{{src=\"{}\",dst=\"{}\"}}", label(&run.src), label(&run.dst));
            let kept = || match name {
                LAST_SUCCESS | LAST_T0 => kept(old, name, &labels),
                THAW_FAILED => kept(old, name, &labels).or_else(|| Some("0".into())),
                _ => None,
            };
            let value = value(run).or_else(kept)?;
            Some(format!("reflink_img_{name}{labels} {value}\n"))
        });
        let lines: String = lines.collect();
        if !lines.is_empty() {
            let _ = write!(out, "# HELP reflink_img_{name} {help}\n# TYPE reflink_img_{name} gauge\n{lines}");
        }
    };
    gauge("last_run_timestamp_seconds", "When the last job ended.", &|run| Some(seconds(run.at)));
    let code = "The exit code of the last job, 0 if it made a snapshot.";
    gauge("last_run_exit_code", code, &|run| Some(run.exit.to_string()));
    gauge(LAST_SUCCESS, "When a job last made a snapshot.", &|run| run.finished.map(|_| seconds(run.at)));
    gauge(LAST_T0, "The instant that snapshot shows.", &|run| Some(seconds(run.finished?.started.t0)));
    gauge("duration_seconds", "How long the last job ran.", &|run| Some(run.elapsed.as_secs_f64().to_string()));
    gauge("bytes", "The size of the image.", &|run| Some(run.finished?.started.bytes.to_string()));
    gauge("extents", "The extents of the image.", &|run| Some(run.finished?.extents?.to_string()));
    gauge("calls", "The clone calls of the last job.", &|run| Some(run.finished?.calls.to_string()));
    gauge("longest_call_seconds", "The longest of them.", &|run| {
        Some(run.finished?.longest_call.as_secs_f64().to_string())
    });
    gauge("longest_guest_wait_seconds", "The longest that an access of a guest waited for the job.", &|run| {
        Some(run.finished?.longest_guest_wait?.as_secs_f64().to_string())
    });
    gauge("quiesced", "1 if the guest was frozen at that instant.", &|run| {
        Some(u8::from(run.finished?.quiescence.is_some_and(|known| known.quiesced)).to_string())
    });
    gauge("frozen_seconds", "How long the guest was frozen.", &|run| {
        Some(Duration::from_millis(run.finished?.quiescence?.frozen_ms).as_secs_f64().to_string())
    });
    let thaw = "1 if the guest may have been left frozen.";
    gauge(THAW_FAILED, thaw, &|run| run.still_frozen.map(|it| u8::from(it).to_string()));
    gauge("copied_bytes", "Bytes copied because they could not be shared.", &|run| {
        Some(run.finished?.copied_bytes.to_string())
    });
    gauge("skipped_bytes", "Bytes that were shared already.", &|run| Some(run.finished?.skipped_bytes.to_string()));
    gauge("point_in_time", "1 if the snapshot is of one instant.", &|run| {
        Some(u8::from(run.finished?.started.hold.point_in_time()).to_string())
    });
    out
}

/// A value of the old file, if it is of the same image and snapshot, and a number.
fn kept(old: &str, name: &str, labels: &str) -> Option<String> {
    let start = format!("reflink_img_{name}{labels} ");
    let value = old.lines().find_map(|line| line.strip_prefix(&start))?;
    value.parse::<f64>().is_ok_and(f64::is_finite).then(|| value.to_owned())
}

fn label(path: &Path) -> String {
    path.to_string_lossy().replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::{Duration, HEADER, Path, PermissionsExt, Run, fs, label, place_of, refuse_foreign, write};
    use crate::cli::report::samples;

    fn run(dst: &Path, exit: u8) -> Run<'static> {
        let at = "2026-11-21T05:00:03.25Z".parse().expect("a time");
        Run {
            src: "vm.img".into(),
            dst: dst.into(),
            at,
            elapsed: Duration::from_millis(2500),
            exit,
            finished: None,
            still_frozen: Some(exit == 1),
        }
    }

    fn values(text: &str) -> Vec<&str> {
        text.lines().filter(|l| !l.starts_with('#')).map(|l| l.trim_start_matches("reflink_img_")).collect()
    }

    #[test]
    fn a_failure_keeps_the_last_success() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("vm.prom");
        let done = samples::finished();
        let dst = Path::new("vm.snap");
        write(&file, &[Run { finished: Some(&done), ..run(dst, 0) }]).expect("written");
        let text = fs::read_to_string(&file).expect("read");
        assert_eq!(
            values(&text),
            [
                r#"last_run_timestamp_seconds{src="vm.img",dst="vm.snap"} 1795237203.250"#,
                r#"last_run_exit_code{src="vm.img",dst="vm.snap"} 0"#,
                r#"last_success_timestamp_seconds{src="vm.img",dst="vm.snap"} 1795237203.250"#,
                r#"last_success_t0_timestamp_seconds{src="vm.img",dst="vm.snap"} 1795237200.000"#,
                r#"duration_seconds{src="vm.img",dst="vm.snap"} 2.5"#,
                r#"bytes{src="vm.img",dst="vm.snap"} 8192"#,
                r#"extents{src="vm.img",dst="vm.snap"} 2"#,
                r#"calls{src="vm.img",dst="vm.snap"} 3"#,
                r#"longest_call_seconds{src="vm.img",dst="vm.snap"} 0.005125"#,
                r#"longest_guest_wait_seconds{src="vm.img",dst="vm.snap"} 0"#,
                r#"quiesced{src="vm.img",dst="vm.snap"} 0"#,
                r#"thaw_failed{src="vm.img",dst="vm.snap"} 0"#,
                r#"copied_bytes{src="vm.img",dst="vm.snap"} 4096"#,
                r#"skipped_bytes{src="vm.img",dst="vm.snap"} 0"#,
                r#"point_in_time{src="vm.img",dst="vm.snap"} 1"#,
            ]
        );
        let at = "2026-11-21T06:00:00Z".parse().expect("a time");
        write(&file, &[Run { at, ..run(dst, 4) }]).expect("written");
        let text = fs::read_to_string(&file).expect("read");
        assert_eq!(
            values(&text),
            [
                r#"last_run_timestamp_seconds{src="vm.img",dst="vm.snap"} 1795240800.000"#,
                r#"last_run_exit_code{src="vm.img",dst="vm.snap"} 4"#,
                r#"last_success_timestamp_seconds{src="vm.img",dst="vm.snap"} 1795237203.250"#,
                r#"last_success_t0_timestamp_seconds{src="vm.img",dst="vm.snap"} 1795237200.000"#,
                r#"duration_seconds{src="vm.img",dst="vm.snap"} 2.5"#,
                r#"thaw_failed{src="vm.img",dst="vm.snap"} 0"#,
            ]
        );
        write(&file, &[run(Path::new("other.snap"), 1)]).expect("written");
        let text = fs::read_to_string(&file).expect("read");
        assert!(text.contains(r#"thaw_failed{src="vm.img",dst="other.snap"} 1"#), "{text}");
        assert!(!text.contains("last_success"), "another snapshot's success is not ours: {text}");
        let mode = fs::metadata(&file).expect("stat").permissions().mode();
        let names = fs::read_dir(dir.path()).expect("list").count();
        assert_eq!((mode & 0o7777, names), (0o644, 1));
    }

    #[test]
    fn what_is_not_known_of_a_thaw_is_what_was_and_labels_are_told_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("vm.prom");
        let dst = place_of(Path::new("vm.snap"));
        let thaw = |exit: u8, still_frozen| {
            write(&file, &[Run { still_frozen, ..run(&dst, exit) }, run(&dst, 3)]).expect("written");
            let text = fs::read_to_string(&file).expect("read");
            let found: Vec<_> = values(&text).into_iter().filter(|it| it.starts_with("thaw_failed")).collect();
            assert_eq!((found.len(), dst.as_path()), (1, Path::new(".")), "{text}");
            found[0].rsplit(' ').next().map(str::to_owned)
        };
        let told = [None, Some(true), None, Some(false)].map(|frozen| thaw(0, frozen).expect("a value"));
        assert_eq!(told, ["0", "1", "1", "0"]);
    }

    #[test]
    fn what_we_did_not_make_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("image"), "precious").expect("written");
        fs::write(at("empty"), "").expect("written");
        fs::write(at("ours"), HEADER).expect("written");
        std::os::unix::fs::symlink(at("ours"), at("link")).expect("linked");
        let check = |name: &str, expect: &str| {
            let file = at(name);
            for result in
                [refuse_foreign(&file), if expect.is_empty() { Ok(()) } else { write(&file, &[run(&file, 0)]) }]
            {
                let got = result.map_err(|e| (e.kind.exit_code(), e.to_string()));
                match expect {
                    "" => assert_eq!(got, Ok(())),
                    _ => assert_eq!(got, Err((3, format!("--metrics {}{expect}", file.display())))),
                }
            }
        };
        check("new", "");
        check("ours", "");
        check("image", ": exists and was not made by --metrics");
        check("empty", ": exists and was not made by --metrics");
        check("link", ": exists and is not a regular file");
        check(".", ": exists and is not a regular file");
        check("nowhere/new", ": No such file or directory (os error 2)");
        check("image/new", ": Not a directory (os error 20)");
        assert_eq!(fs::read_to_string(at("image")).expect("read"), "precious");
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(label(Path::new("a\\b\"c\nd e")), "a\\\\b\\\"c\\nd e");
        assert_eq!(label(Path::new(OsStr::from_bytes(b"a\xff"))), "a\u{fffd}");
    }

    #[test]
    fn any_name_can_be_a_metrics_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let long = "\u{fc}".repeat(120);
        for name in [&b" vm\n\xff.prom"[..], long.as_bytes()] {
            let file = dir.path().join(OsStr::from_bytes(name));
            write(&file, &[run(Path::new("vm.snap"), 1)]).expect("written");
            refuse_foreign(&file).expect("ours");
        }
    }
}
