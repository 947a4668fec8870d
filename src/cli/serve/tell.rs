//! What `serve` tells, and how it says it.

use std::collections::VecDeque;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::args::{Cache, ServeArgs};
use super::image::Facts;
use super::socket::{self, Socket};
use crate::cli::service::log::{Log, with_path};
use crate::cli::words;
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
            socket: socket.path().map(Into::into),
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
                let uri = socket::uri(path);
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
            Event::Failed(error) => {
                let error: Value = error.to_string().into();
                self.log.error(&format!("warning: a client could not be taken: {error}\nhint: see ulimit -n\n"));
                self.log.event(json!({"event": "failed-to-connect", "error": error}));
            }
        }
    }

    /// The end, and what came before it.
    pub fn stopped(&mut self, last: VecDeque<Event>) {
        last.iter().for_each(|event| self.told(event));
        self.log.event(json!({"event": "stopped"}));
        self.log.notice(
            "stopped; every request that was taken was answered\nnext: a VM that is to run on needs it back soon",
        );
    }
}

/// QEMU's option for a disk at a URI.
fn drive(uri: &str, read_only: bool) -> String {
    let only = if read_only { ",readonly=on" } else { "" };
    format!("file={uri},format=raw,if=virtio{only}")
}
