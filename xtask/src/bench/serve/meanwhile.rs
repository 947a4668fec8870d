//! What clients feel while a point in time is kept: how fast they are once all of it is, and how long they wait while it is being made.
//!
//! The guest is fio's NBD client, one reader and one writer of 4 KiB with one request on the way each; beside ours stands what QEMU has for the
//! same purpose, `copy-before-write` into a sidecar file with a backup that reads the instant by NBD. A guest of another image on the same file
//! system says what of the waits is the file system's and the disk's, with clone calls on them that have nothing to do with his image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Serving, WORK, Work, bench};
use crate::chart;
use crate::image;
use crate::program::{self, Program};
use crate::run::{self, Background};
use crate::sandbox::{self, Kind, LoopFs, MIB};

/// How much of the speed without a point in time there is to be once all of it is kept.
const KEPT: f64 = 0.9;

/// The longest that one of a thousand reads, or writes, may take while a snapshot is made, in milliseconds.
const READS: f64 = 5.0;
const WRITES: f64 = 20.0;

/// The writer's requests a second, and the reader's: a guest at work.
const RATE: u32 = 1000;

/// A guest is watched for so long before anything happens.
const BEFORE: Duration = Duration::from_secs(1);

/// How long a guest is watched that nobody is beside.
const IDLE: Duration = Duration::from_secs(5);

/// How many times as large the image is as that of the neighbour.
const OTHER: u64 = 4;

/// The longest that fio runs if nobody ends it, in seconds.
const LONGEST: u32 = 3600;

/// The image for the speed of what is kept.
const SMALL: u64 = 256 * MIB;

/// What one file system has come to.
pub struct Figures {
    kind: Kind,
    bytes: u64,
    /// Of the speed without: 4 KiB reads and writes.
    kept: Vec<(&'static str, f64)>,
    felt: Vec<Felt>,
}

/// What the guest felt of somebody.
struct Felt {
    who: &'static str,
    ours: bool,
    /// How long it took, in seconds.
    took: f64,
    /// In milliseconds: the longest of 99.9 of a hundred, and of all.
    reads: (f64, f64),
    writes: (f64, f64),
}

impl Felt {
    fn met(&self) -> [bool; 2] {
        [self.reads.0 <= READS, self.writes.0 <= WRITES]
    }
}

impl Figures {
    /// How many goals are missed.
    pub fn missed(&self) -> usize {
        let kept = self.kept.iter().filter(|(_, ratio)| *ratio < KEPT).count();
        let felt = self.felt.iter().filter(|it| it.ours).flat_map(Felt::met).filter(|met| !met).count();
        kept + felt
    }

    /// Tables.
    pub fn text(&self) -> String {
        let verdict = |met: bool| if met { "met" } else { "MISSED" };
        let mut rows = vec![["a fleece all of which is kept", "of without", "goal", ""].map(str::to_owned).to_vec()];
        for (work, ratio) in &self.kept {
            rows.push(vec![
                (*work).to_owned(),
                format!("{ratio:.2} x"),
                format!("{KEPT}"),
                verdict(*ratio >= KEPT).into(),
            ]);
        }
        let kept = chart::table(&rows);
        let heads = ["meanwhile, ms", "took, s", "reads p99.9", "longest", "writes p99.9", "longest", ""];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        for felt in &self.felt {
            let [reads, writes] = felt.met();
            rows.push(vec![
                felt.who.to_owned(),
                format!("{:.1}", felt.took),
                format!("{:.2}", felt.reads.0),
                format!("{:.1}", felt.reads.1),
                format!("{:.2}", felt.writes.0),
                format!("{:.1}", felt.writes.1),
                if felt.ours { verdict(reads && writes).to_owned() } else { String::new() },
            ]);
        }
        let extents = self.bytes / 4096;
        let goals = format!("goals: reads {READS} ms, writes {WRITES} ms");
        format!(
            "\n{}\n{}: an image of about {extents} extents; {goals}\n\n{}\n",
            kept,
            self.kind.name(),
            chart::table(&rows)
        )
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let felt = |it: &Felt| {
            json!({"who": it.who, "seconds": it.took, "reads_p999_ms": it.reads.0, "reads_longest_ms": it.reads.1,
                "writes_p999_ms": it.writes.0, "writes_longest_ms": it.writes.1})
        };
        let kept: Vec<_> = self.kept.iter().map(|(work, ratio)| json!({"work": work, "ratio": ratio})).collect();
        json!({"file_system": self.kind.name(), "bytes": self.bytes, "kept": kept,
            "felt": self.felt.iter().map(felt).collect::<Vec<_>>()})
    }
}

/// Measures on one file system, with an image of so many bytes.
pub fn measure(kind: Kind, program: &Program, bytes: u64, runs: u32) -> Result<Figures> {
    let kept = kept(kind, program, runs)?;
    eprintln!("{}: making a file system in memory, and an image of {} extents", kind.name(), bytes / 4096);
    let file_system = LoopFs::make(kind, bytes / 2 * 7, true)?;
    let image = file_system.path().join("vm.img");
    image::make(&image, bytes)?;
    let stage = Stage { image, socket: file_system.path().join("vm.sock"), dir: file_system.path(), bytes };
    let felt = vec![stage.idle(program)?, stage.neighbour(program)?, stage.snapshot(program)?, stage.qemu()?];
    Ok(Figures { kind, bytes, kept, felt })
}

/// The speed with a fleece that has kept everything, of that without one, in the median of the rounds.
fn kept(kind: Kind, program: &Program, runs: u32) -> Result<Vec<(&'static str, f64)>> {
    let file_system = LoopFs::make(kind, SMALL * 4, true)?;
    let (image, socket) = (file_system.path().join("vm.img"), file_system.path().join("vm.sock"));
    fs::write(&image, vec![1; SMALL as usize]).with_context(|| format!("write {}", image.display()))?;
    let serving = Serving::start(&program.serve(&image, &socket, "writeback"), &socket)?;
    let whole = Work { name: "all of it", size: MIB, depth: 4, count: (SMALL / MIB) as u32, writes: true };
    let mut ratios = vec![Vec::new(); 2];
    for _ in 0..runs {
        for (work, ratios) in WORK.iter().take(2).zip(&mut ratios) {
            sandbox::settle(&file_system.path(), Duration::from_secs(10))?;
            let without = bench(&socket, "writeback", *work)?;
            run::checked(&mut program.fleece("start", &image))?;
            // From now on everything is kept.
            bench(&socket, "writeback", whole)?;
            sandbox::settle(&file_system.path(), Duration::from_secs(10))?;
            ratios.push(without / bench(&socket, "writeback", *work)?);
            run::checked(&mut program.fleece("stop", &image))?;
        }
    }
    serving.end();
    let median = |all: &Vec<f64>| super::super::figures::Spread::of(all).median;
    let kept: Vec<_> = WORK.iter().zip(&ratios).map(|(work, all)| (work.name, median(all))).collect();
    eprintln!("{}: once all is kept: {kept:.2?} of the speed without", kind.name());
    Ok(kept)
}

struct Stage {
    image: PathBuf,
    socket: PathBuf,
    dir: PathBuf,
    bytes: u64,
}

impl Stage {
    /// Nothing happens: what the file system and the machine are good for.
    fn idle(&self, program: &Program) -> Result<Felt> {
        let serving = Serving::start(&program.serve(&self.image, &self.socket, "none"), &self.socket)?;
        let felt = self.felt("nobody", false, "", || {
            std::thread::sleep(IDLE);
            Ok(())
        })?;
        serving.end();
        Ok(felt)
    }

    /// A snapshot of the image, which nobody uses, by its server, while the guest has another image from another server.
    fn neighbour(&self, program: &Program) -> Result<Felt> {
        let (image, target) = (self.dir.join("other.img"), self.dir.join("vm.snap"));
        let other = Self { bytes: self.bytes / OTHER, image, socket: self.socket.clone(), dir: self.dir.clone() };
        image::make(&other.image, other.bytes)?;
        let unused = self.dir.join("unused.sock");
        let own = Serving::start(&program.serve(&self.image, &unused, "none"), &unused)?;
        let serving = Serving::start(&program.serve(&other.image, &other.socket, "none"), &other.socket)?;
        let felt = other.felt("rclone-img snapshot of another image", false, "", || {
            run::checked(&mut program.snapshot(&self.image, &target, &["--consistency", "filter"])).map(drop)
        })?;
        serving.end();
        own.end();
        program::remove(&target)?;
        fs::remove_file(&other.image).with_context(|| format!("remove {}", other.image.display()))?;
        Ok(felt)
    }

    /// A snapshot through our server.
    fn snapshot(&self, program: &Program) -> Result<Felt> {
        let serving = Serving::start(&program.serve(&self.image, &self.socket, "none"), &self.socket)?;
        let target = self.dir.join("vm.snap");
        let felt = self.felt("rclone-img snapshot", true, "", || {
            run::checked(&mut program.snapshot(&self.image, &target, &["--consistency", "filter"])).map(drop)
        })?;
        serving.end();
        program::remove(&target)?;
        Ok(felt)
    }

    /// QEMU's filter in a storage daemon, into a sidecar, and a copy of the instant by NBD.
    fn qemu(&self) -> Result<Felt> {
        let (sidecar, copy) = (self.dir.join("vm.cbw"), self.dir.join("vm.copy"));
        fs::File::create(&sidecar).and_then(|it| it.set_len(self.bytes)).context("make a sidecar")?;
        let raw = |node: &str, path: &Path| {
            format!("driver=file,node-name={node},filename={},cache.direct=on,aio=native,discard=unmap", path.display())
        };
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &raw("image", &self.image), "--blockdev", &raw("sidecar", &sidecar)]);
        command.args(["--blockdev", "driver=copy-before-write,node-name=cbw,file=image,target=sidecar"]);
        command.args(["--blockdev", "driver=snapshot-access,node-name=snap,file=cbw"]);
        command.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", self.socket.display())]);
        command.args(["--export", "type=nbd,id=disk,node-name=cbw,name=disk,writable=on"]);
        command.args(["--export", "type=nbd,id=snap,node-name=snap,name=snap"]);
        let serving = Serving::start(&command, &self.socket)?;
        let uri = format!("nbd+unix:///snap?socket={}", self.socket.display());
        let felt = self.felt("QEMU copy-before-write, nbdcopy", false, "disk", || {
            run::checked(Command::new("nbdcopy").arg(uri).arg(&copy)).map(drop)
        })?;
        serving.end();
        for path in [sidecar, copy] {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(felt)
    }

    /// What a reader and a writer of an export feel while something is done.
    fn felt(&self, who: &'static str, ours: bool, export: &str, act: impl FnOnce() -> Result<()>) -> Result<Felt> {
        sandbox::settle(&self.dir, Duration::from_secs(10))?;
        let report = self.dir.join("fio.json");
        let guest = Background::start(&self.fio(export, &report))?;
        std::thread::sleep(BEFORE);
        let began = std::time::Instant::now();
        act()?;
        let took = began.elapsed().as_secs_f64();
        // It tells what it has on a signal, and calls that a failure.
        let _ = guest.stop();
        let text = fs::read_to_string(&report).context("fio's report")?;
        let (reads, writes) = latencies(&text).with_context(|| format!("fio says `{text}`"))?;
        eprintln!("  {who}: {took:.1} s; p99.9 of reads {:.2} ms, of writes {:.2} ms", reads.0, writes.0);
        Ok(Felt { who, ours, took, reads, writes })
    }

    fn fio(&self, export: &str, report: &Path) -> Command {
        let mut command = Command::new("fio");
        command.args(["--ioengine=nbd", "--thread", "--time_based", "--bs=4k", "--iodepth=1", "--randrepeat=0"]);
        command.arg(format!("--uri=nbd+unix:///{export}?socket={}", self.socket.display()));
        command.args([format!("--runtime={LONGEST}"), format!("--size={}", self.bytes), format!("--rate_iops={RATE}")]);
        command.args(["--norandommap", "--percentile_list=99.9", "--lat_percentiles=1", "--output-format=json"]);
        command.arg(format!("--output={}", report.display()));
        command.args(["--name=reader", "--rw=randread", "--name=writer", "--rw=randwrite"]);
        command
    }
}

/// From fio's report, in milliseconds: of reads and of writes, p99.9 and the longest.
fn latencies(text: &str) -> Option<((f64, f64), (f64, f64))> {
    let json: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let of = |name: &str, what: &str| {
        let job = json["jobs"].as_array()?.iter().find(|job| job["jobname"] == name)?;
        let times = &job[what]["lat_ns"];
        Some((times["percentile"]["99.900000"].as_f64()? / 1e6, times["max"].as_f64()? / 1e6))
    };
    Some((of("reader", "read")?, of("writer", "write")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_those_of_the_reader_and_of_the_writer() {
        let times = |p: u64| json!({"lat_ns": {"max": 9_000_000, "percentile": {"99.900000": p}}});
        let jobs = json!({"jobs": [{"jobname": "reader", "read": times(1_500_000), "write": times(0)},
            {"jobname": "writer", "read": times(0), "write": times(2_000_000)}]});
        let text = format!("fio: terminating on signal 15\n{jobs}");
        assert_eq!(latencies(&text), Some(((1.5, 9.0), (2.0, 9.0))));
        assert_eq!(latencies("fio: it is broken"), None);
    }
}
