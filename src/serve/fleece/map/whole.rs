//! Whether a map that an earlier server has left accounts for all that was written to its image.

use std::time::Duration;

use super::Map;
use crate::serve::fleece::format::Place;
use crate::serve::fleece::mark::{Mark, Moment};

/// How much later than a server was last known to be there the image may have been written to by it: a few of the keeper's looks. Who
/// writes past a server within this time of its end cannot be told from it.
pub(super) const SLACK: Duration = Duration::from_millis(300);

/// The same where that has to be put on a disk.
const SLACK_DURABLE: Duration = Duration::from_secs(4);

/// Why one is lost that somebody has written past.
const WRITTEN: &str = "the image was written to while no server had it";

impl Map {
    /// Whether all that was written to an image that was changed last at this time, in nanoseconds since 1970, is accounted for: the mark is
    /// there, and all that was said is; or what is kept is durable; and nobody wrote after the last server was there.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn is_whole(&self, here: &Place, changed_ns: i128) -> Result<(), String> {
        let header = self.header();
        if let Some(why) = &header.broken {
            return Err(why.clone());
        }
        let same_boot = header.place.boot == here.boot;
        let seen = match self.mark.as_ref().filter(|_| same_boot).map(Mark::seen) {
            // It was removed, before a write went on.
            Some(Err(_)) => return Err("the guest has overwritten what could not be kept".into()),
            Some(Ok(seen)) => Some(seen),
            None if same_boot && !header.terms.durable => {
                return Err("there is no runtime directory that would tell whether it is whole".into());
            }
            None => None,
        };
        if let Some(since) = header.place.left_for(here) {
            if !header.terms.durable {
                return Err(format!("{since}, and what was kept was not durable (--durable)"));
            }
            // Whose write is on the disk its time of change need not be.
            if header.left.is_some() {
                return Err(format!(
                    "{since} after its server was stopped: who wrote to the image in between cannot be told"
                ));
            }
        }
        if let Some(left) = &header.left {
            // One that was told to stop has said when the image was changed last.
            return if *left == changed_ns.to_string() { Ok(()) } else { Err(WRITTEN.into()) };
        }
        let now = Moment::now().map_err(|e| format!("cannot read the clock: {e}"))?;
        let (seen, slack, set_back) = match seen {
            Some(seen) => (seen.wall, SLACK, now.set_back_since(seen) > nanoseconds(SLACK)),
            None => {
                let seen = header.seen.as_nanosecond();
                (seen, SLACK_DURABLE, seen > now.wall)
            }
        };
        if set_back {
            return Err(
                "the clock was set back since a server had it: who wrote to the image since cannot be told".into()
            );
        }
        if changed_ns > seen + nanoseconds(slack) { Err(WRITTEN.into()) } else { Ok(()) }
    }
}

pub(super) fn nanoseconds(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}
