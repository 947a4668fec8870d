//! The mark of a fleece: a file in the runtime directory, of its own name, that is gone before a write goes on for which the fleece is lost,
//! and with the boot. It tells until when a server has seen whoever else wrote.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use crate::hold::filter::link;

/// How the names of marks begin; the map's id is the rest.
const MARK: &str = "fleece-";

/// A moment, by the clock that people set and by the one that nobody does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Nanoseconds since 1970.
    pub wall: i128,
    /// Nanoseconds since the boot, suspended ones as well (CLOCK_BOOTTIME).
    pub uptime: i128,
}

impl Moment {
    /// This one.
    ///
    /// # Errors
    /// The kernel's, which always has that clock.
    pub fn now() -> io::Result<Self> {
        let up = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
        let uptime = i128::from(up.tv_sec()) * 1_000_000_000 + i128::from(up.tv_nsec());
        Ok(Self { wall: Timestamp::now().as_nanosecond(), uptime })
    }

    /// By the clock that people set.
    pub fn timestamp(self) -> Timestamp {
        Timestamp::from_nanosecond(self.wall).unwrap_or(Timestamp::MIN)
    }

    /// So long before.
    #[must_use]
    pub fn earlier(self, by: Duration) -> Self {
        let by = i128::try_from(by.as_nanos()).unwrap_or(i128::MAX);
        Self { wall: self.wall.saturating_sub(by), uptime: self.uptime.saturating_sub(by) }
    }

    /// By how much the clock was set back since an earlier one, in nanoseconds; negative where it was set forward.
    pub fn set_back_since(self, earlier: Self) -> i128 {
        (self.uptime - earlier.uptime) - (self.wall - earlier.wall)
    }

    /// As a mark has it: always of one length, so that one is written over the other.
    fn to_text(self) -> String {
        format!("{:020} {:020}\n", self.wall, self.uptime)
    }

    fn of(text: &str) -> Option<Self> {
        let (wall, uptime) = text.trim_end().split_once(' ')?;
        Some(Self { wall: wall.parse().ok()?, uptime: uptime.parse().ok()? })
    }
}

/// The mark of one fleece.
pub struct Mark {
    path: PathBuf,
    /// Whether this process has removed it: it is never made again then.
    removed: Mutex<bool>,
}

impl Mark {
    /// That of the map with this id; none where there is no runtime directory.
    pub fn of(id: Uuid) -> Option<Self> {
        link::directory().map(|dir| Self::at(dir.join(format!("{MARK}{id}"))))
    }

    /// The one at this path.
    pub fn at(path: PathBuf) -> Self {
        Self { path, removed: Mutex::default() }
    }

    /// Makes it, or says in it until when the server has looked who else writes; but not once it was removed.
    ///
    /// # Errors
    /// The kernel's: it is not there then, or tells of an earlier server.
    pub fn make(&self, looked: Moment) -> io::Result<()> {
        // Held until it is made: who removes it comes before that, or after it.
        let removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        if *removed {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.say(File::options().create(true).truncate(false).mode(0o600), looked)
    }

    /// The server has looked once more; where the mark is still there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn renew(&self, looked: Moment) -> io::Result<()> {
        self.say(&mut File::options(), looked)
    }

    fn say(&self, options: &mut fs::OpenOptions, looked: Moment) -> io::Result<()> {
        options.write(true).open(&self.path)?.write_all_at(looked.to_text().as_bytes(), 0)
    }

    /// Removes it for good; whether it is gone.
    pub fn remove(&self) -> bool {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        *removed = true;
        fs::remove_file(&self.path).map_or_else(|e| e.kind() == io::ErrorKind::NotFound, |()| true)
    }

    /// Until when a server has seen whoever else wrote.
    ///
    /// # Errors
    /// The kernel's; InvalidData where it does not say.
    pub fn seen(&self) -> io::Result<Moment> {
        Moment::of(&fs::read_to_string(&self.path)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_when_a_server_was_there_and_is_never_made_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = Mark::at(dir.path().join("mark"));
        let now = || Moment::now().expect("a clock");
        assert!(mark.renew(now()).is_err() && mark.seen().is_err(), "it is not there");
        mark.make(now()).expect("made");
        let first = mark.seen().expect("a moment");
        mark.renew(now()).expect("said");
        let second = mark.seen().expect("a moment");
        assert!(second.uptime > first.uptime && second.set_back_since(first).abs() < 1_000_000_000);
        assert!(mark.remove() && mark.remove());
        assert!(mark.make(now()).is_err() && mark.renew(now()).is_err() && !mark.path.exists());
    }

    #[test]
    fn a_clock_that_was_set_is_told_from_time_that_went_by() {
        let at = |wall, uptime| Moment { wall, uptime };
        assert_eq!(at(110, 60).set_back_since(at(100, 50)), 0);
        assert_eq!(at(70, 60).set_back_since(at(100, 50)), 40);
        assert_eq!(Moment::of(&at(7, 8).to_text()), Some(at(7, 8)));
        assert_eq!((Moment::of(""), Moment::of("1 x")), (None, None));
    }
}
