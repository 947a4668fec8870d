//! A hold whose T0 is set while the guests are frozen, and not a moment longer.
//!
//! The freeze comes after everything that can be refused, and after the flush. The thaw is asked for as soon as T0 is set,
//! and its answer is not waited for then: a guest that thaws writes to its image first, and that access waits for the caller
//! to clone. A single call is of the instant at which it gets the image's lock, which nobody can see, so that its freeze
//! lasts until it ends.

use std::sync::Arc;
use std::time::Duration;

use super::{Demand, Hold, HoldKind, T0};
use crate::cbw::{Clusters, Tally};
use crate::error::{Error, Kind, Result};
use crate::quiesce::NotFrozen;
use crate::quiesce::freezer::{Freezer, Quiescence, THAW};
use crate::quiesce::order::Order;
use crate::range::ByteRange;

/// What the user must hear, and what keeps no job from its end.
pub enum Told {
    /// The snapshot is not what was hoped for.
    Warning(String),
    /// A guest may have been left frozen: it matters more than any snapshot.
    StillFrozen(String),
}

/// A hold with a freeze around its T0.
pub struct Quiesced<'a> {
    inner: Box<dyn Hold + 'a>,
    order: Order,
    /// Without a freeze there is no snapshot.
    required: bool,
    tell: &'a dyn Fn(Told),
    /// Whether the job is told to stop: a freeze is waited for no longer then.
    stop: &'a dyn Fn() -> bool,
    freezer: Option<Freezer>,
    /// One that was of no use, and is asked at the end whether to thaw once more.
    failed: Option<Freezer>,
    /// Whether the thaw was asked for.
    asked: bool,
    known: Option<Quiescence>,
}

impl<'a> Quiesced<'a> {
    /// Freezes for the T0 of `inner`.
    pub fn new(
        inner: Box<dyn Hold + 'a>,
        order: Order,
        required: bool,
        tell: &'a dyn Fn(Told),
        stop: &'a dyn Fn() -> bool,
    ) -> Self {
        Self { inner, order, required, tell, stop, freezer: None, failed: None, asked: false, known: None }
    }

    fn freeze(&mut self) -> Result<()> {
        if self.inner.kind() == HoldKind::Frozen {
            (self.tell)(Told::Warning(
                "nobody has the image open for writing: there is no guest to be quiesced".into(),
            ));
            return Ok(());
        }
        self.not_told_to_stop()?;
        let started = Freezer::start(self.order.clone());
        let frozen = started.map_err(|error| NotFrozen { error, still_frozen: false }).and_then(|mut freezer| {
            match freezer.frozen(self.stop) {
                Ok(()) => Ok(freezer),
                Err(not) => {
                    self.failed = Some(freezer);
                    Err(not)
                }
            }
        });
        let NotFrozen { error, still_frozen: may_be_frozen } = match frozen {
            Ok(freezer) => {
                self.freezer = Some(freezer);
                return Ok(());
            }
            Err(not) => not,
        };
        if may_be_frozen {
            (self.tell)(Told::StillFrozen(still_frozen(&error)));
        }
        self.not_told_to_stop()?;
        if self.required {
            let kind = if may_be_frozen { Kind::Broken } else { Kind::Refused };
            let hint = format!("{}; without --require-freeze the snapshot is made all the same", error.hint);
            return Err(Error { kind, hint, ..error });
        }
        if !may_be_frozen {
            let why = format!("the guest is not frozen for the snapshot: {error} ({})", error.hint);
            (self.tell)(Told::Warning(why));
        }
        Ok(())
    }

    fn not_told_to_stop(&self) -> Result<()> {
        if (self.stop)() { Err(Error::told_to_stop()) } else { Ok(()) }
    }

    fn thaw(&mut self) {
        if let Some(freezer) = &mut self.freezer
            && !std::mem::replace(&mut self.asked, true)
        {
            freezer.thaw();
        }
    }

    /// At the job's end.
    fn thaw_again(&mut self) {
        if let Some(mut failed) = self.failed.take()
            && let Err(error) = failed.thaw_again()
        {
            (self.tell)(Told::StillFrozen(still_frozen(&error)));
        }
    }

    /// What is known of the thaw after this time.
    fn look(&mut self, limit: Duration) -> Result<()> {
        let Some(thawed) = self.freezer.as_mut().and_then(|freezer| freezer.thawed(limit)) else { return Ok(()) };
        self.freezer = None;
        let why = match thawed {
            Ok(known) => {
                self.known = Some(known);
                if known.quiesced {
                    return Ok(());
                }
                let why = "the guest was thawed before the point in time was set";
                (self.tell)(Told::Warning(why.into()));
                why.to_owned()
            }
            // The snapshot is what it would be; the guest is what matters.
            Err(error) => {
                let why = still_frozen(&error);
                (self.tell)(Told::StillFrozen(why.clone()));
                why
            }
        };
        let hint =
            "run the same command again; without --require-freeze the snapshot would have been made all the same";
        if self.required { Err(Error::new(Kind::Broken, why, hint)) } else { Ok(()) }
    }
}

/// What the user must hear of a thaw that has failed.
pub fn still_frozen(error: &Error) -> String {
    format!("the guest may still be FROZEN: {error} ({})", error.hint)
}

impl Hold for Quiesced<'_> {
    fn kind(&self) -> HoldKind {
        self.inner.kind()
    }

    fn prepare(&mut self) -> Result<()> {
        self.inner.prepare()
    }

    fn settle(&mut self) -> Result<()> {
        self.inner.settle()
    }

    fn begin(&mut self, images: &[Arc<Clusters>]) -> Result<Vec<T0>> {
        self.freeze()?;
        // What the freeze made the guest write.
        let t0 = self.inner.settle().and_then(|()| self.inner.begin(images));
        match &t0 {
            Ok(_) if self.inner.kind().one_call() => {}
            Ok(_) => self.thaw(),
            Err(_) => self.release(),
        }
        t0
    }

    fn demand(&mut self) -> Demand {
        match self.look(Duration::ZERO) {
            Ok(()) => self.inner.demand(),
            Err(error) => Demand::Broken(error.what),
        }
    }

    fn promoted(&mut self, image: usize, range: ByteRange) {
        self.inner.promoted(image, range);
    }

    fn calling(&mut self, image: usize) {
        self.inner.calling(image);
    }

    fn called(&mut self, image: usize) {
        self.inner.called(image);
    }

    fn done(&mut self, image: usize, range: ByteRange) {
        self.inner.done(image, range);
    }

    fn beside(&self) -> f64 {
        self.inner.beside()
    }

    fn idle(&mut self, time: Duration, sleep: &dyn Fn(Duration)) {
        self.inner.idle(time, sleep);
    }

    fn felt(&self) -> Option<Tally> {
        self.inner.felt()
    }

    fn quiescence(&self) -> Option<Quiescence> {
        self.known
    }

    fn end(&mut self) -> Result<()> {
        let ended = self.inner.end();
        // Whoever waits for an answer to thaw goes on before the thaw is waited for.
        self.inner.release();
        self.thaw();
        let thawed = self.look(THAW);
        self.thaw_again();
        ended.and(thawed)
    }

    fn release(&mut self) {
        self.inner.release();
        self.thaw();
        // What the user must know is told; the job has another end already.
        let _ = self.look(THAW);
        self.thaw_again();
    }
}
