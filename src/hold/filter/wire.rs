//! What a job and the server of its image say to each other: one JSON object a line, over a Unix socket.
//!
//! The job speaks first and is answered in turn, but for what the kernel's clone calls would wait for: [`ToServer::Called`],
//! [`ToServer::Done`] and [`ToServer::Promoted`] have no answer. [`ToJob::Wanted`] and [`ToJob::Broken`] come at any time, the first not again
//! before it was answered by [`ToServer::Promoted`]. Who hangs up lets the image go. Pure.

use std::io::{self, ErrorKind};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of this language; the other end must speak the same.
pub const VERSION: u32 = 2;

/// The longest line.
const LONGEST: usize = 64 << 10;

/// What a job says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum ToServer {
    /// First of all; answered by [`ToJob::Image`].
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// There is to be a T0; answered by [`ToJob::Ok`], or [`ToJob::Refused`] where another job has the image.
    Prepare {
        /// The job's name, which no other has: hexadecimal.
        job: String,
        /// Its process.
        pid: u32,
        /// When that started, in clock ticks since the boot.
        pid_start: u64,
        /// How long a write may wait, in microseconds.
        deadline_us: u64,
        /// The name that clients will know the snapshot by, if they are to.
        name: Option<String>,
    },
    /// The job had its T0 by a server that is gone: answered by [`ToJob::Ok`] where all writes have waited for it since, or
    /// [`ToJob::Refused`]. It says what is done, and then [`ToServer::Watch`].
    Return {
        /// The job's name.
        job: String,
    },
    /// Writes wait from now on; answered by [`ToJob::Ok`] once none is on its way to the disk any more, or [`ToJob::Refused`].
    Gather {
        /// The image's size, in bytes.
        size: u64,
        /// The unit that is cloned before a write goes on, in bytes.
        cluster: u64,
    },
    /// This was T0: writes to what is done go on. Answered by [`ToJob::Ok`].
    Watch,
    /// Clients may read the point in time from now on; answered by [`ToJob::Ok`], or [`ToJob::Refused`] where they cannot.
    Show {
        /// The file that it is made in, a path.
        partial: Vec<u8>,
        /// Where it will be, a path.
        snapshot: Vec<u8>,
    },
    /// A clone call is about to be made: writes wait. Answered by [`ToJob::Ok`] when it can be.
    Calling,
    /// It has returned.
    Called,
    /// These bytes are in the snapshot.
    Done {
        /// The first.
        start: u64,
        /// Behind the last.
        end: u64,
    },
    /// What was wanted is done, or a part of it.
    Promoted,
    /// All is done; answered by [`ToJob::Ended`].
    End,
    /// A fleece is to be; answered by [`ToJob::Fleeces`] with it alone, or [`ToJob::Refused`].
    Fleece(FleeceOrder),
    /// A fleece is to end, with its files; answered by [`ToJob::Fleeces`] with how it stood, or [`ToJob::Refused`].
    EndFleece {
        /// Its name.
        name: String,
    },
    /// Which there are; answered by [`ToJob::Fleeces`].
    Fleeces,
    /// Writes are let go on, whatever was done; answered by [`ToJob::Ok`]. After that another job may come.
    Leave,
}

/// How a fleece is to be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FleeceOrder {
    /// Its name.
    pub name: String,
    /// The directory of the file with what is kept, a path; that of the image without one.
    pub sidecar: Option<Vec<u8>>,
    /// A finished snapshot, a path: only what has changed since is kept.
    pub base: Option<Vec<u8>>,
    /// How it is kept.
    #[serde(flatten)]
    pub terms: FleeceTerms,
}

/// How a fleece is kept, and what it may cost.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FleeceTerms {
    /// The unit that is kept, in bytes.
    pub cluster: u64,
    /// How long a write may wait, in microseconds.
    pub deadline_us: u64,
    /// Whether the guest's write fails where what it overwrites cannot be kept.
    pub break_guest_write: bool,
    /// The most that may be kept, in bytes.
    pub max_sidecar: u64,
    /// The most of it that may be in memory, in bytes.
    pub ram: u64,
    /// Free space below which it is given up: hundredths of all, or bytes where these are not 0.
    pub min_free: (u8, u64),
    /// Whether what is kept is durable before it is overwritten.
    pub durable: bool,
}

/// How a fleece stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FleeceState {
    /// Its name.
    pub name: String,
    /// The instant that it shows, RFC 3339.
    pub t0: String,
    /// The name of its base.
    pub base: Option<String>,
    /// What it has kept, in bytes.
    pub bytes: u64,
    /// How much of that was ever copied, for it could not be cloned, in bytes.
    pub copied: u64,
    /// Why it is lost, if it is.
    pub lost: Option<String>,
    /// Writes that had to wait for it.
    pub waited: u64,
    /// The longest that one waited, in microseconds.
    pub longest_us: u64,
}

/// What a server says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum ToJob {
    /// Who it is, and what it serves.
    Image {
        /// [`VERSION`].
        version: u32,
        /// The server's process.
        pid: u32,
        /// The image's device.
        dev: u64,
        /// Its inode.
        ino: u64,
        /// Whether clients may write.
        writes: bool,
    },
    /// Fleeces.
    Fleeces {
        /// The socket at which clients read them, a path, if it has one.
        socket: Option<Vec<u8>>,
        /// How they stand.
        all: Vec<FleeceState>,
    },
    /// It is as was asked for.
    Ok,
    /// It is not.
    Refused {
        /// Why not.
        why: String,
    },
    /// Somebody waits for these bytes.
    Wanted {
        /// The first.
        start: u64,
        /// Behind the last.
        end: u64,
    },
    /// The snapshot is lost, and nobody waits any more.
    Broken {
        /// Why.
        why: String,
    },
    /// The end: how the writes fared. `why` where the snapshot is lost.
    Ended {
        /// Why it is lost.
        why: Option<String>,
        /// Writes since T0.
        seen: u64,
        /// Those that had to wait for a cluster.
        waited: u64,
        /// The longest that one waited, in microseconds.
        longest_us: u64,
    },
}

/// A message as it is sent.
///
/// # Errors
/// None that can happen: the messages are text.
pub fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Bytes as they come, to messages.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    taken: usize,
}

impl Lines {
    /// Bytes came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.taken));
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message.
    ///
    /// # Errors
    /// InvalidData where it is none, or too long.
    pub fn message<M: DeserializeOwned>(&mut self) -> io::Result<Option<M>> {
        let rest = &self.bytes[self.taken..];
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let message = serde_json::from_slice(&rest[..end])?;
                self.taken += end + 1;
                Ok(Some(message))
            }
            None if rest.len() > LONGEST => Err(ErrorKind::InvalidData.into()),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_any_pieces() {
        let said = [ToServer::Hello { version: VERSION }, ToServer::Done { start: 4096, end: u64::MAX }, ToServer::End];
        let bytes: Vec<u8> = said.iter().flat_map(|it| line(it).expect("text")).collect();
        for size in [1, 7, bytes.len()] {
            let (mut lines, mut heard) = (Lines::default(), Vec::new());
            for piece in bytes.chunks(size) {
                lines.feed(piece);
                while let Some(message) = lines.message::<ToServer>().expect("a message") {
                    heard.push(message);
                }
            }
            assert_eq!(heard, said);
        }
    }

    #[test]
    fn what_is_no_message_is_an_error_and_has_a_bound() {
        let mut lines = Lines::default();
        lines.feed(b"{\"say\":\"nothing\"}\n");
        assert!(lines.message::<ToServer>().is_err());
        let mut lines = Lines::default();
        lines.feed(&[b' '; LONGEST]);
        assert!(lines.message::<ToServer>().expect("it may still come").is_none());
        lines.feed(b"  ");
        assert!(lines.message::<ToServer>().is_err());
    }
}
