//! `cargo xtask bench serve`: the NBD server beside nbdkit's file plugin and qemu-nbd, with QEMU's own client.
//!
//! All serve one image, one after the other in each round, over a Unix socket and in the same cache mode; `qemu-img bench` says how long so
//! many requests took. What is compared are operations per second within one round: the goal is at least as many as the better of the two.
//! nbdkit's file plugin knows no O_DIRECT, so it is in the rounds through the page cache alone. [`meanwhile`] is what clients feel of a point in
//! time that is kept.

mod meanwhile;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::figures::Spread;
use crate::chart;
use crate::image;
use crate::program::Program;
use crate::run::{self, Background};
use crate::sandbox::{self, Kind, LoopFs, MIB};
use crate::setup;

/// The image: more than a client can have on the way, and quickly made.
const BYTES: u64 = 256 * MIB;

/// The most memory that the server may have with sixteen clients, in bytes.
const MEMORY: u64 = 64 * MIB;

/// How many clients that is.
const CLIENTS: usize = 16;

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `cargo xtask bench serve`.
#[derive(Args)]
pub struct Serve {
    /// Install what is missing first (apt-get; root or sudo)
    #[arg(long)]
    setup: bool,
    /// How often each is run
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Size of the image of which a snapshot is made; a gibibyte has about 262144 extents
    #[arg(long, default_value = "4G", value_parser = image::size)]
    size: u64,
    /// One part only: the servers beside one another, or what clients feel while a point in time is kept
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// One file system only
    #[arg(long, value_enum)]
    fs: Option<Kind>,
    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
}

/// A part of the whole.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Part {
    Servers,
    Meanwhile,
}

/// What clients do.
#[derive(Clone, Copy)]
struct Work {
    name: &'static str,
    /// Bytes of a request, requests on the way, requests in a run.
    size: u64,
    depth: u32,
    count: u32,
    writes: bool,
}

const WORK: [Work; 4] = [
    Work { name: "4 KiB reads, 32 on the way", size: 4096, depth: 32, count: 60_000, writes: false },
    Work { name: "4 KiB writes, 32 on the way", size: 4096, depth: 32, count: 60_000, writes: true },
    Work { name: "1 MiB reads, in order", size: MIB, depth: 4, count: 1500, writes: false },
    Work { name: "1 MiB writes, in order", size: MIB, depth: 4, count: 1500, writes: true },
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Ours,
    Nbdkit,
    QemuNbd,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "rclone-img serve",
            Self::Nbdkit => "nbdkit file",
            Self::QemuNbd => "qemu-nbd",
        }
    }

    fn command(self, program: &Program, image: &Path, socket: &Path, cache: &str) -> Command {
        match self {
            Self::Ours => program.serve(image, socket, cache),
            Self::Nbdkit => {
                let mut command = Command::new("nbdkit");
                command.args(["-f", "-U"]).arg(socket).arg("file").arg(image);
                command
            }
            Self::QemuNbd => {
                let mut command = Command::new("qemu-nbd");
                let aio = if cache == "none" { "native" } else { "threads" };
                command
                    .args(["-t", "-e", "32", "-f", "raw", "--cache", cache, "--aio", aio, "-k"])
                    .arg(socket)
                    .arg(image);
                command
            }
        }
    }
}

/// Operations per second of each server in each round, of one work in one cache mode.
struct Row {
    cache: &'static str,
    work: &'static str,
    servers: Vec<(Server, Vec<f64>)>,
}

impl Row {
    /// Ours of the better of the others, in the median of the rounds.
    fn ratio(&self) -> f64 {
        let of = |server| self.servers.iter().find(|(it, _)| *it == server).map(|(_, all)| all.as_slice());
        let ours = of(Server::Ours).unwrap_or_default();
        let others = [Server::Nbdkit, Server::QemuNbd].into_iter().filter_map(of).collect::<Vec<_>>();
        let ratio = |(round, ours): (usize, &f64)| ours / others.iter().map(|all| all[round]).fold(0.0, f64::max);
        Spread::of(&ours.iter().enumerate().map(ratio).collect::<Vec<_>>()).median
    }

    fn met(&self) -> bool {
        self.ratio() >= 1.0
    }
}

/// What one file system has come to.
struct Figures {
    kind: Kind,
    rows: Vec<Row>,
    /// The most memory that ours had with sixteen clients, in bytes.
    memory: u64,
}

impl Figures {
    fn missed(&self) -> usize {
        self.rows.iter().filter(|row| !row.met()).count() + usize::from(self.memory > MEMORY)
    }

    fn text(&self) -> String {
        let mut rows = vec![
            ["operations per second, median", "rclone-img serve", "nbdkit file", "qemu-nbd", "of the better", ""]
                .map(str::to_owned)
                .to_vec(),
        ];
        let verdict = |met| (if met { "met" } else { "MISSED" }).to_owned();
        for row in &self.rows {
            let median = |server| {
                let all = row.servers.iter().find(|(it, _)| *it == server);
                all.map_or("-".to_owned(), |(_, all)| format!("{:.0}", Spread::of(all).median))
            };
            rows.push(vec![
                format!("{}, cache {}", row.work, row.cache),
                median(Server::Ours),
                median(Server::Nbdkit),
                median(Server::QemuNbd),
                format!("{:.2} x", row.ratio()),
                verdict(row.met()),
            ]);
        }
        let memory = self.memory as f64 / MIB as f64;
        format!(
            "\n{}: an image of {} MiB\n\n{}\nmemory with {CLIENTS} clients: {memory:.1} MiB of {} ({})\n",
            self.kind.name(),
            BYTES / MIB,
            chart::table(&rows),
            MEMORY / MIB,
            verdict(self.memory <= MEMORY)
        )
    }

    fn json(&self) -> Value {
        let server = |(server, all): &(Server, Vec<f64>)| json!({"server": server.name(), "per_second": all});
        let row = |row: &Row| {
            let servers: Vec<_> = row.servers.iter().map(server).collect();
            json!({"work": row.work, "cache": row.cache, "servers": servers, "ratio": row.ratio(), "met": row.met()})
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        json!({"file_system": self.kind.name(), "rows": rows, "memory": self.memory})
    }
}

impl Serve {
    /// Measures on each file system and prints the figures; how many goals are missed.
    pub fn run(&self) -> Result<usize> {
        sandbox::watch_signals()?;
        sandbox::sweep(&[]);
        setup::ensure(setup::ALL, self.setup, "bench serve")?;
        if !setup::is_root() {
            bail!("making loop-mounted file systems needs root");
        }
        let program = Program::at_or_built(None)?;
        let kinds = self.fs.map_or(Kind::BOTH.to_vec(), |kind| vec![kind]);
        let of = |part| kinds.iter().filter(move |_| self.part.is_none_or(|it| it == part));
        let all = of(Part::Servers).map(|kind| self.on(*kind, &program)).collect::<Result<Vec<_>>>()?;
        let felt = of(Part::Meanwhile).map(|kind| meanwhile::measure(*kind, &program, self.size, self.runs));
        let felt = felt.collect::<Result<Vec<_>>>()?;
        let text = if self.json {
            let figures = all.iter().map(Figures::json).collect::<Vec<_>>();
            let meanwhile = felt.iter().map(meanwhile::Figures::json).collect::<Vec<_>>();
            format!("{:#}\n", json!({"v": 1, "figures": figures, "meanwhile": meanwhile}))
        } else {
            all.iter().map(Figures::text).chain(felt.iter().map(meanwhile::Figures::text)).collect()
        };
        // A reader that has gone away is no failure.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(all.iter().map(Figures::missed).chain(felt.iter().map(meanwhile::Figures::missed)).sum())
    }

    fn on(&self, kind: Kind, program: &Program) -> Result<Figures> {
        eprintln!("{}: making a file system in memory", kind.name());
        let file_system = LoopFs::make(kind, BYTES * 3, true)?;
        let image = file_system.path().join("vm.img");
        fs::write(&image, vec![1; BYTES as usize]).with_context(|| format!("write {}", image.display()))?;
        let socket = file_system.path().join("vm.sock");
        let mut rows = Vec::new();
        for (cache, servers) in [
            ("writeback", &[Server::Ours, Server::Nbdkit, Server::QemuNbd][..]),
            ("none", &[Server::Ours, Server::QemuNbd]),
        ] {
            for work in WORK {
                let mut row = Row { cache, work: work.name, servers: servers.iter().map(|it| (*it, vec![])).collect() };
                for _ in 0..self.runs {
                    for (server, all) in &mut row.servers {
                        sandbox::settle(&file_system.path(), Duration::from_secs(10))?;
                        let serving = Serving::start(&server.command(program, &image, &socket, cache), &socket)?;
                        all.push(f64::from(work.count) / bench(&socket, cache, work)?);
                        serving.end();
                    }
                }
                eprintln!("  {}, cache {cache}: {:.2} of the better of the others", work.name, row.ratio());
                rows.push(row);
            }
        }
        let memory = memory(program, &image, &socket)?;
        Ok(Figures { kind, rows, memory })
    }
}

/// A server that listens.
struct Serving(Background, PathBuf);

impl Serving {
    fn start(command: &Command, socket: &Path) -> Result<Self> {
        // What another has left there.
        let _ = fs::remove_file(socket);
        let server = Background::start(command)?;
        let until = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if Instant::now() > until {
                bail!("{} does not listen", run::words(command));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Self(server, socket.to_owned()))
    }

    fn pid(&self) -> i32 {
        self.0.pid()
    }

    fn end(self) {
        // How they end on a signal is their own business.
        let _ = self.0.stop();
        let _ = fs::remove_file(&self.1);
    }
}

/// Seconds that the work takes.
fn bench(socket: &Path, cache: &str, work: Work) -> Result<f64> {
    let done = run::checked(&mut client(socket, cache, work))?;
    seconds(&done.stdout).with_context(|| format!("qemu-img bench says `{}`", done.stdout))
}

/// What `qemu-img bench` says at its end.
fn seconds(said: &str) -> Option<f64> {
    said.split_once("completed in ")?.1.split_whitespace().next()?.parse().ok()
}

fn client(socket: &Path, cache: &str, work: Work) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(["bench", "-f", "raw", "-t", cache, "-c", &work.count.to_string(), "-d", &work.depth.to_string()]);
    command.args(["-s", &work.size.to_string()]);
    if work.writes {
        command.args(["-w", "--pattern=7"]);
    }
    command.arg(format!("nbd+unix:///?socket={}", socket.display()));
    command
}

/// The most memory that ours has while sixteen clients write and read as much as they can.
fn memory(program: &Program, image: &Path, socket: &Path) -> Result<u64> {
    let serving = Serving::start(&program.serve(image, socket, "none"), socket)?;
    let works = [WORK[2], WORK[3], WORK[0], WORK[1]];
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let mut command = client(socket, "none", Work { count: works[n % 4].count / 8, ..works[n % 4] });
            thread::spawn(move || run::checked(&mut command).map(drop))
        })
        .collect();
    clients.into_iter().try_for_each(|it| it.join().unwrap_or_else(|_| bail!("a client's thread panicked")))?;
    let status = fs::read_to_string(format!("/proc/{}/status", serving.pid())).context("the server's memory")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak = peak.and_then(|it| it.parse::<u64>().ok()).context("the server's memory")? << 10;
    serving.end();
    Ok(peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seconds_are_those_at_the_end() {
        let said = "Sending 60000 read requests, 4096 bytes each, 32 in parallel (starting at offset 0, step size 4096)\nRun completed in 0.417 seconds.\n";
        assert_eq!((seconds(said), seconds("Sending 1 in parallel")), (Some(0.417), None));
    }

    #[test]
    fn a_round_is_compared_with_the_better_of_the_others() {
        let servers = vec![
            (Server::Ours, vec![10.0, 30.0, 20.0]),
            (Server::Nbdkit, vec![20.0, 10.0, 20.0]),
            (Server::QemuNbd, vec![5.0, 20.0, 10.0]),
        ];
        let row = Row { cache: "none", work: "reads", servers };
        assert_eq!((row.ratio(), row.met()), (1.0, true));
    }
}
