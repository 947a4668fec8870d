//! Where jobs that make a snapshot find the server.

use std::io;
use std::os::unix::net::UnixStream;
use std::thread::{self, Scope};

use super::socket::Socket;
use crate::error::{Error, Kind, Result};
use crate::hold::filter::link;
use crate::serve::control::{self, Served};
use crate::serve::server::Server;

type Serve = Box<dyn Fn(&UnixStream) -> io::Result<()> + Send + Sync>;

/// A socket for jobs, or why there is none: the image is served all the same.
pub struct Jobs(Option<(Server<Serve>, Socket)>);

impl Jobs {
    /// Listens for jobs of this image.
    pub fn listen(served: Served) -> Self {
        Self(listen(served).inspect_err(|error| {
            let hint = "nobody can make a snapshot through this server (filter); what it serves is served all the same";
            crate::cli::warn(Some(format!("{error}: {hint}")));
        }).ok())
    }

    /// In a thread of its own.
    pub fn start<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        if let Some((server, _)) = &self.0 {
            let started = thread::Builder::new().name("jobs".into()).spawn_scoped(scope, || server.run());
            if let Err(error) = started {
                crate::cli::warn(Some(format!("no snapshot can be made through this server: {error}")));
            }
        }
    }

    /// Takes no more jobs; the one that there is is broken.
    pub fn stop(&self) {
        if let Some((server, _)) = &self.0 {
            server.stop();
            server.hang_up();
        }
    }
}

fn listen(served: Served) -> Result<(Server<Serve>, Socket)> {
    let none = || Error::new(Kind::Refused, "there is no place for the socket of jobs (XDG_RUNTIME_DIR)", "");
    let path = link::socket(served.dev, served.ino).ok_or_else(none)?;
    let cannot = |e| Error::io(Kind::Refused, "there is no place for the socket of jobs", "", e);
    link::make_directory().map_err(cannot)?;
    let socket = Socket::make(&path)?;
    let serve: Serve = Box::new(move |stream| control::serve(stream, &served));
    // What becomes of a job, the job itself tells.
    let server = Server::new(socket.listener()?, serve, control::MOST, Box::new(|_| ())).map_err(cannot)?;
    Ok((server, socket))
}
