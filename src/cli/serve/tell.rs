//! What `serve` tells, and how it says it.

use std::collections::VecDeque;
use std::path::PathBuf;

use serde_json::json;

use super::args::{Cache, ServeArgs};
use super::image::Facts;
use super::socket::{self, Socket};
use crate::cli::service::log::{Log, with_path};
use crate::cli::words;
use crate::serve::fleece::all::{Fortune, Told};
use crate::serve::server::Event;

/// Tells what happens.
pub struct Teller {
    log: Log,
    src: PathBuf,
    socket: Option<PathBuf>,
    read_only: bool,
    cache: Cache,
    bytes: u64,
    /// How many are connected.
    clients: usize,
}

impl Teller {
    /// Of an image of this size on this socket.
    pub fn new(args: &ServeArgs, socket: &Socket, facts: Facts) -> Self {
        Self {
            log: Log::new(args.output),
            src: args.src.clone(),
            socket: socket.path(),
            read_only: args.read_only,
            cache: args.cache,
            bytes: facts.bytes,
            clients: 0,
        }
    }

    /// One line on how things stand, for a service manager's status.
    pub fn status(&self) -> String {
        format!("{} served to {}", words::name(&self.src), words::count(self.clients as u64, "client"))
    }

    /// Clients can come.
    pub fn started(&mut self) {
        let cache = if self.cache == Cache::None { "none" } else { "writeback" };
        let object = json!({"event": "started", "bytes": self.bytes, "read_only": self.read_only, "cache": cache});
        let mut object = with_path(object, "src", &self.src);
        let name = words::name(&self.src);
        let only = if self.read_only { ", read-only" } else { "" };
        match &self.socket {
            Some(path) => {
                let uri = socket::uri("", path);
                object = with_path(object, "socket", path);
                object["uri"] = uri.clone().into();
                self.log.notice(&format!(
                    "{name}: {}{only}, at {}\nnext: leave this running; qemu-system-x86_64 -drive '{}'",
                    words::bytes(self.bytes),
                    words::name(path),
                    drive(&uri, self.read_only)
                ));
            }
            None => self.log.notice(&format!("{name}: {}{only}, at the socket handed over", words::bytes(self.bytes))),
        }
        self.log.event(object);
    }

    /// Something has happened.
    pub fn told(&mut self, event: &Event) {
        let with = |event: &str, clients: usize| json!({"event": event, "clients": clients});
        match event {
            Event::Came(clients) => {
                self.clients = *clients;
                self.log.event(with("connected", *clients));
                self.log.notice(&format!("connected: {}", words::count(*clients as u64, "client")));
            }
            Event::Went(clients, None) => {
                self.clients = *clients;
                self.log.event(with("disconnected", *clients));
                self.log.notice(&format!("disconnected: {} left", words::count(*clients as u64, "client")));
            }
            Event::Went(clients, Some(error)) => {
                self.clients = *clients;
                let mut object = with("disconnected", *clients);
                object["error"] = error.to_string().into();
                self.log.event(object);
                let error = words::line(&error.to_string());
                self.log.error(&format!(
                    "warning: a client was dropped: {error}; {} left\n",
                    words::count(*clients as u64, "client")
                ));
            }
            Event::SentAway => {
                self.log.event(with("sent-away", self.clients));
                self.log.error("warning: one more client than --connections allows was sent away\n");
            }
            Event::Lost(error) => {
                let error = words::line(&error.to_string());
                self.log.event(json!({"event": "lost", "error": error}));
                let hint = "stop the VM and mend the disk; every flush fails until this server is started again, and what is lost stays lost";
                self.log.error(&format!(
                    "rclone-img: what clients wrote cannot be put on the disk: {error}\nhint: {hint}\n"
                ));
            }
            Event::Fleece(Told { name, what }) => {
                let (event, why) = match what {
                    Fortune::Begun => ("begun", None),
                    Fortune::TakenUp => ("taken-up", None),
                    Fortune::Ended => ("ended", None),
                    Fortune::Lost(why) => ("lost", Some(words::line(why))),
                };
                self.log.event(json!({"event": format!("fleece-{event}"), "name": name, "error": why}));
                match why {
                    None => self.log.notice(&format!("fleece {name}: {event}")),
                    Some(why) => self.log.error(&format!("warning: fleece {name} is lost: {why}\n")),
                }
            }
            Event::Failed(error) => {
                let error = words::line(&error.to_string());
                let tries = "it is tried on, and this is told once";
                self.log.error(&format!("warning: clients cannot be taken: {error}; {tries}\nhint: see ulimit -n\n"));
                self.log.event(json!({"event": "failed-to-connect", "error": error}));
            }
        }
    }

    /// The end, and what came before it. So many were hung up on because they did not read their answers.
    pub fn stopped(&mut self, last: VecDeque<Event>, hung_up: usize) {
        last.iter().for_each(|event| self.told(event));
        self.log.event(json!({"event": "stopped", "hung_up": hung_up}));
        let answered = match hung_up {
            0 => "every request that was taken was answered".to_owned(),
            some => format!("{} did not read all answers", words::count(some as u64, "client")),
        };
        let next = "start it again: a VM whose drive has reconnect-delay waits for it so many seconds, any other gets I/O errors";
        self.log.notice(&format!("stopped; {answered}\nnext: {next}"));
    }
}

/// How many seconds a QEMU is to wait for a server that is started again.
const RECONNECT: u32 = 30;

/// QEMU's option for a disk at a URI.
fn drive(uri: &str, read_only: bool) -> String {
    let only = if read_only { ",readonly=on" } else { "" };
    format!("file={uri},format=raw,if=virtio,file.reconnect-delay={RECONNECT}{only}")
}
