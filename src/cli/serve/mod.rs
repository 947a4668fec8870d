//! `serve SRC --socket PATH`: gives an image to a VM over NBD.
//!
//! One thread sleeps ([`Wakes`]) and tells what the server's threads have to tell ([`news`]); nobody who does not read can
//! keep a client waiting. [`image`] opens what is served, [`socket`] where it is to be had; [`jobs`] are those that make a snapshot of it.

pub mod args;
pub mod image;
pub mod jobs;
pub mod news;
pub mod socket;
pub mod tell;

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::cli::service::notify;
use crate::cli::service::wakes::{Wake, Wakes};
use crate::disk::process;
use crate::error::{Error, Kind, Result};
use crate::serve::buffers::Buffers;
use crate::serve::control::Served;
use crate::serve::exports::Catalogue;
use crate::serve::server::{Event, Server};
use crate::serve::session;
use crate::serve::wait::within;
use args::ServeArgs;
use news::News;
use socket::Place;
use tell::Teller;

/// What the server itself needs of descriptors.
const DESCRIPTORS: u64 = 48;

/// How long clients may take to read their last answers.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long those may take to go who were hung up on, and jobs. Whoever has not gone then waits for a disk.
const GOING: Duration = Duration::from_secs(2);

/// How long the gate is asked at a time whether what is on its way to the image is there.
const MOMENT: Duration = Duration::from_millis(5);

/// The longest sleep.
const LONG: Duration = Duration::from_secs(3600);

/// Runs `serve` until SIGTERM or SIGINT: 0 then.
///
/// # Errors
/// Refused where the image cannot be served or the socket not be had, usage where no socket is named.
pub fn run(args: &ServeArgs) -> Result<u8> {
    let mut wakes = Wakes::on_signals()?;
    let news = Arc::new(News::new(wakes.rope()?));
    let place = Place::of(args.socket.as_deref())?;
    enough_descriptors(args.connections)?;
    // Whoever serves it already keeps its socket; and without one of its own it is not opened for writing, whom jobs would take for somebody else.
    let free = image::Free::look(args)?;
    let socket = place.listen()?;
    let alarm = Box::new({
        let news = Arc::clone(&news);
        move |e: &io::Error| news.add(Event::Lost(io::Error::new(e.kind(), e.to_string())))
    });
    let image = image::open(args, free, alarm, {
        let news = Arc::clone(&news);
        Arc::new(move |told| news.add(Event::Fleece(told)))
    })?;
    let facts = image.facts;
    let (orphans, fleeces) = (Arc::clone(&image.served.orphans), Arc::clone(&image.served.fleeces));
    // Nobody has written: the next server finds everything as this one did.
    let leave = || {
        orphans.leave();
        fleeces.leave();
    };
    let gate = Arc::clone(&image.served.gate);
    let exports = Catalogue::new(image.device, args.read_only, facts.block, Arc::clone(&image.served.points));
    let tell = Box::new({
        let news = Arc::clone(&news);
        move |event| news.add(event)
    });
    let most = usize::from(args.connections);
    let no_server = |e| {
        leave();
        Error::io(Kind::Failed, "the server cannot be set up", "see ulimit -n", e)
    };
    let buffers = Buffers::default();
    let serve = move |stream: &UnixStream| session::serve(stream, &exports, &buffers);
    let server = Server::new(socket.listener().inspect_err(|_| leave())?, serve, most, tell).map_err(no_server)?;
    let server = Arc::new(server);
    let at = socket.path().map(|path| path.into_os_string().into_vec());
    let mut jobs = jobs::Jobs::listen(Served { socket: at, ..image.served });
    let mut teller = Teller::new(args, &socket, facts);
    // In no scope, which would wait for those who wait for a disk.
    let serving = thread::Builder::new().name("server".into()).spawn({
        let server = Arc::clone(&server);
        move || server.run()
    });
    let serving = serving.map_err(no_server)?;
    jobs.start();
    // First of all, so that a reader who is slow does not keep a boot waiting.
    notify::ready(&teller.status());
    teller.started();
    let watchdog = notify::watchdog();
    loop {
        let wake = wakes.wait(watchdog.unwrap_or(LONG));
        if watchdog.is_some() {
            notify::alive();
        }
        for event in news.take() {
            teller.told(&event);
            notify::status(&teller.status());
        }
        // There is nothing to be read again; and a VM's disk does not go with a terminal.
        if wake == Wake::Stop {
            break;
        }
    }
    notify::stopping();
    fleeces.close();
    server.stop();
    let have_gone = || serving.is_finished();
    // Who does not read his answers keeps nobody else from ending.
    let hung_up = if within(FAREWELL, have_gone) { 0 } else { server.hang_up() };
    // Nor does a reader who waits for a fleece's disk. But what is on its way to the image is there before anybody else may write to it.
    if !within(GOING, have_gone) {
        while !have_gone() && !gate.close(MOMENT) {}
    }
    // Nobody writes any more: the next server takes up the jobs, and the fleeces.
    orphans.leave();
    jobs.stop();
    within(GOING, || jobs.have_gone());
    fleeces.leave();
    drop(socket);
    drop(jobs);
    let last = news.take();
    // A thread that waits for a fleece's disk keeps this process; not the image, which the next server is to have.
    let _ = process::let_go_of_all();
    teller.stopped(last, hung_up);
    if serving.is_finished() && serving.join().is_err() {
        let what = "a thread of the server has failed; it was no good to the client that it was for";
        return Err(Error::new(Kind::Failed, what, "the message above says where: report it"));
    }
    Ok(0)
}

/// A client that there is no descriptor for would wait for one instead of being sent away.
fn enough_descriptors(connections: u16) -> Result<()> {
    let needed = u64::from(connections) + DESCRIPTORS;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((needed, needed));
    if soft < needed && hard >= needed {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, needed, hard);
    }
    if hard >= needed {
        return Ok(());
    }
    let what = format!("{connections} clients need {needed} descriptors, and there may be {hard}");
    Err(Error::new(Kind::Refused, what, "raise the limit (ulimit -n, LimitNOFILE=), or lower --connections"))
}
