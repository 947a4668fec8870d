//! What is to be done, and by which names.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::disk::{DiskFile, Stat};
use crate::record::ImageId;

/// Suffix of the image while it is rolled back.
pub const ASIDE: &str = ".restoring";
/// Suffix of the intent.
pub const INTENT: &str = ".restore";
/// Suffix of the intent when the image is rolled back.
pub const DONE: &str = ".restored";
/// Suffix of what the image is rolled back to: the snapshot by another name, so that whoever removes it takes nothing away from a restore that
/// was interrupted.
pub const SOURCE: &str = ".restore-source";

/// Whether a name is that of an image or of a snapshot meanwhile: whoever opens the one keeps the restore waiting, and the other has another name.
pub fn is_meanwhile(name: &OsStr) -> bool {
    [ASIDE, SOURCE].iter().any(|suffix| name.as_bytes().ends_with(suffix.as_bytes()))
}

/// The version of the format that this program writes and the only one that it reads.
pub const VERSION: u32 = 1;

/// The longest intent that is read, in bytes.
const INTENT_MAX: usize = 64 << 10;

/// Where [`Intent::begun`] stands in its text: one byte, which a crash leaves as it was or as it is to be.
const BEGUN_AT: u64 = 9;

/// What an image becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Toward {
    /// What the snapshot is.
    Snapshot,
    /// What it was, as `--keep-current` has kept it: the restore is taken back.
    Kept,
}

/// The names of a restore, all in one directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    /// The image.
    pub image: OsString,
    pub(super) aside: OsString,
    pub(super) intent: OsString,
    pub(super) done: OsString,
    pub(super) source: OsString,
}

impl Names {
    /// Of an image's name, a single component.
    pub fn new(image: &OsStr) -> Self {
        let with = |suffix: &str| [image, OsStr::new(suffix)].into_iter().collect::<OsString>();
        let [aside, intent, done, source] = [ASIDE, INTENT, DONE, SOURCE].map(with);
        Self { image: image.to_owned(), aside, intent, done, source }
    }

    /// Of an intent's name, in either state.
    pub fn of_intent(name: &OsStr) -> Option<Self> {
        let image = [INTENT, DONE].iter().find_map(|it| name.as_bytes().strip_suffix(it.as_bytes()))?;
        Some(Self::new(OsStr::from_bytes(image))).filter(|it| !it.image.is_empty())
    }

    /// The file that says what is to be done.
    pub fn intent(&self) -> &OsStr {
        &self.intent
    }

    /// What the image is called meanwhile.
    pub fn aside(&self) -> &OsStr {
        &self.aside
    }

    /// What the snapshot is called meanwhile, too.
    pub fn source(&self) -> &OsStr {
        &self.source
    }

    /// All but the image's.
    pub fn taken(&self) -> [&OsStr; 4] {
        [&self.aside, &self.intent, &self.done, &self.source]
    }
}

/// What [`Intent::source_was`] is of a file.
pub fn source_was(source: &Stat) -> (u64, String) {
    (source.size, source.mtime_ns.to_string())
}

/// What is to be done; JSON, so that a person can read it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// 1 from when on the image may be a mixture, 2 when it is rolled back and the intent cannot be given its other name; 3 and 4 the same of one that
    /// is taken back. It stands first, as one byte, which a crash leaves as it was or as it is to be.
    pub begun: u8,
    /// Format version.
    pub v: u32,
    /// Which file the image is.
    pub image: ImageId,
    /// Which file it is rolled back to: the snapshot, or a clone of it where it cannot have a second name.
    pub source: ImageId,
    /// The job that made the snapshot; nothing of a clone, and of a file that is no snapshot.
    pub job: Option<uuid::Uuid>,
    /// Its size, and its modification time in nanoseconds since 1970; text, because JSON numbers end at 2^53 for many readers. It tells of what
    /// has no job whether it was changed; none of an intent that was written before this was.
    #[serde(default)]
    pub source_was: Option<(u64, String)>,
    /// The path of the snapshot, as text and all of its bytes.
    pub snapshot: String,
    /// See [`Intent::snapshot`].
    pub snapshot_bytes: Vec<u8>,
    /// The path of what the image was before, if that was kept.
    pub kept: Option<Vec<u8>>,
    /// Which file that is, and the job that made it: another snapshot of the image may have its path later.
    #[serde(default)]
    pub kept_is: Option<(ImageId, uuid::Uuid)>,
    /// When it began.
    pub began: Timestamp,
}

impl Intent {
    /// Whether a file that no job tells of is what it was when the restore began.
    pub fn is_unchanged(&self, source: &Stat) -> bool {
        self.source_was.as_ref().is_none_or(|was| *was == source_was(source))
    }

    /// The one that a file has, if it has one.
    ///
    /// # Errors
    /// What pread(2) says.
    pub fn read(file: &impl DiskFile) -> io::Result<Option<Self>> {
        let mut bytes = vec![0; INTENT_MAX];
        let read = file.read_at(0, &mut bytes)?;
        Ok(serde_json::from_slice(&bytes[..read]).ok().filter(|it: &Self| it.v == VERSION))
    }

    pub(super) fn write(&self, file: &impl DiskFile) -> io::Result<()> {
        file.write_at(0, &serde_json::to_vec(self)?)?;
        file.sync_all()
    }

    /// The image may be a mixture from now on.
    pub(super) fn begin(file: &impl DiskFile, toward: Toward) -> io::Result<()> {
        file.write_at(BEGUN_AT, if toward == Toward::Kept { b"3" } else { b"1" })?;
        file.sync_all()
    }

    /// The image is no mixture any more.
    pub(super) fn end(file: &impl DiskFile, toward: Toward) -> io::Result<()> {
        file.write_at(BEGUN_AT, if toward == Toward::Kept { b"4" } else { b"2" })?;
        file.sync_all()
    }

    /// Whether the image may be a mixture.
    pub fn has_begun(&self) -> bool {
        self.begun != 0
    }

    /// Whether the image is rolled back.
    pub fn is_done(&self) -> bool {
        matches!(self.begun, 2 | 4)
    }

    /// What the image becomes, or has become: whoever was the last to work on it had that in mind.
    pub fn toward(&self) -> Toward {
        if matches!(self.begun, 3 | 4) { Toward::Kept } else { Toward::Snapshot }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_it_has_begun_is_one_byte_of_the_text() {
        let id = ImageId::default();
        let (snapshot, snapshot_bytes, began) = ("a".into(), b"a".to_vec(), Timestamp::UNIX_EPOCH);
        let intent = Intent {
            begun: 0,
            v: VERSION,
            image: id,
            source: id,
            job: None,
            source_was: None,
            snapshot,
            snapshot_bytes,
            kept: None,
            kept_is: None,
            began,
        };
        let mut text = serde_json::to_vec(&intent).expect("text");
        let at = usize::try_from(BEGUN_AT).expect("small");
        assert_eq!(text[at], b'0');
        text[at] = b'1';
        let begun: Intent = serde_json::from_slice(&text).expect("an intent");
        assert_eq!((begun.has_begun(), intent.has_begun()), (true, false));
        assert_eq!(begun, Intent { begun: 1, ..intent });
    }

    #[test]
    fn an_intents_name_tells_the_images() {
        let names = Names::new(OsStr::new("a.img"));
        assert_eq!(Names::of_intent(names.intent()), Some(names.clone()));
        assert_eq!(Names::of_intent(OsStr::new("a.img.restored")), Some(names));
        for name in ["a.img", ".restore", "a.img.restoring", "a.img.restore-source"] {
            assert_eq!(Names::of_intent(OsStr::new(name)), None, "{name}");
        }
    }
}
