//! A fleece's map file: a header that says what is kept of which image and how, and a byte for each cluster.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | [`SLOT`] | header slot 0 |
//! | [`SLOT`] | [`SLOT`] | header slot 1 |
//! | [`STATES`] | 1 a cluster | [`State`] |
//!
//! A slot:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 4 | length of the JSON, little endian |
//! | 12 | 4 | its CRC-32C, little endian |
//! | 16 | | [`Header`] as JSON, so that a person can read it |
//!
//! The valid slot of the higher generation counts; generation *n* lies in slot *n mod 2*, so that a write that is cut off leaves the one
//! before it. Pure.

#[cfg(test)]
pub(super) mod tests;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files::MAP;
use crate::hold::filter::wire::FleeceTerms;
use crate::record::ImageId;

/// How a slot begins; the last byte is the format's version.
pub const MAGIC: [u8; 8] = *b"RIMGFLC3";

/// The size of a header slot.
pub const SLOT: u64 = 16 << 10;

/// Where the clusters' states begin.
pub const STATES: u64 = 2 * SLOT;

/// The longest reason that is kept, in bytes.
const REASON: usize = 1000;

/// What is known of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It is in the image as it was.
    Pending = 0,
    /// It is in the sidecar.
    Kept = 1,
    /// It is as in the base, and nobody may read it.
    Denied = 2,
    /// A reader has let it go.
    Released = 3,
    /// It was kept in a server's memory: lost with that.
    InMemory = 4,
}

impl State {
    /// The state of a byte; `None` of one that was never written.
    pub fn of(byte: u8) -> Option<Self> {
        [Self::Pending, Self::Kept, Self::Denied, Self::Released, Self::InMemory]
            .into_iter()
            .find(|it| *it as u8 == byte)
    }
}

/// What a fleece is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Which fleece this is: no other one has it, whatever its name. The mark is called so.
    pub id: Uuid,
    /// Counts how often the header was written.
    pub generation: u64,
    /// The map file itself: another one with this header is a copy.
    pub map_file: ImageId,
    /// The image.
    pub image: ImageId,
    /// UUID of the image's file system.
    pub fs: Uuid,
    /// The image's size, in bytes.
    pub size: u64,
    /// The image's path, in hexadecimal.
    pub path: String,
    /// The path of the file with what is kept, in hexadecimal.
    pub data: String,
    /// That file itself: another one of its name is none of it.
    pub data_file: ImageId,
    /// How it is kept.
    #[serde(flatten)]
    pub terms: FleeceTerms,
    /// The instant that it shows.
    pub t0: Timestamp,
    /// The name of the snapshot from which it tells the changes alone.
    pub base: Option<String>,
    /// Where a server had it last.
    #[serde(flatten)]
    pub place: Place,
    /// When that server was last known to be there.
    pub seen: Timestamp,
    /// Where a server was told to stop: when the image was changed last, in nanoseconds since 1970.
    pub left: Option<String>,
    /// Why it is lost, if it is.
    pub broken: Option<String>,
}

/// Where a server has a fleece: in another one what was not synced may be gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The boot.
    pub boot: Uuid,
    /// Which mounts the file systems of the image, the map and the data file have there; none where that cannot be told.
    pub mounts: Option<String>,
}

impl Place {
    /// What may have lost something since a server was at this place, if it is here now; none where nothing has.
    pub fn left_for(&self, here: &Self) -> Option<&'static str> {
        match (&self.mounts, &here.mounts) {
            _ if self.boot != here.boot => Some("the host was started again"),
            (Some(then), Some(now)) if then == now => None,
            (Some(_), Some(_)) => Some("the file system was mounted anew"),
            _ => Some("a file system may have been mounted anew"),
        }
    }
}

impl Header {
    /// As it is written: a slot.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut header = self.clone();
        if let Some(why) = &mut header.broken {
            why.truncate((0..=REASON).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0));
        }
        let json = serde_json::to_vec(&header).expect("a header has no map with keys that are not text");
        let length = (json.len() as u32).to_le_bytes();
        let mut bytes = [&MAGIC[..], &length, &crc32c::crc32c(&json).to_le_bytes(), &json].concat();
        bytes.resize(SLOT as usize, 0);
        bytes
    }

    /// Where it is written.
    pub fn slot(&self) -> u64 {
        self.generation % 2 * SLOT
    }

    /// The one that counts, of all that is before the states; `None` where both are not valid.
    pub fn newest(bytes: &[u8]) -> Option<Self> {
        let slots = bytes.chunks(SLOT as usize).take(2).filter_map(Self::from_bytes);
        slots.max_by_key(|header| header.generation)
    }

    /// Reads a slot back; `None` where it is not one, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| bytes.get(at..at + 4).map(|it| u32::from_le_bytes(it.try_into().expect("four bytes")));
        let json = bytes.strip_prefix(&MAGIC).and(bytes.get(16..))?.get(..number(8)? as usize)?;
        let whole = number(12)? == crc32c::crc32c(json);
        serde_json::from_slice(json).ok().filter(|_| whole)
    }
}

impl Header {
    /// Whether this map file at this path is the one that the header was written to: a copy of it names what the other one has kept.
    pub fn is_of(&self, path: &Path, file: ImageId) -> bool {
        let ending = [".", &self.name, MAP].concat();
        self.map_file == file && path.file_name().is_some_and(|name| name.as_bytes().ends_with(ending.as_bytes()))
    }

    /// The image's path; `None` where that is damaged, as of the other.
    pub fn image_path(&self) -> Option<PathBuf> {
        path(&self.path)
    }

    /// The path of the file with what is kept.
    pub fn data_path(&self) -> Option<PathBuf> {
        path(&self.data)
    }
}

fn path(text: &str) -> Option<PathBuf> {
    unhex(text).map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
}

/// A path as the header has it.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a file that begins with these bytes was made as a map: of another version, damaged, or cut short before anything was written.
pub fn is_ours(bytes: &[u8]) -> bool {
    let family = &MAGIC[..MAGIC.len() - 1];
    bytes.is_empty() || bytes.chunks(SLOT as usize).take(2).any(|slot| slot.starts_with(family))
}

/// The path back.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|it| it as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?)).collect()
}
