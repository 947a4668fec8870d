//! Several images, each under a hold of its own, that have one T0: all are held before it.

use std::sync::Arc;
use std::time::Duration;

use super::{Demand, Hold, HoldKind, T0};
use crate::cbw::Clusters;
use crate::error::Result;
use crate::range::ByteRange;

/// The holds, of one kind, at least one.
pub struct Several(pub Vec<Box<dyn Hold>>);

impl Hold for Several {
    fn kind(&self) -> HoldKind {
        self.0[0].kind()
    }

    fn prepare(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(|hold| hold.prepare())
    }

    fn settle(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(|hold| hold.settle())
    }

    fn begin(&mut self, images: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        let mut instants = Vec::new();
        for (hold, image) in self.0.iter_mut().zip(images) {
            instants.extend(hold.begin(std::slice::from_ref(image))?);
        }
        // What is held does not change: the last instant is that of all.
        if let Some(at) = instants.last().map(|t0| t0.at) {
            instants.iter_mut().for_each(|t0| t0.at = at);
        }
        Ok(instants)
    }

    fn demand(&mut self) -> Demand {
        for (index, hold) in self.0.iter_mut().enumerate() {
            match hold.demand() {
                Demand::Nothing => {}
                Demand::Promote(_, range) => return Demand::Promote(index, range),
                other => return other,
            }
        }
        Demand::Nothing
    }

    fn promoted(&mut self, image: usize, range: ByteRange) {
        self.0[image].promoted(0, range);
    }

    fn idle(&mut self, time: Duration, sleep: &dyn Fn(Duration)) {
        sleep(time);
    }

    fn end(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(|hold| hold.end())
    }

    fn release(&mut self) {
        self.0.iter_mut().for_each(|hold| hold.release());
    }
}
