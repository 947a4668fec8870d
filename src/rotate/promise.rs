//! The name that a snapshot will have once it is made a new one, in its extended attribute `user.reflink-img.name`.
//!
//! It is durable before that is begun, so that whoever comes after a run that was killed can give the snapshot the name that the run would have
//! given it; and it says which snapshot it was, so that nothing else is ever renamed.

use std::ffi::OsStr;
use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::found::Snapshot;
use crate::disk::DiskFile;
use crate::disk::real::{RealDisk, RealFile};
use crate::record::Record;

/// The attribute's name.
pub const ATTRIBUTE: &str = "user.reflink-img.name";

/// The version of the format that this program writes and the only one that it reads.
const VERSION: u32 = 1;

/// The promise.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Promise {
    v: u32,
    /// The job that has made the snapshot as it was before.
    was: Uuid,
    /// What it will be called.
    pub name: String,
    /// A T0 that is later is not that of the run which has promised.
    until: Timestamp,
}

/// Whether a promise is to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// The snapshot is as it was, and may yet be made the new one.
    NotYet,
    /// It is the new one.
    Now,
    /// It was not made the new one by the run that has promised.
    Never,
}

impl Promise {
    /// That the snapshot with this record will be called `name` if it has another T0 by then.
    pub fn new(before: &Record, name: String, until: Timestamp) -> Self {
        Self { v: VERSION, was: before.job, name, until }
    }

    /// What was promised of a file; none where it is nothing that this program can read.
    pub fn of(file: &RealFile) -> Option<Self> {
        let promise: Self = serde_json::from_slice(&file.attribute(ATTRIBUTE).ok()??).ok()?;
        // A name is one component of a path.
        (promise.v == VERSION && !promise.name.contains('/')).then_some(promise)
    }

    /// Whether it is to be kept, of a finished snapshot with this record.
    pub fn due(&self, record: &Record, now: Timestamp) -> Due {
        match (record.job == self.was, record.t0 <= self.until) {
            (true, _) if now <= self.until => Due::NotYet,
            (false, true) => Due::Now,
            _ => Due::Never,
        }
    }

    /// Writes it down, durably.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn give(&self, file: &RealFile) -> io::Result<()> {
        write(file, Some(&serde_json::to_vec(self)?)).and_then(|()| file.sync_all())
    }

    /// There is none any more for the one of this name, which somebody else is about to bring up to date.
    pub fn forget_at(disk: &RealDisk, name: &OsStr) {
        let found = Snapshot::at(disk, name).map(|(_, file)| file);
        if let Some(file) = found.filter(|file| Self::of(file).is_some()) {
            // Where this fails the refresh does.
            let _ = Self::forget(&file);
        }
    }

    /// There is none any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn forget(file: &RealFile) -> io::Result<()> {
        write(file, None)
    }
}

/// A finished snapshot's mode keeps its own owner from that.
fn write(file: &RealFile, value: Option<&[u8]>) -> io::Result<()> {
    const OWNER_WRITES: u32 = 0o200;
    match file.set_attribute(ATTRIBUTE, value) {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => {}
        other => return other,
    }
    let mode = file.stat()?.mode;
    file.set_mode(mode | OWNER_WRITES)?;
    let written = file.set_attribute(ATTRIBUTE, value);
    file.set_mode(mode)?;
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;

    #[test]
    fn only_what_the_run_has_made_itself_is_given_its_name() {
        let at = |second: i64| Timestamp::from_second(second).expect("in range");
        let record = |job: u128, t0: i64| Record {
            v: record::VERSION,
            state: record::State::Finished,
            job: Uuid::from_u128(job),
            t0: at(t0),
            hold: "frozen".into(),
            point_in_time: true,
            quiesced: false,
            image: record::ImageId::default(),
            fs: Uuid::nil(),
            ino: 1,
            subvolume: 0,
            generation: None,
            size: 0,
            mtime_ns: String::new(),
        };
        let promise = Promise::new(&record(1, 10), "new".into(), at(200));
        let check = |job: u128, t0: i64, now: i64, expect: Due| {
            assert_eq!(promise.due(&record(job, t0), at(now)), expect, "{job} {t0} {now}");
        };
        check(1, 10, 150, Due::NotYet);
        check(1, 10, 250, Due::Never);
        check(2, 150, 160, Due::Now);
        check(2, 150, 9000, Due::Now);
        // By hand, later.
        check(2, 300, 9000, Due::Never);
    }
}
