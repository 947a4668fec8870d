//! How a fleece begins: T0, its threads, and what is left out of it.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::Fleece;
use super::all::{Fleeces, Fortune, Refusal, Told, words};
use super::areas::Areas;
use super::format::{State, unhex};
use super::keeper::{self, Ears, Space};
use super::map::Map;
use super::sidecar::{Of, Sidecar};
use crate::disk::DiskFile;
use crate::disk::real::RealFile;
use crate::engine::compare::compare;
use crate::hold::filter::strangers::Strangers;
use crate::range::{ByteRange, Geometry, PowerOfTwo};
use crate::serve::gate::{News, OnError, Watch};

/// How much is compared with a base at a time.
const STEP: u64 = 64 << 20;

impl Fleeces {
    /// T0: from here on what is overwritten is kept.
    pub(super) fn begin(&self, map: &Arc<Map>, data: File, base: Option<RealFile>) -> Refusal<Arc<Fleece>> {
        // A clone writes back what is dirty, with the image's lock held.
        self.image.device.flush().map_err(words("write the image back"))?;
        let boot = Uuid::from_bytes(self.boot()?);
        let gathered = self.gather(map)?;
        let begun = map.begun(boot, Timestamp::now());
        begun.map_err(words("write the map of the fleece"))?;
        gathered.0.watch()?;
        // So that it is known after a power cut what it was.
        map.sync().map_err(words("write the map of the fleece"))?;
        let fleece = self.run(map, data, gathered)?;
        if let Some(base) = base {
            self.leave_out(&fleece, &base).inspect_err(|why| fleece.watch.break_off(why))?;
        }
        Ok(fleece)
    }

    /// The gate's watch and ears of a fleece, with all writes waiting.
    pub(super) fn gather(&self, map: &Arc<Map>) -> Refusal<(Watch, Arc<Ears>)> {
        let header = map.header().clone();
        let on_error = if header.break_guest_write { OnError::BreakGuestWrite } else { OnError::BreakSnapshot };
        let ears = Arc::new(Ears::default());
        let tell = Box::new({
            let (ears, map, leaving) = (Arc::clone(&ears), Arc::clone(map), Arc::clone(&self.leaving));
            move |news| {
                if leaving.load(Ordering::Acquire) {
                    return;
                }
                if let News::Broken(why) = &news {
                    map.lost(why);
                }
                ears.tell(news);
            }
        });
        let watch = self.image.gate.watch(Duration::from_micros(header.deadline_us), on_error, tell)?;
        let unit = PowerOfTwo::new(header.cluster).ok_or("a cluster is a power of two")?;
        watch.gather(header.size, unit)?;
        Ok((watch, ears))
    }

    pub(super) fn run(&self, map: &Arc<Map>, data: File, gathered: (Watch, Arc<Ears>)) -> Refusal<Arc<Fleece>> {
        let (watch, ears) = gathered;
        let header = map.header().clone();
        let point = watch.point().ok_or("there is no point in time")?;
        let geometry = Geometry { size: header.size, block: self.facts()?.block };
        let of = Of { image: Arc::clone(&self.image.device), map: Arc::clone(&self.image.map), geometry };
        let sidecar = Sidecar::new(data, of, Arc::clone(map)).map_err(words("open the sidecar"))?;
        let kept_in = unhex(&header.data).map(|path| PathBuf::from(OsString::from_vec(path)));
        let space = Space::of([Some(&self.image.path), kept_in.as_ref()].into_iter().flatten(), header.min_free);
        let strangers = Strangers::of(&*self.image.map).map_err(words("watch who closes the image"))?;
        let areas = Areas::new(header.size, point.clusters.cluster(), header.base.is_some());
        let fleece = Arc::new(Fleece {
            name: header.name,
            base: header.base,
            point,
            watch,
            sidecar: Arc::new(sidecar),
            map: Arc::clone(map),
            areas,
            ears,
            image: Arc::clone(&self.image.map),
            deadline: Duration::from_micros(header.deadline_us),
            durable: header.durable,
        });
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| thread::Builder::new().name(name.into()).spawn(work);
        let (tell, name) = (Arc::clone(&self.image.tell), fleece.name.clone());
        let lost = move |why| tell(Told { name: name.clone(), what: Fortune::Lost(why) });
        let (keeps, writes) = (Arc::clone(&fleece), Arc::clone(&fleece.sidecar));
        spawn("keeper", Box::new(move || keeper::run(&keeps, strangers, &space, &lost)))
            .and_then(|_| spawn("sidecar", Box::new(move || writes.write())))
            .map_err(words("start a thread"))?;
        Ok(fleece)
    }

    /// What has not changed since the base is not kept, and nobody may read it.
    pub(super) fn leave_out(&self, fleece: &Fleece, base: &RealFile) -> Refusal<()> {
        let cannot = || words("read the block maps");
        // The map shows what was written before T0.
        let first = ByteRange::new(0, 1).expect("a byte");
        self.image.map.map(first, 1, true, &mut Vec::new()).map_err(cannot())?;
        let comparable = self.image.map.realtime().map_err(cannot())? == base.realtime().map_err(cannot())?;
        let mut rest = ByteRange::new(0, fleece.point.clusters.size()).filter(|_| comparable);
        while let Some(left) = rest {
            let (step, later) = left.split(left.start() + STEP);
            let step = step.expect("the beginning of a range");
            let compared = compare(&*self.image.map, base, step).map_err(|e| e.to_string())?;
            let mut at = step.start();
            let ends = compared.differing.iter().map(|it| (it.start(), it.end())).chain([(step.end(), step.end())]);
            for (differs, end) in ends {
                if let Some(same) = ByteRange::new(at, differs).and_then(|same| fleece.areas.whole(same)) {
                    fleece.areas.deny(same);
                    fleece.map.set(same, State::Denied).map_err(words("write the map of the fleece"))?;
                    fleece.watch.done(same);
                }
                at = end;
            }
            rest = later;
        }
        Ok(())
    }
}
