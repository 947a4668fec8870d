//! A fleece that an earlier server has left.

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::Fleece;
use super::all::{Fleeces, Refusal, words};
use super::format::State;
use super::map::{Content, Map, read};
use crate::disk::DiskFile;
use crate::disk::real::{RealFile, open_itself};
use crate::range::ByteRange;

/// Why what is called as a map is was not taken up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotTaken {
    /// The fleece is lost, for this reason.
    Lost(String),
    /// It is none of this server's, for this reason.
    Others(String),
}

impl From<String> for NotTaken {
    fn from(why: String) -> Self {
        Self::Lost(why)
    }
}

impl Fleeces {
    /// One that an earlier server has left; none where it is of another image.
    pub(super) fn take_up(&self, path: &Path, name: &str) -> Result<Option<Arc<Fleece>>, NotTaken> {
        let stat = self.image.map.stat().map_err(words("look at the image"))?;
        let is = (stat.id(), Uuid::from_bytes(self.facts()?.uuid));
        let file = open_itself(path, false).map_err(words("open it"))?;
        let header = match read(&file).map_err(words("read it"))? {
            Content::Map(header) => header,
            Content::Damaged => return Err(NotTaken::Lost("its map is damaged, or of another version".into())),
            Content::Foreign => return Err(NotTaken::Others("it is no map of a fleece".into())),
        };
        if (header.image, header.fs) != is {
            return Ok(None);
        }
        // Not to be said in it: nor is the mark its own.
        let own = RealFile::from(file).stat().map_err(words("look at it"))?.id();
        if header.map_file != own || header.name != name {
            let why = format!("it is a copy of the map of the fleece {}, or has another name", header.name);
            return Err(NotTaken::Others(why));
        }
        let map = match Map::open(path) {
            // Of those that serve an image to readers there may be several.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                return Err(NotTaken::Others("another server has it".into()));
            }
            other => other.map_err(words("open it"))?,
        };
        let map = map.ok_or_else(|| NotTaken::Others("it is no map of a fleece".into()))?;
        let map = Arc::new(map);
        // Whatever is in the way: the guest writes on from now on.
        Ok(self.take_up_map(&map).map(Some).map_err(|why| map.given_up(&why).err().unwrap_or(why))?)
    }

    fn take_up_map(&self, map: &Arc<Map>) -> Refusal<Arc<Fleece>> {
        let header = map.header().clone();
        // Whoever is not found here has changed the image before it is looked at, or is noticed from now on.
        let strangers = self.alone()?;
        let stat = self.image.map.stat().map_err(words("look at the image"))?;
        if header.size != stat.size {
            return Err("the image has another size now".into());
        }
        if let Some(why) = header.broken {
            return Err(why);
        }
        let data = super::reach::data(&header, self.since)?;
        let here = self.here(map, &data)?;
        map.is_whole(&here, stat.ctime_ns)?;
        if data.metadata().map_or(0, |meta| meta.len()) != header.size {
            return Err("its sidecar is not of the image's size".into());
        }
        let gathered = self.gather(map)?;
        let point = gathered.0.point().ok_or("there is no point in time")?;
        let fleece = self.run(map, data, gathered, strangers)?;
        // An earlier server's kernel may have lost some of it when nobody asked.
        let synced = fleece.sidecar.sync().and_then(|()| map.sync());
        synced.map_err(words("put what was kept on the disk")).inspect_err(|why| fleece.end(why))?;
        let mut wrong = None;
        let read = map.states(|first, states| {
            let mut at = first;
            for run in states.chunk_by(|a, b| a == b) {
                let unit = header.terms.cluster;
                let range = ByteRange::new(at * unit, ((at + run.len() as u64) * unit).min(header.size));
                at += run.len() as u64;
                let Some(range) = range else { continue };
                match State::of(run[0]) {
                    Some(State::Pending) => continue,
                    Some(State::Kept) => {}
                    Some(State::Denied) => fleece.areas.deny(range),
                    Some(State::Released) => fleece.areas.release(range),
                    Some(State::InMemory) => wrong = Some("some of it was only in the memory of a server that is gone"),
                    None => wrong = Some("its map is damaged"),
                }
                point.clusters.finish(range);
            }
        });
        let taken = read.map_err(words("read its map")).and(wrong.map_or(Ok(()), |why| Err(why.to_owned())));
        let taken = taken.and_then(|()| map.taken(here).map_err(words("write its map")));
        taken.and_then(|()| fleece.watch.watch()).inspect_err(|why| fleece.end(why))?;
        Ok(fleece)
    }
}
