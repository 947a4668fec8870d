//! A fleece that an earlier server has left.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::Fleece;
use super::all::{Fleeces, Refusal, words};
use super::format::{State, unhex};
use super::map::Map;
use crate::disk::DiskFile;
use crate::range::ByteRange;
use crate::record::ImageId;

impl Fleeces {
    /// One that an earlier server has left.
    pub(super) fn take_up(&self, path: &Path) -> Refusal<Arc<Fleece>> {
        let map = match Map::open(path, |header| self.mark(&header.name)) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Err("another server has it".into()),
            other => other.map_err(words("open it"))?.ok_or("it is no map of a fleece")?,
        };
        let map = Arc::new(map);
        let stat = self.image.map.stat().map_err(words("look at the image"))?;
        let header = map.header().clone();
        let is = ImageId { ino: stat.ino, generation: stat.generation, subvolume: stat.subvolume };
        if (header.image, header.fs, header.size) != (is, Uuid::from_bytes(self.facts()?.uuid), stat.size) {
            return Err("it is of another image, or the image has another size now".into());
        }
        let boot = Uuid::from_bytes(self.boot()?);
        let changed = u64::try_from(stat.ctime_ns).map_err(|_| "the image was changed before 1970")?;
        map.is_whole(boot, SystemTime::UNIX_EPOCH + Duration::from_nanos(changed))
            .inspect_err(|why| map.write_lost(why))?;
        let data = unhex(&header.data).map(|path| PathBuf::from(OsString::from_vec(path))).ok_or("it is damaged")?;
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let data =
            File::options().read(true).write(true).custom_flags(flags).open(data).map_err(words("open its sidecar"))?;
        if data.metadata().map_or(0, |meta| meta.len()) != header.size {
            return Err("its sidecar is not of the image's size".into());
        }
        let gathered = self.gather(&map)?;
        let point = gathered.0.point().ok_or("there is no point in time")?;
        let fleece = self.run(&map, data, gathered)?;
        let mut wrong = None;
        map.states(|first, states| {
            let mut at = first;
            for run in states.chunk_by(|a, b| a == b) {
                let unit = header.cluster;
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
        })
        .map_err(words("read its map"))?;
        let taken = wrong.map_or(Ok(()), |why| Err(why.to_owned()));
        let taken =
            taken.and_then(|()| map.taken(boot).map_err(words("write its map"))).and_then(|()| fleece.watch.watch());
        taken.inspect_err(|why| {
            map.write_lost(why);
            fleece.watch.break_off(why);
            fleece.ears.end();
            fleece.sidecar.end();
        })?;
        Ok(fleece)
    }
}
