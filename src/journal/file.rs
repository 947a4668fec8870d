//! The journal in its file. An update that returned is durable; one that was cut off leaves the state before it.

use std::io;

use super::format::{self, FormatError, Header, LOG, Loaded, MAX_BYTES};
use crate::disk::DiskFile;
use crate::range::ByteRange;

/// An open journal, with the job's lock held by its file.
pub struct Journal<F> {
    file: F,
    header: Header,
    generation: u64,
    log_end: u64,
    /// The newest header may be in memory only: that of a run that was killed in writing it, or one that was noted.
    unsynced: bool,
}

/// What reading a journal gave.
pub type Read = Result<Loaded, FormatError>;

/// Reads and checks a journal; takes no lock.
///
/// # Errors
/// What reading the file said.
pub fn read<F: DiskFile>(file: &F) -> io::Result<Read> {
    let size = file.stat()?.size.min(MAX_BYTES);
    let mut bytes = vec![0; size as usize];
    let got = file.read_at(0, &mut bytes)?;
    bytes.truncate(got);
    Ok(format::load(&bytes))
}

impl<F: DiskFile> Journal<F> {
    /// Begins a journal in a file that has nothing of worth. Durable when it returns, but for the file's name.
    ///
    /// # Errors
    /// What writing and syncing said.
    pub fn create(file: F, header: Header) -> io::Result<Self> {
        let mut bytes = format::encode_slot(&header, 1);
        bytes.extend(format::encode_slot(&header, 2));
        // Before anything new, and even where it has no length: that may be what somebody who was killed had no time to sync. A torn
        // magic in an old one's length would be somebody else's file.
        file.set_len(0)?;
        file.sync_data()?;
        // The magic first, alone: a journal whose first write is torn can then be told from somebody else's file.
        file.write_at(0, &format::MAGIC)?;
        file.sync_data()?;
        file.write_at(0, &bytes)?;
        file.sync_data()?;
        Ok(Self { file, header, generation: 2, log_end: LOG as u64, unsynced: false })
    }

    /// Goes on with a journal that was read from `file`.
    pub fn adopt(file: F, loaded: &Loaded) -> Self {
        let header = loaded.header.clone();
        Self { file, header, generation: loaded.generation, log_end: loaded.log_end, unsynced: true }
    }

    /// The file, with its lock.
    pub fn into_file(self) -> F {
        self.file
    }

    /// Whether an abort of the job waits for its end.
    pub fn is_to_be_aborted(&self) -> bool {
        // Where that cannot be found out nobody is told less than before.
        self.file.is_marked_for_abort().unwrap_or(false)
    }

    /// The header as it is on the disk.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Replaces the header. Both slots are written, one after the other: damage to one of them can then never bring an
    /// older state back, a broken job to life, say.
    ///
    /// # Errors
    /// What writing and syncing said; the state is the old one or the new one.
    pub fn update(&mut self, change: impl FnOnce(&mut Header)) -> io::Result<()> {
        let mut header = self.header.clone();
        change(&mut header);
        if self.unsynced {
            // The other slot is about to be written: a power cut must not find both torn.
            self.file.sync_data()?;
            self.unsynced = false;
        }
        for _ in 0..2 {
            let generation = self.write_older_slot(&header)?;
            self.file.sync_data()?;
            self.generation = generation;
        }
        self.header = header;
        Ok(())
    }

    /// Changes the header, and writes it without a sync: for what is only of use while this process lives, to which it counts
    /// even where it cannot be written.
    ///
    /// # Errors
    /// What writing said.
    pub fn note(&mut self, change: impl FnOnce(&mut Header)) -> io::Result<()> {
        change(&mut self.header);
        self.unsynced = true;
        self.generation = self.write_older_slot(&self.header)?;
        Ok(())
    }

    /// Writes a header of the next generation, which it gives, over the older of the two.
    fn write_older_slot(&self, header: &Header) -> io::Result<u64> {
        let generation = self.generation + 1;
        let slot = format::encode_slot(header, generation);
        // Generation n is in slot (n + 1) % 2, as `create` laid them: the newer slot is never the one overwritten.
        self.file.write_at((generation + 1) % 2 * format::SLOT as u64, &slot)?;
        Ok(generation)
    }

    /// Changes the header that the next update writes, and writes nothing now.
    pub fn change_later(&mut self, change: impl FnOnce(&mut Header)) {
        change(&mut self.header);
    }

    /// Appends claims. Not synced: a claim that is lost is work done twice, never data lost.
    ///
    /// The caller has made the claimed ranges durable before.
    ///
    /// # Errors
    /// What writing said; part of the claims may be there.
    pub fn append(&mut self, claims: &[ByteRange]) -> io::Result<()> {
        let bytes: Vec<u8> = claims.iter().flat_map(|&r| format::encode_claim(&self.header, r)).collect();
        if self.log_end + bytes.len() as u64 > MAX_BYTES {
            return Ok(()); // A journal that lags is harmless.
        }
        self.file.write_at(self.log_end, &bytes)?;
        self.log_end += bytes.len() as u64;
        Ok(())
    }

    /// Makes the appended claims durable.
    ///
    /// # Errors
    /// What syncing said.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Drops all claims, before a new epoch's first: an old log's tail must not follow a new one's.
    ///
    /// # Errors
    /// What truncating said.
    pub fn clear_log(&mut self) -> io::Result<()> {
        self.file.set_len(LOG as u64)?;
        self.log_end = LOG as u64;
        Ok(())
    }
}
