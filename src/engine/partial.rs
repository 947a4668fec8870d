//! The partial file: made, opened, or taken from a snapshot that is to be refreshed; never left open to others, and never
//! taken for a finished snapshot.

use std::io;

use jiff::Timestamp;
use uuid::Uuid;

use super::job::Job;
use super::recover::Existing;
use super::restore::owned;
use super::start::failed;
use crate::disk::{Access, Disk, DiskFile, Stat};
use crate::error::{Error, Kind, Result};
use crate::journal::file::Journal;
use crate::journal::format::{Header, State};
use crate::record::{self, Record, Verdict};

/// Opens the snapshot that is to be refreshed, and makes sure that nobody else has it.
pub(super) fn own_snapshot<D: Disk>(job: &Job<'_, D>, header: &mut Header) -> Result<D::File> {
    // Opening may change the mode, so it is looked at before.
    let old_mode = job.disk.stat(&job.names.dst).map_err(refused)?.map_or(0o444, |s| s.mode);
    // Whoever reads it has a lease (`send`, `diff`), which opening it for writing would break; asking for a lease by a descriptor that only reads
    // does not.
    own(&open_snapshot(job, Access::Read)?)?;
    let file = open_snapshot(job, Access::Write)?;
    let looked = own(&file)
        .and_then(|()| still_ours(&file, job.options.wish.force))
        .and_then(|()| same_kind(job, &file))
        .and_then(|()| Ok((file.record().map_err(refused)?, file.stat().map_err(refused)?.ino)));
    let (record, ino) = looked.inspect_err(|_| drop(file.set_mode(old_mode)))?;
    header.refreshes = true;
    header.old_mode = old_mode;
    header.old_record = record.unwrap_or_default();
    header.partial_ino = ino;
    Ok(file)
}

fn refused(error: io::Error) -> Error {
    Error::io(Kind::Refused, "cannot open the snapshot that is to be refreshed", "check its permissions", error)
}

fn open_snapshot<D: Disk>(job: &Job<'_, D>, access: Access) -> Result<D::File> {
    job.disk.open(&job.names.dst, access).map_err(|e| match e.raw_os_error() {
        Some(libc::EAGAIN) => somebody_has_it(),
        _ => refused(e),
    })
}

fn own<F: DiskFile>(file: &F) -> Result<()> {
    if file.try_own().map_err(refused)? { Ok(()) } else { Err(somebody_has_it()) }
}

fn somebody_has_it() -> Error {
    let hint = "close it first: a refresh changes the file under its readers (fuser -v names them)";
    Error::new(Kind::Refused, "somebody has the snapshot open that is to be refreshed", hint)
}

/// The file was looked at before it was opened. Now that nobody else has it, it must still be what was looked at: not one
/// that was moved to its name since, nor one that somebody has just written to.
fn still_ours<F: DiskFile>(file: &F, force: bool) -> Result<()> {
    let cannot = |e| failed("cannot look at the snapshot that is to be refreshed", e);
    let stat = file.stat().map_err(cannot)?;
    let record = file.record().map_err(cannot)?.and_then(|bytes| Record::from_bytes(&bytes));
    let fs = file.fs().map_err(cannot)?.uuid;
    let valid = Existing { stat, fs, record }.verdict() == Some(Verdict::Valid);
    if stat.nlink == 1 && (valid || force) {
        return Ok(());
    }
    let what = "what is to be refreshed changed while it was looked at";
    Err(Error::new(Kind::Refused, what, "see that nobody else works on it, then run the same command again"))
}

/// From a snapshot to a partial file.
pub(super) fn take_snapshot<D: Disk>(job: &Job<'_, D>, journal: &Journal<D::File>, file: D::File) -> Result<D::File> {
    let renamed = job.disk.rename(&job.names.dst, &job.names.partial, false).and_then(|()| job.disk.sync_names());
    renamed.map_err(|e| failed("cannot rename the snapshot to its partial name", e))?;
    invalidate::<D>(journal.header(), &file)?;
    // Whoever may read the old snapshot need not be let in on what comes.
    close_to_others::<D>(&file)?;
    nobody_found_it(&file)?;
    file.disown().map_err(|e| failed("cannot give the lease on the snapshot back", e))?;
    Ok(file)
}

/// Whoever has found it by its name before it was renamed waits for the lease, and would be let in on what is to be overwritten. He is let in
/// on the snapshot, which is put back. One who would not wait is gone, and no concern.
fn nobody_found_it<F: DiskFile>(file: &F) -> Result<()> {
    if owned(file).map_err(|e| failed("cannot look at the lease on the snapshot", e))? {
        return Ok(());
    }
    let what = "somebody has opened the snapshot in the moment in which it was to be refreshed";
    Err(Error::new(
        Kind::Refused,
        what,
        "it is as it was; wait for him ('fuser -v' names him), then run the same command again",
    ))
}

/// The partial file of a refresh that has not come to its T0: whoever was let in when the job before was killed reads the snapshot, which is whole
/// still.
pub(super) fn alone_again<F: DiskFile>(header: &Header, partial: &F) -> Result<()> {
    if !(header.refreshes && header.state == State::Preparing) {
        return Ok(());
    }
    nobody_found_it(partial).map_err(|e| Error {
        what: "somebody reads the snapshot that is to be refreshed, which a killed job has left as its partial file"
            .into(),
        hint: "wait for him ('fuser -v' names him), or 'rclone-img abort' puts it back".into(),
        ..e
    })?;
    partial.disown().map_err(|e| failed("cannot give the lease on the snapshot back", e))
}

pub(super) fn make_partial<D: Disk>(job: &Job<'_, D>, journal: &mut Journal<D::File>) -> Result<D::File> {
    // A file that appeared since the last look is somebody else's: this fails, and nothing removes it.
    let file = job.disk.create_new(&job.names.partial).map_err(|e| failed("cannot make the partial file", e))?;
    mark_partial(job, journal, &file).inspect_err(|_| {
        // What was just made here is removed here: until its number is in the journal nobody else knows it for ours.
        let removed = job.disk.unlink(&job.names.partial);
        if let (Err(_), Ok(stat)) = (removed, file.stat()) {
            // The undoing tries again, and leaves the journal where it fails as well.
            let _ = journal.note(|h| h.partial_ino = stat.ino);
        }
    })?;
    Ok(file)
}

pub(super) fn mark_partial<D: Disk>(job: &Job<'_, D>, journal: &mut Journal<D::File>, file: &D::File) -> Result<()> {
    let cannot = |e| failed("cannot make the partial file", e);
    // Btrfs clones between files of one kind only, and the flag can be changed on an empty file alone; a new file has its
    // directory's.
    job.image.no_cow().and_then(|on| file.set_no_cow(on)).map_err(cannot)?;
    invalidate::<D>(journal.header(), file)?;
    let ino = file.stat().map_err(cannot)?.ino;
    job.disk.sync_names().map_err(cannot)?;
    journal.update(|h| h.partial_ino = ino).map_err(|e| failed("cannot write the journal", e))
}

/// The record of a job's file that is no snapshot yet.
pub(super) fn unfinished(header: &Header, file: &Stat) -> Record {
    Record {
        v: record::VERSION,
        state: record::State::InProgress,
        job: Uuid::from_bytes(header.job),
        t0: Timestamp::UNIX_EPOCH,
        hold: header.hold.name().to_owned(),
        point_in_time: false,
        quiesced: false,
        image: header.image.id(),
        fs: Uuid::from_bytes(header.fs),
        ino: file.ino,
        subvolume: file.subvolume,
        generation: file.id().known_generation(),
        size: 0,
        mtime_ns: String::new(),
    }
}

/// Says in the partial file's record, durably, that it is no snapshot.
pub(super) fn invalidate<D: Disk>(header: &Header, file: &D::File) -> Result<()> {
    let cannot = |e| failed("cannot mark the partial file as unfinished", e);
    let stat = file.stat().map_err(cannot)?;
    let record = unfinished(header, &stat);
    file.set_record(Some(&record.to_bytes())).and_then(|()| file.sync_all()).map_err(cannot)
}

pub(super) fn discard_partial<D: Disk>(job: &Job<'_, D>) -> Result<()> {
    let gone = job.disk.unlink(&job.names.partial).and_then(|()| job.disk.sync_names());
    gone.map_err(|e| failed("cannot remove the old partial file", e))
}

/// Files of two kinds share no blocks, and their addresses are not to be compared: Btrfs with and without +C, which one with
/// data keeps, and XFS's data and realtime devices.
pub(super) fn same_kind<D: Disk>(job: &Job<'_, D>, file: &D::File) -> Result<()> {
    let cannot = |e| failed("cannot look at the files' flags", e);
    let no_cow = job.image.no_cow().and_then(|image| Ok(image == file.no_cow()?)).map_err(cannot)?;
    let device = job.image.realtime().and_then(|image| Ok(image == file.realtime()?)).map_err(cannot)?;
    let what = match (no_cow, device) {
        (true, true) => return Ok(()),
        (false, _) => "image and snapshot differ in the flag +C (chattr), and cannot share blocks",
        (true, false) => "one of image and snapshot is on the realtime device, and they cannot share blocks",
    };
    Err(Error::new(Kind::Refused, what, "make a new snapshot: --restart, or --force without --refresh"))
}

/// The partial file of an earlier run, marked and closed to others: a kill may have come before that was done, or after an
/// abort had begun to undo it.
pub(super) fn open_partial<D: Disk>(job: &Job<'_, D>, header: &Header) -> Result<D::File> {
    let file =
        job.disk.open(&job.names.partial, Access::Write).map_err(|e| failed("cannot open the partial file", e))?;
    same_kind(job, &file)?;
    invalidate::<D>(header, &file)?;
    close_to_others::<D>(&file)?;
    Ok(file)
}

fn close_to_others<D: Disk>(file: &D::File) -> Result<()> {
    file.set_mode(0o600).map_err(|e| failed("cannot close the partial file to others", e))
}

/// Gives the partial file the image's size. One that has it is left alone: truncation alone changes the modification time,
/// by which a snapshot that the refresh has not changed is known.
pub(super) fn resize<D: Disk>(file: &D::File, size: u64) -> Result<()> {
    let resized = file.stat().and_then(|s| if s.size == size { Ok(()) } else { file.set_len(size) });
    resized.map_err(|e| failed("cannot give the partial file the image's size", e))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::disk::sim::{Setup, SimDisk};
    use crate::record::ImageId;

    #[test]
    fn a_snapshot_that_was_written_to_since_it_was_looked_at_is_not_refreshed() {
        let disk = SimDisk::new(Setup::new(1));
        let file = disk.create_new(OsStr::new("vm.snap")).expect("made");
        file.write_at(0, &[1; 4096]).expect("written");
        assert!(still_ours(&file, false).is_err(), "no record");
        let stat = file.stat().expect("there");
        let record = Record {
            v: record::VERSION,
            state: record::State::Finished,
            job: Uuid::nil(),
            t0: Timestamp::UNIX_EPOCH,
            hold: "frozen".into(),
            point_in_time: true,
            quiesced: false,
            image: ImageId { ino: 1, generation: 1, subvolume: 0 },
            fs: Uuid::nil(),
            ino: stat.ino,
            subvolume: stat.subvolume,
            generation: stat.id().known_generation(),
            size: stat.size,
            mtime_ns: stat.mtime_ns.to_string(),
        };
        file.set_record(Some(&record.to_bytes())).expect("marked");
        still_ours(&file, false).expect("a valid snapshot");
        file.write_at(0, &[2; 4096]).expect("written");
        assert!(still_ours(&file, false).is_err(), "modified");
        still_ours(&file, true).expect("its content may be lost");
    }
}
