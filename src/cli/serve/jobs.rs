//! Where jobs that make a snapshot find the server.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::socket::Socket;
use crate::error::{Error, Kind, Result};
use crate::hold::filter::link;
use crate::serve::control::{self, Served};
use crate::serve::server::Server;

type Serve = Box<dyn Fn(&UnixStream) -> io::Result<()> + Send + Sync>;

/// A socket for jobs, or why there is none: the image is served all the same.
pub struct Jobs {
    socket: Option<(Arc<Server<Serve>>, Socket)>,
    listening: Option<JoinHandle<()>>,
}

impl Jobs {
    /// Listens for jobs of this image.
    pub fn listen(served: Served) -> Self {
        let socket = listen(served).inspect_err(|error| {
            let hint = "nobody can make a snapshot through this server (filter); what it serves is served all the same";
            crate::cli::warn(Some(format!("{error}: {hint}")));
        });
        Self { socket: socket.ok(), listening: None }
    }

    /// In a thread of its own.
    pub fn start(&mut self) {
        if let Some((server, _)) = &self.socket {
            let server = Arc::clone(server);
            let started = thread::Builder::new().name("jobs".into()).spawn(move || server.run());
            let warn = |error| crate::cli::warn(Some(format!("no snapshot can be made through this server: {error}")));
            self.listening = started.map_err(warn).ok();
        }
    }

    /// Whether nobody is listened to any more.
    pub fn have_gone(&self) -> bool {
        self.listening.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Takes no more jobs; the one that there is is broken.
    pub fn stop(&self) {
        if let Some((server, _)) = &self.socket {
            server.stop();
            server.hang_up();
        }
    }
}

fn listen(served: Served) -> Result<(Arc<Server<Serve>>, Socket)> {
    let none = || Error::new(Kind::Refused, "there is no place for the socket of jobs (XDG_RUNTIME_DIR)", "");
    let path = link::socket(served.dev, served.ino).ok_or_else(none)?;
    let cannot = |e| Error::io(Kind::Refused, "there is no place for the socket of jobs", "", e);
    link::make_directory().map_err(cannot)?;
    let socket = Socket::make(&path)?;
    let serve: Serve = Box::new(move |stream| control::serve(stream, &served));
    // What becomes of a job, the job itself tells.
    let server = Server::new(socket.listener()?, serve, control::MOST, Box::new(|_| ())).map_err(cannot)?;
    Ok((Arc::new(server), socket))
}
