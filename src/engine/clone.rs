//! One planned piece, cloned: retried where a signal interrupted it, cut where the kernel refused it, copied where nothing
//! else helps.

use std::io;
use std::time::{Duration, Instant};

use crate::disk::{CallCost, DiskFile};
use crate::error::{Error, Kind, Result};
use crate::range::{CloneRange, Geometry};

/// How often one piece is tried again after EINTR before the job gives up.
const RETRIES: u32 = 100;

/// Bytes that a copy moves at a time.
const COPY: usize = 256 << 10;

/// What the calls so far have cost, in constant space.
#[derive(Clone, Debug)]
pub struct Tally {
    /// FICLONERANGE calls.
    pub calls: u64,
    /// The longest.
    pub longest: Duration,
    /// Bytes copied because the kernel refused to share them.
    pub copied: u64,
    /// Calls by their duration: [`Tally::class`] says which.
    classes: [u64; 256],
}

impl Default for Tally {
    fn default() -> Self {
        Self { calls: 0, longest: Duration::ZERO, copied: 0, classes: [0; 256] }
    }
}

impl Tally {
    fn add(&mut self, wall: Duration) {
        self.calls += 1;
        self.longest = self.longest.max(wall);
        self.classes[Self::class(wall)] += 1;
    }

    /// Eight classes to an octave of microseconds: a class is at most an eighth wide.
    fn class(wall: Duration) -> usize {
        let us = u64::try_from(wall.as_micros()).unwrap_or(u64::MAX).max(8);
        let octave = us.ilog2();
        let eighth = us >> (octave - 3) & 7;
        (((octave - 3) * 8) as usize + eighth as usize).min(255)
    }

    /// The duration that 99 % of the calls stayed within, rounded up by at most an eighth.
    pub fn p99(&self) -> Duration {
        let mut left = self.calls - self.calls * 99 / 100;
        for (class, &count) in self.classes.iter().enumerate().rev() {
            if count > 0 && count >= left {
                let (octave, eighth) = (class as u32 / 8, class as u64 % 8);
                return Duration::from_micros((8 + eighth + 1) << octave).min(self.longest);
            }
            left = left.saturating_sub(count);
        }
        self.longest
    }
}

/// Image and partial file, and how they are cloned.
pub struct Cloner<'a, F> {
    /// The source.
    pub image: &'a F,
    /// The target.
    pub partial: &'a F,
    /// Size and block.
    pub geometry: Geometry,
    /// Pieces are not cut below this before they are copied, in bytes.
    pub floor: u64,
    /// Whether a range may be copied where it cannot be shared: not where a single call makes the instant.
    pub may_copy: bool,
}

impl<F: DiskFile> Cloner<'_, F> {
    /// Clones `range`; the cost of all calls together.
    ///
    /// # Errors
    /// Broken on EIO (KERNEL.md: after it, calls succeed on zeros) and where the image was resized; failed on anything else,
    /// a full file system included. Part of the range may be cloned.
    pub fn clone(&self, range: CloneRange, tally: &mut Tally) -> Result<CallCost> {
        let mut total = CallCost::default();
        let mut todo = vec![range];
        let mut retries = 0;
        while let Some(piece) = todo.pop() {
            let began = Instant::now();
            let error = match self.partial.clone_range(self.image, piece) {
                Ok(cost) => {
                    tally.add(cost.wall);
                    total.cpu += cost.cpu;
                    total.wall += cost.wall;
                    continue;
                }
                Err(error) => error,
            };
            tally.add(began.elapsed());
            match error.raw_os_error() {
                Some(libc::EINTR) if retries < RETRIES => {
                    retries += 1;
                    todo.push(piece);
                }
                // Until November 2024 XFS said EINVAL where it meant ENOSPC or EINTR (KERNEL.md).
                Some(libc::ENOSPC | libc::EINVAL | libc::EOPNOTSUPP) if self.may_copy => {
                    self.same_size()?;
                    self.cut_or_copy(piece, error, &mut todo, tally)?;
                }
                _ => return Err(fatal(piece, error)),
            }
        }
        Ok(total)
    }

    fn cut_or_copy(
        &self,
        piece: CloneRange,
        why: io::Error,
        todo: &mut Vec<CloneRange>,
        tally: &mut Tally,
    ) -> Result<()> {
        let halves = piece.halves(self.geometry.block).filter(|_| piece.bytes().len() > self.floor);
        if let Some((low, high)) = halves {
            todo.extend([high, low]);
            return Ok(());
        }
        self.copy(piece).map_err(|copying| match copying.raw_os_error() {
            Some(libc::EIO) => fatal(piece, copying),
            _ => no_space(piece, &why, copying),
        })?;
        tally.copied += piece.bytes().len();
        Ok(())
    }

    fn copy(&self, piece: CloneRange) -> io::Result<()> {
        let mut buffer = vec![0; COPY];
        let mut at = piece.bytes().start();
        while at < piece.bytes().end() {
            let want = (piece.bytes().end() - at).min(COPY as u64) as usize;
            let got = self.image.read_at(at, &mut buffer[..want])?;
            if got == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            self.partial.write_at(at, &buffer[..got])?;
            at += got as u64;
        }
        Ok(())
    }

    fn same_size(&self) -> Result<()> {
        let hint = "check the kernel's log, then run the same command again";
        let cannot = |e| Error::io(Kind::Failed, "cannot look at the image", hint, e);
        let now = self.image.stat().map_err(cannot)?.size;
        if now == self.geometry.size {
            return Ok(());
        }
        let what = format!("the image was resized during the job, from {} to {now} bytes", self.geometry.size);
        Err(Error::new(Kind::Broken, what, "run the same command again: it takes a new point in time"))
    }
}

fn fatal(piece: CloneRange, error: io::Error) -> Error {
    let what = format!("cannot clone {piece} of the image");
    match error.raw_os_error() {
        Some(libc::EIO) => {
            let hint = "the image's device lost data: check the kernel's log before you rely on the image";
            Error::io(Kind::Broken, what, hint, error)
        }
        Some(libc::ENOSPC | libc::EDQUOT) => no_space(piece, &error, io::Error::from_raw_os_error(libc::ENOSPC)),
        _ => Error::io(Kind::Failed, what, "mend the cause, then run the same command again", error),
    }
}

fn no_space(piece: CloneRange, why: &io::Error, copying: io::Error) -> Error {
    let what = format!("cannot clone {piece} of the image ({why}), nor copy it");
    let hint = match copying.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            "free space, then run the same command again; 'rclone-img abort' gives back what the job holds"
        }
        _ => "mend the cause, then run the same command again; 'rclone-img abort' gives back what the job holds",
    };
    Error::io(Kind::Failed, what, hint, copying)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p99_is_within_an_eighth_and_never_above_the_longest() {
        let mut tally = Tally::default();
        for us in 1..=1000 {
            tally.add(Duration::from_micros(us));
        }
        let p99 = tally.p99().as_micros();
        assert!((990..=1000).contains(&p99), "{p99}");
        tally.add(Duration::from_secs(5));
        assert!(tally.p99() < Duration::from_millis(2));
        assert_eq!(tally.longest, Duration::from_secs(5));
        assert_eq!(Tally::default().p99(), Duration::ZERO);
    }
}
