//! How a fleece begins: T0, its threads, and what is left out of it.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;

use super::all::{Fleeces, Fortune, Refusal, Told, words};
use super::areas::Areas;
use super::keeper::{self, Ears, Space};
use super::map::Map;
use super::mark::Moment;
use super::sidecar::{Of, Sidecar};
use super::{Fleece, past_us};
use crate::disk::DiskFile;
use crate::disk::blocks::same_addresses;
use crate::disk::real::RealFile;
use crate::engine::compare::compare;
use crate::hold::filter::strangers::Strangers;
use crate::range::{ByteRange, Geometry, PowerOfTwo};
use crate::serve::gate::{News, OnError, Watch};

/// How much is compared with a base at a time.
const STEP: u64 = 64 << 20;

impl Fleeces {
    /// T0: from here on what is overwritten is kept.
    pub(super) fn begin(
        &self,
        map: &Arc<Map>,
        data: File,
        base: Option<RealFile>,
        strangers: (Strangers, Moment),
    ) -> Refusal<Arc<Fleece>> {
        // A clone writes back what is dirty, with the image's lock held.
        self.image.device.flush().map_err(words("write the image back"))?;
        let here = self.here(map, &data)?;
        let gathered = self.gather(map)?;
        let t0 = Timestamp::now();
        gathered.0.watch()?;
        let fleece = self.run(map, data, gathered, strangers)?;
        // Until then whoever finds the map finds a fleece that was not begun.
        let whole = || -> Refusal<()> {
            if fleece.durable {
                // What was written since it was written back, and before T0, is of T0.
                self.image.device.flush().map_err(words("write the image back"))?;
            }
            base.as_ref().map_or(Ok(()), |base| self.leave_out(&fleece, base))?;
            map.begun(here, t0).map_err(words("write the map of the fleece"))
        };
        whole().inspect_err(|why| fleece.end(why))?;
        Ok(fleece)
    }

    /// The gate's watch and ears of a fleece, with all writes waiting. The loss that this process' end is to the gate is none of the fleece.
    pub(super) fn gather(&self, map: &Arc<Map>) -> Refusal<(Watch, Arc<Ears>)> {
        let header = map.header().clone();
        let on_error = if header.terms.break_guest_write { OnError::BreakGuestWrite } else { OnError::BreakSnapshot };
        let ears = Arc::new(Ears::default());
        let tell = Box::new({
            let (ears, map, leaving) = (Arc::clone(&ears), Arc::clone(map), Arc::clone(&self.leaving));
            move |mut news| {
                if leaving.load(Ordering::Acquire) {
                    return;
                }
                if let News::Broken(why) = &mut news
                    && let Err(more) = map.lost(why)
                {
                    why.push_str(&format!("; {more}"));
                }
                ears.tell(news);
            }
        });
        let watch = self.image.gate.watch(Duration::from_micros(header.terms.deadline_us), on_error, tell)?;
        let unit = PowerOfTwo::new(header.terms.cluster).ok_or("a cluster is a power of two")?;
        watch.gather(header.size, unit)?;
        Ok((watch, ears))
    }

    /// Whoever comes from now on is noticed; refused where somebody is there who may write to the image past this process.
    pub(super) fn alone(&self) -> Refusal<(Strangers, Moment)> {
        let began = Moment::now().map_err(words("read the clock"))?;
        let strangers = Strangers::of(&*self.image.map).map_err(words("watch who closes the image"))?;
        match past_us(&self.image.map).map_err(words("find out who else writes to the image"))? {
            Some(other) => Err(format!("the image may be written to past its server: {other}")),
            None => Ok((strangers, began)),
        }
    }

    /// The threads of a fleece; the strangers were watched from before T0 on.
    pub(super) fn run(
        &self,
        map: &Arc<Map>,
        data: File,
        gathered: (Watch, Arc<Ears>),
        (strangers, looked): (Strangers, Moment),
    ) -> Refusal<Arc<Fleece>> {
        let (watch, ears) = gathered;
        map.looked(looked);
        let header = map.header().clone();
        let point = watch.point().ok_or("there is no point in time")?;
        let geometry = Geometry { size: header.size, block: self.facts()?.block };
        let of = Of { image: Arc::clone(&self.image.device), map: Arc::clone(&self.image.map), geometry };
        let sidecar = Sidecar::new(data, of, Arc::clone(map)).map_err(words("open the sidecar"))?;
        let kept_in = header.data_path();
        let space = Space::of([Some(&self.image.path), kept_in.as_ref()].into_iter().flatten(), header.terms.min_free);
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
            strangers: Mutex::new(strangers),
            deadline: Duration::from_micros(header.terms.deadline_us),
            durable: header.terms.durable,
        });
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| thread::Builder::new().name(name.into()).spawn(work);
        let (tell, name) = (Arc::clone(&self.image.tell), fleece.name.clone());
        let lost = move |why| tell(Told { name: name.clone(), what: Fortune::Lost(why) });
        let [keeps, looks, writes] = [(); 3].map(|()| Arc::clone(&fleece));
        let spawned = spawn("keeper", Box::new(move || keeper::run(&keeps, &space, &lost)))
            .and_then(|_| spawn("strangers", Box::new(move || keeper::look(&looks))))
            .and_then(|_| spawn("sidecar", Box::new(move || writes.sidecar.write(&|e| writes.unsynced(e)))));
        spawned.map_err(words("start a thread")).inspect_err(|why| fleece.end(why))?;
        Ok(fleece)
    }

    /// What has not changed since the base is not kept, and nobody may read it.
    pub(super) fn leave_out(&self, fleece: &Fleece, base: &RealFile) -> Refusal<()> {
        let cannot = || words("read the block maps");
        // The map shows what was written before T0.
        let first = ByteRange::new(0, 1).expect("a byte");
        self.image.map.map(first, 1, true, &mut Vec::new()).map_err(cannot())?;
        let comparable = same_addresses(&*self.image.map, base).map_err(cannot())?;
        let mut rest = ByteRange::new(0, fleece.point.clusters.size()).filter(|_| comparable);
        while let Some(left) = rest {
            // It may take minutes, and nobody waits for what comes to nothing.
            self.is_open()?;
            fleece.point.fate.lost().map_or(Ok(()), |why| Err(why.to_owned()))?;
            let (step, later) = left.split(left.start() + STEP);
            let step = step.expect("the beginning of a range");
            let compared = compare(&*self.image.map, base, step).map_err(|e| e.to_string())?;
            let mut at = step.start();
            let ends = compared.differing.iter().map(|it| (it.start(), it.end())).chain([(step.end(), step.end())]);
            let mut denied = Vec::new();
            for (differs, end) in ends {
                denied.extend(ByteRange::new(at, differs).and_then(|same| fleece.areas.whole(same)));
                at = end;
            }
            let said = fleece.sidecar.deny(&denied, &|same| fleece.areas.deny(same));
            said.map_err(words("write the map of the fleece"))?;
            denied.into_iter().for_each(|same| fleece.watch.done(same));
            rest = later;
        }
        Ok(())
    }
}
