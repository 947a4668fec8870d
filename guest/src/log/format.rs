//! The log's layout. Everything is a 64-bit word in the machine's byte order, for the log is read where it is written.
//!
//! ```text
//! page 0     header: magic, version, flags, images, records (byte offset), then per image 4 words:
//!            size in bytes, device, inode, base (byte offset)
//! base       per image: a bit a sector, set where it bore a stamp of generation 0 before the first record, not set
//!            where it was zeros
//! records    6 words each; the record of generation g is at records + 48 g, so the first is never used
//! ```

/// The header's bytes.
pub const HEADER: u64 = 4096;
/// "refguest", little-endian.
pub const MAGIC: u64 = u64::from_le_bytes(*b"refguest");
/// The version of this layout.
pub const VERSION: u64 = 1;
/// Flag: each write was submitted after the one before it had ended, whatever image it went to.
pub const DEPENDENT: u64 = 1;
/// The words of the header before the images'.
pub const HEAD_WORDS: usize = 5;
/// The words of an image in the header.
pub const IMAGE_WORDS: usize = 4;
/// The words of a record.
pub const RECORD_WORDS: usize = 6;
/// The bytes of a record.
pub const RECORD: u64 = 8 * RECORD_WORDS as u64;
/// How many images fit into the header.
pub const MOST_IMAGES: usize = (HEADER as usize / 8 - HEAD_WORDS) / IMAGE_WORDS;

/// An image as the log knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subject {
    /// Its size in bytes, a multiple of 512.
    pub size: u64,
    /// Its device's number.
    pub device: u64,
    /// Its inode's number.
    pub inode: u64,
}

/// What an operation was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Nothing: the number was taken and the writer died.
    Nothing = 0,
    /// A write of stamps.
    Write = 1,
    /// A hole punched.
    Punch = 2,
    /// A flush of the image.
    Flush = 3,
}

/// How far it got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// It may have been submitted.
    Begun = 1,
    /// It has ended well.
    Done = 2,
    /// It has ended with an error, or only a part of it was done.
    Failed = 3,
}

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it was.
    pub kind: Kind,
    /// How far it got.
    pub state: State,
    /// Which image, from 0.
    pub image: u16,
    /// Which thread.
    pub writer: u32,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes; 0 for a flush.
    pub length: u64,
    /// A time before it was submitted, ns of the clock.
    pub start: u64,
    /// A time after it had ended, ns of the clock; without meaning while it has not.
    pub end: u64,
}

impl Record {
    /// What stands where no operation was.
    pub const NOTHING: Self = Self {
        kind: Kind::Nothing,
        state: State::Failed,
        image: 0,
        writer: 0,
        offset: 0,
        length: 0,
        start: 0,
        end: u64::MAX,
    };

    /// Whether it changes what is in the image.
    pub fn changes(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::Punch)
    }

    /// When the operation's effect was certainly there: never, for one that has not ended or has failed.
    pub fn settled(&self) -> u64 {
        if self.state == State::Done { self.end } else { u64::MAX }
    }

    /// The first word: written last at the beginning and at the end, and read first.
    pub fn head(&self) -> u64 {
        self.state as u64 | (self.kind as u64) << 8 | u64::from(self.image) << 16 | u64::from(self.writer) << 32
    }

    /// From the words, of which `generation` is one; `None` where no operation was.
    pub fn from_words(words: [u64; RECORD_WORDS], generation: u64) -> Option<Self> {
        let [head, number, offset, length, start, end] = words;
        let state = match head & 0xff {
            1 => State::Begun,
            2 => State::Done,
            3 => State::Failed,
            _ => return None,
        };
        let kind = match head >> 8 & 0xff {
            1 => Kind::Write,
            2 => Kind::Punch,
            3 => Kind::Flush,
            _ => return None,
        };
        let record =
            Self { kind, state, image: (head >> 16) as u16, writer: (head >> 32) as u32, offset, length, start, end };
        (number == generation).then_some(record)
    }
}

/// Where things are in a log of these images.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The images.
    pub subjects: Vec<Subject>,
    /// Where each image's base begins, in bytes.
    pub bases: Vec<u64>,
    /// Where the records begin, in bytes.
    pub records: u64,
}

impl Layout {
    /// For these images.
    pub fn new(subjects: &[Subject]) -> Self {
        let mut at = HEADER;
        let mut bases = Vec::new();
        for subject in subjects {
            bases.push(at);
            at += (subject.size / 512).div_ceil(8).next_multiple_of(HEADER);
        }
        Self { subjects: subjects.to_vec(), bases, records: at }
    }

    /// The header's words.
    pub fn header(&self, dependent: bool) -> Vec<u64> {
        let flags = if dependent { DEPENDENT } else { 0 };
        let mut words = vec![MAGIC, VERSION, flags, self.subjects.len() as u64, self.records];
        for (subject, base) in self.subjects.iter().zip(&self.bases) {
            words.extend([subject.size, subject.device, subject.inode, *base]);
        }
        words
    }

    /// From the header's words, with whether it is of dependent writes; `None` where they are no header of this version.
    pub fn from_header(words: &[u64]) -> Option<(Self, bool)> {
        let [MAGIC, VERSION, flags, count, _, images @ ..] = words else { return None };
        let count = usize::try_from(*count).ok().filter(|count| (1..=MOST_IMAGES).contains(count))?;
        let subjects: Vec<Subject> = images
            .chunks_exact(IMAGE_WORDS)
            .take(count)
            .map(|words| Subject { size: words[0], device: words[1], inode: words[2] })
            .collect();
        let dependent = flags & DEPENDENT != 0;
        let layout = Self::new(&subjects);
        words.starts_with(&layout.header(dependent)).then_some((layout, dependent))
    }

    /// Where the record of a generation is, in bytes.
    pub fn record(&self, generation: u64) -> u64 {
        self.records + generation * RECORD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_back_and_damage_is_seen() {
        let subject = |size| Subject { size, device: 7, inode: 8 };
        let layout = Layout::new(&[subject(64 << 20), subject(512)]);
        assert_eq!(layout.bases, [4096, 4096 + 16384]);
        assert_eq!(layout.records, 4096 + 16384 + 4096);
        let mut words = layout.header(true);
        words.resize(HEADER as usize / 8, 0);
        assert_eq!(Layout::from_header(&words), Some((layout, true)));
        for index in [0, 1, 3, 4, 8] {
            let mut words = words.clone();
            words[index] ^= 1 << 40;
            assert_eq!(Layout::from_header(&words), None, "word {index}");
        }
    }

    #[test]
    fn records_are_read_back_and_those_of_another_place_are_none() {
        let record = Record {
            kind: Kind::Punch,
            state: State::Done,
            image: 3,
            writer: 0x1234_5678,
            offset: 1,
            length: 2,
            start: 3,
            end: 4,
        };
        let words = [record.head(), 9, 1, 2, 3, 4];
        assert_eq!(Record::from_words(words, 9), Some(record));
        assert_eq!(Record::from_words(words, 10), None);
        assert_eq!(Record::from_words([0; RECORD_WORDS], 0), None);
        assert_eq!(record.settled(), 4);
        assert_eq!(Record { state: State::Failed, ..record }.settled(), u64::MAX);
        assert_eq!(Record { state: State::Begun, ..record }.settled(), u64::MAX);
    }
}
