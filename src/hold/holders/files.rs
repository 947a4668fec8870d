//! The files whose holders are looked for, by what the kernel calls them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Files by device and inode, as stat(2) tells them; each has a number, which counts from 0.
#[derive(Clone, Debug, Default)]
pub struct Files {
    numbers: BTreeMap<(u64, u64), usize>,
    inodes: BTreeSet<u64>,
}

impl Files {
    /// These files, of which none is there twice: device and inode.
    pub fn new(files: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let numbers: BTreeMap<_, _> = files.into_iter().enumerate().map(|(number, file)| (file, number)).collect();
        let inodes = numbers.keys().map(|(_, ino)| *ino).collect();
        Self { numbers, inodes }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The number of a file.
    pub fn find(&self, dev: u64, ino: u64) -> Option<usize> {
        self.numbers.get(&(dev, ino)).copied()
    }

    /// Whether one of them has this inode number.
    pub fn has_inode(&self, ino: u64) -> bool {
        self.inodes.contains(&ino)
    }

    /// Which of them the path leads to; never waits for it, for nothing is opened.
    ///
    /// # Errors
    /// What stat(2) says.
    pub fn at(&self, path: &Path) -> io::Result<Option<usize>> {
        let found = fs::metadata(path)?;
        Ok(self.find(found.dev(), found.ino()))
    }
}
