//! An image, opened as the guest's disk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::bits::Bits;
use crate::log::Subject;
use crate::pages::{PAGE, Pages};
use crate::sector::{self, Content, SECTOR};

/// The bytes that the first pass reads at once.
const PASS: u64 = 1 << 20;

/// An image, opened through the page cache, past it, or both ways: only as its writers need it, because snapshot programs
/// look at who has the image open and how.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    subject: Subject,
    cached: Option<File>,
    direct: Option<File>,
}

impl Image {
    /// Opens an image for reading and writing, in at least one way.
    ///
    /// # Errors
    /// What opening says; a size of partial sectors, or of partial pages where the page cache is not used.
    pub fn open(path: &Path, cached: bool, direct: bool) -> Result<Self> {
        let open = |flags| {
            let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
            file.with_context(|| format!("open {}", path.display()))
        };
        let cached = if cached { Some(open(0)?) } else { None };
        let direct = if direct { Some(open(libc::O_DIRECT).context("with O_DIRECT")?) } else { None };
        let any = cached.as_ref().or(direct.as_ref()).context("an image opened in no way")?;
        let metadata = any.metadata().with_context(|| format!("look at {}", path.display()))?;
        let unit = if direct.is_some() { PAGE as u64 } else { SECTOR as u64 };
        let size = metadata.len();
        ensure!(size > 0 && size.is_multiple_of(unit), "{}: {size} bytes are not pieces of {unit}", path.display());
        let subject = Subject { size, device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { path: path.to_owned(), subject, cached, direct })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the log keeps of it.
    pub fn subject(&self) -> Subject {
        self.subject
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.subject.size
    }

    /// Another handle to the image as it was opened, through the page cache or past it.
    ///
    /// # Errors
    /// Where it was not opened so, or what dup(2) says.
    pub fn handle(&self, direct: bool) -> Result<File> {
        let file = if direct { &self.direct } else { &self.cached };
        let file = file.as_ref().with_context(|| format!("{} was opened in another way", self.path.display()))?;
        file.try_clone().with_context(|| format!("duplicate {}", self.path.display()))
    }

    /// A handle to the image in whatever way it was opened.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn any_handle(&self) -> Result<File> {
        self.handle(self.direct.is_some())
    }

    /// The first pass: reads every sector, makes those with a stamp of an earlier log stamps of generation 0, and answers
    /// which are stamped. The others are zeros.
    ///
    /// # Errors
    /// What reading and writing say; a sector that is neither a stamp nor zeros, because what is there afterwards could not
    /// be told from a torn write.
    pub fn first_pass(&self) -> Result<Bits> {
        let file = self.any_handle()?;
        let mut stamped = Bits::new(self.size() / SECTOR as u64);
        let mut pages = Pages::new(PASS as usize);
        for at in (0..self.size()).step_by(PASS as usize) {
            let length = PASS.min(self.size() - at) as usize;
            let bytes = &mut pages.bytes_mut()[..length];
            file.read_exact_at(bytes, at).with_context(|| format!("read {} at {at}", self.path.display()))?;
            for (index, block) in bytes.chunks_mut(PAGE).enumerate() {
                let offset = at + (index * PAGE) as u64;
                if self.renew(block, offset, &mut stamped)? {
                    let written = file.write_all_at(block, offset);
                    written.with_context(|| format!("write {} at {offset}", self.path.display()))?;
                }
            }
        }
        file.sync_all().with_context(|| format!("sync {}", self.path.display()))?;
        Ok(stamped)
    }

    /// Notes which sectors of a block are stamped and takes old stamps to generation 0; whether there were any.
    fn renew(&self, block: &mut [u8], offset: u64, stamped: &mut Bits) -> Result<bool> {
        let mut changed = false;
        for (number, sector) in (offset / SECTOR as u64..).zip(block.chunks_mut(SECTOR)) {
            match sector::read(sector) {
                Content::Zeros => {}
                Content::Stamped(stamp) if stamp.sector == number => {
                    stamped.set(number);
                    if stamp.generation > 0 {
                        sector::put_all(sector, number, 0, 0);
                        changed = true;
                    }
                }
                _ => {
                    bail!("{}: sector {number} is neither zeros nor a stamp; `fill` makes images", self.path.display())
                }
            }
        }
        Ok(changed)
    }
}
